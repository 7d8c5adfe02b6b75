"""Responses on their way into micro-batches: rows, their advantages, and the padded tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_serl.objectives import serl as published
from lightning_serl.objectives.advantages import advantages, returns, whiten
from lightning_serl.objectives.losses import kl
from lightning_serl.objectives.options import Objective
from lightning_serl.types import Group, RolloutBatch, Verdict, pad_rows


@dataclass
class Row:
    """One response on its way into a micro-batch; tensors are (tokens of the completion,)."""

    ids: tuple[int, ...]
    start: int
    uid: str
    group: int
    score: float
    weight: float
    centred: bool
    sampler: tuple[float, ...] | None
    token_scores: Tensor | None
    dropped: bool
    attempt: int
    version: int
    advantage: Tensor = field(default_factory=lambda: torch.zeros(()))
    kl: Tensor | None = None
    old: Tensor | None = None
    ref: Tensor | None = None


def rows_of(groups: Sequence[Group], verdicts: Sequence[Verdict]) -> list[Row]:
    """The responses that enter the loss, or at least its statistics, in the order of their groups."""
    return list(_iterate(groups, verdicts))


def _iterate(groups: Sequence[Group], verdicts: Sequence[Verdict]) -> Iterator[Row]:
    for number, (group, verdict) in enumerate(zip(groups, verdicts, strict=True)):
        if not group.instruction.train:
            continue
        scores, weights = verdict.scores.tolist(), verdict.weight.tolist()
        for k, completion in enumerate(group.completions):
            if weights[k] > 0 and completion.token_ids and group.prompt_ids:
                yield Row(
                    ids=tuple(group.prompt_ids) + tuple(completion.token_ids),
                    start=len(group.prompt_ids),
                    uid=group.instruction.uid,
                    group=number,
                    score=scores[k],
                    weight=weights[k],
                    centred=verdict.centred,
                    sampler=completion.logprobs,
                    token_scores=None if verdict.token_scores is None else verdict.token_scores[k],
                    dropped=verdict.dropped,
                    attempt=verdict.attempt,
                    version=completion.version,
                )


def set_advantages(rows: list[Row], objective: Objective) -> None:
    """Fill in the advantage of every row, attempt by attempt; centred scores are advantages already.

    Rows with log-probs also get the divergence that is taken off their score or their advantage.
    """
    for attempt in sorted({r.attempt for r in rows}):
        _set_advantages([r for r in rows if r.attempt == attempt], objective)


def _set_advantages(rows: list[Row], objective: Objective) -> None:
    for row in rows:
        if objective.kl_off_scores and row.old is not None and row.ref is not None:
            row.kl = kl(row.old, row.ref, objective.kl)
    for row, value in zip(rows, _per_response(rows, objective), strict=True):
        row.advantage = _per_token(row, value, objective)
    if objective.scale == "token":
        _whiten([r for r in rows if not r.centred])
    for row in rows:
        row.advantage = row.advantage * row.weight


def _per_response(rows: list[Row], objective: Objective) -> list[float]:
    """What each row's score is worth among these rows."""
    out = [row.score for row in rows]
    if objective.kl_in == "reward":
        out = [v if r.kl is None else v - objective.beta * float(r.kl.sum()) for v, r in zip(out, rows, strict=True)]
    plain = [i for i, row in enumerate(rows) if not row.centred]
    values = advantages(
        torch.tensor([out[i] for i in plain], dtype=torch.float64),
        torch.tensor([rows[i].group for i in plain]),
        objective.baseline,
        objective.scale,
        torch.tensor([rows[i].weight for i in plain], dtype=torch.float64),
        objective.eps,
    )
    if objective.style == "serl":
        values = values.clamp(-published.LARGEST, published.LARGEST)
    for i, value in zip(plain, values.tolist(), strict=True):
        out[i] = value
    return out


def _per_token(row: Row, value: float, objective: Objective) -> Tensor:
    count = len(row.ids) - row.start
    whole = torch.full((1,), value, dtype=torch.float64)
    if row.kl is None or objective.kl_in != "return":
        return whole.expand(count)
    return returns(whole, row.kl[None], torch.ones(1, count, dtype=torch.bool), objective.beta)[0]


def _whiten(rows: list[Row]) -> None:
    """Over all tokens of these rows, which are laid out as one long row: every one of them counts."""
    if rows:
        tokens = torch.cat([r.advantage for r in rows])[None]
        white = whiten(tokens, torch.ones_like(tokens, dtype=torch.bool))[0]
        for row, values in zip(rows, torch.split(white, [len(r.advantage) for r in rows]), strict=True):
            row.advantage = values


def micro_batch(
    rows: list[Row], tokens: int, sequences: int, pad_id: int, dtype: torch.dtype, objective: Objective, with_old: bool
) -> RolloutBatch:
    """Pad rows into a micro-batch.

    Args:
        rows: The responses of one slot; none for an empty one.
        tokens: Loss tokens of the whole optimizer step.
        sequences: Responses of the whole optimizer step.
        pad_id: Filler.
        dtype: Of advantages and log-probs.
        objective: Says whether reference log-probs travel.
        with_old: Whether the log-probs at the start of the round travel.
    """
    batch = pad_rows([r.ids for r in rows], [r.start for r in rows], pad_id)
    batch.num_tokens, batch.num_sequences, batch.uids = tokens, sequences, tuple(r.uid for r in rows)
    batch.kl_in_reward = sum(float(r.kl.sum()) for r in rows if r.kl is not None)
    shape = batch.mask.shape
    batch.advantages = torch.zeros(shape, dtype=dtype)

    def table(values: list[Tensor | None]) -> Tensor:
        out = torch.zeros(shape, dtype=dtype)
        for i, (row, value) in enumerate(zip(rows, values, strict=True)):
            assert value is not None
            out[i, row.start : len(row.ids)] = value
        return out

    for i, row in enumerate(rows):
        batch.advantages[i, row.start : len(row.ids)] = row.advantage
        if row.token_scores is not None:
            batch.advantages[i, row.start : len(row.ids)] += row.token_scores.to(dtype)
    if with_old:
        batch.old_logp = table([r.old for r in rows])
    if objective.beta > 0 and objective.kl_in == "loss":
        batch.ref_logp = table([r.ref for r in rows])
    if any(r.sampler is not None for r in rows):
        # row by row, so that what travels in the same micro-batch changes nothing
        unknown = (torch.nan,)
        batch.sampler_logp = table([torch.tensor(r.sampler or unknown, dtype=dtype) for r in rows])
    return batch
