"""Responses on their way into micro-batches: rows, their advantages, and the padded tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_serl import objectives
from lightning_serl.objectives import Objective
from lightning_serl.policy import pad_rows
from lightning_serl.types import Group, RolloutBatch, Verdict


@dataclass
class Row:
    """One response on its way into a micro-batch."""

    ids: tuple[int, ...]
    start: int
    uid: str
    group: int
    score: float
    weight: float
    centred: bool
    sampler: tuple[float, ...] | None
    token_scores: Tensor | None
    advantage: float = 0.0
    kl: float = 0.0
    old: Tensor | None = None
    ref: Tensor | None = None


def rows_of(groups: Sequence[Group], verdicts: Sequence[Verdict]) -> list[Row]:
    """The responses that enter the loss, in the order of their groups."""
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
                )


def set_advantages(rows: list[Row], objective: Objective) -> None:
    """Fill in the advantage of every row, over all rows; centred scores are advantages already."""
    plain = [r for r in rows if not r.centred]
    if plain:
        values = objectives.advantages(
            torch.tensor([r.score for r in plain], dtype=torch.float64),
            torch.tensor([r.group for r in plain]),
            objective.baseline,
            objective.scale,
            torch.tensor([r.weight for r in plain], dtype=torch.float64),
            objective.eps,
        )
        for row, value in zip(plain, values.tolist(), strict=True):
            row.advantage = value
    for row in rows:
        row.advantage = (row.score if row.centred else row.advantage) * row.weight


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
    batch.kl_in_reward = sum(r.kl for r in rows)
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
    if rows and all(r.sampler is not None for r in rows):
        batch.sampler_logp = table([torch.tensor(r.sampler) for r in rows])
    return batch
