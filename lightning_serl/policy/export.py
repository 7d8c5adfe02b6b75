"""Writes a policy as a Hugging Face directory."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from lightning_serl.checkpoints.atomic_write import sync, sync_tree
from lightning_serl.distributed.finite import first_not_finite
from lightning_serl.errors import InputError, NotFinite
from lightning_serl.policy.lora import TRAINED
from lightning_serl.policy.policy import Policy

Form = Literal["adapter", "merged", "full"]
#: Names of the model card, and of the configuration with the options that the model was asked with.
CARD, OPTIONS = "README.md", "serl.json"
#: Options of the module that ``serl.json`` of an adapter alone has besides: how its base was held in training.
OF_BASE = ("dtype", "quantize")


def export_form(form: Form | None, has_adapter: bool) -> Form:
    """The form of an export, by default ``merged`` or without LoRA ``full``; refused if the run cannot have it."""
    if form is None:
        return "merged" if has_adapter else "full"
    if has_adapter == (form == "full"):
        said = "trains an adapter; use adapter or merged" if has_adapter else "trains no adapter; use full"
        raise InputError(f"the export's form is {form} but the run {said}")
    return form


def export(
    policy: Policy,
    directory: Path,
    form: Form | None = None,
    card: str | None = None,
    options: Mapping[str, Any] | None = None,
    base: str | None = None,
) -> None:
    """Write a directory that ``from_pretrained`` opens: weights, configuration, tokenizer, generation config, card.

    The files are written to a temporary folder that then replaces the directory, so that an interrupted export never
    looks finished and a failed one leaves the last in place. Adapters are merged into copies of the base's weights,
    one layer at a time; the live weights are not changed.

    Args:
        policy: The trained policy, not sharded; see ``sharded_weights.whole``.
        directory: The destination.
        form: ``full`` weights, the ``adapter`` alone (for peft), or the adapter ``merged`` into the base; by default
            as in :func:`export_form`.
        card: The model card, ``README.md``.
        options: The options that the policy was asked with, for ``serl.json``.
        base: The name of the base that an adapter's configuration gives, by default where it was loaded from.

    Raises:
        NotFinite: if a weight to write is NaN or infinite; the last export stays.
    """
    form = export_form(form, policy.has_adapter)
    with _staged(directory) as staging:
        if form == "adapter":
            _save_adapter(policy, staging, base)
        else:
            _save_model(policy, staging)
        policy.tokenizer.save_pretrained(staging)
        if card is not None:
            (staging / CARD).write_text(card, encoding="utf-8", errors="backslashreplace")
        if options is not None:
            (staging / OPTIONS).write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")


def options_file(model: str) -> Path | None:
    """``serl.json`` of an exported model, in a directory or on the hub; ``None`` if it has none or cannot be asked."""
    return file_of_model(model, OPTIONS)


def file_of_model(model: str, name: str) -> Path | None:
    """A file beside a model's weights, in a directory or on the hub; ``None`` if there is none or it cannot be had."""
    if os.path.isdir(os.path.expanduser(model)):
        found = Path(model).expanduser() / name
        return found if found.is_file() else None
    if ":" in model or not model.strip():
        return None
    from transformers.utils import cached_file

    quiet = {f"_raise_exceptions_for_{what}": False for what in ("gated_repo", "missing_entries", "connection_errors")}
    with suppress(OSError, ValueError):  # a name that is no repository is refused where the model is loaded
        fetched = cached_file(model, name, **quiet)
        return None if fetched is None else Path(fetched)
    return None


def _save_adapter(policy: Policy, staging: Path, base: str | None) -> None:
    model: Any = policy.model
    config = copy.deepcopy(model.peft_config[TRAINED])
    config.inference_mode = True
    if base is not None:
        config.base_model_name_or_path = base
    config.save_pretrained(str(staging))
    state = {n: t.cpu().contiguous() for n, t in policy.adapter_state().items()}
    _check_finite(state)
    save_file(state, staging / "adapter_model.safetensors", {"format": "pt"})
    if (generation := getattr(policy.causal_lm, "generation_config", None)) is not None:
        generation.save_pretrained(staging)


def _save_model(policy: Policy, staging: Path) -> None:
    """Save through an empty model of the same class, so that names and files are those that transformers writes."""
    state = {name: tensor.cpu() for name, tensor in policy.merged_weights()}
    _check_finite(state)
    lm = policy.causal_lm
    config = copy.deepcopy(lm.config)
    config.use_cache = True  # it is off only while training
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    dtype = state[next(iter(state))].dtype
    with torch.device("meta"):
        empty: Any = type(lm)._from_config(config, dtype=dtype)
    empty.generation_config = lm.generation_config
    for name in getattr(empty, "all_tied_weights_keys", None) or ():
        state.pop(name, None)
    empty.save_pretrained(staging, state_dict=state)


def _check_finite(state: dict[str, Tensor]) -> None:
    if (wrong := first_not_finite(state.items())) is not None:
        raise NotFinite(f"{wrong} holds values that are not finite, so the policy is not exported")


@contextmanager
def _staged(directory: Path) -> Iterator[Path]:
    """A temporary folder next to the destination, which it replaces when the context ends without an error."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    former = staging.with_name(f"{staging.name}.former")
    try:
        yield staging
        os.chmod(staging, 0o755)
        sync_tree(staging)  # a power cut must not leave a finished name over half a file
        if directory.exists():
            directory.rename(former)
        staging.rename(directory)
        sync(directory.parent)
    except BaseException:
        if former.exists() and not directory.exists():
            former.rename(directory)
        shutil.rmtree(staging, ignore_errors=True)
        raise
    shutil.rmtree(former, ignore_errors=True)
