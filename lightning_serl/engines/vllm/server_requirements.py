"""What vLLM servers must be started with."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lightning_serl.engines.vllm.lora_support import plain_lora, served_rank
from lightning_serl.engines.vllm.server_client import Replica
from lightning_serl.engines.vllm.server_pool import LORA
from lightning_serl.errors import EngineFailure

if TYPE_CHECKING:
    from lightning_serl.policy.policy import Policy


# -- the server that is started here ----------------------------------------------------------------------------------


def _arguments(policy: Policy) -> list[str]:
    dtype = next(p.dtype for p in policy.causal_lm.parameters() if p.is_floating_point())
    out = ["--dtype", str(dtype).removeprefix("torch.")]
    if policy.device.type == "cpu":
        # a prompt in pieces would rewind its generator, which CPU generators cannot do
        length = max(8192, policy.context_length or 0)
        out += ["--enforce-eager", "--no-enable-chunked-prefill", "--max-num-batched-tokens", str(length)]
    if policy.has_adapter:
        config = policy.adapter_config()
        if plain_lora(config):
            targets = config["target_modules"]
            if policy.device.type == "cpu" and not isinstance(targets, str):
                # else the output layer is prepared for adapters too; see `_mixes_up_scores`
                out += ["--lora-target-modules", *sorted({t.rsplit(".", 1)[-1] for t in targets})]
            out += ["--enable-lora", "--max-loras", "2", "--max-lora-rank", str(served_rank(config))]
    return out


def _environment(policy: Policy) -> dict[str, str]:
    if policy.device.type == "cpu" and "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
        return {"VLLM_CPU_KVCACHE_SPACE": "1"}  # GiB; by itself it takes a large share of the machine
    return {}


def _weight_bytes(policy: Policy) -> int:
    return sum(p.numel() * p.element_size() for p in policy.causal_lm.parameters())


# -- refusals ------------------------------------------------------------------------------------------------------


def _mixes_up_scores(replica: Replica) -> bool:
    """Whether its output layer takes adapters on a CPU, where vLLM dies of two scored rows in one batch."""
    lora = replica.config.get("lora_config") or {}
    on_cpu = replica.config.get("device_config", {}).get("device_type") == "cpu"
    return bool(on_cpu and lora and (not lora.get("target_modules") or "lm_head" in lora["target_modules"]))


def _check_adapters(replica: Replica, rank: int) -> None:
    if "model_config" not in replica.config:
        return  # it tells nothing about itself
    lora = replica.config.get("lora_config")
    if not lora:
        raise EngineFailure(f"the vLLM server at {replica.url} takes no adapters; {LORA} --max-lora-rank {rank}")
    if (most := int(lora.get("max_lora_rank", rank))) < rank:
        raise EngineFailure(
            f"the vLLM server at {replica.url} takes adapters up to rank {most}, this one needs {rank}; start it with "
            f"--max-lora-rank {rank}"
        )
