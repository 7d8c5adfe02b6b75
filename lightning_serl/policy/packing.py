"""Packs micro-batches: every token goes through the decoder once, and rows are formed for attention alone.

All layers except attention treat tokens one by one. So the tokens of a batch are put in one line: without padding, the
prompt of neighbouring rows once, and without the last token of each row, which predicts nothing. Around each attention
call queries, keys and values are gathered into rows of similar length, on which the model's own attention runs with its
own mask (causal, sliding window, ...), so that no row can attend to another. :func:`.packing_check.unpackable` finds
models in which something besides attention mixes tokens, or that do not use transformers' attention interface.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_serl.types import RolloutBatch

# Rows shorter than this share of the longest in an attention call get another call.
_SIMILAR = 0.75


@dataclass(frozen=True)
class Packed:
    """A batch of B rows as one line of N tokens.

    Attributes:
        input_ids: (1, N) int64.
        position_ids: (1, N) int64, those of each row.
        predictors: (K,) int64, positions in the line that predict the masked tokens of the batch, row by row.
        gather: (M,) int64, the position in the line of each token of the rows, padding and repeated prompts included.
        shapes: (rows, tokens) of each attention call.
        home: (N,) int64, the position in the rows of each token of the line.
    """

    input_ids: Tensor
    position_ids: Tensor
    predictors: Tensor
    gather: Tensor
    shapes: tuple[tuple[int, int], ...]
    home: Tensor

    def rows(self, line: Tensor) -> list[Tensor]:
        """(1, h, N, d) to one (rows, h, tokens, d) per attention call."""
        heads, width = line.shape[1], line.shape[3]
        tokens = line[0].transpose(0, 1).reshape(-1, heads * width).index_select(0, self.gather)
        parts = torch.split(tokens, [b * t for b, t in self.shapes])
        return [p.view(b, t, heads, width).transpose(1, 2) for p, (b, t) in zip(parts, self.shapes, strict=True)]

    def line(self, rows: list[Tensor]) -> Tensor:
        """One (rows, tokens, h, d) per attention call to (1, N, h, d)."""
        tokens = torch.cat([r.flatten(0, 1) for r in rows])
        return tokens.index_select(0, self.home)[None]


def pack(batch: RolloutBatch, mask: Tensor) -> Packed:
    """Put a batch in one line; neighbouring rows with equal tokens before their first masked token share them.

    Args:
        batch: Right-padded rows.
        mask: (B, T) bool with at least one True, none in the first column.
    """
    rows, width = mask.shape
    place = torch.arange(width, device=mask.device)
    first = mask.int().argmax(-1)
    last = torch.where(mask.any(-1), (mask * place).amax(-1), 0)
    needed = place < last[:, None]
    prompt = needed & (place < first[:, None])

    alike = (batch.input_ids[1:] == batch.input_ids[:-1]) & (batch.position_ids[1:] == batch.position_ids[:-1])
    shares = torch.zeros(rows, dtype=torch.bool, device=mask.device)
    shares[1:] = (first[1:] == first[:-1]) & (alike | ~prompt[1:]).all(-1) & prompt[:-1].any(-1)
    numbers = torch.arange(rows, device=mask.device)
    leader = torch.where(shares, 0, numbers).cummax(0).values

    own = needed & ~(prompt & shares[:, None])
    index = torch.zeros_like(batch.input_ids)
    index[own] = torch.arange(int(own.sum()), device=mask.device)
    index = torch.where(prompt, index[leader], index)

    gather, shapes, done = [], [], 0
    seat = torch.zeros_like(index)
    for chosen, tokens in _similar(last.tolist()):
        picked = torch.tensor(chosen, device=mask.device)
        gather.append(index[picked, :tokens].flatten())
        seat[picked, :tokens] = done + torch.arange(len(chosen) * tokens, device=mask.device).view(-1, tokens)
        shapes.append((len(chosen), tokens))
        done += len(chosen) * tokens
    return Packed(
        batch.input_ids[own][None], batch.position_ids[own][None], index[:, :-1][mask[:, 1:]],
        torch.cat(gather), tuple(shapes), seat[own],
    )  # fmt: skip


def _similar(lengths: list[int]) -> Iterator[tuple[list[int], int]]:
    """(rows, their greatest length) of classes of rows of similar length; rows of length 0 are in none."""
    order = sorted((i for i, n in enumerate(lengths) if n), key=lambda i: (-lengths[i], i))
    chosen: list[int] = []
    for i in order:
        if chosen and lengths[i] < _SIMILAR * lengths[chosen[0]]:
            yield chosen, lengths[chosen[0]]
            chosen = []
        chosen.append(i)
    yield chosen, lengths[chosen[0]]
