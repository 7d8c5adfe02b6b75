"""Strategies: which ones are supported, FSDP2 with single-file checkpoints, and the dtypes of a precision."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
    StrategyRegistry,
    XLAStrategy,
)

from lightning_serl.distributed import lightning_internals, sharding
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.errors import InputError

# Below this learning rate a step of Adam is smaller than the gap between neighbouring bfloat16 values of most weights.
_LOWEST_HALF_LR = 1e-5
_SUPPORTED = "use one device, ddp, or sharded"


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all processes, with checkpoints like those of a single device: one file that any strategy can resume.

    Lightning's own loader cannot read an optimizer without state, or one that holds an adapter only. A plain
    ``ModelParallelStrategy`` becomes one of these when the policy is sharded.

    Args:
        timeout: How long a collective call waits for a lost rank.
        process_group_backend: As in Lightning; chosen by the device if absent.
    """

    def __init__(self, timeout: timedelta = timedelta(seconds=120), process_group_backend: str | None = None) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            timeout=timeout,
            process_group_backend=process_group_backend,
        )

    def setup_environment(self) -> None:
        """Shard over all processes of all nodes."""
        if lightning_internals.mesh_sizes(self)[0] == "auto":
            lightning_internals.set_data_parallel_size(self, self.num_nodes * self.num_processes)
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        """``True``: Lightning restores optimizers through this strategy, as on a single device."""
        return True

    def _ranks(self) -> Ranks:
        return Ranks(self.global_rank, self.world_size, self.root_device)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole weights on rank 0, gathered one at a time; only the names that the module's checkpoints keep."""
        module = self.lightning_module
        assert module is not None
        kept = getattr(module, "saved_names", lambda: None)()
        return sharding.gathered_state(module, self._ranks(), kept)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Every rank takes its shard; the module has checked the names."""
        assert self.lightning_module is not None
        sharding.load_state(self.lightning_module, checkpoint["state_dict"])

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimizer's state on rank 0 as a single device would have it; empty on other ranks."""
        ranks, whole = self._ranks(), {}
        saved = optimizer.state_dict()
        for number, values in saved["state"].items():
            gathered = {k: sharding.full(v) if isinstance(v, torch.Tensor) else v for k, v in values.items()}
            if ranks.leads:
                whole[number] = {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in gathered.items()}
        return {"state": whole, "param_groups": saved["param_groups"]} if ranks.leads else {}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Every rank takes its shard of each tensor that has a weight's shape; counters are equal on all ranks."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [p for group in optimizer.param_groups for p in group["params"]]
            numbers = [n for group in saved["param_groups"] for n in group["params"]]
            if len(numbers) != len(weights):
                raise InputError(
                    f"the checkpoint's optimizer holds {len(numbers)} weights but this run trains {len(weights)}; give "
                    "the model options that the checkpoint was made with"
                )
            state = {}
            for number, weight in zip(numbers, weights, strict=True):
                values = saved["state"].get(number)
                if values is not None:
                    state[number] = {
                        k: sharding.like(v, weight) if isinstance(v, torch.Tensor) and v.dim() else v
                        for k, v in values.items()
                    }
            optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a single-file checkpoint, memory-mapped, since each rank keeps only its shards."""
        checkpoint: dict[str, Any] = self.checkpoint_io.load_checkpoint(self.broadcast(checkpoint_path))
        return checkpoint


# the name for the command line: --trainer.strategy sharded
StrategyRegistry.register("sharded", ShardedStrategy, description="FSDP2 over all processes, single-file checkpoints")


def check_strategy_name(name: str) -> None:
    """Refuse the name of an unsupported strategy, or of none, before a Trainer is made."""
    if name.lower() not in ("auto", *StrategyRegistry.available_strategies()):
        near = difflib.get_close_matches(name.lower(), ["auto", "ddp", "sharded"], n=1, cutoff=0.5)
        advice = f"did you mean {near[0]}?" if near else _SUPPORTED
        raise InputError(f"trainer.strategy: there is no {name[:60]!r}; {advice}")
    kind = StrategyRegistry[name.lower()]["strategy"] if name.lower() != "auto" else SingleDeviceStrategy
    if not _is_supported(kind):
        raise InputError(f"trainer.strategy {name} is not supported; {_SUPPORTED}")


def _is_supported(kind: type[Strategy]) -> bool:
    # DeepSpeedStrategy and XLAStrategy are subclasses of DDPStrategy that work in another way
    known = SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy
    return issubclass(kind, known) and not issubclass(kind, (DeepSpeedStrategy, XLAStrategy))


def check_strategy(trainer: pl.Trainer, options: Mapping[str, Any] | None = None) -> None:
    """Refuse an unsupported strategy or precision before a model is loaded or a process is started.

    ``options`` are those of the module, by name, that do not work with sharded weights.
    """
    strategy = trainer.strategy
    name = type(strategy).__name__
    if (options or {}).get("quantize") and precision_of(trainer).weights is not None:
        raise InputError(
            f"trainer.precision {trainer.precision} would cast the scales of 4-bit weights; use bf16-mixed or 32-true"
        )
    if isinstance(strategy, ModelParallelStrategy):
        for option, value in (options or {}).items():
            if value:
                raise InputError(
                    f"model.{option} does not work with sharded weights; remove it, or use --trainer.strategy ddp"
                )
        if lightning_internals.saves_shards(strategy):
            raise InputError(
                f"trainer.strategy {name} needs save_distributed_checkpoint=False: a folder of shards is not written "
                "atomically, so a run that is killed while it saves would lose its checkpoint"
            )
        sizes = lightning_internals.mesh_sizes(strategy)
        world = trainer.world_size
        automatic = isinstance(strategy, ShardedStrategy) and sizes == ("auto", 1)
        if sizes != (world, 1) and not automatic:
            raise InputError(
                f"trainer.strategy {name} needs data_parallel_size={world} and tensor_parallel_size=1 here, got "
                f"{sizes[0]} and {sizes[1]}; tensor parallelism is not supported"
            )
    elif not _is_supported(type(strategy)):
        raise InputError(f"trainer.strategy {name} is not supported; {_SUPPORTED}")
    elif lightning_internals.spawns_workers(strategy):
        raise InputError(
            "trainer.strategy: strategies that spawn or fork workers (ddp_spawn, ddp_fork, ddp_notebook) are not "
            "supported, because the trained weights are lost when the workers end; use ddp"
        )
    precision = trainer.precision_plugin.precision
    if precision not in ("32-true", "64-true", "bf16-mixed", "bf16-true", "16-mixed"):
        raise InputError(f"trainer.precision {precision} is not supported; use bf16-mixed, 32-true or 64-true")


def check_learning_rate(trainer: pl.Trainer, lr: float, dtype: str, lora: bool, given: str = "") -> None:
    """Refuse weights in float16, and weights in 16 bits at learning rates whose steps are lost to rounding.

    ``dtype`` is that of the loaded weights, and ``given`` is ``model.dtype``, if it differs; an adapter stays in
    float32 unless the precision converts it.
    """
    option = f"model.dtype {given} ({dtype} in its config.json)" if given not in ("", dtype) else f"model.dtype {dtype}"
    if dtype == "float16" and not lora and precision_of(trainer).weights is None:
        raise InputError(
            f"{option} cannot be trained: Adam's steps overflow in it, and the weights become NaN; use --model.dtype "
            "float32 with --trainer.precision bf16-mixed (16-mixed on older GPUs), or LoRA (--model.lora.r 16), which "
            "keeps the base in float16"
        )
    if lr >= _LOWEST_HALF_LR:
        return
    if trainer.precision_plugin.precision == "bf16-true":
        raise InputError(
            f"trainer.precision bf16-true does not train at learning rate {lr:g}: such steps are lost to rounding, "
            "also under LoRA; use bf16-mixed"
        )
    if dtype == "bfloat16" and not lora and precision_of(trainer).weights is None:
        raise InputError(
            f"{option} does not train at learning rate {lr:g}: such steps are lost to rounding; use "
            "--model.dtype float32 with --trainer.precision bf16-mixed, or LoRA"
        )


def loss_scale(trainer: pl.Trainer) -> float:
    """The factor of the loss scaler under ``16-mixed``; 1 without one. It waits for the device."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())


class Precision(NamedTuple):
    """The dtypes of a run."""

    weights: torch.dtype | None = None  # to which Lightning converts weights; ``None`` keeps the loaded one
    autocast: torch.dtype | None = None  # of forward passes under autocast; ``None`` without autocast


_PRECISIONS = {
    "64-true": Precision(weights=torch.float64),
    "bf16-true": Precision(weights=torch.bfloat16),
    "16-true": Precision(weights=torch.float16),
    "bf16-mixed": Precision(autocast=torch.bfloat16),
    "16-mixed": Precision(autocast=torch.float16),
}


def precision_of(trainer: pl.Trainer | None) -> Precision:
    """The dtypes that a Trainer's precision sets; none without a Trainer or under ``32-true``."""
    return Precision() if trainer is None else _PRECISIONS.get(str(trainer.precision), Precision())


def compute_dtype(trainer: pl.Trainer | None, loaded: torch.dtype) -> torch.dtype:
    """The dtype that forward passes compute in, ``loaded`` being that of the weights as they were loaded."""
    precision = precision_of(trainer)
    return precision.autocast or precision.weights or loaded
