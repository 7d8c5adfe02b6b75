"""From a directory or hub name to a :class:`Policy`."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch

from lightning_serl import tiny
from lightning_serl.errors import InputError, reason, short
from lightning_serl.policy.lora import LoraOptions, add_lora
from lightning_serl.policy.policy import Policy
from lightning_serl.policy.quantization import Quantization, compute_exactly, let_go_of_files, quantization_config

# What the hub takes for a name, with or without its organisation.
_HUB_NAME = re.compile(r"(?=[^\x00]{1,96}\Z)[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")

DType = Literal["auto", "float32", "bfloat16", "float16", "float64"]


def check_model_path(name: str) -> str:
    """Resolve ``tiny:base``, and look at a local directory before anything heavy is imported or loaded.

    Returns:
        A directory, or the hub name unchanged.

    Raises:
        InputError: if a local directory lacks a configuration, weights or a tokenizer, or a path does not exist.
    """
    resolved = os.path.expanduser(tiny.resolve(name))
    said = short(name)
    path = Path(resolved)
    # os.path, whose questions answer no where pathlib's raise (a name too long for the file system)
    if not name.strip() or not os.path.isdir(resolved):
        if os.path.isfile(resolved):
            raise InputError(f"model {said} is a file; give the directory that holds config.json and the weights")
        if not _HUB_NAME.fullmatch(name):
            raise InputError(f"model directory {said} does not exist; give a directory or a hub name such as org/model")
        return resolved
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise InputError(
            f"model directory {said} holds an adapter alone; give the base here and the adapter with "
            "--model.lora.start_from"
        )
    wanted = {
        "config.json": ["config.json"],
        "weights (*.safetensors or *.bin)": ["*.safetensors", "*.bin"],
        "tokenizer (tokenizer.json or tokenizer_config.json)": ["tokenizer.json", "tokenizer_config.json", "*.model"],
    }
    for what, patterns in wanted.items():
        if not any(next(path.glob(p), None) for p in patterns):
            raise InputError(
                f"model directory {said} has no {what}; save model and tokenizer there with save_pretrained"
            )
    return resolved


def load_policy(
    name: str,
    lora: LoraOptions | None = None,
    dtype: DType = "float32",
    gradient_checkpointing: bool = False,
    attn_implementation: str | None = None,
    temperature: float = 1.0,
    quantize: Quantization | None = None,
    device: torch.device | None = None,
    empty: bool = False,
) -> Policy:
    """Load model and tokenizer and wrap them as a policy in train mode.

    Args:
        name: Directory, hub name or ``tiny:base``.
        lora: Adapter options; ``None`` trains all weights.
        dtype: Of the loaded weights.
        gradient_checkpointing: Recompute activations in the backward pass.
        attn_implementation: As in transformers; ``None`` lets transformers choose.
        temperature: See :class:`Policy`.
        quantize: Hold the linear layers in 4 bits; only an adapter can then be trained.
        device: Where 4-bit layers are made, which is where they stay; other weights follow the Trainer.
        empty: Build the model without reading its weights, for a rank that gets its share of them from another.

    Raises:
        InputError: if the model or tokenizer cannot be loaded, or the adapter matches nothing.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as hf_logging

    where = check_model_path(name)
    said = short(name)
    hf_logging.disable_progress_bar()
    extra: dict[str, Any] = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    if lora is not None:
        lora.config()  # refused before the weights are read
    if quantize is not None:
        check_quantize(quantize, lora)
    try:
        if quantize is not None:
            compute = _compute_dtype(where, dtype)
            extra["quantization_config"] = quantization_config(quantize, compute)
            extra["device_map"] = {"": device or torch.device("cpu")}
        # False, not the default: that one asks on the terminal whether to run the code
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
        found: dict[str, Any] = {"missing_keys": ()}
        if empty:
            model = _without_weights(where, dtype, extra)
        else:
            model, found = AutoModelForCausalLM.from_pretrained(
                where, dtype=dtype, trust_remote_code=False, output_loading_info=True, **extra
            )
    except Exception as error:  # damaged files raise whatever the library that reads them raises
        raise InputError(_unloadable(said, where, error)) from error
    missing = sorted(found["missing_keys"])
    if missing:
        raise InputError(
            f"the weights of model {said} lack {len(missing)} tensors that its config.json describes (first "
            f"{missing[0]}); save the whole model with save_pretrained"
        )
    if quantize is not None:
        compute_exactly(model, compute)
        let_go_of_files(model)
    if not empty:
        _check_head(model, said)
    _mend_generation_config(model)
    model.config.use_cache = False
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if lora is not None:
            model.enable_input_require_grads()
    if lora is not None:
        model = add_lora(model, lora)
    if tokenizer.eos_token_id is None:
        raise InputError(f"the tokenizer of model {said} has no end token; set eos_token in its tokenizer_config.json")
    policy = Policy(model, tokenizer, temperature)
    # from_pretrained returns eval mode and Lightning keeps what it finds
    policy.train()
    return policy


def check_quantize(quantize: Quantization, lora: LoraOptions | None) -> None:
    """Refuse 4-bit weights that nothing could train.

    Raises:
        InputError: without an adapter, or without bitsandbytes.
    """
    if lora is None:
        raise InputError(
            f"model.quantize {quantize} needs an adapter, since 4-bit weights cannot be trained; set --model.lora.r"
        )
    quantization_config(quantize, torch.float32)


def _compute_dtype(where: str, dtype: DType) -> torch.dtype:
    """The dtype that 4-bit layers compute in: that of the other weights."""
    from transformers import AutoConfig

    if dtype != "auto":
        return getattr(torch, dtype)
    return AutoConfig.from_pretrained(where, trust_remote_code=False).dtype or torch.float32


def _without_weights(where: str, dtype: DType, extra: dict[str, Any]) -> Any:
    """The model on the meta device, generation settings included."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(where, trust_remote_code=False)
    kind = config.dtype if dtype == "auto" else getattr(torch, dtype)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=kind, trust_remote_code=False, **extra)
    model.tie_weights()
    with suppress(OSError):  # a model need not bring any; the one made from its configuration stands
        model.generation_config = GenerationConfig.from_pretrained(where)
    return model.eval()


def _unloadable(said: str, where: str, error: Exception) -> str:
    """Why transformers did not load a model, as one sentence."""
    if "trust_remote_code" in str(error):
        return f"model {said} brings code of its own, which is never run here; give a model that transformers knows"
    if isinstance(error, ImportError):
        return f"model {said} needs a package that is not installed ({reason(error)}); install it or choose without"
    if not os.path.isdir(where):
        return (
            f"model {said} is no directory here and the hub did not give it ({reason(error)}); check name and network"
        )
    return f"model {said} cannot be loaded ({reason(error)}); check the options, or save the model again"


@torch.no_grad()
def _check_head(model: Any, said: str) -> None:
    """Refuse a model whose logits are more than its output layer and the scalings that ``Policy.head`` knows.

    Its log-probs would be wrong without a word.
    """
    if getattr(model.config, "_attn_implementation", None) not in ("eager", "sdpa"):
        return  # cannot run where the weights are loaded
    ids = torch.arange(4, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
    probe, kind = Policy(model, _NoTokenizer()), type(model).__name__
    try:
        hidden = model.base_model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            position_ids=torch.arange(4, device=ids.device)[None],
            use_cache=False,
        ).last_hidden_state
        ours, theirs = probe.head(hidden).float(), model(input_ids=ids, use_cache=False).logits.float()
        same = torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2 * float(theirs.abs().max()))
    except (AttributeError, TypeError) as error:
        raise InputError(f"model {said} ({kind}) does not run as a causal LM here: {reason(error)}") from error
    if not same:
        raise InputError(f"model {said} ({kind}) does more to its logits than is known here; give another architecture")


class _NoTokenizer:
    eos_token_id = 0


def _mend_generation_config(model: Any) -> None:
    """Published models often set a temperature without ``do_sample``, which save_pretrained would refuse on export."""
    config = model.generation_config
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True
