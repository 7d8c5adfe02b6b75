"""Logs the memory plan of a fit once, before the model is loaded."""

from __future__ import annotations

import os
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_serl.engines.transformers import TransformersEngine
from lightning_serl.errors import InputError, reason
from lightning_serl.policy.loading import check_model_path
from lightning_serl.policy.memory_plan import Plan, gib, plan
from lightning_serl.policy.memory_trace import Work

# -- of a run ----------------------------------------------------------------------------------------------------------

# Where nothing limits the length of prompts, they are taken for this long.
_PROMPT = 256


def announce(module: Any, trainer: Any, data: Any) -> None:
    """Say in one line what a fit will hold where, and warn if it cannot fit the device.

    Nothing is said where the rounds are not ours, or where the model's architecture cannot be traced.
    """
    if not hasattr(data, "round_options") or module.model_name_or_path is None:
        return
    try:
        foreseen, room = plan_run(module, trainer, data)
    except InputError:
        raise
    except Exception as error:  # a model that transformers knows and this file does not must train all the same
        rank_zero_info(f"memory: not foreseen for this model ({reason(error)})")
        return
    device = trainer.strategy.root_device
    rank_zero_info(foreseen.sentence(str(device), room))
    if foreseen.peak > room:
        rank_zero_warn(
            f"this run needs about {gib(foreseen.peak)} GiB on {device}, which has {gib(room)}; see docs/memory.md: "
            "model.lora, model.quantize, model.gradient_checkpointing, model.offload_frozen or more "
            "trainer.accumulate_grad_batches make it smaller"
        )


def plan_run(module: Any, trainer: Any, data: Any) -> tuple[Plan, int]:
    """The plan of a fit, and the bytes of its device."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(check_model_path(module.model_name_or_path), trust_remote_code=False)
    named = module.load_options["dtype"]
    dtype = (config.dtype or torch.float32) if named == "auto" else getattr(torch, named)
    precision = str(trainer.precision)
    mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    if precision.endswith("-true"):
        dtype = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}.get(precision, dtype)
    device, options = trainer.strategy.root_device, data.round_options
    responses = options.prompts_per_round * options.samples_per_prompt
    slots = module.minibatches * trainer.accumulate_grad_batches * trainer.world_size
    length = (options.max_prompt_tokens or _PROMPT) + data.sampling.max_tokens
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    sharded = isinstance(trainer.strategy, ModelParallelStrategy)
    room = _room(device)
    writes_itself = isinstance(data.engine, TransformersEngine)
    share = 0
    if hasattr(data.engine, "memory_share"):  # on CPUs the cache is set by its size
        cache = (data.engine.kv_cache_gb or 1) * 2**30
        share = int(data.engine.memory_share * room if device.type == "cuda" else cache)
    return plan(
        config,
        dtype,
        Work(
            rows=-(-responses // slots),
            length=min(length, longest or length),
            sampled=min(getattr(data.engine, "max_rows", responses), -(-responses // trainer.world_size)),
            autocast=mixed,
            checkpointing=module.load_options["gradient_checkpointing"],
            state=state_per_weight(module),
            reference=module.lora is None and module.objective.beta > 0,
            offload=module.offload_frozen,
            ranks=trainer.world_size if sharded else 1,
            replicated=trainer.world_size > 1 and not sharded,
            engine=None if writes_itself else share,
            device="cuda" if device.type == "cuda" else "cpu",
        ),
        module.lora,
        module.quantize is not None,
    ), room


def state_per_weight(module: Any) -> float:
    """Bytes of optimizer state per trained weight, by a step on a small stand-in."""
    weight = nn.Parameter(torch.zeros(128, 128))
    optimizer = module._make_optimizer([weight])
    if type(optimizer).__module__.startswith("bitsandbytes"):  # steps on GPUs alone
        return 2 + 8 / 256 if "8bit" in type(optimizer).__name__ else 8
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    state = [t for t in tree_leaves(optimizer.state[weight]) if isinstance(t, Tensor)]
    return sum(t.nbytes for t in state) / weight.numel()


def _room(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
