"""A reward for answers from which a hidden number of the problem can be recovered (DuPO)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import torch

from lightning_serl.answers import AnswerGrader, resolve_grader
from lightning_serl.errors import InputError, check_range
from lightning_serl.prompts.encoding import fill
from lightning_serl.rewards.base import facts_of, fill_answers, grader_of
from lightning_serl.rewards.verifiable import scores_against
from lightning_serl.types import Group, Instruction, Verdict

_DUAL = "{problem}\n\nThe answer to this problem is {answer}. What is the value of {name}?"
# A number that stands alone: not part of a word, a formula's exponent, a fraction, a date or a decimal.
_NUMBER = re.compile(r"(?<![\w.,/^{\\:-])\d+(?:\.\d+)?(?![\w/^:%]|[.,]\d|-\d)")
_NAMES = "XYZNKM"


class DualReward:
    r"""Scores each response by how often the policy recovers a hidden number of the problem from its answer.

    DuPO (arXiv 2508.14460) for numbers: the problem is split into a known part and an unknown one, :math:`x = (x_k,
    x_u)`; one number of the problem is replaced by a letter, the answer is given, and the policy is asked for the
    letter's value:

    .. math:: r_i = \frac{1}{m} \sum_{j=1}^m 1[\hat x_u^{(j)} = x_u], \qquad \hat x_u \sim \pi(\cdot | x_k, y_i).

    The paper chooses numbers that the answer pins down, and drops problems without one; here any number of the problem
    may be hidden, drawn by the problem's uid, so that many cannot be recovered. Mix it with a vote, as
    ``preset:method-dupo`` does. Equal answers are asked for once. All responses to a problem without a number that
    stands alone get 0 and ``info["hidden"]`` is 0.

    Args:
        grader: As in :class:`~lightning_serl.rewards.MajorityVote`; by default that of the run. It reads the recovered
            numbers too.
        attempts: Dual responses for each distinct answer.

    Raises:
        InputError: for ``attempts`` below 1, and on a call outside a run.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, grader: str | AnswerGrader | None = None, attempts: int = 4) -> None:
        check_range("attempts of the dual reward", attempts, at_least=1)
        self.grader, self.named = resolve_grader("math" if grader is None else grader), grader is not None
        self.attempts = attempts

    def __call__(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:
        """One verdict for each group, without a label; one call of the engine for all."""
        if ctx is None:
            raise InputError("DualReward needs a run, whose policy recovers the hidden numbers")
        grader = grader_of(self.grader, self.named, ctx)
        fill_answers(groups, grader)
        hidden = [hide_number(group.instruction) for group in groups]
        asked = {
            (place, number): Instruction(_dual(found[0], found[2], answer), f"dual{number}-{group.instruction.uid}",
                                         train=False)
            for place, (group, found) in enumerate(zip(groups, hidden, strict=True)) if found is not None
            for number, answer in _representatives(group).items()
        }  # fmt: skip
        duals = ctx.generate(list(asked.values()), self.attempts)
        fill_answers(duals, grader)
        shares: dict[tuple[int, int], float] = {}
        for (place, number), dual in zip(asked, duals, strict=True):
            found = hidden[place]
            shares[place, number] = float(scores_against(dual, found[1] if found else None, grader).mean())
        return [self._verdict(place, group, hidden[place] is not None, shares) for place, group in enumerate(groups)]

    def _verdict(self, place: int, group: Group, hidden: bool, shares: dict[tuple[int, int], float]) -> Verdict:
        classes = group.cluster or []
        scores = torch.tensor([shares.get((place, number), 0.0) for number in classes])
        info = {**facts_of(classes), "hidden": int(hidden)}
        return Verdict(scores, confidence=float(scores.mean()) if len(scores) else 0.0, info=info)


def hide_number(problem: Instruction) -> tuple[str, str, str] | None:
    """The problem's text with one number replaced by a letter, the number, and the letter; ``None`` without one."""
    found = list(_NUMBER.finditer(problem.prompt))
    names = [name for name in _NAMES if not re.search(rf"\b{name}\b", problem.prompt)]
    if not found or not names:
        return None
    word = hashlib.sha256(problem.uid.encode("utf-8", "surrogatepass")).digest()
    one = found[int.from_bytes(word[:8], "big") % len(found)]
    return problem.prompt[: one.start()] + names[0] + problem.prompt[one.end() :], one[0], names[0]


def _representatives(group: Group) -> dict[int, str]:
    """The smallest answer of each class, by the number of the class."""
    pairs = zip(group.cluster or [], group.answers or [], strict=True)
    smallest = dict(sorted(((c, a) for c, a in pairs if a is not None), reverse=True))
    return dict(sorted(smallest.items()))


def _dual(text: str, name: str, answer: str) -> str:
    return fill(_DUAL, problem=text, answer=answer, name=name)
