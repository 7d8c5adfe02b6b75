"""Every problem is answered a second time, in other words (Co-Reward, Self-Harmony)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from lightning_serl.answers import strip_thinking
from lightning_serl.datamodules.rounds.context import Context
from lightning_serl.datamodules.sources.base import InstructionSource
from lightning_serl.datamodules.sources.follow_ups import FollowUps
from lightning_serl.errors import check_choice, check_range
from lightning_serl.prompts.chatter import tidy
from lightning_serl.prompts.encoding import fill
from lightning_serl.types import Completion, Group, Instruction, Link, Verdict

PROMPT = """\
Write the following problem in other words. Keep every number as it is written, every name, unit and condition, and \
ask for the same thing. Do not solve it. Write the new wording and nothing else.

Problem: {problem}

In other words:"""
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


class Paraphrase(FollowUps):
    """Puts each problem to the policy a second time, in a wording that a policy wrote.

    The paraphrase is linked to its problem as ``("view", None)``, which :class:`~lightning_serl.rewards.CrossVote`
    (Co-Reward, arXiv 2508.00410) and :class:`~lightning_serl.rewards.HarmonicVote` (Self-Harmony, 2511.01191) read.
    Self-Harmony's policy rephrases for itself (``who="policy"``). Co-Reward has its problems rephrased beforehand by a
    model of 32B weights; here the frozen reference does it.

    A wording is used if it ended by itself, differs from the problem, has the same numbers, and is neither three times
    as long nor as short. If no wording of ``tries`` is, the problem is put again as it is: its second view then only
    holds other draws. ``meta["view"]`` is ``paraphrase`` or ``repeat``.

    Args:
        base: See :class:`FollowUps`.
        who: Who rephrases, ``reference`` or ``policy``.
        tries: Wordings asked for; the first that can be used is.
        train: Whether the responses to the paraphrase are trained on too.

    Raises:
        InputError: for another ``who``, or ``tries`` below 1.
    """

    def __init__(
        self,
        base: str | InstructionSource = "self",
        who: Literal["reference", "policy"] = "reference",
        tries: int = 2,
        train: bool = True,
    ) -> None:
        super().__init__(base)
        check_choice("data.source.who of Paraphrase", who, ("reference", "policy"))
        check_range("data.source.tries of Paraphrase", tries, at_least=1)
        self.who: Literal["reference", "policy"] = who
        self.tries, self.train = tries, train
        self.needs = frozenset({"reference"} if who == "reference" else ())

    def follow(self, groups: Sequence[Group], verdicts: Sequence[Verdict], ctx: Context) -> list[Instruction]:
        """One view of each problem that is no follow-up itself; one call of the engine for all."""
        problems = [g.instruction for g in groups if g.instruction.role == "solve" and g.instruction.link is None]
        asked = [
            Instruction(fill(PROMPT, problem=p.prompt), f"{p.uid}.rephrase", role="rephrase", train=False)
            for p in problems
        ]
        written = ctx.generate(asked, self.tries, who=self.who)
        return [self._view(p, group.completions) for p, group in zip(problems, written, strict=True)]

    def _view(self, problem: Instruction, wordings: Sequence[Completion]) -> Instruction:
        found = (wording_of(one) for one in wordings if one.finished)
        text = next((one for one in found if keeps_meaning(problem.prompt, one)), None)
        meta = {**problem.meta, "view": "repeat" if text is None else "paraphrase"}
        prompt = problem.prompt if text is None else text
        return replace(problem, prompt=prompt, uid="", link=Link("view", problem.uid), train=self.train, meta=meta)


def wording_of(completion: Completion) -> str:
    """The problem that a completion consists of, without thinking, announcements and remarks."""
    return tidy(strip_thinking(completion.text)).text


def keeps_meaning(problem: str, wording: str) -> bool:
    """Whether a wording is another one, with the same numbers and of a similar length; other signs need a reader."""
    words, now = problem.split(), wording.split()
    alike = len(words) <= 3 * len(now) <= 9 * len(words)
    return words != now and alike and set(_NUMBER.findall(problem)) == set(_NUMBER.findall(wording))
