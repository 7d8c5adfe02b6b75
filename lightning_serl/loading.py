"""From a directory or hub name to a :class:`Policy`, and from a policy back to a Hugging Face directory."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from lightning_serl import tiny
from lightning_serl.errors import InputError
from lightning_serl.policy import Policy


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank adapters (Hu et al., 2106.09685) through peft.

    Args:
        r: Rank of the adapter.
        alpha: Scale; the update is multiplied by ``alpha / r``.
        dropout: Dropout before the adapter while training.
        target_modules: Module names to adapt, a pattern, or ``all-linear``.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"lora.r must be at least 1, got {self.r}")
        if self.alpha <= 0:
            raise ValueError(f"lora.alpha must be above 0, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout must lie in [0, 1), got {self.dropout}")


DType = Literal["auto", "float32", "bfloat16", "float16", "float64"]


def check_model_path(name: str) -> str:
    """Resolve ``tiny:base``, and look at a local directory before anything heavy is imported or loaded.

    Returns:
        A directory, or the hub name unchanged.

    Raises:
        InputError: if a local directory lacks a configuration, weights or a tokenizer, or a path does not exist.
    """
    resolved = tiny.resolve(name)
    path = Path(resolved)
    if not path.is_dir():
        if path.is_file():
            raise InputError(f"model {name!r} is a file; give the directory that holds config.json and the weights")
        looks_local = name.startswith((".", "/", "~")) or name.count("/") != 1 or path.parent.is_dir()
        if looks_local and not _looks_like_hub_name(name):
            raise InputError(f"model directory {name!r} does not exist; give a directory or a hub name such as org/model")
        return resolved
    wanted = {
        "a config.json": ["config.json"],
        "weights (*.safetensors or *.bin)": ["*.safetensors", "*.bin"],
        "a tokenizer (tokenizer.json or tokenizer_config.json)": ["tokenizer.json", "tokenizer_config.json", "*.model"],
    }
    for what, patterns in wanted.items():
        if not any(next(path.glob(p), None) for p in patterns):
            raise InputError(f"model directory {name!r} has no {what}; save model and tokenizer there with save_pretrained")
    return resolved


def _looks_like_hub_name(name: str) -> bool:
    return not name.startswith((".", "/", "~")) and name.count("/") <= 1 and bool(name.strip())


def load_policy(
    name: str,
    lora: LoraOptions | None = None,
    dtype: DType = "float32",
    gradient_checkpointing: bool = False,
    attn_implementation: str | None = None,
    temperature: float = 1.0,
) -> Policy:
    """Load model and tokenizer and wrap them as a policy in train mode.

    Args:
        name: Directory, hub name or ``tiny:base``.
        lora: Adapter options; ``None`` trains all weights.
        dtype: Of the loaded weights.
        gradient_checkpointing: Recompute activations in the backward pass.
        attn_implementation: As in transformers; ``None`` lets transformers choose.
        temperature: See :class:`Policy`.

    Raises:
        InputError: if the model or tokenizer cannot be loaded, or the adapter matches nothing.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as hf_logging

    where = check_model_path(name)
    hf_logging.disable_progress_bar()
    extra: dict[str, Any] = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    try:
        tokenizer = AutoTokenizer.from_pretrained(where)
        model = AutoModelForCausalLM.from_pretrained(where, dtype=dtype, **extra)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"model {name!r} cannot be loaded: {first}") from error
    model.config.use_cache = False
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if lora is not None:
            model.enable_input_require_grads()
    if lora is not None:
        model = _with_lora(model, lora)
    policy = Policy(model, tokenizer, temperature)
    # from_pretrained returns eval mode and Lightning keeps what it finds
    policy.train()
    return policy


def _with_lora(model: torch.nn.Module, lora: LoraOptions) -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)  # type: ignore[no-any-return]
    except ValueError as error:
        names = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
        raise InputError(
            f"model.lora.target_modules {lora.target_modules!r} matches no layer; linear layers here are: {', '.join(names)}"
        ) from error


def export(policy: Policy, directory: Path) -> None:
    """Write a directory that ``AutoModelForCausalLM.from_pretrained`` opens; LoRA is merged into a copy.

    Written beside its destination and moved there, so that an interrupted export never looks finished.
    """
    import copy

    model = policy.model
    if policy.has_adapter:
        model = copy.deepcopy(model).merge_and_unload()
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        model.save_pretrained(staging)  # type: ignore[operator]
        policy.tokenizer.save_pretrained(staging)
        os.chmod(staging, 0o755)
        if directory.exists():
            shutil.rmtree(directory)
        staging.rename(directory)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
