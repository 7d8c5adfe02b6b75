"""Loads a :class:`Policy` from a directory or a hub name."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub import constants, try_to_load_from_cache
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from lightning_serl import tiny
from lightning_serl.errors import InputError, reason, short
from lightning_serl.policy.dropout import disable_dropout
from lightning_serl.policy.finite import check_finite
from lightning_serl.policy.load_checks import check_forward
from lightning_serl.policy.lora import LoraOptions, add_lora, untie_for
from lightning_serl.policy.parts import freeze_beside_text
from lightning_serl.policy.policy import Policy
from lightning_serl.policy.quantization import Quantization, compute_exactly, let_go_of_files, quantization_config
from lightning_serl.policy.vocabulary import check_tokenizer
from lightning_serl.report.folder import is_run, runs_inside

# Names that the hub accepts, with or without an organisation.
_HUB_NAME = re.compile(r"(?=[^\x00]{1,96}\Z)[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")

DType = Literal["auto", "float32", "bfloat16", "float16", "float64"]


_plans = ContextVar("plans", default=False)


@contextmanager
def for_a_plan() -> Iterator[None]:
    """Context in which a model directory needs no weights and no tokenizer, because nothing is loaded from it."""
    token = _plans.set(True)
    try:
        yield
    finally:
        _plans.reset(token)


def check_model_path(name: str) -> str:
    """The directory of a model, ``tiny:base`` resolved, or its hub name unchanged.

    A local directory is refused before anything is loaded if it lacks a configuration, weights or a tokenizer.
    """
    resolved = os.path.expanduser(tiny.resolve(name))
    shown = short(name)
    path = Path(resolved)
    # os.path returns False where pathlib raises (a name too long for the file system)
    if not name.strip() or not os.path.isdir(resolved):
        if os.path.isfile(resolved):
            raise InputError(f"model {shown} is a file; give the directory that holds config.json and the weights")
        if not _HUB_NAME.fullmatch(name):
            raise InputError(
                f"model directory {shown} does not exist; give a directory or a hub name such as org/model"
            )
        return _of_hub(name) if _plans.get() else resolved
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise InputError(
            f"model directory {shown} holds only an adapter; give the base here and the adapter with "
            "--model.lora.start_from"
        )
    if not (path / "config.json").is_file() and (meant := _export_inside(path)):
        raise InputError(f"model directory {shown} has no config.json; {meant}")
    wanted = {
        "config.json": ["config.json"],
        "weights (*.safetensors or *.bin)": ["*.safetensors", "*.bin"],
        "tokenizer (tokenizer.json or tokenizer_config.json)": ["tokenizer.json", "tokenizer_config.json", "*.model"],
    }
    for what, patterns in list(wanted.items())[: 1 if _plans.get() else None]:
        if not any(next(path.glob(p), None) for p in patterns):
            raise InputError(
                f"model directory {shown} has no {what}; save model and tokenizer there with save_pretrained"
            )
    return resolved


@cache
def _of_hub(name: str) -> str:
    """The hub name of a model to plan for or, where the hub cannot be reached, the directory where it was stored.

    transformers itself would try for twenty seconds, which is right before a download and too long for a plan.
    """
    address = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or getproxies():
        return name
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname or "", port), timeout=5).close()
    except OSError as error:
        stored = try_to_load_from_cache(name, "config.json")
        if isinstance(stored, str):
            return str(Path(stored).parent)
        raise InputError(
            f"model {short(name)} is not a directory, and {address.hostname} cannot be reached ({reason(error)}); give "
            "a directory with the model's config.json"
        ) from error
    return name


def _export_inside(path: Path) -> str:
    """What is meant by a run folder, or by a folder of runs, in place of a model; empty for any other directory."""
    if (path / "export" / "config.json").is_file():
        return f"it is a run folder, whose trained model is {short(str(path / 'export'))}"
    if (path / "export" / "adapter_config.json").is_file():
        return f"it is a run folder, whose adapter lightning-serl merge {path} --out DIR merges into its base"
    if is_run(path):
        return "it is a run folder without an export yet; continue the run to its end with --ckpt_path last"
    return runs_inside(path, "export").removeprefix("; ")


def loaded_dtype(name: str | None, dtype: str) -> str:
    """``model.dtype``, or under ``auto`` the dtype that a model directory's ``config.json`` names, if it names one."""
    config = Path(str(name)) / "config.json"
    if dtype != "auto" or not config.is_file():
        return dtype
    try:
        facts = json.loads(config.read_text(encoding="utf-8"))
    except ValueError:
        return dtype  # refused where it is loaded
    stored = facts.get("dtype") or facts.get("torch_dtype") if isinstance(facts, dict) else None
    return stored if isinstance(stored, str) else dtype


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
    untie: bool = False,
) -> Policy:
    """Load model and tokenizer and wrap them as a policy in train mode, with the options of ``SeRLModule``.

    ``device`` is for 4-bit layers, which cannot move later; the Trainer moves other weights. ``empty`` builds the model
    without reading its weights, for a rank that receives its shards from rank 0. ``untie`` gives the output layer a
    tensor that it does not share with the embedding, if the adapter changes one of the two. Raises
    :class:`InputError` if model or tokenizer cannot be loaded, or the adapter matches nothing.
    """
    where, shown = check_model_path(name), short(name)
    transformers_logging.disable_progress_bar()
    extra: dict[str, Any] = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    if lora is not None:
        lora.config()  # refused before the weights are read
    if quantize is not None:
        check_quantize(quantize, lora)
    try:
        if quantize is not None:
            if dtype == "auto":  # 4-bit layers compute in the dtype of the other weights
                compute = AutoConfig.from_pretrained(where, trust_remote_code=False).dtype or torch.float32
            else:
                compute = getattr(torch, dtype)
            extra["quantization_config"] = quantization_config(quantize, compute)
            extra["device_map"] = {"": device or torch.device("cpu")}
        # False, not the default, which asks on the terminal whether to run the code
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
        model, missing = _without_weights(where, dtype, extra) if empty else _with_weights(where, dtype, extra)
    except Exception as error:  # damaged files raise whatever the library that reads them raises
        raise InputError(_unloadable(shown, where, error)) from error
    if missing:
        raise InputError(
            f"the weights of model {shown} lack {len(missing)} tensors that its config.json describes (first "
            f"{missing[0]}); save the whole model with save_pretrained"
        )
    if quantize is not None:
        compute_exactly(model, compute)
        let_go_of_files(model)
    check_tokenizer(tokenizer, model.get_input_embeddings().weight.shape[0], shown)
    if not empty:
        check_finite(dict(model.named_parameters()), f"model {shown}")
        check_forward(Policy(model, tokenizer), shown)
    fix_generation_config(model)
    if untie and lora is not None:
        untie_for(model, lora)
    model = prepare_for_training(model, gradient_checkpointing, lora)
    # from_pretrained returns eval mode and Lightning does not change it
    policy = Policy(model, tokenizer, temperature)
    if policy.steady_length is not None:
        rank_zero_info(
            f"positions: prompt and response are kept within {policy.context_length} tokens, beyond which this model "
            "changes the positions of all rows of a batch"
        )
    return policy.train()


def prepare_for_training(model: Any, gradient_checkpointing: bool, lora: LoraOptions | None, load: bool = True) -> Any:
    """Switch off cache and dropout; add gradient checkpointing and the adapter (:func:`.add_lora`), if asked for.

    Parts that a text does not pass, such as a vision tower, are frozen.
    """
    model.config.use_cache = False
    disable_dropout(model)
    freeze_beside_text(model)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if lora is not None:
            model.enable_input_require_grads()
    return model if lora is None else add_lora(model, lora, load)


def check_quantize(quantize: Quantization, lora: LoraOptions | None) -> None:
    """Refuse 4-bit weights in a run without an adapter to train, or without bitsandbytes."""
    if lora is None:
        raise InputError(
            f"model.quantize {quantize} needs an adapter, since 4-bit weights cannot be trained; set --model.lora.r"
        )
    quantization_config(quantize, torch.float32)


def _with_weights(where: str, dtype: DType, extra: dict[str, Any]) -> tuple[Any, list[str]]:
    """The model, and the names of tensors that its files lack."""
    model, found = AutoModelForCausalLM.from_pretrained(
        where, dtype=dtype, trust_remote_code=False, output_loading_info=True, **extra
    )
    return model, sorted(found["missing_keys"])


def _without_weights(where: str, dtype: DType, extra: dict[str, Any]) -> tuple[Any, list[str]]:
    """The model on the meta device, with its generation config; nothing is missing."""
    config = AutoConfig.from_pretrained(where, trust_remote_code=False)
    kind = config.dtype if dtype == "auto" else getattr(torch, dtype)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=kind, trust_remote_code=False, **extra)
    model.tie_weights()
    with suppress(OSError):  # without such a file the one made from the configuration is kept
        model.generation_config = GenerationConfig.from_pretrained(where)
    return model.eval(), []


def _unloadable(shown: str, where: str, error: Exception) -> str:
    """Why transformers did not load a model, as one sentence."""
    if "trust_remote_code" in str(error):
        return f"model {shown} needs custom code, which is never run here; give a model that transformers supports"
    if isinstance(error, ImportError):
        return f"model {shown} needs a package that is not installed ({reason(error)}); install it or choose without"
    if not os.path.isdir(where):
        return (
            f"model {shown} is not a directory and could not be downloaded from the hub ({reason(error)}); check name "
            "and network"
        )
    return f"model {shown} cannot be loaded ({reason(error)}); check the options, or save the model again"


def fix_generation_config(model: Any) -> None:
    """Set ``do_sample`` where a published config has a temperature alone, which save_pretrained refuses to export."""
    config = model.generation_config
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True
