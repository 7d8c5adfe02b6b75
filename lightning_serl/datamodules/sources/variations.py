"""Variations of problems that keep the answer (SvS)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from lightning_serl.answers import strip_thinking
from lightning_serl.datamodules.rounds.context import Context
from lightning_serl.datamodules.sources.base import InstructionSource
from lightning_serl.datamodules.sources.follow_ups import FollowUps
from lightning_serl.datamodules.sources.paraphrase import wording_of
from lightning_serl.errors import check_range
from lightning_serl.prompts.encoding import fill
from lightning_serl.types import Group, Instruction, Link, Verdict

PROMPT = """\
A solved problem follows. Write a new problem with the same final answer: another story, other wording, or the \
question put from another side. It must be complete in itself and must not state the answer. Write the new problem and \
nothing else.

Problem: {problem}

Solution: {solution}

New problem:"""
_SHOWN = 4000  # characters of the solution


class Variations(FollowUps):
    """Adds variations of problems of middle difficulty, which inherit the answer.

    SvS (arXiv 2508.14029): for a problem that the policy solves at times, it writes variations after a right response;
    the label of a variation is that of the problem. Variations keep the policy's entropy up where the same problems
    come again. Both are trained: the writing (role ``propose``, linked as ``("variation", index)``) by what
    ``ChildReward`` with ``form="svs"`` pays, 1 if the policy solves between 1/8 and 5/8 of its answers to the
    variation, and the answering (linked to it as ``("problem", index)``) by the inherited label, which the reward of
    role ``solve`` must read, as the default reward does.

    The paper has true labels and writes after every right response, which can make hundreds of groups of one problem;
    here one right response is shown, and ``most`` is compulsory. Where the label is a vote, its answer is
    inherited only if the vote is strong: the share of the majority must lie between ``min_share`` and ``max_share``.
    Variations are not judged by the instruction filters; one that repeats its problem or was cut off is left out.

    Args:
        most: Variations of one problem that are answered, at most. ``data.round.max_derived`` must be no less.
        base: See :class:`FollowUps`.
        low: Least share of right responses to a labelled problem.
        high: Largest such share.
        min_share: Least share of the majority where there is no label.
        max_share: Largest such share.

    Raises:
        InputError: for ``most`` below 1 or a share outside [0, 1].
    """

    roles = ("propose",)
    waves = 2

    def __init__(
        self,
        most: int,
        base: str | InstructionSource = "self",
        low: float = 0.125,
        high: float = 0.5,
        min_share: float = 0.5,
        max_share: float = 0.8,
    ) -> None:
        super().__init__(base)
        check_range("most of Variations", most, at_least=1)
        for name, share in (("low", low), ("high", high), ("min_share", min_share), ("max_share", max_share)):
            check_range(f"{name} of Variations", share, at_least=0, at_most=1)
        self.most = self.follow_ups = most
        self.low, self.high, self.min_share, self.max_share = low, high, min_share, max_share

    def follow(self, groups: Sequence[Group], verdicts: Sequence[Verdict], ctx: Context) -> list[Instruction]:
        """A request for variations of each problem inside the band, or the problems in what was written."""
        out: list[Instruction] = []
        for group, verdict in zip(groups, verdicts, strict=True):
            problem = group.instruction
            if problem.link is not None and problem.link.relation == "variation":
                out += islice(self._problems(group), self.most)
            elif problem.role == "solve" and problem.link is None and self._varied(problem, verdict):
                out.append(_request(group, verdict))
        return out

    def _varied(self, problem: Instruction, verdict: Verdict) -> bool:
        """Whether a problem has a label to inherit, and is neither too easy nor too hard."""
        scores = verdict.scores[verdict.weight > 0]
        if verdict.label is None or not bool((scores > 0).any()):
            return False
        low, high = (self.min_share, self.max_share) if problem.label is None else (self.low, self.high)
        return low - 1e-6 <= verdict.confidence <= high + 1e-6

    def _problems(self, group: Group) -> Iterator[Instruction]:
        asked = group.instruction
        for index, completion in enumerate(group.completions):
            text = wording_of(completion)
            if completion.finished and text and text.split() != str(asked.meta["varies"]).split():
                meta = {name: value for name, value in asked.meta.items() if name != "varies"}
                yield Instruction(text, "", label=asked.label, link=Link("problem", asked.uid, index), meta=meta)


def _request(group: Group, verdict: Verdict) -> Instruction:
    """What asks for variations: the problem with its first right response; the label is carried, never shown."""
    right = next(i for i, (s, w) in enumerate(zip(verdict.scores, verdict.weight, strict=True)) if s > 0 and w > 0)
    problem, solution = group.instruction, strip_thinking(group.texts[right]).strip()[-_SHOWN:]
    kept = {name: problem.meta[name] for name in ("subject", "level", "group") if name in problem.meta}
    return replace(
        problem,
        prompt=fill(PROMPT, problem=problem.prompt, solution=solution),
        uid="",
        role="propose",
        label=verdict.label,
        link=Link("variation", problem.uid, right),
        meta={**kept, "varies": problem.prompt, "origin": "self"},
    )
