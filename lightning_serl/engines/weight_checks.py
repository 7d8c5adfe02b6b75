"""What shows that an engine samples from the weights it was sent: receipts, a log-prob probe, and a canary.

Names, bytes and version catch what was skipped or lost on the way; the probe catches what arrived damaged. Neither is
enough alone: a step of training can lie below the rounding of bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_serl.engines.base import Receipt, RolloutEngine, WeightUpdate
from lightning_serl.errors import PushMismatch
from lightning_serl.policy.named_weights import base_name

if TYPE_CHECKING:
    from lightning_serl.policy.policy import Policy

#: Mean gap in nats per token that two implementations of one model may have, by the coarser of their dtypes.
BOUNDS = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# Where the hardware rounds the factors of float32 products.
_TF32 = 1e-2
_ROWS, _LENGTH = 6, 16


class Counted:
    """The tensors of an update, handed out once; remembers what it handed out."""

    def __init__(self, update: WeightUpdate) -> None:
        self._update = update
        self._sizes: dict[str, int] = {}
        self._walk: Iterator[tuple[str, Tensor]] | None = None

    def __call__(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor), one at a time."""
        self._sizes = {}
        self._walk = self._counting()
        return self._walk

    def _counting(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._update.tensors():
            self._sizes[name] = tensor.numel() * tensor.element_size()
            yield name, tensor

    def finish(self) -> None:
        """Walk on to the end: sharded tensors are gathered by all ranks in step, whatever one engine does."""
        for _ in self() if self._walk is None else self._walk:
            pass

    def receipt(self) -> Receipt:
        """What a faithful engine answers."""
        return Receipt(self._update.version, frozenset(self._sizes), sum(self._sizes.values()))


def check_receipt(arrived: Receipt, sent: Receipt) -> None:
    """Compare what an engine took in with what it was sent.

    Raises:
        PushMismatch: naming the first of version, names and bytes that differs.
    """
    if arrived.version != sent.version:
        raise PushMismatch(
            f"the rollout engine is at version {arrived.version} after a push of version {sent.version}; "
            "start the run again, which pushes anew, or choose another engine"
        )
    if odd := sorted(arrived.names ^ sent.names):
        raise PushMismatch(
            f"the rollout engine took {len(arrived.names)} tensors where {len(sent.names)} were sent (first that "
            f"differs: {odd[0]}); its architecture is not the policy's: give both the same model"
        )
    if arrived.bytes != sent.bytes:
        raise PushMismatch(
            f"the rollout engine took {arrived.bytes} bytes where {sent.bytes} were sent; "
            "give engine and policy the same model and dtype"
        )


def check_complete(sent: Receipt, expected: frozenset[str]) -> None:
    """Compare what was sent with what the model is made of.

    Raises:
        PushMismatch: if the engine left tensors unasked for, or the policy left some out.
    """
    if missing := sorted(expected - sent.names):
        raise PushMismatch(
            f"only {len(expected) - len(missing)} of {len(expected)} tensors were pushed (first that is missing: "
            f"{missing[0]}); the engine stopped half-way: start the run again, or choose another engine"
        )


def full_names(policy: Policy) -> frozenset[str]:
    """The tensors that a push of full weights must hold, the output layer among them also where it is tied."""
    names = (base_name(n) for n, _ in policy.causal_lm.named_parameters(remove_duplicate=False))
    return frozenset(n for n in names if n is not None)


def probe_rows(policy: Policy) -> list[list[int]]:
    """Token rows to score: the same for every push of a run, spread over the vocabulary."""
    tokenizer = policy.tokenizer
    special = set(tokenizer.all_special_ids)
    size = min(len(tokenizer), int(policy.causal_lm.get_input_embeddings().weight.shape[0]))
    plain = torch.tensor([i for i in range(size) if i not in special] or [tokenizer.eos_token_id])
    length = min(_LENGTH, (policy.context_length or _LENGTH) - 1)
    draw = torch.Generator().manual_seed(0)
    return plain[torch.randint(len(plain), (_ROWS, length), generator=draw)].tolist()


def policy_logps(policy: Policy, rows: list[list[int]], base: bool = False) -> list[Tensor]:
    """The policy's own log-probs of the probe, at temperature 1; call inside ``Policy.gathered``.

    Args:
        policy: Whose.
        rows: From :func:`probe_rows`.
        base: Of the model without its adapter.
    """
    with policy.at_temperature(1.0):
        if not base:
            return [s.logp for s in policy.stats([(row, 1) for row in rows])]
        with policy.model.disable_adapter():  # type: ignore[operator]
            return [s.logp for s in policy.stats([(row, 1) for row in rows])]


def gap(a: list[Tensor], b: list[Tensor]) -> float:
    """Mean absolute difference in nats per token."""
    return float((torch.cat(a).float() - torch.cat(b).float()).abs().mean())


def bound(policy: Policy, engine: RolloutEngine, autocast: torch.dtype | None = None) -> float:
    """The gap that rounding may explain.

    Args:
        policy: One side.
        engine: The other.
        autocast: What the trainer computes in, if not in the dtype of the weights.
    """
    own = policy.causal_lm.get_input_embeddings().weight.dtype
    bounds = [BOUNDS.get(d, BOUNDS[torch.bfloat16]) for d in (own, engine.dtype, autocast) if d is not None]
    if policy.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        bounds.append(_TF32)
    return max(bounds)


def canary_name(policy: Policy) -> str:
    """The weight that a canary scales: the last norm, through which every logit goes, else the output layer."""
    lm, found = policy.causal_lm, None
    for name, module in lm.named_modules():
        parts = name.split(".")
        is_norm = "norm" in parts[-1].lower() or parts[-1].startswith("ln")
        weight = getattr(module, "weight", None)
        if is_norm and not any(p.isdigit() for p in parts) and weight is not None and weight.dim() == 1:
            found = name
    if found is None:
        head = lm.get_output_embeddings()
        found = next(n for n, m in lm.named_modules(remove_duplicate=False) if m is head)
    return f"{found}.weight".replace(".base_layer.", ".")


def canary_weights(weights: Iterator[tuple[str, Tensor]], scaled: str) -> Iterator[tuple[str, Tensor]]:
    """The weights with one of them changed so that every log-prob moves."""
    for name, tensor in weights:
        # a sum too: some norms hold their distance from 1
        yield name, tensor * 1.5 + 0.5 if name == scaled else tensor


def canary_adapter(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapter with its second factors, which begin at zero, filled with noise."""
    draw = torch.Generator().manual_seed(0)
    out = {}
    for name, tensor in state.items():
        second = ".lora_B" in name or ".lora_embedding_B" in name
        noise = torch.randn(tensor.shape, generator=draw).to(tensor) if second else 0.0
        out[name] = tensor + 0.5 * noise
    return out
