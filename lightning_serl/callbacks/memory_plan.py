"""Logs how much memory a fit will take, before the model is loaded."""

from __future__ import annotations

import os
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_serl.distributed.strategies import precision_of
from lightning_serl.engines import TransformersEngine, VLLMEngine
from lightning_serl.errors import InputError, reason
from lightning_serl.policy.loading import check_model_path
from lightning_serl.policy.memory_plan import Plan, Work, gib, plan
from lightning_serl.protocols import LoadsPolicy, SelfPlay

# Length of a prompt in tokens where no option limits it.
_PROMPT = 256


class MemoryPlan(pl.Callback):
    """Logs the GiB that weights, gradients, optimizer state, activations and engine of a fit will take on a device.

    Nothing is logged if the policy is loaded already, or if module or datamodule are not of this package.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Report: Lightning loads the model after this hook."""
        if stage == "fit":
            report_memory_plan(trainer, pl_module, trainer.datamodule)


def report_memory_plan(trainer: pl.Trainer, module: pl.LightningModule, data: object) -> None:
    """Log the memory plan of a fit, and warn if the device has less memory than the plan's peak.

    :class:`MemoryPlan` calls this, and a caller that evaluates before it fits, since that loads the model earlier.
    """
    loaded = any(name == "policy" for name, _ in module.named_children())
    if loaded or not isinstance(module, LoadsPolicy) or not isinstance(data, SelfPlay):
        return
    if module.model_name_or_path is None:
        return
    device = trainer.strategy.root_device
    room = _device_bytes(device)
    try:
        expected = plan_run(trainer, module, data, room)
    except InputError:
        raise
    except Exception as error:  # an architecture that cannot be traced can be trained all the same
        rank_zero_info(f"memory: no plan for this model ({reason(error)})")
        return
    rank_zero_info(expected.sentence(str(device), room))
    if expected.peak > room:
        rank_zero_warn(
            f"this run needs about {gib(expected.peak)} GiB on {device}, which has {gib(room)}; see docs/memory.md: "
            "model.lora, model.quantize, model.gradient_checkpointing, model.offload_frozen or more "
            "trainer.accumulate_grad_batches make it smaller"
        )


def plan_run(trainer: pl.Trainer, module: LoadsPolicy, data: SelfPlay, room: int) -> Plan:
    """The memory plan of a fit on a device of ``room`` bytes; the policy need not be loaded."""
    from transformers import AutoConfig

    assert module.model_name_or_path is not None
    config = AutoConfig.from_pretrained(check_model_path(module.model_name_or_path), trust_remote_code=False)
    named = module.load_options["dtype"]
    loaded = (config.dtype or torch.float32) if named == "auto" else getattr(torch, named)
    dtype = precision_of(trainer).weights or loaded
    return plan(config, dtype, _work(trainer, module, data, config, room), module.lora, module.quantize is not None)


def _work(trainer: pl.Trainer, module: LoadsPolicy, data: SelfPlay, config: Any, room: int) -> Work:
    """What one process does, as far as it takes memory."""
    options, engine, device = data.round_options, data.engine, trainer.strategy.root_device
    on_gpu = device.type == "cuda"
    responses = options.prompts_per_round * options.samples_per_prompt
    micro_batches = module.minibatches * trainer.accumulate_grad_batches * trainer.world_size
    length = (options.max_prompt_tokens or _PROMPT) + data.sampling.max_tokens
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    sharded = isinstance(trainer.strategy, ModelParallelStrategy)
    sampled = -(-responses // trainer.world_size)
    engine_bytes: int | None = 0
    if isinstance(engine, TransformersEngine):  # the policy itself writes
        sampled, engine_bytes = min(engine.max_rows, sampled), None
    elif isinstance(engine, VLLMEngine):
        cache = (engine.kv_cache_gb or 1) * 2**30
        engine_bytes = int(engine.memory_share * room if on_gpu else cache)
    return Work(
        rows=-(-responses // micro_batches),
        length=min(length, longest or length),
        sampled=sampled,
        autocast=precision_of(trainer).autocast,
        checkpointing=module.load_options["gradient_checkpointing"],
        state=state_per_weight(module.check_optimizer()),
        reference=module.lora is None and module.objective.beta > 0,
        offload=module.offload_frozen,
        ranks=trainer.world_size if sharded else 1,
        replicated=trainer.world_size > 1 and not sharded,
        engine=engine_bytes,
        device="cuda" if on_gpu else "cpu",
    )


def state_per_weight(optimizer: torch.optim.Optimizer) -> float:
    """Bytes of state that an optimizer holds per trained weight, found by a step on a small matrix.

    The matrix replaces its first parameters, so the optimizer must be made for this question alone.
    """
    if type(optimizer).__module__.startswith("bitsandbytes"):  # steps on GPUs only
        return 2 + 8 / 256 if "8bit" in type(optimizer).__name__ else 8
    weight = nn.Parameter(torch.zeros(128, 128))
    weight.grad = torch.zeros_like(weight)
    optimizer.param_groups[0]["params"] = [weight]
    optimizer.step()
    state = [t for t in tree_leaves(optimizer.state[weight]) if isinstance(t, Tensor)]
    return sum(t.nbytes for t in state) / weight.numel()


def _device_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
