"""A proposal is paid by how the answers to its problem score: SQLM, R-Zero, SPELL, LSP, Absolute Zero, MAE."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch

from lightning_serl.errors import InputError, check_choice, check_range
from lightning_serl.rewards.judge import SelfJudge
from lightning_serl.rewards.repetition import repetition_shares
from lightning_serl.types import Group, Verdict

Form = Literal["sqlm", "r-zero", "spell", "lsp", "azr", "mae", "svs"]
_WIDTH = 0.5 / 3
#: What a problem earns by the mean score p of its m responses, and by the grade q of the proposal.
_PAY: Mapping[Form, Callable[[float, int, float], float]] = {
    "sqlm": lambda p, m, q: float(1 / m + _SLACK < p < 1 - _SLACK),
    "r-zero": lambda p, m, q: min(p, 1 - p),
    "spell": lambda p, m, q: 0.0 if p > 1 - _SLACK else math.exp(-((p - 0.5) ** 2) / (2 * _WIDTH**2)),
    "lsp": lambda p, m, q: -p,
    "azr": lambda p, m, q: 1 - p if p > _SLACK else 0.0,
    "svs": lambda p, m, q: float(0.125 - _SLACK <= p <= 0.625 + _SLACK),
    "mae": lambda p, m, q: (q + (1 - p) * (q > 0.7 - _SLACK) + 1) / 3,
}
# What a proposal without a problem earns; None leaves it out of the loss.
_INVALID: Mapping[Form, float | None] = {
    "sqlm": None,
    "r-zero": -1.0,
    "spell": -1.0,
    "lsp": None,
    "azr": -1.0,
    "mae": 0.0,
    "svs": None,
}
_SLACK = 1e-6  # means of float32 scores are not exact
RUBRIC = (
    "the text is one problem that is complete in itself, makes sense, has exactly one answer that can be checked, and "
    "is worth solving"
)


class ChildReward:
    r"""Scores a proposal by the mean score p of the m responses to the problem in it.

    ========== ============================================== ==================== ===========================
    form       a problem earns                                no problem           paper
    ========== ============================================== ==================== ===========================
    ``sqlm``   :math:`1[1/m < p < 1]`                         not in the loss      SQLM, arXiv 2508.03682
    ``r-zero`` :math:`\min(p, 1-p)` less its repetition share -1                   R-Zero, 2508.05004
    ``spell``  :math:`\exp(-(p-.5)^2 / 2(.5/3)^2)`, 0 at 1    -1                   SPELL, 2509.23863
    ``lsp``    :math:`-p`                                     not in the loss      LSP, 2509.07414
    ``azr``    :math:`1-p`, 0 at p = 0                        -1                   Absolute Zero, 2505.03335
    ``mae``    :math:`(q + (1-p)\,1[q \ge .7] + 1) / 3`       0                    MAE, 2510.23595
    ``svs``    :math:`1[1/8 \le p \le 5/8]`                   not in the loss      SvS, 2508.14029
    ========== ============================================== ==================== ===========================

    For ``data.role_rewards.propose``, with a source such as ``Proposer``. p is the share of right responses where the
    reward of role ``solve`` scores 1 and 0; scores beyond [0, 1] are clamped. A problem whose responses all have
    weight 0 (a vote that abstains) is not in the loss. Several problems of one proposal earn their mean.

    R-Zero clusters all problems of a step by BLEU; here those of one prompt are clustered, by ROUGE-L, see
    :func:`~lightning_serl.rewards.repetition.repetition_shares`, so that the score does not depend on the number of
    processes. SPELL's -0.5 for questions that its documents do not answer has no place without documents. LSP's judge
    grades question and answer, and pays proposer and solver; ``quality`` grades the proposal and pays it alone. MAE's q
    is that grade, whose judge it trains too; here the frozen reference judges. Its last third is for the format.

    Args:
        form: One of the seven.
        quality: Weight of the frozen reference's grade of the proposal, from 0 to 1; 0 asks for none. An unreadable
            grade is 0. Without it ``lsp`` drifts to problems that the policy cannot solve.
        judge_tokens: Most tokens of a judgement.

    Raises:
        InputError: for an unknown form or a negative weight, and on a call outside a run.
    """

    def __init__(self, form: Form = "sqlm", quality: float = 0.0, judge_tokens: int = 256) -> None:
        check_choice("form of ChildReward", form, get_args(Form))
        check_range("quality of ChildReward", quality, at_least=0, below=math.inf)
        self.form, self.quality = form, quality
        self.judge = SelfJudge(RUBRIC, max_tokens=judge_tokens) if quality or form == "mae" else None
        self.needs: frozenset[str] = frozenset() if self.judge is None else self.judge.needs

    def __call__(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:
        """One verdict for each group of proposals; ``info["problems"]`` is how many of them hold a problem."""
        if ctx is None:
            raise InputError("ChildReward needs a run, whose reward of role solve has scored the problems")
        graded = [None] * len(groups) if self.judge is None else self.judge(groups, ctx)
        return [self._score(group, ctx.verdicts, grade) for group, grade in zip(groups, graded, strict=True)]

    def _score(self, group: Group, verdicts: Mapping[str, Verdict], grade: Verdict | None) -> Verdict:
        children = [
            [child for (_, index), found in group.links.items() if index == place for child in found]
            for place in range(len(group))
        ]
        shares = repetition_shares([[child.instruction.prompt for child in found] for found in children])
        invalid, solved = _INVALID[self.form], []
        scores, weight = torch.zeros(len(group)), torch.ones(len(group))
        for place, found in enumerate(children):
            rates = [rate for child in found if (rate := _rate(verdicts[child.instruction.uid])) is not None]
            if not rates:
                scores[place] = 0.0 if found or invalid is None else invalid
                weight[place] = float(not found and invalid is not None)
                continue
            solved += [p for p, _ in rates]
            quality = 0.0 if grade is None else float(grade.scores[place])
            scores[place] = math.fsum(_PAY[self.form](p, m, quality) for p, m in rates) / len(rates)
            scores[place] += self.quality * quality - shares[place] * (self.form == "r-zero")
        info = {"tie": False, "problems": sum(map(bool, children))}
        return Verdict(scores, confidence=math.fsum(solved) / len(solved) if solved else 0.0, weight=weight, info=info)


def _rate(verdict: Verdict) -> tuple[float, int] | None:
    """Mean score and number of the responses that count; ``None`` if none does."""
    scores = verdict.scores[verdict.weight > 0].clamp(0, 1)
    return (float(scores.double().mean()), len(scores)) if len(scores) else None
