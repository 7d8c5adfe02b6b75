"""The trainable causal language model and its token log-probabilities."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_serl.distributed import sharding
from lightning_serl.errors import InputError
from lightning_serl.policy.frozen_copies import FrozenAdapter, move_towards, on_device
from lightning_serl.policy.fused_logprobs import LossDerivative
from lightning_serl.policy.logprobs import OutputLayer, output_layer, token_stats
from lightning_serl.policy.lora import TRAINED, adapter_in_autocast_dtype
from lightning_serl.policy.named_weights import merged_weights, named_weights
from lightning_serl.policy.packing import attending, pack, prepare
from lightning_serl.policy.parts import decoder
from lightning_serl.policy.positions import steady_length
from lightning_serl.policy.vocabulary import TextDecoder, spare_ids
from lightning_serl.prompts.chat import turn_end_id
from lightning_serl.types import RolloutBatch, TokenStats, pad_rows


class Policy(nn.Module):
    """A Hugging Face causal LM, with or without LoRA, whose forward takes a batch and returns log-probs.

    This module is the root that strategies wrap and shard; the output layer runs inside its forward.

    Args:
        model: A ``PreTrainedModel`` with a causal-LM head, or a ``PeftModel`` around one.
        tokenizer: Its tokenizer; an end-of-sequence token is required, a pad token is not.
        temperature: The temperature rollouts are sampled and scored at; one number for both.
        chunk: Positions whose logits exist at one time; ``None`` for as many as fit in 32 MiB (256 MiB on a GPU).

    Attributes:
        version: Rises on every optimizer step and every load, so that an engine can tell stale weights.
        quantized: Whether the base holds 4-bit weights.
        steady_length: Most tokens of a row, if the position embedding would change beyond; longer rows are refused.
        spare_ids: Rows of the output layer that the tokenizer cannot write; they have no probability.
        frozen: Frozen copies by name (``reference``, ``teacher``), outside the module tree on purpose, so that they are
            not in optimizer, checkpoint or ``parameters()``.
        frozen_adapters: The same under LoRA: second adapters on the same base.
        offload_frozen: Whether frozen copies stay on the CPU except during their passes.
        packs: Whether batches run without padding; ``packing_check.unpackable`` finds out if they can.
        moved: Whether a frozen copy no longer has its first weights; only then it is saved in checkpoints.
        placement: How the weights are sharded; ``None`` where every rank holds all of them.
        rows_per_pass: Rows whose statistics are computed at one time; :class:`MemoryPlan` lowers it to what fits.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, temperature: float = 1.0, chunk: int | None = None) -> None:
        super().__init__()
        if tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no end-of-sequence token; set eos_token in its tokenizer_config.json")
        if temperature <= 0:
            raise InputError(f"model.temperature must be above 0, got {temperature}")
        self.model, self.tokenizer = model, tokenizer
        self.temperature, self.chunk = temperature, chunk
        self.version = 0
        self.quantized = any(hasattr(m, "quant_state") for m in model.modules())
        self.frozen: dict[str, Policy] = {}
        self.frozen_adapters: dict[str, FrozenAdapter] = {}
        self.offload_frozen = self.packs = self.moved = False
        self.rows_per_pass = 64
        self.placement: sharding.Placement | None = None
        self._decoder: TextDecoder | None = None
        self._turn_ends: tuple[Any, int | None] = (None, None)  # of the chat template in front
        head, embedding = self.causal_lm.get_output_embeddings(), self.causal_lm.get_input_embeddings()
        self._rows = int(embedding.weight.shape[0])
        self.spare_ids = spare_ids(tokenizer, getattr(head, "out_features", self._rows), self.end_ids)
        self.steady_length = steady_length(self.causal_lm.config)
        self._spare = torch.tensor(self.spare_ids) if self.spare_ids else None

    # -- the model -------------------------------------------------------------------------------------------------

    @property
    def has_adapter(self) -> bool:
        """Whether the trainable weights are a LoRA adapter."""
        return hasattr(self.model, "peft_config")

    @property
    def causal_lm(self) -> Any:
        """The Hugging Face model itself, with LoRA layers still inside."""
        return self.model.get_base_model() if self.has_adapter else self.model  # type: ignore[operator]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def pad_id(self) -> int:
        """The padding id; any id with a row serves, since padding is masked everywhere."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None or pad >= self._rows else pad)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end a completion: the tokenizer's, those of the generation config and the chat template's."""
        template = getattr(self.tokenizer, "chat_template", None)
        if template != self._turn_ends[0]:
            self._turn_ends = (template, turn_end_id(self.tokenizer))
        extra = getattr(getattr(self.causal_lm, "generation_config", None), "eos_token_id", None)
        ids = [self.tokenizer.eos_token_id, *(extra if isinstance(extra, (list, tuple)) else [extra])]
        return tuple(dict.fromkeys(int(i) for i in (*ids, self._turn_ends[1]) if i is not None))

    def texts(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The text of each row of completion ids, see :class:`.TextDecoder`."""
        ends = self.end_ids
        if self._decoder is None or self._decoder.ends != ends:
            self._decoder = TextDecoder(self.tokenizer, ends)
        return self._decoder(rows)

    @property
    def context_length(self) -> int | None:
        """The most positions that can be used, if the configuration says: see also :func:`.steady_length`."""
        length = getattr(self.causal_lm.config.get_text_config(), "max_position_embeddings", None)
        return min((int(n) for n in (length, self.steady_length) if n is not None), default=None)

    @property
    def output_layer(self) -> OutputLayer:
        """The output layer with the model's own scaling and soft cap, before temperature."""
        layer = output_layer(self.causal_lm)
        if self._spare is None:
            return layer
        if self._spare.device != self.device:
            self._spare = self._spare.to(self.device)
        return replace(layer, spare=self._spare)

    def head(self, hidden: Tensor) -> Tensor:
        """(..., H) hidden states to (..., V) logits, with the model's own scaling and soft cap, before temperature."""
        return self.output_layer(hidden)

    def forward(
        self,
        batch: RolloutBatch,
        certainty: bool = False,
        spread_gradient: bool = False,
        loss: Callable[[Tensor], Tensor] | None = None,
    ) -> TokenStats:
        """Log-probabilities of the completion tokens of a micro-batch.

        Args:
            batch: (B, T) ids, masks and positions; a batch without any masked token still runs the model, so that every
                rank takes part in every collective.
            certainty: Also compute self-certainty.
            spread_gradient: Entropy and certainty carry a gradient too, which takes time.
            loss: The () loss that will be computed from the (B, T) log-probs, if it is a sum over tokens of functions
                of their own log-prob: its derivative is then taken while the logits exist, which saves computing them
                twice. Without it, or with another loss in the end, the gradient is as exact.

        Returns:
            (B, T) statistics, 0 outside ``batch.mask``.
        """
        mask = batch.mask.clone()
        mask[:, 0] = False  # nothing predicts the first token of a row
        empty = not bool(mask.any())
        if empty:
            mask[0, 1] = True
        values = token_stats(
            self._predicting(batch, mask), self.output_layer, batch.input_ids[mask], self.temperature, self.chunk,
            certainty, spread_gradient, None if loss is None else _loss_derivative(loss, mask),
        )  # fmt: skip
        spread = []
        for value in values[: 3 if certainty else 2]:
            value = value * 0 if empty else value
            spread.append(torch.zeros(mask.shape, dtype=value.dtype, device=value.device).masked_scatter(mask, value))
        return TokenStats(*spread)

    def _predicting(self, batch: RolloutBatch, mask: Tensor) -> Tensor:
        """(K, H) last hidden states from which the K masked tokens are predicted, row by row."""
        self.check_length(batch.input_ids.shape[1])
        run = decoder(self.causal_lm)
        if self.packs:
            packed = pack(batch, mask)
            batch.positions, batch.padding = packed.home.shape[0], 0
            ids, places = packed.input_ids, packed.position_ids
            with attending(packed):
                out = run(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=places, use_cache=False)
            return out.last_hidden_state[0].index_select(0, packed.predictors)
        batch.positions, batch.padding = batch.input_ids.numel(), int((batch.attention_mask == 0).sum())
        ids, places = batch.input_ids, batch.position_ids
        out = run(input_ids=ids, attention_mask=batch.attention_mask, position_ids=places, use_cache=False)
        return out.last_hidden_state[:, :-1][mask[:, 1:]]

    # -- frozen copies ---------------------------------------------------------------------------------------------

    @property
    def copies(self) -> dict[str, Policy | FrozenAdapter]:
        """All frozen copies by name, of both kinds."""
        return {**self.frozen, **self.frozen_adapters}

    @contextmanager
    def acting_as(self, who: str) -> Iterator[Policy]:
        """The policy whose forward passes are those of ``policy``, ``reference`` or ``teacher``.

        Under LoRA the reference is the model with its adapter disabled, or a frozen adapter where it moves or where
        training started from an adapter; without LoRA it is a frozen copy. Raises :class:`InputError` if no such copy
        was made.
        """
        if who == "policy":
            yield self
        elif who in self.frozen:
            with on_device(self.frozen[who], self.device if self.offload_frozen else None):
                yield self.frozen[who]
        elif who in self.frozen_adapters:
            with self.frozen_adapters[who].active():
                yield self
        elif who == "reference" and self.has_adapter:
            with self.model.disable_adapter():  # type: ignore[operator]
                yield self
        else:
            raise InputError(
                f"no {who} policy exists in this run; list {who!r} in the `needs` of the reward or source that asks "
                "for it"
            )

    def freeze_copy(self, who: str) -> Policy | FrozenAdapter:
        """The frozen copy of that name, under LoRA a second adapter; made from the present weights if there is none."""
        if not self.has_adapter:
            if who not in self.frozen:
                self.frozen[who] = self._copy().requires_grad_(False).eval()
            return self.frozen[who]
        if who not in self.frozen_adapters:
            if self.placement is not None:
                raise InputError(
                    f"a {who} policy cannot be added to an adapter that is sharded already; use a new module"
                )
            self.frozen_adapters[who] = FrozenAdapter(self.model, who)
        return self.frozen_adapters[who]

    def move_copy(self, who: str, share: float) -> None:
        """Move a frozen copy towards the policy: all the way with ``share`` 1."""
        if who in self.frozen_adapters:
            self.frozen_adapters[who].follow(share)
        else:
            move_towards(self.frozen[who], self, share)
            self.frozen[who].moved = True

    def _copy(self) -> Policy:
        """A second policy with the present weights, sharded as this one is; nothing is gathered."""
        copied = self.around(copy.deepcopy(self.model if self.placement is None else self.placement.blank))
        if self.placement is not None:
            copied.placement = self.placement
            sharding.place(copied, copied.model, self.placement)
            with torch.no_grad():
                ours, theirs = ((*one.parameters(), *one.buffers()) for one in (self, copied))
                for own, other in zip(ours, theirs, strict=True):
                    other.copy_(own)
            copied.become_root()
        return copied

    def around(self, model: nn.Module) -> Policy:
        """A policy around another model of the same kind, with the settings of this one."""
        made = Policy(model, self.tokenizer, self.temperature, self.chunk)
        made.packs = self.packs and prepare(made.causal_lm) is None
        return made

    def become_root(self) -> None:
        """Make this module FSDP's root by running it first; an engine would run the model inside it."""
        with torch.no_grad():
            self(pad_rows([], [], self.pad_id).to(self.device))
        sharding.reshard(self)

    def check_length(self, tokens: int) -> None:
        """Refuse rows of so many tokens if their position embedding would be another one: an InputError."""
        if self.steady_length is not None and tokens > self.steady_length:
            raise InputError(
                f"a row of {tokens} tokens is longer than {self.steady_length}, beyond which this model changes the "
                "positions of all rows of a batch (rope_type longrope or dynamic); lower data.max_tokens or "
                "data.round.max_prompt_tokens"
            )

    # -- use outside of training_step ------------------------------------------------------------------------------

    @contextmanager
    def gathered(self, trainer: pl.Trainer | None = None) -> Iterator[Policy]:
        """For forward passes outside ``training_step``: whole weights, eval mode, no gradients, the run's precision.

        Plain ``no_grad`` and not inference mode, whose tensors cannot enter a later backward pass.
        """
        modes = [(m, m.training) for m in self.modules()]
        self.eval()
        context: Any = nullcontext() if trainer is None else trainer.precision_plugin.forward_context()
        try:
            with ExitStack() as stack:
                for policy in (self, *self.frozen.values()):
                    stack.enter_context(sharding.unsharded(policy))
                stack.enter_context(torch.no_grad())
                default = torch.get_default_dtype()
                stack.enter_context(context)
                # the weights keep the run's precision; the numbers of sources and rewards must not be rounded to it
                torch.set_default_dtype(default)
                yield self
        finally:
            for module, mode in modes:
                module.training = mode

    @contextmanager
    def over_all_ids(self) -> Iterator[Policy]:
        """Probabilities over all rows of the output layer, those without a token included, as other engines score."""
        self._spare, spare = None, self._spare
        try:
            yield self
        finally:
            self._spare = spare

    @contextmanager
    def at_temperature(self, temperature: float) -> Iterator[Policy]:
        """Log-probs at another temperature than that of rollouts, for the frozen copies too."""
        before = [(owner, owner.temperature) for owner in (self, *self.frozen.values())]
        for owner, _ in before:
            owner.temperature = temperature
        try:
            yield self
        finally:
            for owner, value in before:
                owner.temperature = value

    def without_autocast(self) -> AbstractContextManager[None]:
        """Forward passes without gradients that give the same numbers as under autocast, in less time.

        See :func:`~lightning_serl.policy.lora.adapter_in_autocast_dtype`; sharded weights keep their autocast.
        """
        return nullcontext() if self.placement is not None else adapter_in_autocast_dtype(self.model, self.device.type)

    def stats(self, rows: Sequence[tuple[Sequence[int], int]], who: str = "policy", certainty: bool = False,
              rows_per_pass: int | None = None) -> list[TokenStats]:  # fmt: skip
        """Statistics of given tokens, in length-sorted passes; call inside :meth:`gathered`.

        A row is ``(token ids, start)`` with ``start`` at least 1, and gives (len - start,) tensors on the CPU.
        """
        size = self.rows_per_pass if rows_per_pass is None else rows_per_pass
        out: list[TokenStats] = [TokenStats(torch.zeros(0))] * len(rows)
        scored = (i for i in range(len(rows)) if len(rows[i][0]) > rows[i][1])
        if self.packs:  # rows of one prompt side by side
            order = sorted(scored, key=lambda i: (rows[i][0][: rows[i][1]], len(rows[i][0]), i))
        else:
            order = sorted(scored, key=lambda i: (len(rows[i][0]), i))
        with self.acting_as(who) as actor:
            for k in range(0, len(order), size):
                chosen = order[k : k + size]
                batch = pad_rows([rows[i][0] for i in chosen], [rows[i][1] for i in chosen], self.pad_id)
                result = actor(batch.to(self.device), certainty=certainty)
                for line, i in enumerate(chosen):
                    piece = slice(rows[i][1], len(rows[i][0]))
                    out[i] = TokenStats(*(None if v is None else v[line, piece].cpu() for v in result))  # type: ignore[arg-type]
        return out

    # -- weights for engines and export ----------------------------------------------------------------------------

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The base model's weights, see :func:`lightning_serl.policy.named_weights.named_weights`."""
        return named_weights(self.causal_lm)

    def merged_weights(self) -> Iterator[tuple[str, Tensor]]:
        """As :meth:`named_weights`, with the trained adapter merged into copies; without an adapter the same."""
        return merged_weights(self.causal_lm) if self.has_adapter else named_weights(self.causal_lm)

    def adapter_config(self) -> dict[str, Any]:
        """The configuration of the LoRA adapter, as peft writes it."""
        configs: Any = self.model.peft_config
        return configs[TRAINED].to_dict()

    def adapter_state(self) -> dict[str, Tensor]:
        """The LoRA adapter's tensors under peft's names, sharded ones gathered (all ranks in step)."""
        from peft import get_peft_model_state_dict

        return {k: sharding.full(v) for k, v in get_peft_model_state_dict(self.model).items()}


def _loss_derivative(loss: Callable[[Tensor], Tensor], mask: Tensor) -> LossDerivative:
    """The derivative of a loss of (B, T) log-probs, by those of some masked tokens."""

    def derivative(logp: Tensor, place: slice) -> Tensor:
        with torch.enable_grad():
            table = torch.zeros(mask.shape, dtype=logp.dtype, device=logp.device).masked_scatter(mask, logp)
            (gradient,) = torch.autograd.grad(loss(table.requires_grad_()), table)
        return gradient[mask][place]

    return derivative
