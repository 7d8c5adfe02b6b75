"""The LightningModule: a policy, its objective and its optimizer, from graded groups to gradient steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from lightning_serl.callbacks.memory_plan import announce
from lightning_serl.checkpoints.io import use_our_files
from lightning_serl.checkpoints.loop_progress import rescale, settle
from lightning_serl.distributed import sharding, strategies
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.errors import InputError
from lightning_serl.evaluation.metrics import EvaluationSet, GradedProblem
from lightning_serl.objectives.experience import Row, micro_batch, rows_of, set_advantages
from lightning_serl.objectives.importance import ImportanceWeights, effective_sample_size, importance_weights
from lightning_serl.objectives.losses import aggregate, clip_counts, kl, policy_loss
from lightning_serl.objectives.minibatches import minibatches, partition, partition_packed
from lightning_serl.objectives.options import Objective
from lightning_serl.policy.frozen_adapter import FrozenAdapter
from lightning_serl.policy.loading import DType, check_model_path, check_quantize, load_policy
from lightning_serl.policy.lora import LoraOptions
from lightning_serl.policy.packed_attention import prepare
from lightning_serl.policy.packing_check import unpackable
from lightning_serl.policy.policy import Policy
from lightning_serl.policy.quantization import Quantization
from lightning_serl.policy.sharded_weights import shard
from lightning_serl.types import Group, RolloutBatch, Verdict

if TYPE_CHECKING:
    from lightning_serl.evaluation.batch import EvaluationBatch


def _adamw(params: Any) -> torch.optim.Optimizer:
    """AdamW as SeRL uses it: learning rate 1e-6, betas 0.9 and 0.95, no weight decay."""
    return torch.optim.AdamW(params, lr=1e-6, betas=(0.9, 0.95), weight_decay=0.0)


# What an optimizer step sums up over micro-batches and ranks, and what it takes the largest value of.
_SUMS = (
    "loss", "entropy", "low", "high", "kl", "padding", "positions",
    "gap", "sampled", "fresh_gap", "fresh", "weights", "ratio", "squares", "outside",
)  # fmt: skip
_PEAKS = ("gap", "ratio", "least")
# Mean difference of log-probs per token, in nats, that kernels of one dtype do not explain.
_LARGE_GAP = {"float64": 5e-4, "float32": 5e-4, "float16": 0.01, "bfloat16": 0.05}
_PRECISIONS = {"bf16": "bfloat16", "16": "float16"}


@dataclass
class _Step:
    """Sums over the micro-batches of one optimizer step, for the log."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    tokens: int = 1

    def add(self, **values: Tensor) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), dtype=torch.float64)) + value.detach().double().cpu()

    def peak(self, **values: Tensor) -> None:
        for name, value in values.items():
            if value.numel():
                self.peaks[name] = max(self.peaks.get(name, -math.inf), float(value.max()))


class SeRLModule(pl.LightningModule):
    """Trains a language model on graded groups of its own responses.

    Use it with ``SelfPlayDataModule``, or with any training stream that yields ``module.experience(groups, verdicts)``.

    Args:
        model_name_or_path: Directory or hub name of a causal language model with its tokenizer; ``tiny:base`` is the
            embedded one. Only replayed evaluations can do without.
        objective: The policy-gradient objective.
        lora: Train a low-rank adapter instead of all weights.
        quantize: ``nf4`` holds the base's linear layers in 4 bits (QLoRA); needs ``lora`` and bitsandbytes.
        offload_frozen: Keep frozen copies (the reference policy of full fine-tuning) on the CPU and bring them to the
            device for their passes alone.
        inner_epochs: Passes over each round's responses.
        minibatches: Optimizer steps per pass.
        temperature: Of rollouts, and of the log-probs the ratio is made of.
        dtype: Of the loaded weights; keep ``float32`` under mixed precision.
        gradient_checkpointing: Recompute activations in the backward pass to save memory.
        attn_implementation: As in transformers, for example ``sdpa``; null lets transformers choose.
        packing: ``auto`` trains without padding and computes each prompt once where the model can (found out when
            training starts, and said); ``none`` pads rows of similar length.
        optimizer: Optimizer class and its options.
        lr_scheduler: Learning-rate scheduler class and its options, stepped after every optimizer step.

    Raises:
        InputError: if the model directory is incomplete or an option is out of range.
    """

    # Under LoRA a checkpoint holds the adapter alone.
    strict_loading = False

    def __init__(
        self,
        model_name_or_path: str | None = None,
        objective: Objective = Objective(),  # noqa: B008 - frozen, and jsonargparse reads its fields for --help
        lora: LoraOptions | None = None,
        quantize: Quantization | None = None,
        offload_frozen: bool = False,
        inner_epochs: int = 1,
        minibatches: int = 1,
        temperature: float = 1.0,
        dtype: DType = "float32",
        gradient_checkpointing: bool = False,
        attn_implementation: str | None = None,
        packing: Literal["auto", "none"] = "auto",
        optimizer: OptimizerCallable = _adamw,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("inner_epochs", inner_epochs), ("minibatches", minibatches)):
            if value < 1:
                raise InputError(f"model.{name} must be at least 1, got {value}")
        if temperature <= 0:
            raise InputError(f"model.temperature must be above 0, got {temperature}")
        if model_name_or_path is not None:
            check_model_path(model_name_or_path)
        if lora is not None and (lora.peft or lora.start_from):
            lora.config()
        if quantize is not None:
            check_quantize(quantize, lora)
        self.model_name_or_path = model_name_or_path
        self.objective = objective
        self.lora, self.quantize, self.offload_frozen = lora, quantize, offload_frozen
        self.inner_epochs, self.minibatches = inner_epochs, minibatches
        self.temperature = temperature
        #: Further arguments of ``load_policy``.
        self.load_options: dict[str, Any] = {
            "dtype": dtype,
            "gradient_checkpointing": gradient_checkpointing,
            "attn_implementation": attn_implementation,
        }
        self.packing = packing
        self._make_optimizer, self._make_scheduler = optimizer, lr_scheduler
        self._step = _Step()
        self.evaluations: dict[str, EvaluationSet] = {}
        self._graded: dict[str, list[GradedProblem]] = {}
        #: The graded problems of the last ``validate`` or ``test`` by set, on rank 0.
        self.evaluation_items: dict[str, list[GradedProblem]] = {}
        #: What the last optimizer step measured, under TRL's names; ``metrics.jsonl`` is written from it.
        self.step_metrics: dict[str, float] = {}
        self._foreseen = False
        #: Whether the optimizer is changing the weights: no time for a checkpoint.
        self.updating = False
        self._warned_of_gap = False
        #: The step of the last evaluation inside ``fit`` that came to its end.
        self.evaluated_at: int | None = None

    # -- the policy --------------------------------------------------------------------------------------------------

    policy: Policy  # registered by configure_model, so that checkpoints name its weights policy.*

    def __getattr__(self, name: str) -> Any:
        """Load the policy when it is first asked for; a Trainer does so earlier, through :meth:`configure_model`."""
        if name == "policy" and "policy" not in self.__dict__["_modules"]:
            self.configure_model()
        return super().__getattr__(name)

    @property
    def steps_per_round(self) -> int:
        """Optimizer steps made of each round."""
        return self.inner_epochs * self.minibatches

    @property
    def has_policy(self) -> bool:
        """Whether there is a model at all; recordings can be evaluated without one."""
        return self.model_name_or_path is not None

    def configure_model(self) -> None:
        """Load the policy and make the frozen copies that the run needs; called again it does nothing.

        Raises:
            InputError: if no model was named and the run needs one.
        """
        if "policy" in self._modules:
            self._freeze_copies()
            return
        if self.model_name_or_path is None:
            engine = getattr(getattr(self._trainer, "datamodule", None), "engine", None)
            if getattr(engine, "samples_policy", True) or self._trainer.state.fn == "fit":
                raise InputError(
                    "no model was named; set --model.model_name_or_path to a directory, a hub name or tiny:base"
                )
            return
        ranks, mesh = Ranks.of(self._trainer), self.device_mesh
        device = None if self._trainer is None else self._trainer.strategy.root_device
        with ranks.stage("loading the model"):
            policy = load_policy(
                self.model_name_or_path,
                self.lora,
                temperature=self.temperature,
                quantize=self.quantize,
                device=device,
                empty=mesh is not None and not ranks.leads,
                **self.load_options,
            )
        policy.offload_frozen = self.offload_frozen
        self.policy = policy
        if mesh is not None:
            if policy.has_adapter:
                self._freeze_copies()  # a frozen adapter lies in the same layers and is sharded with them
            shard(policy, self.trainer, mesh)
        self._freeze_copies()

    def _freeze_copies(self) -> None:
        """Make the frozen copies that this run needs and that do not exist yet."""
        policy, trainer = self.policy, self._trainer
        asked: frozenset[str] = getattr(getattr(trainer, "datamodule", None), "needs", frozenset())
        needs = set(asked) & {"reference", "teacher"}
        trains = trainer is None or trainer.state.fn not in ("validate", "test", "predict")
        if self.objective.beta > 0 and trains:
            needs.add("reference")
        moving = {w for c in getattr(trainer, "callbacks", []) for w in getattr(c, "moves", ())}
        for who in sorted(needs | moving):
            # the disabled adapter serves as long as it is where training began
            began_at_base = self.lora is None or self.lora.start_from is None
            if not (who == "reference" and policy.has_adapter and began_at_base and who not in moving):
                self._freeze_copy(who)

    def _freeze_copy(self, who: str) -> Policy | FrozenAdapter:
        """A frozen copy in the run's precision: Lightning converts the module tree alone, and the copy is outside."""
        twin, trainer = self.policy.freeze_copy(who), self._trainer
        if trainer is not None and isinstance(twin, Policy):
            trainer.precision_plugin.convert_module(twin)
        return twin

    def foresee(self, trainer: pl.Trainer, data: Any) -> None:
        """Say once what a fit will hold where, before anything is loaded."""
        if not self._foreseen and "policy" not in self._modules:
            announce(self, trainer, data)
        self._foreseen = True

    def _check_precision(self) -> None:
        """Refuse what would spoil 4-bit weights.

        Raises:
            InputError: naming the precision.
        """
        precision = str(self.trainer.precision)
        if self.quantize is not None and precision.endswith("-true") and precision != "32-true":
            raise InputError(
                f"trainer.precision {precision} would cast the scales of 4-bit weights; use bf16-mixed or 32-true"
            )

    def setup(self, stage: str) -> None:
        """Refuse what cannot run as asked, and forget what an earlier run of this module left unfinished.

        Raises:
            InputError: if the Trainer's strategy or precision is not supported.
        """
        strategies.check_strategy(self.trainer, {"quantize": self.quantize, "offload_frozen": self.offload_frozen})
        use_our_files(self.trainer)
        self._check_precision()
        if stage == "fit":
            lr = float(self.check_optimizer().param_groups[0]["lr"])
            strategies.check_learning_rate(self.trainer, lr, self.load_options["dtype"], self.lora is not None)
            self.foresee(self.trainer, getattr(self.trainer, "datamodule", None))
            self._step, self.evaluated_at, self.updating = _Step(), None, False
            self._warned_of_gap = False

    def on_fit_start(self) -> None:
        """Place frozen copies, and find out how micro-batches can run."""
        self._place_copies()
        self._choose_packing()

    def _choose_packing(self) -> None:
        policy, ranks = self.policy, Ranks.of(self._trainer)
        reason: str | None = "as asked for"
        if policy.placement is not None:
            reason = "its weights are sharded"
        elif self.packing == "auto":
            with policy.gathered(self._trainer):
                reason = unpackable(policy)
        # micro-batches are dealt alike on all ranks
        reason = next((r for r in ranks.gather(reason) if r is not None), None)
        for one in (policy, *policy.frozen.values()):
            one.packs = reason is None and prepare(one.causal_lm) is None
        how = f"padded, rows of similar length together ({reason})" if reason else "packed, each prompt computed once"
        rank_zero_info(f"micro-batches: {how}")

    def _place_copies(self) -> None:
        """Frozen copies are outside the module tree, so they follow the policy's device and precision by hand."""
        for twin in self.policy.frozen.values() if self.has_policy else ():
            twin = self.trainer.precision_plugin.convert_module(twin)
            if not self.offload_frozen:
                twin.to(self.device)

    on_validation_start = on_test_start = on_predict_start = _place_copies

    def configure_callbacks(self) -> list[pl.Callback]:
        """The machinery that is missing from the Trainer's list."""
        from lightning_serl.callbacks.defaults import missing_callbacks

        return missing_callbacks(self._trainer)

    def check_optimizer(self) -> torch.optim.Optimizer:
        """Make optimizer and scheduler once on a stand-in, to see that their options are right before a model loads.

        Returns:
            The optimizer on the stand-in.

        Raises:
            InputError: if one of them cannot be made.
        """
        try:
            optimizer = self._make_optimizer([torch.nn.Parameter(torch.zeros(2, 2))])
            if self._make_scheduler is not None:
                self._make_scheduler(optimizer)
        except (ValueError, TypeError) as error:
            raise InputError(f"model.optimizer or model.lr_scheduler cannot be made: {error}") from error
        return optimizer

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Only trainable weights are optimised; every step raises the policy's version."""
        optimizer = self._make_optimizer([p for p in self.policy.parameters() if p.requires_grad])
        policy = self.policy

        def count(*_: Any) -> None:
            policy.version += 1
            self.updating = False

        optimizer.register_step_post_hook(count)
        if self._make_scheduler is None:
            return optimizer
        scheduler = self._make_scheduler(optimizer)
        config = {"scheduler": scheduler, "interval": "step"}
        if isinstance(scheduler, ReduceLROnPlateau):
            config["monitor"] = scheduler.monitor
        return {"optimizer": optimizer, "lr_scheduler": config}

    # -- from groups to micro-batches --------------------------------------------------------------------------------

    def experience(self, groups: Sequence[Group], verdicts: Sequence[Verdict]) -> list[RolloutBatch]:
        """Turn graded groups into the micro-batches of their optimizer steps.

        Called with the same groups on all ranks; each rank gets its own micro-batches:
        ``inner_epochs x minibatches x accumulate_grad_batches`` of them, whatever the groups hold. Old and reference
        log-probs are computed here, without gradient, in the run's precision.

        Args:
            groups: Groups with token ids (``prompt_ids`` and ``completions``).
            verdicts: One per group; responses of weight 0 are left out, dropped groups serve the statistics alone.

        Returns:
            Micro-batches in training order.

        Raises:
            InputError: if no response can be trained on.
        """
        trainer = self._trainer
        ranks = Ranks.of(trainer)
        accumulate = 1 if trainer is None else trainer.accumulate_grad_batches
        objective = self.objective
        everything = rows_of(groups, verdicts)
        rows = [r for r in everything if not r.dropped]
        if not rows:
            raise InputError(
                "no response can be trained on: every weight is 0, every group is dropped or has train=False, or no "
                "token ids"
            )
        needs_old = self.steps_per_round > 1
        if needs_old or objective.beta > 0:
            # dropped rows only where the advantages of the others depend on their divergence
            scored = everything if objective.kl_off_scores and objective.mixes_groups else rows
            self._set_logprobs(scored, needs_old or objective.kl_off_scores, ranks)
        set_advantages(everything, objective)
        parts = [[rows[i] for i in one] for one in minibatches([r.uid for r in rows], self.minibatches, 0)]
        dtype = torch.float64 if next(self.policy.parameters()).dtype == torch.float64 else torch.float32

        out: list[RolloutBatch] = []
        for epoch in range(self.inner_epochs):
            if epoch:
                parts = [[rows[i] for i in one] for one in minibatches([r.uid for r in rows], self.minibatches, epoch)]
            for part in parts:
                tokens = sum(len(r.ids) - r.start for r in part)
                lengths, count = [len(r.ids) for r in part], accumulate * ranks.size
                if self.policy.packs:
                    slots = partition_packed([r.ids[: r.start] for r in part], lengths, count)
                else:
                    slots = partition(lengths, count)
                for slot in slots[ranks.rank :: ranks.size]:
                    chosen = [part[i] for i in slot]
                    out.append(micro_batch(chosen, tokens, len(part), self.policy.pad_id, dtype, objective, needs_old))
                    out[-1].stale = any(0 <= row.version < self.policy.version for row in chosen)
        return out

    def _set_logprobs(self, rows: list[Row], with_old: bool, ranks: Ranks) -> None:
        """Fill in old and reference log-probs: every rank works on its share of rows, then all hold all of them."""
        share = [(row.ids, row.start) for row in ranks.share(rows)]
        old: list[Tensor | None] = [None] * len(share)
        ref: list[Tensor | None] = [None] * len(share)
        with self.policy.gathered(self._trainer) as policy, ranks.stage("computing log-probs"):
            if with_old:
                old = [s.logp for s in policy.stats(share)]
            if self.objective.beta > 0:
                ref = [s.logp for s in policy.stats(share, "reference")]
        for row, (o, r) in zip(rows, ranks.interleave(list(zip(old, ref, strict=True))), strict=True):
            row.old, row.ref = o, r

    # -- one micro-batch ---------------------------------------------------------------------------------------------

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> Tensor:
        """The loss of one micro-batch, scaled so that the step's gradient is that of all its responses at once.

        Returns:
            () loss; Lightning divides it by the accumulation count and data parallelism by the world size, so it is
            multiplied by both.
        """
        objective = self.objective
        counts = {"token": batch.num_tokens, "sequence": batch.num_sequences, "constant": batch.num_sequences}
        length = objective.constant_length

        def divergence(logp: Tensor) -> Tensor:
            assert batch.ref_logp is not None
            return kl(logp, batch.ref_logp.to(logp.dtype), objective.kl, batch.mask)

        def loss_of(logp: Tensor) -> Tensor:
            """A sum over tokens of functions of their log-prob, as ``Policy.forward`` asks for."""
            old = logp.detach() if batch.old_logp is None else batch.old_logp.to(logp.dtype)
            adv, importance = batch.advantages.to(logp.dtype), self._importance(old, batch)
            if importance is not None:
                # no weight is negative, so it passes through the minimum of the loss: the clip itself does not see it
                adv = adv * importance.weight
            way = objective.aggregation
            loss = policy_loss(
                logp, old, adv, batch.mask, objective.clip_low, objective.clip_high, objective.dual_clip,
                way, counts[way], length,
            )  # fmt: skip
            if batch.ref_logp is None:
                return loss
            way = objective.kl_aggregation
            return loss + objective.beta * aggregate(divergence(logp), batch.mask, way, counts[way], length)

        # the weight of a whole response cannot be foretold from some of its tokens
        entangled = batch.old_logp is None and objective.correction.startswith("sequence")
        spread = objective.entropy > 0
        stats = self.policy(batch, spread_gradient=spread, loss=None if entangled else loss_of)
        logp = stats.logp
        loss = loss_of(logp)
        assert stats.entropy is not None
        if objective.entropy > 0:
            way = objective.aggregation
            bonus = aggregate(stats.entropy, batch.mask, way, counts[way], length)
            loss = loss - objective.entropy * bonus
        step = self._step
        if batch.ref_logp is not None:
            step.add(kl=torch.where(batch.mask, divergence(logp.detach()), 0.0).sum())
        elif objective.beta > 0:
            step.add(kl=torch.tensor(batch.kl_in_reward))
        old = logp.detach() if batch.old_logp is None else batch.old_logp.to(logp.dtype)
        adv = batch.advantages.to(logp.dtype)
        low, high = clip_counts(logp, old, adv, batch.mask, objective.clip_low, objective.clip_high)
        step.add(loss=loss * batch.num_tokens, entropy=stats.entropy.sum(), low=low, high=high)
        step.tokens = batch.num_tokens
        self._account_for_sampler(old, batch)
        step.add(padding=torch.tensor(float(batch.padding)), positions=torch.tensor(float(batch.positions)))
        trainer = self._trainer
        if trainer is None:
            return loss
        return loss * trainer.accumulate_grad_batches * trainer.world_size

    def _importance(self, old: Tensor, batch: RolloutBatch) -> ImportanceWeights | None:
        """The weights of what the sampler wrote; ``None`` where it is trusted.

        Denominators stay those of the step: a masked token counts as one without gradient, as in TRL.
        """
        objective = self.objective
        if batch.sampler_logp is None or objective.correction == "none":
            return None
        return importance_weights(
            old, batch.sampler_logp.to(old.dtype), batch.mask, objective.correction, objective.correction_cap,
            objective.correction_floor, objective.correction_ratio,
        )  # fmt: skip

    def _account_for_sampler(self, old: Tensor, batch: RolloutBatch) -> None:
        """The gap to the sampler and the weights it led to, for the log."""
        step, importance = self._step, self._importance(old, batch)
        if batch.sampler_logp is not None:
            sampler = batch.sampler_logp.to(old.dtype)
            gap = (old - sampler).abs()[batch.mask & ~torch.isnan(sampler)]
            step.add(gap=gap.sum(), sampled=torch.tensor(gap.numel()))
            step.peak(gap=gap)
            if not batch.stale:
                step.add(fresh_gap=gap.sum(), fresh=torch.tensor(gap.numel()))
        if importance is not None:
            weight, outside = importance.counted(batch.mask)
            weight = weight.double()
            step.add(weights=torch.tensor(weight.numel()), ratio=weight.sum(), squares=(weight**2).sum())
            step.add(outside=outside.sum())
            step.peak(ratio=weight, least=-weight)

    def _warn_of_gap(self, mean: float) -> None:
        """Say so, once, if the sampler is further off than the run's precision explains."""
        precision = str(getattr(self._trainer, "precision", "32-true"))
        dtype = next((name for word, name in _PRECISIONS.items() if precision.startswith(word)), None)
        dtype = str(next(self.policy.parameters()).dtype).removeprefix("torch.") if dtype is None else dtype
        if self._warned_of_gap or mean <= _LARGE_GAP.get(dtype, math.inf):
            return
        self._warned_of_gap = True
        rank_zero_warn(
            f"the engine's log-probs differ from the trainer's by {mean:.2g} per token on average, more than {dtype} "
            f"explains ({_LARGE_GAP[dtype]:g}): give both one dtype and one temperature, no top_p or top_k, and check "
            "that pushed weights arrive"
        )

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A loss scaler may have skipped the update; nothing is half done any more."""
        self.updating = False

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Close the step's accounts: sums over micro-batches and ranks, under TRL's names."""
        grads = [p.grad for p in self.policy.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        norm = sharding.full(norm)
        ranks = Ranks.of(self._trainer)
        values = [float(self._step.sums.get(n, 0.0)) for n in _SUMS]
        # every rank fills in its own places, so that one sum also brings the peaks together
        mine = [self._step.peaks.get(n, -math.inf) for n in _PEAKS]
        peaks = [value for r in range(ranks.size) for value in (mine if r == ranks.rank else [0.0] * len(mine))]
        summed = ranks.sum(torch.tensor(values + peaks, dtype=torch.float64)).tolist()
        sums = dict(zip(_SUMS, summed, strict=False))
        tops = {n: max(summed[len(_SUMS) + i :: len(_PEAKS)]) for i, n in enumerate(_PEAKS)}
        tokens = max(1, self._step.tokens)
        metrics = {
            "loss": sums["loss"] / tokens,
            "entropy": sums["entropy"] / tokens,
            "clip_ratio/low_mean": sums["low"] / tokens,
            "clip_ratio/high_mean": sums["high"] / tokens,
            "clip_ratio/region_mean": (sums["low"] + sums["high"]) / tokens,
            "grad_norm": float(norm),
            "learning_rate": float(optimizer.param_groups[0]["lr"]),
            "num_tokens": float(tokens),
            "serl/batch/pad_frac": sums["padding"] / max(1.0, sums["positions"]),
            "serl/batch/positions": sums["positions"],
        }
        if self.objective.beta > 0:
            metrics["kl"] = sums["kl"] / tokens
        if sums["sampled"]:
            metrics["sampling/sampling_logp_difference/mean"] = sums["gap"] / sums["sampled"]
            metrics["sampling/sampling_logp_difference/max"] = tops["gap"]
        if sums["weights"]:
            metrics["sampling/importance_sampling_ratio/min"] = -tops["least"]
            metrics["sampling/importance_sampling_ratio/mean"] = sums["ratio"] / sums["weights"]
            metrics["sampling/importance_sampling_ratio/max"] = tops["ratio"]
            size = effective_sample_size(sums["weights"], sums["ratio"], sums["squares"])
            metrics["serl/sampling/effective_sample_size"] = size
            what = "masked" if self.objective.correction.endswith("mask") else "truncated"
            metrics[f"serl/sampling/{what}_frac"] = sums["outside"] / sums["weights"]
        if sums["fresh"]:
            self._warn_of_gap(sums["fresh_gap"] / sums["fresh"])
        self.step_metrics = metrics
        self._step = _Step()
        self.updating = True  # clipping and the update come next
        self.log_dict(metrics, on_step=True, on_epoch=False, batch_size=1)

    # -- evaluation --------------------------------------------------------------------------------------------------

    def _start_evaluation(self) -> None:
        self.evaluations, self._graded, self.evaluation_items = {}, {}, {}

    def on_validation_epoch_start(self) -> None:
        """Forget the last evaluation."""
        self._start_evaluation()

    def on_test_epoch_start(self) -> None:
        """Forget the last evaluation."""
        self._start_evaluation()

    def validation_step(self, batch: EvaluationBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count one batch of graded groups."""
        if batch.set_name not in self.evaluations:
            self.evaluations[batch.set_name] = EvaluationSet(batch.k, batch.strata).to(self.device)
        self.evaluations[batch.set_name].update(batch.items)
        self._graded.setdefault(batch.set_name, []).extend(batch.items)

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """The stream did the work: a predict batch is a list of finished rows."""
        return batch

    def evaluation_results(self) -> dict[str, dict[str, Any]]:
        """Results of the last evaluation by set; every rank must call it, and gets the same.

        Returns:
            What :meth:`EvaluationSet.compute` returns: figures, ``intervals`` and figures ``by_level`` and so on.
        """
        return {name: one.compute() for name, one in sorted(self.evaluations.items())}

    def on_validation_epoch_end(self) -> None:
        """Log every set's results as ``val/SET/METRIC``."""
        self._log_results("val")
        trainer = self.trainer
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.evaluated_at = trainer.global_step

    def on_test_epoch_end(self) -> None:
        """Log every set's results as ``test/SET/METRIC``."""
        self._log_results("test")

    def _log_results(self, stage: str) -> None:
        """Figures and the ends of their intervals go to the loggers; where no training waits, all items to rank 0."""
        #: Equal on all ranks already, so nothing is reduced a second time.
        self.last_report = self.evaluation_results()
        #: The figures alone, without intervals, levels and subjects.
        self.last_results = {
            name: {k: v for k, v in report.items() if not isinstance(v, dict)}
            for name, report in self.last_report.items()
        }
        for name, result in self.last_results.items():
            ends = self.last_report[name]["intervals"].items()
            bounds = {f"{k}_{end}": v for k, ends_of in ends for end, v in zip(("low", "high"), ends_of, strict=True)}
            figures = {k: float(v) for k, v in {**result, **bounds}.items() if v is not None}
            self.log_dict({f"{stage}/{name}/{k}": v for k, v in figures.items()}, batch_size=1)
        if self.trainer.state.fn != "fit":
            self._gather_items()

    def _gather_items(self) -> None:
        """Every graded problem of the last evaluation, by set and in the order of the set; empty on other ranks."""
        ranks = Ranks.of(self._trainer)
        everything = ranks.gather(self._graded)
        if ranks.leads:
            self.evaluation_items = {
                name: sorted((p for part in everything for p in part.get(name, ())), key=lambda p: p.index)
                for name in sorted(self._graded)
            }

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def saved_names(self) -> set[str]:
        """Names of the weights that a checkpoint keeps: under LoRA the adapter's alone."""
        if self.policy.has_adapter:
            return {n for n, p in self.named_parameters() if p.requires_grad}
        return set(self.state_dict())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Only trained weights under LoRA; frozen copies if they moved; progress as of the last whole step."""
        if self.policy.has_adapter:
            kept = self.saved_names()
            checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in kept}
        ranks = Ranks.of(self._trainer)
        checkpoint["serl_policy"] = {
            "version": self.policy.version,
            "frozen": {
                who: sharding.gathered_state(twin, ranks)
                if isinstance(twin, Policy) and twin.placement
                else twin.state_dict()
                for who, twin in self.policy.copies.items()
                if twin.moved
            },
            "evaluated_at": self.evaluated_at,
        }
        trainer = self._trainer
        if trainer is not None and trainer.state.fn == "fit" and "loops" in checkpoint:
            settle(checkpoint["loops"]["fit_loop"], trainer, self.evaluated_at)
            checkpoint["serl_policy"]["accumulate"] = trainer.accumulate_grad_batches

    def _check_names(self, found: set[str]) -> None:
        """Loading is not strict, so that adapters load alone: whatever else is missing must be noticed here."""
        adapter = self.policy.has_adapter
        expected = self.saved_names()
        if found == expected:
            return
        theirs = any(".lora_" in name for name in found)
        if theirs != adapter:
            have, give = (
                ("a LoRA adapter", "the --model.lora options it had") if theirs else ("full weights", "no --model.lora")
            )
            raise InputError(f"the checkpoint holds {have} and this run does not; give {give}")
        odd = sorted(found ^ expected)
        raise InputError(f"the checkpoint is of another model: {len(odd)} weights differ in name, such as {odd[0]}")

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Frozen copies as they were; a version no engine has seen."""
        if self.has_policy:
            self._check_names(set(checkpoint["state_dict"]))
        saved = checkpoint.get("serl_policy", {"version": 0, "frozen": {}, "evaluated_at": None})
        self.policy.version = max(self.policy.version, saved["version"]) + 1
        self.evaluated_at = saved["evaluated_at"]
        trainer = self._trainer
        if trainer is not None and trainer.state.fn == "fit" and "loops" in checkpoint:
            accumulate = trainer.accumulate_grad_batches
            # equal windows need nothing, and the last one of a user's own stream may be shorter
            if saved.get("accumulate", accumulate) != accumulate:
                rescale(checkpoint["loops"]["fit_loop"], accumulate)
        for who, state in saved["frozen"].items():
            twin = self._freeze_copy(who)
            if self.policy.placement is None:
                twin.load_state_dict(state)
            else:
                sharding.load_state(twin if isinstance(twin, Policy) else self.policy.model, state)
            twin.moved = True
