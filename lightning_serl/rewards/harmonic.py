"""The label is the answer that both wordings of a problem support (Self-Harmony)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lightning_serl.answers import AnswerGrader, resolve_grader
from lightning_serl.rewards.base import facts_of, fill_answers, grader_of
from lightning_serl.rewards.cross_vote import other_view, unscored
from lightning_serl.rewards.verifiable import scores_against
from lightning_serl.types import Group, Verdict


class HarmonicVote:
    r"""Scores 1 for the answer with the largest harmonic mean of its shares in both wordings of the problem.

    Self-Harmony (arXiv 2511.01191): with :math:`p_a` the share of answer :math:`a` among the responses to the problem
    and :math:`q_a` among those to its paraphrase,

    .. math:: y^* = \arg\max_a \frac{2 p_a q_a}{p_a + q_a}, \qquad r_i = 1[y_i = y^*].

    An answer that one wording alone suggests has a mean of 0 however many responses give it. Shares are of all
    responses, those without an answer included. At a tie the smaller answer wins. Both views are scored against the
    label. Use it with ``--data.source Paraphrase``, as ``preset:method-self-harmony`` does.

    If the views have no answer in common there is no label: both get weights 0 and are dropped as ``low_consensus``,
    and a group without a second view as ``no_view``. The paper says nothing of these cases.

    Args:
        grader: As in :class:`~lightning_serl.rewards.MajorityVote`; by default that of the run.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, grader: str | AnswerGrader | None = None) -> None:
        self.grader, self.named = resolve_grader("math" if grader is None else grader), grader is not None

    def __call__(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:
        """One verdict for each group; labels of the problems are not read."""
        grader = grader_of(self.grader, self.named, ctx)
        fill_answers(groups, grader)
        by_uid = {group.instruction.uid: group for group in groups}
        labels: dict[str, tuple[str | None, float]] = {}
        for uid, group in by_uid.items():
            view = by_uid.get(other_view(group) or "")
            if view is not None and group.instruction.link is None:
                labels[uid] = labels[view.instruction.uid] = harmonic_label(group, view, grader)
        return [self._score(group, labels, grader) for group in groups]

    def _score(self, group: Group, labels: dict[str, tuple[str | None, float]], grader: AnswerGrader) -> Verdict:
        info = facts_of(group.cluster or [])
        if group.instruction.uid not in labels:
            return unscored(group, "no_view", info)
        label, mean = labels[group.instruction.uid]
        info["harmonic_mean"] = mean
        if label is None:
            nothing = info["no_answer"] == len(group)
            return unscored(group, "no_answer" if nothing else "low_consensus", info)
        scores = scores_against(group, label, grader)
        return Verdict(scores, label, float(scores.mean()), info=info)


def harmonic_label(group: Group, view: Group, grader: AnswerGrader) -> tuple[str | None, float]:
    """The answer of a read group with the largest harmonic mean, ``None`` if all are 0, and that mean."""
    assert group.answers is not None
    assert group.cluster is not None
    best: tuple[str | None, float] = None, 0.0
    for number, size in sorted(Counter(c for c in group.cluster if c >= 0).items()):
        answer = min(a for a, c in zip(group.answers, group.cluster, strict=True) if c == number and a is not None)
        p, q = size / len(group), float(scores_against(view, answer, grader).mean())
        mean = 2 * p * q / (p + q)
        if mean > best[1] + 1e-9:
            best = answer, mean
    return best
