"""Draws the next token of each row by inverting the cumulative distribution at a given number."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_serl.engines.base import Sampling

# Tokens whose probabilities are summed before the sums are added up; also the size up to which one sum is enough.
_BLOCK = 256
_SMALL = 8 * _BLOCK


def choose_tokens(logits: Tensor, sampling: Sampling, draw: Tensor | None) -> tuple[Tensor, Tensor]:
    """Draw the next token of each row, (rows,) int64, with its log-prob under the distribution it was drawn from.

    ``logits`` are (rows, V) of any float dtype; ``draw`` holds (rows,) float64 numbers in [0, 1), or is ``None`` for
    the most likely token.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if draw is None:
        top, chosen = logits.max(-1)
        return chosen, top - logits.logsumexp(-1)
    logits = logits / sampling.temperature
    if sampling.top_k:
        kth = logits.topk(min(sampling.top_k, logits.shape[-1]), -1).values[:, -1:]
        logits.masked_fill_(logits < kth, -torch.inf)
    if sampling.top_p < 1:
        ranked, index = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
        # keep the smallest set that reaches top_p: drop a token if more likely ones already reach it
        drop = ranked.cumsum(-1) - ranked >= sampling.top_p
        logits.masked_fill_(torch.zeros_like(drop).scatter(-1, index, drop), -torch.inf)
    return _invert(logits, draw)


def _invert(logits: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`choose_tokens`; overwrites the (rows, V) ``logits``.

    Over a large vocabulary the error of a float32 cumulative sum exceeds the probability of rare tokens, and a table of
    float64 takes most of the time. So blocks of tokens are summed first; float64 is used for the sums of the blocks and
    inside the one block that holds the drawn token.
    """
    peak = logits.amax(-1, keepdim=True)
    weights = logits.sub_(peak).exp_()
    if weights.shape[-1] <= _SMALL:
        chosen, _, total = _find(weights.double(), draw)
    else:
        spare = -weights.shape[-1] % _BLOCK
        blocks = torch.nn.functional.pad(weights, (0, spare)).view(len(weights), -1, _BLOCK)
        block, before, total = _find(blocks.sum(-1).double(), draw)
        inside = blocks.gather(1, block[:, None, None].expand(-1, 1, _BLOCK))[:, 0].double()
        # the sum of the block in float64 differs from that in float32 by rounding
        share = (draw * total - before) / inside.sum(-1)
        place, _, _ = _find(inside, share.clamp(0, 1))
        chosen = block * _BLOCK + place
    probability = weights.gather(-1, chosen[:, None])[:, 0].double()
    return chosen, (probability.log() - total.log()).to(logits.dtype)


def _find(weights: Tensor, draw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The entry of each row in which the share ``draw`` of its total falls, the total before it, and the total.

    (rows, N) and (rows,) float64 to (rows,) int64 and twice (rows,) float64. An entry of weight 0 is never taken.
    """
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1:]
    place = torch.searchsorted(cumulative, draw[:, None] * total, right=True)
    # rounding can lead beyond the last entry with a weight, which is the first one that reaches the total
    last = torch.searchsorted(cumulative, total.contiguous())
    # NaN is found nowhere; its log-prob shows it
    place = torch.minimum(place, last).clamp(max=weights.shape[-1] - 1)
    before = cumulative.gather(-1, place) - weights.gather(-1, place)
    return place[:, 0], before[:, 0], total[:, 0]
