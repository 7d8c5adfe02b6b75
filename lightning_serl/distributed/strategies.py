"""How a run is spread over devices: what is supported, what is refused, and FSDP2 with ordinary checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    StrategyRegistry,
    XLAStrategy,
)
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from lightning_serl.distributed import sharding
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.errors import InputError

if TYPE_CHECKING:
    import lightning.pytorch as pl


# Below this, a step of Adam is smaller than what separates two neighbouring bfloat16 numbers of a usual weight.
_LOWEST_HALF_LR = 1e-5
_SUPPORTED = "use one device, ddp, or sharded"


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all processes, with checkpoints like those of a single device: one file, any strategy resumes from it.

    Lightning's own loader cannot read an optimizer that has no state yet, or one that knows an adapter alone. A plain
    ``ModelParallelStrategy`` becomes one of these when the policy is sharded.

    Args:
        timeout: How long a process group waits for a lost rank.
        process_group_backend: As in Lightning; by default what suits the device.
    """

    def __init__(self, timeout: timedelta = timedelta(seconds=120), process_group_backend: str | None = None) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            timeout=timeout,
            process_group_backend=process_group_backend,
        )

    def setup_environment(self) -> None:
        """Shard over all processes, of all nodes."""
        sizes: Any = self
        if sizes._data_parallel_size == "auto":
            sizes._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        """As on a single device."""
        return True

    def _ranks(self) -> Ranks:
        return Ranks(self.global_rank, self.world_size, self.root_device)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole weights on rank 0, gathered one at a time; only what the module's checkpoints keep."""
        module = self.lightning_module
        assert module is not None
        kept = getattr(module, "saved_names", lambda: None)()
        return sharding.gathered_state(module, self._ranks(), kept)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Every rank takes its shard; names were checked by the module."""
        assert self.lightning_module is not None
        sharding.load_state(self.lightning_module, checkpoint["state_dict"])

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimizer's state on rank 0 as a single device would have it; empty on the others."""
        ranks, whole = self._ranks(), {}
        saved = optimizer.state_dict()
        for number, values in saved["state"].items():
            gathered = {k: sharding.full(v) if isinstance(v, torch.Tensor) else v for k, v in values.items()}
            if ranks.leads:
                whole[number] = {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in gathered.items()}
        return {"state": whole, "param_groups": saved["param_groups"]} if ranks.leads else {}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Every rank takes its shard of what lies along a weight; counters are equal everywhere."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [p for group in optimizer.param_groups for p in group["params"]]
            numbers = [n for group in saved["param_groups"] for n in group["params"]]
            if len(numbers) != len(weights):
                raise InputError(
                    f"the checkpoint's optimizer knows {len(numbers)} weights, this run trains {len(weights)}"
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
        """Read a file of the usual form, mapped: each rank keeps its shards alone."""
        checkpoint: dict[str, Any] = self.checkpoint_io.load_checkpoint(self.broadcast(checkpoint_path))
        return checkpoint


# so that the shell can name it: --trainer.strategy sharded
StrategyRegistry.register("sharded", ShardedStrategy, description="FSDP2 over all processes, checkpoints of one form")


def check_strategy(trainer: pl.Trainer, options: Mapping[str, Any] | None = None) -> None:
    """Refuse, before anything is loaded, a strategy or precision that would only half work.

    Args:
        trainer: With the strategy and precision asked for.
        options: Options of the module that do not go with sharded weights, where they are set.

    Raises:
        InputError: naming what to use instead.
    """
    strategy = trainer.strategy
    name = type(strategy).__name__
    if isinstance(strategy, ModelParallelStrategy):
        for option, value in (options or {}).items():
            if value:
                raise InputError(
                    f"model.{option} does not go with sharded weights; drop it, or use trainer.strategy ddp"
                )
        if strategy._save_distributed_checkpoint:
            raise InputError(
                f"trainer.strategy {name} needs save_distributed_checkpoint=False: a folder of shards is not written "
                "in one piece, so a run killed meanwhile would lose its checkpoint"
            )
        sizes = strategy._data_parallel_size, strategy._tensor_parallel_size
        world = trainer.world_size
        automatic = isinstance(strategy, ShardedStrategy) and sizes == ("auto", 1)
        if sizes != (world, 1) and not automatic:
            raise InputError(
                f"trainer.strategy {name} needs data_parallel_size={world} and tensor_parallel_size=1 here, got "
                f"{sizes[0]} and {sizes[1]}; tensor parallelism is not supported"
            )
    # the last two call themselves kinds of DDP and are not
    elif not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)) or isinstance(
        strategy, (DeepSpeedStrategy, XLAStrategy)
    ):
        raise InputError(f"trainer.strategy {name} is not supported; {_SUPPORTED}")
    elif isinstance(strategy.launcher, _MultiProcessingLauncher):
        raise InputError(
            "trainer.strategy ddp_spawn and its kin are not supported: their processes take the results with them; "
            "use ddp"
        )
    precision = trainer.precision_plugin.precision
    if precision not in ("32-true", "64-true", "bf16-mixed", "bf16-true", "16-mixed"):
        raise InputError(f"trainer.precision {precision} is not supported; use bf16-mixed, 32-true or 64-true")


def check_learning_rate(trainer: pl.Trainer, lr: float, dtype: str, lora: bool) -> None:
    """Refuse weights in 16 bits at learning rates whose steps they round away: the run would not train.

    Args:
        trainer: Its precision may convert the weights.
        lr: The optimizer's learning rate.
        dtype: Of the loaded weights.
        lora: Whether an adapter is trained, which stays in float32 unless the precision converts it.

    Raises:
        InputError: naming the precision that trains.
    """
    if lr >= _LOWEST_HALF_LR:
        return
    if trainer.precision_plugin.precision == "bf16-true":
        raise InputError(
            f"trainer.precision bf16-true does not train at learning rate {lr:g}: its rounding loses such steps, also "
            "under LoRA; use bf16-mixed"
        )
    if dtype in ("bfloat16", "float16") and not lora:
        raise InputError(
            f"model.dtype {dtype} does not train at learning rate {lr:g}: its rounding loses such steps; use float32 "
            "with trainer.precision bf16-mixed, or LoRA"
        )
