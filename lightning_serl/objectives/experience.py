"""Turns graded groups into the padded micro-batches of their optimizer steps.

The walk, in :func:`experience`: rows, their log-probs under policy and reference, their advantages, their division
among micro-batches, and the padded tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_serl.distributed.ranks import Ranks
from lightning_serl.errors import InputError
from lightning_serl.objectives import serl
from lightning_serl.objectives.advantages import advantages, returns, whiten
from lightning_serl.objectives.losses import kl
from lightning_serl.objectives.minibatches import minibatches, partition, partition_packed
from lightning_serl.objectives.options import ResolvedObjective
from lightning_serl.types import Group, RolloutBatch, Verdict, pad_rows

#: ``(rows, names of policies)`` to the (tokens,) log-probs of each row under each policy; a row is ``(ids, start)``.
LogProbs = Callable[[Sequence[tuple[tuple[int, ...], int]], Sequence[str]], Sequence[Sequence[Tensor]]]


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


@dataclass(frozen=True)
class BatchLayout:
    """How the responses of a round are divided among micro-batches.

    Attributes:
        inner_epochs: Passes over the responses.
        minibatches: Optimizer steps of a pass.
        accumulate: Micro-batches of an optimizer step on each rank.
        packs: Whether micro-batches run without padding and compute each prompt once.
        pad_id: Filler of padded positions.
        dtype: Of advantages and log-probs.
        version: Version of the policy's weights; rows that older weights wrote are stale.
    """

    inner_epochs: int
    minibatches: int
    accumulate: int
    packs: bool
    pad_id: int
    dtype: torch.dtype
    version: int


def experience(
    groups: Sequence[Group],
    verdicts: Sequence[Verdict],
    objective: ResolvedObjective,
    layout: BatchLayout,
    ranks: Ranks,
    logprobs: LogProbs,
) -> list[RolloutBatch]:
    """This rank's micro-batches of a round, in training order.

    Args:
        groups: Groups with token ids, equal on all ranks.
        verdicts: One per group; responses of weight 0 are left out, dropped groups enter only the statistics.
        objective: Says which log-probs are needed and how advantages are made.
        layout: How rows are divided.
        ranks: The ranks that share the rows.
        logprobs: Computes log-probs without gradient.

    Returns:
        ``inner_epochs x minibatches x accumulate`` micro-batches, whatever the number of responses.

    Raises:
        InputError: if no response can be trained on.
    """
    scored = rows_of(groups, verdicts)
    rows = [r for r in scored if not r.dropped]
    if not rows:
        raise InputError(
            "no response can be trained on: all have weight 0 (from data.reward or a filter in trainer.callbacks), "
            "belong to dropped groups or to instructions with train=False, or lack token ids"
        )
    with_old = layout.inner_epochs * layout.minibatches > 1
    if with_old or objective.beta > 0:
        # those of dropped rows only where the other rows' advantages depend on their divergence
        wanted = scored if objective.kl_in_advantages and objective.mixes_groups else rows
        _set_logprobs(wanted, with_old or objective.kl_in_advantages, objective.beta > 0, ranks, logprobs)
    set_advantages(scored, objective)
    out: list[RolloutBatch] = []
    for epoch in range(layout.inner_epochs):
        for part in minibatches([r.uid for r in rows], layout.minibatches, epoch):
            step = [rows[i] for i in part]
            tokens = sum(len(r.ids) - r.start for r in step)
            for slot in _slots(step, layout, ranks):
                batch = micro_batch(slot, tokens, len(step), layout.pad_id, layout.dtype, objective, with_old)
                batch.stale = any(0 <= row.version < layout.version for row in slot)
                out.append(batch)
    return out


def rows_of(groups: Sequence[Group], verdicts: Sequence[Verdict]) -> list[Row]:
    """The responses that enter the loss or its statistics, in the order of their groups."""
    rows = []
    for number, (group, verdict) in enumerate(zip(groups, verdicts, strict=True)):
        if not group.instruction.train:
            continue
        scores, weights = verdict.scores.tolist(), verdict.weight.tolist()
        for k, completion in enumerate(group.completions):
            if weights[k] > 0 and completion.token_ids and group.prompt_ids:
                row = Row(
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
                rows.append(row)
    return rows


def _set_logprobs(rows: list[Row], with_old: bool, with_ref: bool, ranks: Ranks, logprobs: LogProbs) -> None:
    """Set old and reference log-probs: each rank computes those of its share of the rows, then all have all."""
    wanted = [name for name, field in (("policy", with_old), ("reference", with_ref)) if field]
    found = logprobs([(row.ids, row.start) for row in ranks.share(rows)], wanted)
    for row, values in zip(rows, ranks.interleave(list(zip(*found, strict=True))), strict=True):
        by_name = dict(zip(wanted, values, strict=True))
        row.old, row.ref = by_name.get("policy"), by_name.get("reference")


def set_advantages(rows: list[Row], objective: ResolvedObjective) -> None:
    """Set the advantage of every row, attempt by attempt; centred scores are advantages already.

    Rows with log-probs also get the divergence that is subtracted from their score or their advantage.
    """
    for attempt in sorted({r.attempt for r in rows}):
        _set_advantages([r for r in rows if r.attempt == attempt], objective)


def _set_advantages(rows: list[Row], objective: ResolvedObjective) -> None:
    for row in rows:
        if objective.kl_in_advantages and row.old is not None and row.ref is not None:
            row.kl = kl(row.old, row.ref, objective.kl)
    for row, value in zip(rows, _per_response(rows, objective), strict=True):
        row.advantage = _per_token(row, value, objective)
    if objective.scale == "token":
        _whiten([r for r in rows if not r.centred])
    for row in rows:
        row.advantage = row.advantage * row.weight


def _per_response(rows: list[Row], objective: ResolvedObjective) -> list[float]:
    """The advantage of each row as a whole; the statistics are those of these rows."""
    out = [row.score for row in rows]
    if objective.kl_in == "reward":
        out = [v if r.kl is None else v - objective.beta * float(r.kl.sum()) for v, r in zip(out, rows, strict=True)]
    raw = [i for i, row in enumerate(rows) if not row.centred]
    values = advantages(
        torch.tensor([out[i] for i in raw], dtype=torch.float64),
        torch.tensor([rows[i].group for i in raw]),
        objective.baseline,
        objective.scale,
        torch.tensor([rows[i].weight for i in raw], dtype=torch.float64),
        objective.eps,
    )
    if objective.style == "serl":
        values = values.clamp(-serl.LARGEST_SCORE, serl.LARGEST_SCORE)
    for i, value in zip(raw, values.tolist(), strict=True):
        out[i] = value
    return out


def _per_token(row: Row, value: float, objective: ResolvedObjective) -> Tensor:
    """(tokens,) advantages of a row."""
    count = len(row.ids) - row.start
    whole = torch.full((1,), value, dtype=torch.float64)
    if row.kl is None or objective.kl_in != "return":
        return whole.expand(count)
    return returns(whole, row.kl[None], torch.ones(1, count, dtype=torch.bool), objective.beta)[0]


def _whiten(rows: list[Row]) -> None:
    """Whiten over all tokens of these rows, concatenated into one long row without padding."""
    if rows:
        tokens = torch.cat([r.advantage for r in rows])[None]
        white = whiten(tokens, torch.ones_like(tokens, dtype=torch.bool))[0]
        for row, values in zip(rows, torch.split(white, [len(r.advantage) for r in rows]), strict=True):
            row.advantage = values


def _slots(rows: list[Row], layout: BatchLayout, ranks: Ranks) -> list[list[Row]]:
    """The rows of each of this rank's micro-batches of one optimizer step."""
    lengths, count = [len(r.ids) for r in rows], layout.accumulate * ranks.size
    if layout.packs:
        slots = partition_packed([r.ids[: r.start] for r in rows], lengths, count)
    else:
        slots = partition(lengths, count)
    return [[rows[i] for i in slot] for slot in slots[ranks.rank :: ranks.size]]


def micro_batch(
    rows: list[Row],
    tokens: int,
    sequences: int,
    pad_id: int,
    dtype: torch.dtype,
    objective: ResolvedObjective,
    with_old: bool,
) -> RolloutBatch:
    """Pad rows into a micro-batch.

    Args:
        rows: The rows of one slot; may be empty.
        tokens: Loss tokens of the whole optimizer step.
        sequences: Responses of the whole optimizer step.
        pad_id: Filler.
        dtype: Of advantages and log-probs.
        objective: Says whether reference log-probs are included.
        with_old: Whether the log-probs at the start of the round are included.
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
        # NaN row by row, so that a row does not depend on the others of its micro-batch
        unknown = (torch.nan,)
        batch.sampler_logp = table([torch.tensor(r.sampler or unknown, dtype=dtype) for r in rows])
    return batch
