"""vLLM in the trainer's process: what it must leave alone, and what is said when it cannot work."""

import os
import signal
import sys

import pytest
import torch
from helpers.engines import adapted_policy, refresh
from helpers.small_models import small_policy

from lightning_serl.engines import Request, Sampling, VLLMEngine, WeightUpdate
from lightning_serl.engines.vllm.compat import start_failure
from lightning_serl.errors import EngineFailure
from lightning_serl.policy.loading import load_policy

pytestmark = pytest.mark.vllm


@pytest.fixture
def started(engine_of):
    engine, policy = engine_of("vllm")
    refresh(policy, engine)
    return engine, policy


def surroundings():
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "TORCHINDUCTOR_", "TRITON_", "TILELANG_"))
    }
    return {
        "environment": kept,
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
        "threads": (torch.set_num_threads, torch.get_num_threads(), os.sched_getaffinity(0)),
        "hook": sys.excepthook,
        "group": torch.distributed.is_initialized(),
        "precision": (torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.is_grad_enabled()),
    }


def test_one_at_a_time(started):
    assert "another VLLMEngine lives" in message_of(VLLMEngine(), load_policy("tiny:base"))


def test_an_adapter_too_large_for_the_engine_is_refused(started):
    engine, policy = started
    with pytest.raises(EngineFailure, match="refused the adapter") as caught:
        engine.push(
            WeightUpdate(
                "adapter", lambda: iter(policy.adapter_state().items()), 1000, policy.adapter_config() | {"r": 64}
            )
        )
    assert "merged" in str(caught.value)
    assert engine.version == -1
    refresh(policy, engine)  # a good one goes through afterwards


def test_weights_of_another_model_are_refused(started):
    engine = started[0]
    other = small_policy("llama_untied")
    with pytest.raises(EngineFailure, match="refused the weights"):
        engine.push(WeightUpdate("full", other.named_weights, 1000))
    assert engine.version == -1
    assert engine.needs_base
    engine.close()


def test_the_process_is_as_it_was(started):
    engine, policy = started
    engine.close()
    torch.set_num_threads(2)
    before = surroundings()
    engine.start(policy)
    assert surroundings() == before
    refresh(policy, engine)
    assert surroundings() == before
    engine.close()
    assert surroundings() == before


def message_of(engine, policy):
    with pytest.raises(EngineFailure) as caught:
        engine.start(policy)
    said = str(caught.value)
    assert len(said) <= 300
    assert "\n" not in said
    assert engine.version == -1
    return said


def test_a_device_that_others_fill_has_another_remedy_than_a_small_cache():
    """The words are those of vLLM's own start on a GPU."""
    free = ValueError(
        "Free memory on device cuda:0 (20.1/79.1 GiB) on startup is less than desired GPU memory utilization (0.45, "
        "35.6 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
    )
    assert "lower data.engine.memory_share" in start_failure(free)
    assert "raise data.engine.memory_share" in start_failure(ValueError("No available memory for the cache blocks."))


def test_an_engine_that_dies_says_so_and_can_be_started_again(started):
    engine, policy = started
    engine.session.llm.llm_engine.model_executor.driver_worker.worker.model_runner.model = None
    with pytest.raises(EngineFailure, match="died while it worked") as caught:
        list(engine.generate([Request((5, 6, 7), (1,), Sampling(max_tokens=4))]))
    assert len(str(caught.value)) <= 300
    with pytest.raises(EngineFailure, match="before it was started"):
        list(engine.generate([Request((5, 6, 7), (1,), Sampling(max_tokens=4))]))
    engine.start(policy)
    refresh(policy, engine)
    assert len(list(engine.generate([Request((5, 6, 7), (1,), Sampling(max_tokens=4))]))) == 1


def test_what_it_cannot_start_with(no_vllm):
    plain = load_policy("tiny:base")
    said = message_of(VLLMEngine(kv_cache_gb=100_000.0), plain)
    assert "no memory for its cache" in said
    assert "kv_cache_gb" in said
    said = message_of(VLLMEngine(kv_cache_gb=0.05, max_model_len=4096), plain)
    assert "lower data.engine.max_model_len" in said
    # heads of 8 channels, which vLLM has no kernel for
    said = message_of(VLLMEngine(kv_cache_gb=0.05), small_policy("llama_untied"))
    assert "TransformersEngine" in said


@pytest.mark.parametrize(
    "change",
    [{"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"target_modules": ["q_proj", "lm_head"]},
     {"init_lora_weights": "pissa"}, {"r": 1024}],
)  # fmt: skip
def test_adapters_that_arrive_merged(change):
    config = adapted_policy().adapter_config()
    assert VLLMEngine().takes_adapter(config)
    assert not VLLMEngine(lora="merged").takes_adapter(config)
    assert not VLLMEngine().takes_adapter(config | change)
