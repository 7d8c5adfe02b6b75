"""Token log-probs from hidden states, without the logits of a whole batch in memory.

The output layer is applied to a chunk of positions at a time; log-prob, entropy and the gradient are computed from the
chunk's logits before the next chunk overwrites them. This needs three matrix products at least: hidden states to
logits, and the gradients of hidden states and weight.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_serl.policy.fused_logprobs import FusedLogProbs, LossDerivative, impossible, rows_at_once


@dataclass(frozen=True)
class OutputLayer:
    """The last step of a causal LM: ``cap * tanh(scale * layer(hidden) / cap)``, or without a cap ``scale * layer``.

    Ids that the tokenizer cannot write have no probability: their logits are replaced by :data:`.IMPOSSIBLE`.

    Attributes:
        layer: Called on (k, H) hidden states to give (k, V) logits.
        scale: Cohere, Granite and Falcon-H1 scale their logits.
        cap: Gemma 2 caps them softly.
        spare: (k,) int64 ids that are never written, on the device of the layer; ``None`` for none.
    """

    layer: Callable[[Tensor], Tensor]
    scale: float = 1.0
    cap: float | None = None
    spare: Tensor | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """(..., H) hidden states to (..., V) logits."""
        logits = self.layer(hidden)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits if self.spare is None else logits.index_fill(-1, self.spare, impossible(logits.dtype))

    @property
    def plain(self) -> bool:
        """Whether the layer is a matrix with or without a bias: no hooks, adapter, sharding or 4-bit weight."""
        layer = self.layer
        return (
            type(layer) is nn.Linear
            and not (layer._forward_hooks or layer._forward_pre_hooks)
            and type(layer.weight.data) is Tensor
        )


def output_layer(causal_lm: Any) -> OutputLayer:
    """The output layer of a Hugging Face causal LM, with the model's own scaling and soft cap."""
    config = causal_lm.config.get_text_config()
    scale = 1.0
    if (factor := getattr(config, "logit_scale", None)) is not None:  # Cohere
        scale *= factor
    if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
        scale /= divisor
    if (factor := getattr(config, "lm_head_multiplier", None)) is not None:  # Falcon-H1
        scale *= factor
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2 and later
    return OutputLayer(causal_lm.get_output_embeddings(), scale, cap)


def token_logprobs(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor] | Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each label and entropy of each distribution, without all logits in memory at one time.

    Args:
        hidden: (N, H) last hidden states.
        head: The output layer, called on (k, H) to give (k, V) logits; or its (V, H) weight.
        labels: (N,) int64 token ids.
        temperature: Divides the logits, as the sampler's does.
        chunk: Positions whose logits exist at one time; by default as many as fit in 32 MiB (256 MiB on a GPU).

    Returns:
        ``(logp, entropy)``, each (N,), float32 (float64 for a float64 model).
    """
    if isinstance(head, Tensor):
        fused = FusedLogProbs(1.0, None, temperature, chunk, None, certainty=False, spread_gradient=True)
        return fused(hidden, head, None, labels)[:2]
    return token_stats(hidden, OutputLayer(head), labels, temperature, chunk, spread_gradient=True)[:2]


def token_stats(
    hidden: Tensor,
    head: OutputLayer,
    labels: Tensor,
    temperature: float,
    chunk: int | None = None,
    certainty: bool = False,
    spread_gradient: bool = False,
    loss_derivative: LossDerivative | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(logp, entropy, certainty), each (N,); certainty is KL(uniform || p) + log V (Kang et al., 2502.18581).

    Arguments are those of :func:`token_logprobs` and :class:`FusedLogProbs`; without ``certainty`` the last is 0.
    ``loss_derivative`` lets the gradient of the weight be summed while the logits exist. After a wrong prediction, and
    for a trainable output layer without one, the backward pass computes the logits again; the gradient is exact in
    every case.
    """
    if head.plain:
        layer: Any = head.layer
        fused = FusedLogProbs(
            head.scale, head.cap, temperature, chunk, loss_derivative, certainty, spread_gradient, head.spare
        )
        return fused(hidden, layer.weight, layer.bias, labels)
    return _recomputed(hidden, head, labels, temperature, chunk, spread_gradient)


def _recomputed(
    hidden: Tensor, head: OutputLayer, labels: Tensor, temperature: float, chunk: int | None, spread_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`token_stats` for any output layer, by autograd; the backward pass computes the logits again."""

    def piece(h: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = head(h)
        logits = (logits if logits.dtype == torch.float64 else logits.float()) / temperature
        normaliser = torch.logsumexp(logits, -1)
        logp = logits.gather(-1, y[:, None])[:, 0] - normaliser
        with nullcontext() if spread_gradient else torch.no_grad():
            shifted = logits - normaliser[:, None]
            entropy = -(shifted.exp() * shifted).sum(-1)
            if head.spare is None:
                certainty = normaliser - logits.mean(-1)
            else:
                possible = logits.shape[-1] - len(head.spare)
                certainty = normaliser - logits.index_fill(-1, head.spare, 0.0).sum(-1) / possible
        return logp, entropy, certainty

    if chunk is None:
        chunk = rows_at_once(hidden, getattr(head.layer, "out_features", 2**17), None)
    if hidden.shape[0] <= chunk:
        return piece(hidden, labels)
    parts = []
    for h, y in zip(torch.split(hidden, chunk), torch.split(labels, chunk), strict=True):
        parts.append(checkpoint(piece, h, y, use_reentrant=False) if torch.is_grad_enabled() else piece(h, y))
    return tuple(torch.cat(p) for p in zip(*parts, strict=True))  # type: ignore[return-value]
