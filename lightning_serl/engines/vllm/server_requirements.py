"""What vLLM servers must be started with, and what is checked of those that run already."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lightning_serl.engines.vllm.lora_support import largest_rank, max_lora_rank, plain_lora
from lightning_serl.engines.vllm.server_client import ServerClient
from lightning_serl.engines.vllm.server_pool import ENABLE_LORA
from lightning_serl.errors import EngineFailure

if TYPE_CHECKING:
    from lightning_serl.policy.policy import Policy


def server_arguments(policy: Policy) -> list[str]:
    """Command-line arguments for a server of this policy."""
    dtype = next(p.dtype for p in policy.causal_lm.parameters() if p.is_floating_point())
    out = ["--dtype", str(dtype).removeprefix("torch.")]
    if policy.device.type == "cpu":
        # a prompt run in pieces rewinds its generator, which CPU generators cannot do
        length = max(8192, policy.context_length or 0)
        out += ["--enforce-eager", "--no-enable-chunked-prefill", "--max-num-batched-tokens", str(length)]
    if policy.has_adapter:
        config = policy.adapter_config()
        if plain_lora(config):
            targets = config["target_modules"]
            if policy.device.type == "cpu" and not isinstance(targets, str):
                # without this vLLM prepares the output layer for adapters too; see `scores_one_by_one`
                out += ["--lora-target-modules", *sorted({t.rsplit(".", 1)[-1] for t in targets})]
            out += ["--enable-lora", "--max-loras", "2", "--max-lora-rank", str(max_lora_rank(config))]
    return out


def server_environment(policy: Policy) -> dict[str, str]:
    """Environment variables for a server of this policy."""
    if policy.device.type == "cpu" and "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
        return {"VLLM_CPU_KVCACHE_SPACE": "1"}  # GiB; vLLM's default is a large share of the machine's memory
    return {}


def scores_one_by_one(server: ServerClient) -> bool:
    """Whether prompts must be scored one at a time.

    On CPUs vLLM crashes on two scored prompts in one batch if its output layer is prepared for adapters.
    """
    lora = server.config.get("lora_config") or {}
    on_cpu = server.config.get("device_config", {}).get("device_type") == "cpu"
    return bool(on_cpu and lora and (not lora.get("target_modules") or "lm_head" in lora["target_modules"]))


def check_configuration(server: ServerClient, policy: Policy) -> None:
    """Refuse a server whose configuration does not fit the policy.

    Raises:
        EngineFailure: if it reports other log-probs than the engine needs, or cannot load the policy's adapters.
    """
    mode = server.config.get("model_config", {}).get("logprobs_mode", "processed_logprobs")
    if mode != "processed_logprobs":
        raise EngineFailure(
            f"the vLLM server at {server.url} returns {mode}, not the log-probs it samples from; start it with "
            "--logprobs-mode processed_logprobs"
        )
    if policy.has_adapter and plain_lora(config := policy.adapter_config()):
        _check_adapters(server, largest_rank(config))


def _check_adapters(server: ServerClient, rank: int) -> None:
    if "model_config" not in server.config:
        return  # this release does not report its configuration
    lora = server.config.get("lora_config")
    if not lora:
        raise EngineFailure(f"the vLLM server at {server.url} takes no adapters; {ENABLE_LORA} --max-lora-rank {rank}")
    if (most := int(lora.get("max_lora_rank", rank))) < rank:
        raise EngineFailure(
            f"the vLLM server at {server.url} takes adapters up to rank {most}, this one needs {rank}; start it with "
            f"--max-lora-rank {rank}"
        )
