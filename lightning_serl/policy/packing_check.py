"""Checks whether a model computes the same log-probabilities packed and padded."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from lightning_serl.distributed.ranks import Ranks
from lightning_serl.policy.packing import prepare
from lightning_serl.policy.policy import Policy
from lightning_serl.types import pad_rows


@torch.no_grad()
def unpackable(policy: Policy) -> str | None:
    """Try packing on a few rows inside ``Policy.gathered``, set ``Policy.packs``, and return why it fails, if it does.

    Packed rows must give the log-probs of padded ones up to rounding, and a row must not depend on the others.
    """
    policy.packs = False
    if (reason := prepare(policy.causal_lm)) is not None:
        return reason
    size = policy.causal_lm.get_input_embeddings().weight.shape[0]
    lengths = [(7, 14), (7, 19), (5, 20), (5, 8)]  # prompt and whole row; two rows share each prompt

    def rows(shift: int) -> list[list[int]]:
        """Only the first two rows, prompt included, depend on the shift."""
        whole = [[(37 * t + 11 * start + (t >= start) * 5 * n) % size for t in range(n)] for start, n in lengths]
        return [[(i + shift) % size for i in row] if k < 2 else row for k, row in enumerate(whole)]

    def stats(chosen: list[list[int]], starts: list[int]) -> list[Tensor]:
        batch = pad_rows(chosen, starts, policy.pad_id).to(policy.device)
        found = policy(batch, certainty=True)
        return [torch.stack([x[i][batch.mask[i]] for x in found]) for i in range(len(chosen))]

    starts = [start for start, _ in lengths]
    padded = stats(rows(0), starts)
    alone = [stats([row], [start])[0] for row, start in zip(rows(0), starts, strict=True)]
    policy.packs = True
    try:
        packed, changed = stats(rows(0), starts), stats(rows(size // 2), starts)
    except Exception as error:  # whatever a model's code makes of it
        policy.packs = False
        return f"its code does not take packed rows ({type(error).__name__})"
    scale = max(float(x.abs().max()) for x in padded)
    # some layers are in float32 whatever the model is
    eps = max(torch.finfo(dtype).eps for dtype in (next(policy.parameters()).dtype, torch.float32))
    noise = _gap(padded, alone)
    same = _gap(packed, padded) <= 10 * noise + 4 * eps * scale
    # the same shapes and other neighbours: nothing is rounded differently, at any precision
    apart = _gap(packed[2:], changed[2:]) <= 1e-6 * scale and _gap(packed[:2], changed[:2]) > 0
    policy.packs = same and apart
    return None if policy.packs else "something in it besides attention mixes tokens"


def _gap(a: list[Tensor], b: list[Tensor]) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def choose_packing(policy: Policy, trainer: pl.Trainer, wanted: bool) -> None:
    """Decide whether micro-batches run packed, alike on all ranks, and log it; ``model.packing`` must want it too."""
    reason: str | None = "as asked for"
    if policy.placement is not None:
        reason = "its weights are sharded"
    elif wanted:
        with policy.gathered(trainer):
            reason = unpackable(policy)
    # micro-batches are divided alike on all ranks, so one rank that cannot pack decides for all
    reason = next((r for r in Ranks.of(trainer).gather(reason) if r is not None), None)
    for one in (policy, *policy.frozen.values()):
        one.packs = reason is None and prepare(one.causal_lm) is None
    how = f"padded, rows of similar length together ({reason})" if reason else "packed, each prompt computed once"
    rank_zero_info(f"micro-batches: {how}")
