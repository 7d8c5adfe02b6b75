"""Turns graded groups into rows with log-probs and advantages, and those into padded micro-batches."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_serl.distributed.ranks import Ranks
from lightning_serl.errors import InputError
from lightning_serl.objectives.advantages import advantages, returns, whiten
from lightning_serl.objectives.losses import kl
from lightning_serl.objectives.options import LARGEST_SCORE, ResolvedObjective
from lightning_serl.types import Completion, Group, RolloutBatch, Verdict, pad_rows

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
    completion: Completion
    verdict: Verdict
    token_scores: Tensor | None
    advantage: Tensor = field(default_factory=lambda: torch.zeros(()))
    kl: Tensor | None = None
    old: Tensor | None = None
    ref: Tensor | None = None


@dataclass(frozen=True)
class BatchLayout:
    """How the responses of a round are divided among micro-batches."""

    inner_epochs: int  # passes over the responses
    minibatches: int  # optimizer steps of a pass
    accumulate: int  # micro-batches of an optimizer step on each rank
    packs: bool  # whether micro-batches run without padding and compute each prompt once
    pad_id: int
    dtype: torch.dtype  # of advantages and log-probs
    version: int  # of the policy's weights; rows that older weights wrote are stale

    @property
    def with_old(self) -> bool:
        """Whether the loss needs log-probs of the policy at the start of the round: not in its only optimizer step."""
        return self.inner_epochs * self.minibatches > 1


def check_batch(batch: object) -> None:
    """Refuse a training batch that did not come from ``experience``, such as a batch of problems."""
    if not isinstance(batch, RolloutBatch):
        raise InputError(
            f"a training batch is a {type(batch).__name__}, not a RolloutBatch: give the Trainer a SelfPlayDataModule "
            "whose seeds are your problems, or a loader that yields what module.experience(groups, verdicts) returns"
        )


def experience(groups: Sequence[Group], verdicts: Sequence[Verdict], objective: ResolvedObjective, layout: BatchLayout,
               ranks: Ranks, logprobs: LogProbs) -> list[RolloutBatch]:  # fmt: skip
    """This rank's micro-batches of a round in training order, as many whatever the number of responses.

    Responses of weight 0 are left out, dropped groups enter only the statistics. ``logprobs`` records no gradient.
    """
    scored = rows_of(groups, verdicts)
    rows = [r for r in scored if not r.verdict.dropped]
    if not rows:
        raise InputError(
            "no response can be trained on: all have weight 0 (from data.reward or a filter in trainer.callbacks), "
            "belong to dropped groups or to instructions with train=False, or lack token ids"
        )
    if layout.with_old or objective.beta > 0:
        # those of dropped rows only where the other rows' advantages depend on their divergence
        wanted = scored if objective.kl_in_advantages and objective.mixes_groups else rows
        _set_logprobs(wanted, layout.with_old or objective.kl_in_advantages, objective.beta > 0, ranks, logprobs)
    set_advantages(scored, objective)
    out: list[RolloutBatch] = []
    for epoch in range(layout.inner_epochs):
        for part in minibatches([r.uid for r in rows], layout.minibatches, epoch):
            step = [rows[i] for i in part]
            tokens = sum(len(r.ids) - r.start for r in step)
            out += [micro_batch(slot, tokens, len(step), layout, objective) for slot in _slots(step, layout, ranks)]
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
                ids = tuple(group.prompt_ids) + tuple(completion.token_ids)
                start, uid = len(group.prompt_ids), group.instruction.uid
                extra = None if verdict.token_scores is None else verdict.token_scores[k]
                rows.append(Row(ids, start, uid, number, scores[k], weights[k], completion, verdict, extra))
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
    for row in rows:
        if objective.kl_in_advantages and row.old is not None and row.ref is not None:
            row.kl = kl(row.old, row.ref, objective.kl)
    for attempt in sorted({r.verdict.attempt for r in rows}):
        members = [r for r in rows if r.verdict.attempt == attempt]
        for row, value in zip(members, _per_response(members, objective), strict=True):
            row.advantage = _per_token(row, value, objective)
        if objective.scale == "token":
            _whiten([r for r in members if not r.verdict.centred])
    for row in rows:
        row.advantage = row.advantage * row.weight


def _per_response(rows: list[Row], objective: ResolvedObjective) -> list[float]:
    """The advantage of each row as a whole; the statistics are those of these rows."""
    out = [row.score for row in rows]
    if objective.kl_in == "reward":
        out = [v if r.kl is None else v - objective.beta * float(r.kl.sum()) for v, r in zip(out, rows, strict=True)]
    raw = [i for i, row in enumerate(rows) if not row.verdict.centred]
    scores = torch.tensor([out[i] for i in raw], dtype=torch.float64)
    weights = torch.tensor([rows[i].weight for i in raw], dtype=torch.float64)
    group = torch.tensor([rows[i].group for i in raw])
    values = advantages(scores, group, objective.baseline, objective.scale, weights, objective.eps)
    if objective.style == "serl":
        values = values.clamp(-LARGEST_SCORE, LARGEST_SCORE)
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
    rows: list[Row], tokens: int, sequences: int, layout: BatchLayout, objective: ResolvedObjective
) -> RolloutBatch:
    """Pad rows, or none, into a micro-batch of an optimizer step with so many loss tokens and responses."""
    batch = pad_rows([r.ids for r in rows], [r.start for r in rows], layout.pad_id)
    batch.num_tokens, batch.num_sequences, batch.uids = tokens, sequences, tuple(r.uid for r in rows)
    batch.kl_in_reward = sum(float(r.kl.sum()) for r in rows if r.kl is not None)
    batch.stale = any(0 <= r.completion.version < layout.version for r in rows)
    batch.fault = next(filter(None, map(_fault, rows)), "")

    def table(values: list[Tensor | None]) -> Tensor:
        out = torch.zeros(batch.mask.shape, dtype=layout.dtype)
        for i, (row, value) in enumerate(zip(rows, values, strict=True)):
            assert value is not None
            out[i, row.start : len(row.ids)] = value
        return out

    batch.advantages = table([r.advantage for r in rows])
    for i, row in enumerate(rows):
        if row.token_scores is not None:
            batch.advantages[i, row.start : len(row.ids)] += row.token_scores.to(layout.dtype)
    if layout.with_old:
        batch.old_logp = table([r.old for r in rows])
    if objective.beta > 0 and objective.kl_in == "loss":
        batch.ref_logp = table([r.ref for r in rows])
    if any(r.completion.logprobs is not None for r in rows):
        # NaN row by row, so that a row does not depend on the others of its micro-batch
        known = [r.completion.logprobs or (torch.nan,) for r in rows]
        batch.sampler_logp = table([torch.tensor(values, dtype=layout.dtype) for values in known])
    return batch


def _fault(row: Row) -> str:
    """The first value of a row that is NaN or infinite, in words with its problem; empty if all are finite."""
    held = {"a score": row.token_scores, "an advantage": row.advantage}
    held |= {"a log-prob at the start of the round": row.old, "a reference log-prob": row.ref}
    wrong = next((name for name, t in held.items() if t is not None and not bool(torch.isfinite(t).all())), None)
    if wrong is None and not all(map(math.isfinite, row.completion.logprobs or ())):
        wrong = "a log-prob of the engine"
    return f"{wrong} of problem {row.uid}" if wrong else ""


# -- the division of rows: pure functions with equal results on all ranks ----------------------------------------------


def minibatches(uids: Sequence[str], parts: int, epoch: int) -> list[list[int]]:
    """Divide responses, given by the uids of their instructions, among ``parts`` optimizer steps of an inner epoch.

    Returns lists of indices whose sizes are equal up to one. A single part keeps the order, and each epoch has another.
    """
    order = list(range(len(uids)))
    if parts > 1:
        # seeded by the uids, so that no counter has to be in a checkpoint
        seed = hashlib.blake2b("\n".join(uids).encode(), digest_size=8).hexdigest()
        random.Random(f"{seed} {epoch}").shuffle(order)
    return [sorted(order[k::parts]) for k in range(parts)]


def partition(lengths: Sequence[int], slots: int) -> list[list[int]]:
    """Divide rows of so many tokens among exactly ``slots`` micro-batches of similar padded size, longest rows first.

    The largest padded size (rows x longest row) is as small as contiguous runs of the length-sorted rows allow. Returns
    lists of indices, some of them empty if there are fewer rows.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))

    def size(run: list[int], _: int, i: int) -> int:
        # rows are sorted longest first, so the first row of a run sets its width
        return (len(run) + 1) * lengths[run[0] if run else i]

    return _runs(order, slots, size)


def partition_packed(prompts: Sequence[tuple[int, ...]], lengths: Sequence[int], slots: int) -> list[list[int]]:
    """As :func:`partition`, by token counts in which the prompt that rows of a micro-batch share counts once.

    ``lengths`` include the prompts, which come in order of appearance, the longest rows of each first.
    """
    number = {prompt: k for k, prompt in reversed(list(enumerate(prompts)))}
    order = sorted(range(len(lengths)), key=lambda i: (number[prompts[i]], -lengths[i], i))

    def size(run: list[int], before: int, i: int) -> int:
        shared = bool(run) and prompts[run[-1]] == prompts[i]
        return before + lengths[i] - (len(prompts[i]) if shared else 0)

    return _runs(order, slots, size)


def _runs(order: list[int], slots: int, size: Callable[[list[int], int, int], int]) -> list[list[int]]:
    """Cut a sequence into ``slots`` runs so that the largest size is minimal, by bisection over that size.

    ``size`` gives that of a run with one more element, from ``(run, its size, next)``; it must not decrease.
    """

    def runs(limit: int) -> list[list[int]]:
        out: list[list[int]] = []
        now = 0
        for i in order:
            grown = size(out[-1], now, i) if out else limit + 1
            if grown <= limit:
                out[-1].append(i)
                now = grown
            else:
                out.append([i])
                now = size([], 0, i)
        return out

    low = max((size([], 0, i) for i in order), default=0)
    high = max(low, sum(size([], 0, i) for i in order), len(order) * low)
    while low < high:
        middle = (low + high) // 2
        if len(runs(middle)) <= slots:
            high = middle
        else:
            low = middle + 1
    packed = runs(low)
    return packed + [[] for _ in range(slots - len(packed))]
