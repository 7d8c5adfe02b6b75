"""Checks that an engine samples from the weights it was sent: by receipt, log-prob probe and canary.

The receipt (version, names, bytes) finds tensors that were skipped or lost; the probe finds tensors that arrived
damaged. Both are needed: an optimizer step can change log-probs by less than the rounding of bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_serl.distributed.ranks import Ranks
from lightning_serl.engines.base import Receipt, RolloutEngine, WeightUpdate
from lightning_serl.errors import NotFinite, PushMismatch
from lightning_serl.objectives.optimizer_steps import ADVICE, check_weights
from lightning_serl.policy.named_weights import base_name
from lightning_serl.policy.policy import Policy

#: Mean gap in nats per token that rounding may cause between two implementations, by the coarser of their dtypes.
BOUNDS = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# The same where the hardware rounds the factors of float32 products (TF32).
_TF32 = 1e-2
_ROWS, _LENGTH = 6, 16


class Counted:
    """Iterates over the tensors of an update once and counts their names and bytes."""

    def __init__(self, update: WeightUpdate) -> None:
        self._update = update
        self._sizes: dict[str, int] = {}
        self._walk: Iterator[tuple[str, Tensor]] | None = None

    def __call__(self) -> Iterator[tuple[str, Tensor]]:
        """Iterate over (name, tensor) from the start."""
        self._sizes = {}
        self._walk = self._counting()
        return self._walk

    def _counting(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._update.tensors():
            self._sizes[name] = tensor.numel() * tensor.element_size()
            yield name, tensor

    def finish(self) -> None:
        """Iterate to the end: each sharded tensor is gathered by a collective call that every rank must join."""
        for _ in self() if self._walk is None else self._walk:
            pass

    def receipt(self) -> Receipt:
        """The receipt that an engine should return."""
        return Receipt(self._update.version, frozenset(self._sizes), sum(self._sizes.values()))


def check_receipt(arrived: Receipt, sent: Receipt) -> None:
    """Raise PushMismatch if version, names or bytes of what an engine received differ from what it was sent."""
    if arrived.version != sent.version:
        raise PushMismatch(
            f"the rollout engine is at version {arrived.version} after a push of version {sent.version}; "
            "continue with --ckpt_path last, which pushes again, or set another data.engine"
        )
    if odd := sorted(arrived.names ^ sent.names):
        raise PushMismatch(
            f"the rollout engine received {len(arrived.names)} tensors where {len(sent.names)} were sent (first that "
            f"differs: {odd[0]}); its architecture is not the policy's: give both the same model"
        )
    if arrived.bytes != sent.bytes:
        raise PushMismatch(
            f"the rollout engine received {arrived.bytes} bytes where {sent.bytes} were sent; "
            "give engine and policy the same model and dtype"
        )


def check_complete(sent: Receipt, expected: frozenset[str]) -> None:
    """Raise PushMismatch if a tensor of :func:`full_names` was not sent: the engine stopped reading early."""
    if missing := sorted(expected - sent.names):
        raise PushMismatch(
            f"only {len(expected) - len(missing)} of {len(expected)} tensors were pushed (first that is missing: "
            f"{missing[0]}); the engine stopped reading: continue with --ckpt_path last, or set another data.engine"
        )


def full_names(policy: Policy) -> frozenset[str]:
    """Names of the tensors in a push of full weights; the output layer is one of them even where it is tied."""
    names = (base_name(n) for n, _ in policy.causal_lm.named_parameters(remove_duplicate=False))
    return frozenset(n for n in names if n is not None)


def probe_rows(policy: Policy) -> list[list[int]]:
    """Rows of token ids to score, drawn over the whole vocabulary; the same for every push of a run."""
    tokenizer = policy.tokenizer
    special = {*tokenizer.all_special_ids, *policy.spare_ids}
    size = min(len(tokenizer), int(policy.causal_lm.get_input_embeddings().weight.shape[0]))
    plain = torch.tensor([i for i in range(size) if i not in special] or [tokenizer.eos_token_id])
    length = min(_LENGTH, (policy.context_length or _LENGTH) - 1)
    draw = torch.Generator().manual_seed(0)
    return plain[torch.randint(len(plain), (_ROWS, length), generator=draw)].tolist()


def policy_logps(policy: Policy, rows: list[list[int]], base: bool = False) -> list[Tensor]:
    """Log-probs of the rows at temperature 1, of the policy or its base model; call inside ``Policy.gathered``.

    They are over all ids, as an engine scores a text, whatever it may sample.
    """
    adapter = policy.model.disable_adapter() if base else nullcontext()  # type: ignore[operator]
    with policy.at_temperature(1.0), policy.over_all_ids(), adapter:
        return [s.logp for s in policy.stats([(row, 1) for row in rows])]


def check_finite(policy: Policy, trainer: pl.Trainer | None) -> None:
    """Raise a NotFinite on all ranks, which must all call it, if a weight is NaN or infinite, or a log-prob is NaN.

    Finite weights can be so large that the forward pass overflows. The log-probs are those of :func:`probe_rows`.
    """
    step, ranks = 0 if trainer is None else trainer.global_step, Ranks.of(trainer)
    when = f"after step {step}" if step else "as they were loaded"
    check_weights(policy.model.named_parameters(), ranks, when)
    with policy.gathered(trainer):
        wrong = any(bool(torch.isnan(logp).any()) for logp in policy_logps(policy, probe_rows(policy)))
    if ranks.any(wrong):
        with ranks.stage("checking the log-probs"):
            raise NotFinite(f"with the weights {when} the policy's log-probs are NaN; {ADVICE}")


def gap(a: list[Tensor], b: list[Tensor]) -> float:
    """Mean absolute difference of two sets of log-probs, in nats per token."""
    return float((torch.cat(a).float() - torch.cat(b).float()).abs().mean())


def bound(policy: Policy, engine: RolloutEngine, autocast: torch.dtype | None = None) -> float:
    """The largest :func:`gap` that rounding explains; ``autocast`` is the trainer's, if not that of the weights."""
    own = policy.causal_lm.get_input_embeddings().weight.dtype
    bounds = [BOUNDS.get(d, BOUNDS[torch.bfloat16]) for d in (own, engine.dtype, autocast) if d is not None]
    if policy.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        bounds.append(_TF32)
    return max(bounds)


def canary_name(policy: Policy) -> str:
    """Name of the weight that a canary changes: the last norm, which every logit depends on, else the output layer."""
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
    """The weights with ``scaled`` changed so that every log-prob changes."""
    for name, tensor in weights:
        # the offset is for norms that store their distance from 1, whose weight may be 0
        yield name, tensor * 1.5 + 0.5 if name == scaled else tensor


def canary_adapter(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapter with noise added to its second factors, which are zero at the start of training."""
    draw = torch.Generator().manual_seed(0)
    out = {}
    for name, tensor in state.items():
        second = ".lora_B" in name or ".lora_embedding_B" in name
        noise = torch.randn(tensor.shape, generator=draw).to(tensor) if second else 0.0
        out[name] = tensor + 0.5 * noise
    return out
