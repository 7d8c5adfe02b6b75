"""The policy chooses the most plausible of the answers, and its choice is the label (SR-TTRL)."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import torch

from lightning_serl.answers import AnswerGrader, resolve_grader
from lightning_serl.errors import InputError, check_choice, check_range
from lightning_serl.rewards.base import facts_of, fill_answers, grader_of
from lightning_serl.rewards.judging import CHOICE_PROMPT, fence_of, last_line, to_judge
from lightning_serl.types import Group, Instruction, Verdict

_CHOICE = re.compile(r"[\s*_`\"'#>-]*choice[\s*_`]*[:=][\s*_`\"'(\[]*(\d{1,3})[\s*_`\"'.)\]]*", re.IGNORECASE)
_SHOWN = 2000  # characters of each solution


class PlausibleVote:
    """Scores 1 for the answer that a policy finds most plausible among the answers of the group, 0 for all others.

    SR-TTRL (ICML 2026, "Beyond Majority Voting"): responses are grouped by answer, one of each class is a candidate,
    and the policy's choice among them is the label, so that a right minority can win. The shortest response stands for
    its class. Where the paper has each candidate summarised, it is shown as it is, cut in the middle if long.

    Half of the votes see the candidates in one order and half in the reverse one, since judges prefer places. Only
    the last line of a judgement is read, and candidates stand between fences that they cannot contain. At a tie the
    larger class wins, then the smaller answer. Judgements without a readable choice are counted in
    ``info["abstained"]``; if no choice can be read, the majority is the label.

    Args:
        grader: As in :class:`~lightning_serl.rewards.MajorityVote`; by default that of the run.
        votes: Judgements of each group with several answers; an even number.
        most: Candidates shown; the largest classes.
        who: Who chooses, ``policy`` as in the paper, or ``reference``.
        max_tokens: Most tokens of a judgement.

    Raises:
        InputError: for an option out of range, and on a call outside a run.
    """

    def __init__(
        self,
        grader: str | AnswerGrader | None = None,
        votes: int = 2,
        most: int = 4,
        who: Literal["policy", "reference"] = "policy",
        max_tokens: int = 512,
    ) -> None:
        check_range("votes of the plausible vote", votes, at_least=2)
        if votes % 2:
            raise InputError(f"votes of the plausible vote must be even, for two orders of candidates, got {votes}")
        check_range("most of the plausible vote", most, at_least=2)
        check_range("max_tokens of the plausible vote", max_tokens, at_least=1)
        check_choice("who of the plausible vote", who, ("policy", "reference"))
        self.grader, self.named = resolve_grader("math" if grader is None else grader), grader is not None
        self.votes, self.most, self.who, self.max_tokens = votes, most, who, max_tokens
        self.needs = frozenset({"reference"} if who == "reference" else ())

    def __call__(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:
        """One verdict for each group; one call of the engine for all."""
        if ctx is None:
            raise InputError("PlausibleVote needs a run, whose policy chooses; MajorityVote works without one")
        fill_answers(groups, grader_of(self.grader, self.named, ctx))
        orders = {place: order for place, group in enumerate(groups) if len(order := self._order(group)) > 1}
        asked = {
            (place, way): Instruction(_prompt(group, orders[place][::way]), f"choice{way}-{group.instruction.uid}",
                                      role="judge", train=False)
            for place, group in enumerate(groups) for way in (1, -1) if place in orders
        }  # fmt: skip
        judged = ctx.generate(list(asked.values()), self.votes // 2, who=self.who, max_tokens=self.max_tokens)
        chosen: dict[int, Counter[int]] = {place: Counter() for place in orders}
        for (place, way), judgements in zip(asked, judged, strict=True):
            order = orders[place][::way]
            found = (read_choice(c.text, len(order)) for c in judgements.completions)
            chosen[place].update(order[one - 1] for one in found if one is not None)
        return [self._verdict(group, chosen.get(place)) for place, group in enumerate(groups)]

    def _order(self, group: Group) -> list[int]:
        """The largest classes in an order that depends on the problem alone."""
        sizes = Counter(c for c in group.cluster or () if c >= 0)
        order = sorted(sizes, key=lambda c: (-sizes[c], c))[: self.most]
        word = hashlib.sha256(group.instruction.uid.encode("utf-8", "surrogatepass")).digest()
        random.Random(int.from_bytes(word[:8], "big")).shuffle(order)
        return order

    def _verdict(self, group: Group, chosen: Counter[int] | None) -> Verdict:
        answers, classes = group.answers or [], group.cluster or []
        info, sizes = facts_of(classes), Counter(c for c in classes if c >= 0)
        info["abstained"] = 0 if chosen is None else self.votes - chosen.total()
        if not sizes:
            return Verdict(torch.zeros(len(group)), confidence=0.0, info=info)
        winner = max(sizes, key=lambda c: ((chosen or Counter())[c], sizes[c], -c))
        label = min(a for a, c in zip(answers, classes, strict=True) if c == winner and a is not None)
        scores = torch.tensor([float(c == winner) for c in classes])
        return Verdict(scores, label, sizes[winner] / len(group), info=info)


def _prompt(group: Group, order: Sequence[int]) -> str:
    """The question with one solution of each class, in this order."""
    of_class = {
        number: min((text for text, c in zip(group.texts, group.cluster or [], strict=True) if c == number),
                    key=lambda text: (len(text), text))
        for number in order
    }  # fmt: skip
    shown = [to_judge(of_class[number], _SHOWN) for number in order]
    fence = fence_of(*shown)
    candidates = "\n\n".join(f"Solution {k}:\n{fence}\n{text}\n{fence}" for k, text in enumerate(shown, 1))
    return CHOICE_PROMPT.format(fence=fence, task=group.instruction.prompt, candidates=candidates, count=len(shown))


def read_choice(text: str, count: int) -> int | None:
    """The choice in the last line of a judgement, ``None`` if there is none or there is no such candidate."""
    found = _CHOICE.fullmatch(last_line(text))
    return int(found[1]) if found is not None and 1 <= int(found[1]) <= count else None
