"""Attention over packed rows, through transformers' attention interface: each row attends to its own tokens."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_serl.policy.packing import Packed

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
    """Have a model use an attention that also takes packed rows; without them it is the model's own.

    Args:
        model: A transformers model.

    Returns:
        Why its attention cannot be prepared, or ``None``.
    """
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
