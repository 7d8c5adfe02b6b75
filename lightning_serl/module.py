"""The LightningModule: a policy, its objective and its optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lightning_serl.callbacks.defaults import missing_callbacks
from lightning_serl.callbacks.memory_plan import resume_division
from lightning_serl.checkpoints import module_state
from lightning_serl.checkpoints.io import use_our_files
from lightning_serl.distributed import sharding, strategies
from lightning_serl.distributed.lightning_internals import attached_trainer
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.distributed.strategies import compute_dtype
from lightning_serl.errors import InputError, check_range
from lightning_serl.evaluation.hooks import EvaluatesProblems
from lightning_serl.objectives.experience import BatchLayout, check_batch, experience
from lightning_serl.objectives.optimizer_steps import OptimizerSteps, StepFacts, check_weights
from lightning_serl.objectives.options import Objective, ResolvedObjective
from lightning_serl.objectives.surrogate import Surrogate
from lightning_serl.policy import frozen_copies
from lightning_serl.policy.dropout import repeated_dropout
from lightning_serl.policy.loading import DType, check_model_path, check_quantize, load_policy, loaded_dtype
from lightning_serl.policy.lora import LoraOptions
from lightning_serl.policy.optimizers import (
    Shared,
    adamw,
    announce_rate,
    optimizer_factory,
    policy_optimizer,
    scheduler_monitor,
    trial_optimizer,
)
from lightning_serl.policy.packing_check import choose_packing
from lightning_serl.policy.policy import Policy
from lightning_serl.policy.quantization import Quantization
from lightning_serl.policy.sharded_weights import shard
from lightning_serl.protocols import data_of, moved_copies
from lightning_serl.types import Group, RolloutBatch, Verdict

_NO_MODEL = "no model was named; set --model.model_name_or_path to a directory, a hub name or tiny:base"


def _adamw(params: Any) -> torch.optim.Optimizer:
    """The optimizer that configurations of earlier versions name."""
    return adamw(params)


class SeRLModule(EvaluatesProblems):
    """Trains a language model on graded groups of its own responses.

    Use it with ``SelfPlayDataModule``, or with any training stream that yields ``module.experience(groups, verdicts)``.

    Args:
        model_name_or_path: Directory or hub name of a causal language model with its tokenizer; ``tiny:base`` is the
            embedded one. Only the evaluation of recordings works without a model.
        objective: The policy-gradient objective.
        lora: Train a low-rank adapter instead of all weights.
        quantize: ``nf4`` holds the base's linear layers in 4 bits (QLoRA); needs ``lora`` and bitsandbytes.
        offload_frozen: Keep frozen copies (the reference policy of full fine-tuning) on the CPU, and move them to the
            device only for their forward passes.
        inner_epochs: Passes over each round's responses.
        minibatches: Optimizer steps per pass.
        micro_batch: Responses of a micro-batch on each rank, at most; ``auto`` divides steps into the fewest that fit
            the memory, unless ``trainer.accumulate_grad_batches`` is above 1.
        temperature: Of rollouts, and of the log-probs that the ratio is computed from.
        dtype: Of the loaded weights; keep ``float32`` under mixed precision.
        gradient_checkpointing: Recompute activations in the backward pass to save memory.
        attn_implementation: As in transformers, for example ``sdpa``; null lets transformers choose.
        packing: ``auto`` trains without padding and computes each prompt once if the model can, which is tested at the
            start of training and logged; ``none`` pads rows of similar length.
        max_nonfinite_steps: Optimizer steps in a row whose loss, log-probs or gradient are not finite that end the run.
            Such a step changes neither weights nor optimizer state.
        lr: Learning rate of the optimizer, whichever it is. By default the optimizer's own; for the default optimizer
            1e-6 where all weights are trained, as in SeRL, and 1e-4 for an adapter, which starts at zero.
        optimizer: Optimizer class and its options; by default AdamW with betas 0.9 and 0.95 and no weight decay.
        lr_scheduler: Learning-rate scheduler class and its options, stepped after every optimizer step.

    Attributes:
        updating: Whether the optimizer is writing weights, so that no checkpoint may be saved.

    Raises:
        InputError: if the model directory is incomplete or an option is out of range.
    """

    # a checkpoint of an adapter lacks the base's weights; module_state.check_names checks the names
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
        micro_batch: int | Literal["auto"] = "auto",
        temperature: float = 1.0,
        dtype: DType = "float32",
        gradient_checkpointing: bool = False,
        attn_implementation: str | None = None,
        packing: Literal["auto", "none"] = "auto",
        max_nonfinite_steps: int = 3,
        lr: float | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        check_range("model.inner_epochs", inner_epochs, at_least=1)
        check_range("model.minibatches", minibatches, at_least=1)
        check_range("model.micro_batch", None if micro_batch == "auto" else micro_batch, at_least=1)
        check_range("model.temperature", temperature, above=0)
        check_range("model.max_nonfinite_steps", max_nonfinite_steps, at_least=1)
        if model_name_or_path is not None:
            check_model_path(model_name_or_path)
        if lora is not None and (lora.peft or lora.start_from):
            lora.config()
        if quantize is not None:
            check_quantize(quantize, lora)
        self.model_name_or_path, self.objective = model_name_or_path, objective
        self.lora, self.quantize, self.offload_frozen = lora, quantize, offload_frozen
        self.inner_epochs, self.minibatches, self.micro_batch = inner_epochs, minibatches, micro_batch
        self.temperature, self.packing = temperature, packing
        self.load_options: dict[str, Any] = {
            "dtype": dtype,
            "gradient_checkpointing": gradient_checkpointing,
            "attn_implementation": attn_implementation,
        }
        self._make_optimizer = Shared(optimizer_factory(optimizer, lr, adapter=lora is not None))
        self._make_scheduler = None if lr_scheduler is None else Shared(lr_scheduler)
        self._steps, self._said_rate = OptimizerSteps(max_nonfinite_steps), False
        self.updating = False

    @property
    def steps_per_round(self) -> int:
        """Optimizer steps per round."""
        return self.inner_epochs * self.minibatches

    @property
    def steps_not_taken(self) -> int:
        """Optimizer steps left out since the last one that was taken, because a value was not finite."""
        return self._steps.in_a_row

    @property
    def step_metrics(self) -> dict[str, float]:
        """Metrics of the last optimizer step, under TRL's names; ``metrics.jsonl`` is written from them."""
        return self._steps.metrics

    @property
    def has_policy(self) -> bool:
        """Whether there is a model; recordings can be evaluated without one."""
        return self.model_name_or_path is not None

    @property
    def objective(self) -> ResolvedObjective:
        """The objective, without open choices."""
        return self._objective

    @objective.setter
    def objective(self, objective: Objective) -> None:
        self._objective = objective.resolve()

    # -- the policy --------------------------------------------------------------------------------------------------

    @property
    def policy(self) -> Policy:
        """The policy; loaded on first use, if a Trainer has not loaded it through :meth:`configure_model`."""
        if "policy" not in self._modules:
            try:
                self.configure_model()
            except AttributeError as error:  # nn.Module would report that the module has no policy
                raise RuntimeError(f"the policy cannot be loaded: {error}") from error
        if "policy" not in self._modules:
            raise InputError(_NO_MODEL)
        return cast(Policy, self._modules["policy"])

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The weights, loaded first outside a Trainer: a LightningCLI of one's own makes ``--optimizer`` of them."""
        if self.has_policy and attached_trainer(self) is None:
            self.configure_model()
        return super().parameters(recurse)

    def configure_model(self) -> None:
        """Load the policy once, and make the frozen copies that the run needs; InputError if no model was named."""
        if "policy" in self._modules:
            self._freeze_copies()
            return
        trainer = attached_trainer(self)
        if self.model_name_or_path is None:
            engine = data_of(trainer).engine
            if trainer is None or trainer.state.fn == "fit" or getattr(engine, "samples_policy", True):
                raise InputError(_NO_MODEL)
            return
        ranks, mesh = Ranks.of(trainer), self.device_mesh
        with ranks.stage("loading the model"):
            policy = load_policy(
                self.model_name_or_path,
                self.lora,
                temperature=self.temperature,
                quantize=self.quantize,
                device=None if trainer is None else trainer.strategy.root_device,
                empty=mesh is not None and not ranks.leads,
                **self.load_options,
            )
        policy.offload_frozen = self.offload_frozen
        self._modules["policy"] = policy
        if mesh is not None:
            if policy.has_adapter:
                self._freeze_copies()  # a frozen adapter is in the same layers and is sharded with them
            shard(policy, self.trainer, mesh)
        self._freeze_copies()

    def _freeze_copies(self) -> None:
        trainer = attached_trainer(self)
        trains = trainer is None or trainer.state.fn not in ("validate", "test", "predict")
        for who in frozen_copies.needed_copies(
            asked=data_of(trainer).needs,
            moved=moved_copies(trainer),
            kl=trains and self.objective.beta > 0,
            base_is_reference=self.policy.has_adapter and (self.lora is None or self.lora.start_from is None),
        ):
            frozen_copies.freeze(self.policy, who, self._convert)

    def _convert(self, module: nn.Module) -> nn.Module:
        """The module in the run's precision."""
        trainer = attached_trainer(self)
        return module if trainer is None else trainer.precision_plugin.convert_module(module)

    def _place_copies(self) -> None:
        if self.has_policy:
            frozen_copies.place(self.policy, self.device, self._convert)

    on_validation_start = on_test_start = on_predict_start = _place_copies

    # -- setup -------------------------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[pl.Callback]:
        """The default callbacks that the Trainer lacks."""
        return missing_callbacks(attached_trainer(self))

    def setup(self, stage: str) -> None:
        """Refuse what cannot run, and forget what an earlier run of this module left unfinished."""
        self.check_trainer(self.trainer, stage)
        use_our_files(self.trainer)
        if stage == "fit":
            self._steps.reset()
            self.evaluated_at, self.updating = None, False

    def check_trainer(self, trainer: pl.Trainer, stage: str) -> None:
        """Refuse a Trainer, attached or not, whose strategy, precision, optimizer or learning rate does not work.

        Nothing is loaded for it. The stage is ``fit``, ``validate``, ``test`` or ``predict``.
        """
        strategies.check_strategy(trainer, {"quantize": self.quantize, "offload_frozen": self.offload_frozen})
        if stage == "fit":
            check_range("trainer.accumulate_grad_batches", trainer.accumulate_grad_batches, at_least=1)
            optimizer, adapter, given = self.check_optimizer(), self.lora is not None, self.load_options["dtype"]
            lr, dtype = float(optimizer.param_groups[0]["lr"]), loaded_dtype(self.model_name_or_path, given)
            strategies.check_learning_rate(trainer, lr, dtype, adapter, given)
            if not self._said_rate:
                self._said_rate = True
                announce_rate(optimizer, adapter)

    def check_optimizer(self) -> torch.optim.Optimizer:
        """An optimizer of a small tensor, to check the options before a model is loaded; InputError if one is wrong."""
        return trial_optimizer(self._make_optimizer, self._make_scheduler)

    def scheduler_monitor(self) -> str | None:
        """The metric that the learning-rate scheduler waits for, if it waits for one."""
        return scheduler_monitor(self._make_optimizer, self._make_scheduler)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer of the trainable weights, and scheduler; every optimizer step raises the policy's version."""
        return policy_optimizer(self.policy, self._make_optimizer, self._make_scheduler)

    @property
    def _has_other_optimizer(self) -> bool:
        """Whether a LightningCLI has replaced :meth:`configure_optimizers` by its ``--optimizer``."""
        return "configure_optimizers" in vars(self)

    def on_fit_start(self) -> None:
        """Place frozen copies, and decide whether micro-batches are packed."""
        self._place_copies()
        choose_packing(self.policy, self.trainer, self.packing == "auto")

    # -- training ----------------------------------------------------------------------------------------------------

    def experience(self, groups: Sequence[Group], verdicts: Sequence[Verdict]) -> list[RolloutBatch]:
        """Turn graded groups into the micro-batches of their optimizer steps.

        Old and reference log-probs are computed here, without gradient, in the run's precision.

        Args:
            groups: Groups with token ids (``prompt_ids`` and ``completions``), equal on all ranks.
            verdicts: One per group; responses of weight 0 are left out, dropped groups enter only the statistics.

        Returns:
            This rank's ``inner_epochs x minibatches x accumulate_grad_batches`` micro-batches, in training order.

        Raises:
            InputError: if no response can be trained on.
        """
        trainer, policy = attached_trainer(self), self.policy
        layout = BatchLayout(
            self.inner_epochs,
            self.minibatches,
            accumulate=1 if trainer is None else trainer.accumulate_grad_batches,
            packs=policy.packs,
            pad_id=policy.pad_id,
            dtype=torch.float64 if next(policy.parameters()).dtype == torch.float64 else torch.float32,
            version=policy.version,
        )
        return experience(groups, verdicts, self.objective, layout, Ranks.of(trainer), self._logprobs)

    def _logprobs(self, rows: Sequence[tuple[tuple[int, ...], int]], names: Sequence[str]) -> list[list[Tensor]]:
        """Log-probs of given tokens under the policies named; all ranks in step."""
        trainer = attached_trainer(self)
        with self.policy.gathered(trainer) as policy, Ranks.of(trainer).stage("computing log-probs"):
            return [[stats.logp for stats in policy.stats(rows, who)] for who in names]

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> Tensor:
        """The () loss of one micro-batch, scaled so that the step's gradient is that of all its responses.

        Lightning divides it by the accumulation count, and data parallelism the gradient by the world size.
        """
        check_batch(batch)
        surrogate, trainer = Surrogate(self.objective, batch), attached_trainer(self)
        with repeated_dropout(self.policy, trainer, batch_idx):
            loss, stats = surrogate.evaluate(self.policy)
        self._steps.add(surrogate, loss, stats)
        return loss if trainer is None else loss * trainer.accumulate_grad_batches * trainer.world_size

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Reduce the step's sums over ranks and log them; without gradients the optimizer changes nothing."""
        trainer, weights = self.trainer, [p for p in self.policy.parameters() if p.grad is not None]
        gradients = [p.grad for p in weights if p.grad is not None]
        facts = StepFacts(
            number=trainer.global_step + 1,
            round=trainer.global_step // self.steps_per_round + 1,
            grad_norm=float(sharding.full(torch.nn.utils.get_total_norm(gradients))),
            learning_rate=float(optimizer.param_groups[0]["lr"]),
            dtype=compute_dtype(trainer, next(self.policy.parameters()).dtype),
            loss_scale=lambda: strategies.loss_scale(trainer),
        )
        if not self._steps.finish(facts, self.objective, Ranks.of(trainer)):
            for weight in weights:
                weight.grad = None
        self.updating = True  # clipping and the update come next
        self.log_dict(self.step_metrics, on_step=True, on_epoch=False, batch_size=1)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Make the update; a NotFinite on all ranks, and no checkpoint, if it left a weight NaN or infinite."""
        super().optimizer_step(*args, **kwargs)
        self.policy.version += self._has_other_optimizer
        trained = ((name, p) for name, p in self.policy.named_parameters() if p.requires_grad)
        check_weights(trained, Ranks.of(self.trainer), f"after step {self.trainer.global_step + 1}")
        self.updating = False

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def saved_names(self) -> set[str]:
        """Names of the weights that a checkpoint keeps: those that train under LoRA, else all."""
        if self.policy.has_adapter:
            return {n for n, p in self.named_parameters() if p.requires_grad}
        return set(self.state_dict())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only trained weights under LoRA; add moved frozen copies, and progress as of the last whole step."""
        trainer = attached_trainer(self)
        averaged = "averaging_state" in checkpoint  # of a callback, which restores all weights of its copy
        kept = self.saved_names() if self.policy.has_adapter and not averaged else None
        frozen = frozen_copies.moved_state(self.policy, Ranks.of(trainer))
        state = module_state.ModuleState(self.policy.version, frozen, self.evaluated_at, self._steps.not_taken)
        module_state.save(checkpoint, state, trainer, kept)

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Restore moved frozen copies, and give the weights a version that no engine has."""
        if self.has_policy:
            found, expected = set(checkpoint["state_dict"]), self.saved_names()
            found = found & expected if "averaging_state" in checkpoint else found
            module_state.check_names(found, expected, self.policy.has_adapter)
        trainer = attached_trainer(self)
        if trainer is not None and trainer.state.fn == "fit" and not self._has_other_optimizer:
            module_state.check_kind(checkpoint, self.check_optimizer())
        resume_division(trainer, checkpoint)  # before its counters are converted to this run's micro-batches
        state = module_state.load(checkpoint, trainer)
        self.policy.version = max(self.policy.version, state.version) + 1
        self.evaluated_at = state.evaluated_at
        self._steps.not_taken = state.not_taken
        frozen_copies.load_moved(self.policy, state.frozen, self._convert)
