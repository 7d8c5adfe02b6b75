"""A policy judges responses by a rubric, for answers that cannot be voted on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch

from lightning_serl.errors import InputError, check_choice, check_range
from lightning_serl.rewards.judging import GRADE_PROMPT, fence_of, likely_grade, read_grade, to_judge
from lightning_serl.types import Group, Instruction, Verdict

RUBRIC = (
    "the response answers what was asked, every statement in it is right, nothing needed is missing, and it says "
    "nothing beside the point"
)


class SelfJudge:
    """Scores each response by the mean grade that a policy gives it by a rubric, divided by the highest grade.

    The form of SIRLC (arXiv 2305.14483), SSR-Zero (2505.16637) and RLSR (2505.08827), which differ in what is judged
    and by which words: those are ``rubric`` and ``scale`` here (``scale=1`` is RLSR's right or wrong, ``scale=100``
    SSR-Zero's). Each response is graded alone, so no order of candidates plays a part. The frozen reference judges by
    default, because a judge that is trained learns to please itself.

    The response is put between fences that it cannot contain, and only the last line of the judge's own text is read,
    so that a response cannot write its own grade. It can still persuade a weak judge: compare the scores with a few
    labels. A response without text gets 0 and is not judged. One whose judge gives no readable grade is counted in
    ``info["abstained"]`` and left out of the loss, or graded as ``unread`` says; a group of such responses alone is
    dropped as ``no_grade``.

    Args:
        rubric: What a good response does.
        scale: The highest grade.
        votes: Grades of each response; their mean counts.
        who: ``reference`` or ``policy``.
        max_tokens: Most tokens of a judgement.
        unread: What a response gets whose judge wrote no grade: ``abstain`` leaves it out, ``likelihood`` takes the
            mean of the grades weighted by how likely the judge finds each, for models that write no grades.

    Raises:
        InputError: for an option out of range, and on a call outside a run.
    """

    def __init__(
        self,
        rubric: str = RUBRIC,
        scale: int = 10,
        votes: int = 1,
        who: Literal["reference", "policy"] = "reference",
        max_tokens: int = 256,
        unread: Literal["abstain", "likelihood"] = "abstain",
    ) -> None:
        check_range("scale of the judge", scale, at_least=1)
        check_range("votes of the judge", votes, at_least=1)
        check_range("max_tokens of the judge", max_tokens, at_least=1)
        check_choice("who of the judge", who, ("reference", "policy"))
        check_choice("unread of the judge", unread, ("abstain", "likelihood"))
        self.rubric, self.scale, self.votes, self.who, self.max_tokens = rubric, scale, votes, who, max_tokens
        self.unread = unread
        self.needs = frozenset({"reference"} if who == "reference" else ())

    def __call__(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:
        """One verdict for each group; one call of the engine for all."""
        if ctx is None:
            raise InputError("SelfJudge needs a run, whose policy judges the responses")
        asked = {
            (number, index): Instruction(self.question(group, text), f"judge-{number}-{index}-{group.instruction.uid}",
                                         role="judge", train=False)
            for number, group in enumerate(groups)
            for index, text in enumerate(group.texts)
            if to_judge(text)
        }  # fmt: skip
        judged = ctx.generate(list(asked.values()), self.votes, who=self.who, max_tokens=self.max_tokens)
        grades = {place: self._mean(one) for place, one in zip(asked, judged, strict=True)}
        abstained = {place: asked[place].prompt for place, grade in grades.items() if grade is None}
        if self.unread == "likelihood":
            found = likely_grade(ctx, list(abstained.values()), "Score: {}", self.scale, self.who)
            grades |= dict(zip(abstained, found, strict=True))
        return [self._verdict(number, group, grades, abstained) for number, group in enumerate(groups)]

    def question(self, group: Group, text: str) -> str:
        """What the judge is asked about a response."""
        response, task = to_judge(text), group.instruction.prompt
        return GRADE_PROMPT.format(
            rubric=self.rubric, task=task, response=response, fence=fence_of(response), scale=self.scale
        )

    def grade(self, judgement: str) -> float | None:
        """The grade that a judgement gives, in [0, 1]; ``None`` if it cannot be read."""
        found = read_grade(judgement, self.scale)
        return None if found is None else found / self.scale

    def _mean(self, judged: Group) -> float | None:
        found = [grade for c in judged.completions if (grade := self.grade(c.text)) is not None]
        return sum(found) / len(found) if found else None

    def _verdict(
        self,
        number: int,
        group: Group,
        grades: Mapping[tuple[int, int], float | None],
        abstained: Collection[tuple[int, int]],
    ) -> Verdict:
        given = [grades.get((number, index), 0.0) for index in range(len(group))]
        known = [grade for grade in given if grade is not None]
        info: dict[str, Any] = {"tie": False, "abstained": sum(place == number for place, _ in abstained)}
        if not known:
            info["unscored"] = "no_grade"
        scores = torch.tensor([0.0 if grade is None else grade for grade in given])
        weight = torch.tensor([float(grade is not None) for grade in given])
        return Verdict(scores, confidence=sum(known) / len(known) if known else 0.0, weight=weight, info=info)
