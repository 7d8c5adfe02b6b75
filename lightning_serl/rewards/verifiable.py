"""Rewards against gold labels, and the default reward: the label if there is one, else the majority vote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lightning_serl.answers import AnswerGrader, equal_to_label, grader_for, resolve_grader
from lightning_serl.rewards.base import fill_answers, grader_of
from lightning_serl.rewards.majority import MajorityVote
from lightning_serl.types import Group, Verdict

# Seconds for the comparisons with the label; with the votes on a group they stay below one second.
_LABEL_SECONDS = 0.2


class VerifiableReward:
    r"""Scores 1 for answers equal to ``instruction.label``, 0 for others and for no answer.

    A math label is read as if boxed, so bare LaTeX such as ``\frac{\pi}{2}`` is understood whole. A grader without
    ``label`` reads labels like responses, and keeps a label unchanged if it finds no answer in it. A group without a
    label, or with one that the grader cannot read, gets weights 0 and the cause in ``info["reason"]``.

    Args:
        grader: ``"auto"``, ``"math"``, ``"choice"``, ``"text"`` or an object with ``extract`` and ``same``; by default
            that of the run (``data.grader``), and without a run ``"math"``.
        mode: ``"fast"`` or ``"exact"``, see :class:`lightning_serl.answers.MathGrader`.

    Raises:
        InputError: for an unknown grader or mode.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, grader: str | AnswerGrader | None = None, mode: str = "fast") -> None:
        self.grader = resolve_grader("math" if grader is None else grader, mode)
        self.named = grader is not None or mode != "fast"

    def __call__(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:
        """One verdict for each group; fills ``answers`` and ``cluster``."""
        return [self._score(group, grader_of(self.grader, self.named, ctx)) for group in groups]

    def _score(self, group: Group, grader: AnswerGrader) -> Verdict:
        fill_answers([group], grader)
        assert group.answers is not None
        assert group.cluster is not None
        n = len(group)
        classes = {number for number in group.cluster if number >= 0}
        info: dict[str, Any] = {"tie": False, "unique_answers": len(classes), "no_answer": group.answers.count(None)}
        gold, problem = group.instruction.label, group.instruction
        grader = grader_for(grader, problem.prompt, problem.meta.get("choices"))
        label = None if gold is None else _read_label(grader, gold)
        if label is None:
            info["reason"] = "the instruction has no label" if gold is None else "the grader cannot read the label"
            return Verdict(torch.zeros(n), confidence=0.0, weight=torch.zeros(n), info=info)
        start_group = getattr(grader, "start_group", None)
        if start_group is not None:
            start_group(_LABEL_SECONDS)
        scores = scores_against(group, label, grader)
        return Verdict(scores, label, float(scores.sum()) / max(n, 1), info=info)


class LabelElseVote:
    """The default reward: groups with a label are scored against it, all others by majority vote.

    Args:
        grader: The grader of both, by default as in :class:`MajorityVote`.
        options: Further options of :class:`MajorityVote`, which raises the same errors.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, grader: str | AnswerGrader | None = None, **options: Any) -> None:
        self.vote = MajorityVote(grader, **options)
        self.verify = VerifiableReward(self.vote.grader)  # both share one grader and its cache
        self.verify.named = self.vote.named

    def __call__(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:
        """One verdict for each group, in order; fills ``answers`` and ``cluster``."""
        return [(self.vote if g.instruction.label is None else self.verify)([g], ctx)[0] for g in groups]


def scores_against(group: Group, label: str | None, grader: AnswerGrader) -> torch.Tensor:
    """(n,) 1 for answers of a read group that equal a label as the grader compares it, 0 for others and without one."""
    assert group.answers is not None
    problem, answers = group.instruction, {answer for answer in group.answers if answer is not None}
    grader = grader_for(grader, problem.prompt, problem.meta.get("choices"))
    right = set() if label is None else equal_to_label(label, answers, grader)
    return torch.tensor([float(answer in right) for answer in group.answers])


def _read_label(grader: AnswerGrader, gold: str) -> str | None:
    """A gold label as the grader compares it."""
    read = getattr(grader, "label", None)
    if read is not None:
        return read(gold)
    found = grader.extract(gold)
    return gold if found is None else found
