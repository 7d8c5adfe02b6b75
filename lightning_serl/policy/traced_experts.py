"""Experts whose memory can be traced with fake tensors, which hold no numbers to route tokens by."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

_NAME = "traced"


def trace_experts(model: Any) -> None:
    """Let the fused experts of a model that is only traced take the memory that grouped matrix products take.

    The grouped products themselves run for bfloat16 only under fake tensors, and the loop over experts asks which of
    them were chosen. Models without fused experts stay as they are.
    """
    if not hasattr(model, "set_experts_implementation"):
        return
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(_NAME, _through_the_first)
    model.set_experts_implementation(_NAME)


def _through_the_first(experts: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """(tokens, H) results with all tokens through the first expert: the same shapes, saved tensors and gradients."""
    each = chosen.shape[-1]
    up = experts.gate_up_proj if experts.has_gate else experts.up_proj
    bias = (experts.gate_up_proj_bias if experts.has_gate else experts.up_proj_bias) if experts.has_bias else None
    rows = _linear(experts, hidden.repeat_interleave(each, 0), up, bias)
    rows = experts._apply_gate(rows) if experts.has_gate else experts.act_fn(rows)
    rows = _linear(experts, rows, experts.down_proj, experts.down_proj_bias if experts.has_bias else None)
    rows = rows * weights.reshape(-1, 1)
    return rows.view(len(hidden), each, -1).sum(1).to(hidden.dtype)


def _linear(experts: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    first = weight[0].t() if experts.is_transposed else weight[0]
    return nn.functional.linear(rows.to(first.dtype), first, None if bias is None else bias[0].to(first.dtype))
