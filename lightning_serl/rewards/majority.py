"""Majority vote: the most common answer of a group is its pseudo-label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from lightning_serl.answers import AnswerGrader
from lightning_serl.errors import check_choice, check_range
from lightning_serl.rewards.base import AnswerVote, facts_of
from lightning_serl.types import Group, Verdict

TIES = ("smallest", "abstain")


def majority(answers: Sequence[str | None], classes: Sequence[int]) -> tuple[str, int] | None:
    """The largest of the (n,) answer classes: its smallest answer and its number; ``None`` without answers (all -1).

    Classes are numbered by their smallest answer, so the first one at a tie has the smaller.
    """
    sizes = Counter(c for c in classes if c >= 0)
    if not sizes:
        return None
    winner = min(sizes, key=lambda c: (-sizes[c], c))
    return min(a for a, c in zip(answers, classes, strict=True) if c == winner and a is not None), winner


class MajorityVote(AnswerVote):
    r"""Scores 1 for the answer that most responses of a group give, 0 for every other and for no answer.

    The verdict does not depend on the order of the responses. Its ``confidence`` is the share of all responses in the
    winning class, its ``label`` that class's smallest answer. ``info`` holds ``tie`` (two classes share the top),
    ``unique_answers`` (classes) and ``no_answer`` (responses without an answer).

    Args:
        grader: ``"auto"``, ``"math"``, ``"choice"``, ``"text"`` or an object with ``extract`` and ``same``; by default
            that of the run (``data.grader``), and without a run ``"math"``.
        mode: ``"fast"`` or ``"exact"``, see :class:`lightning_serl.answers.MathGrader`.
        ties: ``"smallest"`` lets the smaller answer win; ``"abstain"`` gives no label and weights 0.
        min_share: If the winner has a smaller share of the responses, there is no label and all weights are 0; the
            group is dropped as ``low_consensus``, like a tie without a label.
        soft: Scores each response by the share of its class (EMPO) instead of 1 and 0; all 0 when all answers differ.
        min_answers: Responses of a group with a readable answer that make a vote; with fewer there is no label, and the
            group is dropped as ``low_consensus``. One answer alone agrees with no other, yet the rest would be trained
            away from: an answer that was misread would be reinforced. A group of fewer responses needs all of them.
        trained: Only the first so many responses of a group are trained on, while all of them vote (TTRL, arXiv
            2504.16084: 64 votes, 32 trained); by default all.

    Raises:
        InputError: for an unknown grader, mode or tie rule, a share outside [0, 1], ``min_answers`` below 1, or
            ``trained`` below 2.

    Example:
        >>> from lightning_serl.types import Group
        >>> group = Group.from_texts("1+1?", ["\\boxed{2}", "\\boxed{3}", "\\boxed{2.0}"])
        >>> verdict = MajorityVote()([group], None)[0]
        >>> verdict.label, verdict.scores.tolist()
        ('2', [1.0, 0.0, 1.0])
    """

    def __init__(
        self,
        grader: str | AnswerGrader | None = None,
        mode: str = "fast",
        ties: str = "smallest",
        min_share: float = 0.0,
        soft: bool = False,
        trained: int | None = None,
        min_answers: int = 2,
    ) -> None:
        check_choice("ties of the majority vote", ties, TIES)
        check_range("min_share of the majority vote", min_share, at_least=0, at_most=1)
        hint = "one response has nothing to be compared with"
        check_range("trained of the majority vote", trained, at_least=2, hint=hint)
        check_range("min_answers of the majority vote", min_answers, at_least=1)
        super().__init__(grader, mode)
        self.min_answers = min_answers
        self.ties, self.min_share, self.soft, self.trained = ties, min_share, soft, trained

    def vote(self, group: Group, answers: Sequence[str | None], classes: Sequence[int]) -> Verdict:
        """See :meth:`AnswerVote.vote`."""
        n, info, found = len(group), facts_of(classes), majority(answers, classes)
        weight = torch.tensor([float(self.trained is None or index < self.trained) for index in range(n)])
        if found is None:
            return Verdict(torch.zeros(n), confidence=0.0, weight=weight, info=info)
        label, winner = found
        sizes = Counter(number for number in classes if number >= 0)
        top = sizes[winner]
        confidence = top / n
        too_few = sum(sizes.values()) < min(self.min_answers, n)
        if too_few or (info["tie"] and self.ties == "abstain") or confidence < self.min_share:
            info["unscored"] = "low_consensus"
            return Verdict(torch.zeros(n), confidence=confidence, weight=torch.zeros(n), info=info)
        if not self.soft:
            scores = torch.tensor([float(number == winner) for number in classes])
        elif top == 1:
            scores = torch.zeros(n)
        else:
            scores = torch.tensor([sizes[number] / n for number in classes])
        return Verdict(scores, label, confidence, weight, info=info)
