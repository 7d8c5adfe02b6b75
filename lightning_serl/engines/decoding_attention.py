"""Attention of one new token per row, without repeating keys and values for grouped heads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor

_PREFIX = "decoding_"
# Arguments of transformers' attention functions that change the result and that the short way does not know.
_UNKNOWN = ("position_bias", "cache", "softcap", "s_aux", "output_attentions")


@contextmanager
def decoding_attention(model: Any) -> Iterator[None]:
    """One-token passes of a transformers model inside the context read every key and value once.

    transformers' ``sdpa`` copies each key/value head for every query head that uses it, as soon as there is a mask.
    With one query token per row, the query heads of a group can take the place of query tokens: the same kernel and the
    same result without a copy. Models with another attention, and passes of several tokens, are left alone.
    """
    name = str(getattr(model.config, "_attn_implementation", None))
    if name not in ("sdpa", "packed_sdpa") or not model._can_set_attn_implementation():
        yield
        return
    _register(name)
    model.set_attn_implementation(_PREFIX + name)
    try:
        yield
    finally:
        model.set_attn_implementation(name)


def _register(name: str) -> None:
    # not at the top: it imports all of transformers' model code
    from transformers import AttentionInterface, AttentionMaskInterface

    usual = AttentionInterface()[name]

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *given: Any, **more: Any
    ) -> tuple[Tensor, None]:
        if not _simple(query, key, attention_mask, given, more):
            return usual(module, query, key, value, attention_mask, *given, **more)
        return _grouped(query, key, value, attention_mask, more.get("scaling")), None

    AttentionInterface.register(_PREFIX + name, attend)
    AttentionMaskInterface.register(_PREFIX + name, AttentionMaskInterface()[name])


def _simple(query: Tensor, key: Tensor, mask: Any, given: tuple[Any, ...], more: dict[str, Any]) -> bool:
    """Whether the pass is of one token per row, of grouped heads, and without what only the usual function knows."""
    if query.shape[2] != 1 or query.shape[1] == key.shape[1] or given or more.get("dropout"):
        return False
    if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[1] == 1):
        return False
    return not any(more.get(argument) is not None for argument in _UNKNOWN)


def _grouped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """(B, H, 1, D) queries on (B, K, T, D) keys and values, H a multiple of K, to (B, 1, H, D)."""
    rows, heads, _, width = query.shape
    folded = query.reshape(rows, key.shape[1], heads // key.shape[1], width)
    out = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(rows, 1, heads, value.shape[-1])
