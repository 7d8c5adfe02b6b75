"""From a directory or hub name to a :class:`Policy`, and from a policy back to a Hugging Face directory."""

from __future__ import annotations

import os
import re
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
    said = _short(name)
    path = Path(resolved)
    # os.path, whose questions answer no where pathlib's raise (a name too long for the file system)
    if not name.strip() or not os.path.isdir(resolved):
        if os.path.isfile(resolved):
            raise InputError(f"model {said} is a file; give the directory that holds config.json and the weights")
        if not _HUB_NAME.fullmatch(name):
            raise InputError(f"model directory {said} does not exist; give a directory or a hub name such as org/model")
        return resolved
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


def _short(name: str) -> str:
    """The name in quotes, its start left out where it is long, so that a message keeps its remedy."""
    return repr(name if len(name) <= 100 else f"...{name[-97:]}")


def _reason(error: BaseException) -> str:
    """The first line of another library's message, short enough to stand in a sentence of ours."""
    lines = [" ".join(line.split()) for line in str(error).strip().splitlines()] or [type(error).__name__]
    first = (" ".join(lines[:2]) if lines[0].endswith(":") else lines[0]).rstrip(".: ")
    return first if len(first) <= 120 else f"{first[:117]}..."


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
    said = _short(name)
    hf_logging.disable_progress_bar()
    extra: dict[str, Any] = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    try:
        # False, not the default: that one asks on the terminal whether to run the code
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
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
    _check_head(model, said)
    _mend_generation_config(model)
    model.config.use_cache = False
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if lora is not None:
            model.enable_input_require_grads()
    if lora is not None:
        model = _with_lora(model, lora)
    if tokenizer.eos_token_id is None:
        raise InputError(f"the tokenizer of model {said} has no end token; set eos_token in its tokenizer_config.json")
    policy = Policy(model, tokenizer, temperature)
    # from_pretrained returns eval mode and Lightning keeps what it finds
    policy.train()
    return policy


def _unloadable(said: str, where: str, error: Exception) -> str:
    """Why transformers did not load a model, as one sentence."""
    if "trust_remote_code" in str(error):
        return f"model {said} brings code of its own, which is never run here; give a model that transformers knows"
    if isinstance(error, ImportError):
        return f"model {said} needs a package that is not installed ({_reason(error)}); install it or choose without"
    if not os.path.isdir(where):
        return (
            f"model {said} is no directory here and the hub did not give it ({_reason(error)}); check name and network"
        )
    return f"model {said} cannot be loaded ({_reason(error)}); check the options, or save the model again"


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
            input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=torch.arange(4)[None], use_cache=False
        ).last_hidden_state
        ours, theirs = probe.head(hidden).float(), model(input_ids=ids, use_cache=False).logits.float()
        same = torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2 * float(theirs.abs().max()))
    except (AttributeError, TypeError) as error:
        raise InputError(f"model {said} ({kind}) does not run as a causal LM here: {_reason(error)}") from error
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


def _with_lora(model: torch.nn.Module, lora: LoraOptions) -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    linear = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
    known = _short(", ".join(linear))[1:-1]
    if not isinstance(lora.target_modules, str):
        for target in lora.target_modules:
            # peft is content if one of the list matches
            if not any(n == target or n.endswith(f".{target}") for n, _ in model.named_modules()):
                raise InputError(f"model.lora.target_modules {_short(target)} matches no layer; linear layers: {known}")
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight  # type: ignore[operator]
    try:
        adapted = get_peft_model(model, config)
    except re.error as error:
        raise InputError(
            f"model.lora.target_modules {_short(str(lora.target_modules))} is no pattern ({_reason(error)}); "
            f"linear layers: {known}"
        ) from error
    except ValueError as error:
        raise InputError(
            f"model.lora.target_modules {_short(str(lora.target_modules))} cannot be adapted ({_reason(error)}); "
            f"linear layers: {known}"
        ) from error
    ends = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[operator]
    if tied and any(hasattr(end, "base_layer") for end in ends):
        raise InputError(
            "model.lora.target_modules adapts the embedding or output layer, which share one tensor in this model; "
            "leave both out, since merging one would change the other"
        )
    return adapted


def export(policy: Policy, directory: Path) -> None:
    """Write a directory that ``AutoModelForCausalLM.from_pretrained`` opens; LoRA is merged into a copy.

    Written beside its destination and moved there, so that an interrupted export never looks finished and a failed
    one leaves the last in place.
    """
    import copy

    model: Any = policy.model
    if policy.has_adapter:
        model = copy.deepcopy(model).merge_and_unload()
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    former = staging.with_name(f"{staging.name}.former")
    config = model.config
    try:
        # off while training, but not what whoever opens the export wants
        config.use_cache = True
        model.save_pretrained(staging)
        policy.tokenizer.save_pretrained(staging)
        os.chmod(staging, 0o755)
        if directory.exists():
            directory.rename(former)
        staging.rename(directory)
    except BaseException:
        if former.exists() and not directory.exists():
            former.rename(directory)
        shutil.rmtree(staging, ignore_errors=True)
        raise
    finally:
        config.use_cache = False
    shutil.rmtree(former, ignore_errors=True)
