"""Packs micro-batches: every token goes through the decoder once, and rows are formed for attention alone.

All layers except attention treat tokens one by one. So the tokens of a batch are put in one line: without padding, the
prompt of neighbouring rows once, and without the last token of each row, which predicts nothing. Around each attention
call queries, keys and values are gathered into rows of similar length, on which the model's own attention runs with its
own mask (causal, sliding window, ...), so that no row can attend to another. :func:`.packing_check.unpackable` finds
models in which something besides attention mixes tokens, or that do not use transformers' attention interface.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

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

    The (B, T) bool mask has at least one True, and none in the first column.
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


# -- attention over packed rows ----------------------------------------------------------------------------------------

_PACKED: ContextVar[Packed | None] = ContextVar("packed", default=None)


@contextmanager
def attending(packed: Packed) -> Iterator[None]:
    """Masks that a model prepared by :func:`prepare` makes inside the context are those of these rows."""
    token = _PACKED.set(packed)
    try:
        yield
    finally:
        _PACKED.reset(token)


@dataclass(frozen=True)
class _Rows:
    """Passed through the layers in place of an attention mask, so that a layer that is computed again has it too."""

    packed: Packed
    masks: list[Tensor | None]


def prepare(model: Any) -> str | None:
    """Give a transformers model an attention that also takes packed rows (else it is its own), or return why not."""
    # not at the top: it imports all of transformers' model code
    from transformers import AttentionInterface, AttentionMaskInterface

    name = model.config._attn_implementation
    if str(name).startswith("packed_"):
        return None
    if name not in ("sdpa", "eager"):
        return f"its attention is {name}, not sdpa"
    if not model._can_set_attn_implementation():
        return "its attention does not go through transformers' interface"
    AttentionMaskInterface.register(f"packed_{name}", _mask_of(AttentionMaskInterface()[name]))
    AttentionInterface.register(f"packed_{name}", _attention_of(name))
    model.set_attn_implementation(f"packed_{name}")
    return None


def _mask_of(make: Callable[..., Any]) -> Callable[..., Any]:
    def mask(**given: Any) -> Any:
        packed = _PACKED.get()
        if packed is None:
            return make(**given)
        if given["mask_function"] is None or given["q_length"] != packed.input_ids.shape[1]:
            raise ValueError("the model asks for an attention mask of other tokens than its input")
        masks = []
        for rows, tokens in packed.shapes:
            # padding comes after the tokens of its row, so a causal mask hides it
            asked = {"batch_size": rows, "q_length": tokens, "kv_length": tokens, "attention_mask": None}
            masks.append(make(**{**given, **asked}))
        return _Rows(packed, masks)

    return mask


def _attention_of(name: str) -> Callable[..., Any]:
    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *given: Any, **more: Any
    ) -> tuple[Tensor, None]:
        from transformers import AttentionInterface

        if name == "eager":
            attend = sys.modules[type(module).__module__].eager_attention_forward
        else:
            attend = AttentionInterface()[name]
        if not isinstance(attention_mask, _Rows):
            if attention_mask is None and _PACKED.get() is not None:
                raise ValueError("the model does not pass transformers' attention mask to its layers")
            return attend(module, query, key, value, attention_mask, *given, **more)
        packed = attention_mask.packed
        calls = zip(*(packed.rows(x) for x in (query, key, value)), attention_mask.masks, strict=True)
        return packed.line([attend(module, q, k, v, mask, *given, **more)[0] for q, k, v, mask in calls]), None

    return attention
