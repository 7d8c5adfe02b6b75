"""Merges an adapter that was saved alone into its base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from transformers import AutoTokenizer, GenerationConfig

from lightning_serl import tiny
from lightning_serl.errors import InputError, reason, short
from lightning_serl.policy.export import CARD, OF_BASE, OPTIONS, export
from lightning_serl.policy.loading import DType, fix_generation_config, load_policy
from lightning_serl.policy.lora import LoraOptions
from lightning_serl.policy.policy import Policy
from lightning_serl.policy.quantization import Quantization
from lightning_serl.policy.vocabulary import check_tokenizer
from lightning_serl.report.folder import runs_inside


def adapter_directory(given: str) -> Path:
    """The directory of an adapter: the one that was given, or ``export`` of a run folder.

    Raises:
        InputError: if there is no adapter in it; the message says what was found instead.
    """
    path = Path(given).expanduser()
    if not path.is_dir():
        what = "is a file; give the directory that holds it" if path.is_file() else "does not exist; check the path"
        raise InputError(f"merge: {short(given)} {what}")
    export_folder = path / "export"
    for place in (path, export_folder):
        if (place / "adapter_config.json").is_file():
            return place
    for place in (path, export_folder):
        if (place / "config.json").is_file():
            raise InputError(
                f"merge: {short(str(place))} holds a whole model and no adapter, so there is nothing to merge; use it "
                "as it is"
            )
    if (path / "config.yaml").is_file():
        raise InputError(
            f"merge: the run {short(given)} has no export yet; continue it to its end with --ckpt_path last"
        )
    if meant := runs_inside(path, "export"):
        raise InputError(f"merge: {short(given)} is neither a run folder nor an adapter{meant}")
    raise InputError(
        f"merge: {short(given)} is no adapter (there is no adapter_config.json); give a run folder, its export of form "
        "adapter, or a directory that peft has saved"
    )


def base_of(adapter: Path, given: str | None) -> str:
    """The base: the one given, or that of ``adapter_config.json``; an InputError if a directory is gone or unnamed."""
    if given is not None:
        return given
    try:
        stored: Any = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"merge: adapter_config.json in {short(str(adapter))} is damaged ({reason(error)})") from error
    name = stored.get("base_model_name_or_path") if isinstance(stored, dict) else None
    if not isinstance(name, str) or not name:
        raise InputError(f"merge: {short(str(adapter))} does not name its base; give it with --base MODEL")
    resolved = Path(tiny.resolve(name)).expanduser()
    looks_local = resolved.is_absolute() or name.startswith(".") or name.count("/") > 1
    if looks_local and not resolved.is_dir():
        raise InputError(f"merge: the base {short(name)} of the adapter is not here; give it with --base DIRECTORY")
    return name


def merge_adapter(
    adapter: Path,
    out: Path,
    base: str,
    dtype: DType | None = None,
    quantize: Quantization | None = None,
    card: str | None = None,
) -> None:
    """Write the base with the adapter merged into it, as :func:`.export` does at the end of a run.

    Tokenizer and generation config are the adapter's, where it holds its own. A base that was held in 4 bits in
    training is dequantised first, because the adapter corrects the rounding of those weights too.

    Args:
        adapter: A directory that peft has saved, or an export of form ``adapter``.
        out: The directory to write.
        base: Directory or hub name of the base.
        dtype: Of the merged weights; by default that of the base in training, where ``serl.json`` says it, else that of
            the base's files. The sum is made in float32 and rounded once.
        quantize: ``nf4`` if the base had 4 bits in training and ``serl.json`` does not say it.
        card: The model card.

    Raises:
        InputError: if the base cannot be loaded, or the adapter is of another model.
        NotFinite: if a merged weight is not finite.
    """
    options = stored_options(adapter)
    model = (options or {}).get("model") or {}
    quantize = quantize or model.get("quantize")
    lora = LoraOptions(start_from=str(adapter))
    dtype = dtype or model.get("dtype") or "auto"
    policy = load_policy(base, lora, dtype=dtype, quantize=quantize, untie=True)
    _take_texts(policy, adapter)
    if options is not None:
        options["model"] = {name: value for name, value in model.items() if name not in OF_BASE}
    export(policy, out, "merged", card, options)
    held = ", held in 4 bits in training and dequantised" if quantize else ""
    kind = str(next(policy.merged_weights())[1].dtype).removeprefix("torch.")
    rank_zero_info(f"merged into the base {base}{held}; the weights are {kind}")


def stored_options(adapter: Path) -> dict[str, Any] | None:
    """``serl.json`` of an adapter; ``None`` where it has none, an InputError if it cannot be read."""
    if not (adapter / OPTIONS).is_file():
        return None
    try:
        options = json.loads((adapter / OPTIONS).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{OPTIONS} in {short(str(adapter))} is damaged ({reason(error)}); remove it") from error
    if not isinstance(options, dict):
        raise InputError(f"{OPTIONS} in {short(str(adapter))} is no mapping of options; remove it")
    return options


def stored_card(adapter: Path) -> str | None:
    """The model card of an adapter, if it has one."""
    card = adapter / CARD
    return card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None


def _take_texts(policy: Policy, adapter: Path) -> None:
    """Replace tokenizer and generation config by those that were saved with the adapter."""
    names = {path.name for path in adapter.iterdir()}
    try:
        if names & {"tokenizer.json", "tokenizer_config.json", "tokenizer.model"}:
            policy.tokenizer = AutoTokenizer.from_pretrained(str(adapter), trust_remote_code=False)
        if "generation_config.json" in names:
            policy.causal_lm.generation_config = GenerationConfig.from_pretrained(str(adapter))
            fix_generation_config(policy.causal_lm)
    except Exception as error:  # damaged files raise whatever the library that reads them raises
        raise InputError(f"the tokenizer of the adapter cannot be read ({reason(error)}); remove its files") from error
    rows = policy.causal_lm.get_input_embeddings().weight.shape[0]
    check_tokenizer(policy.tokenizer, rows, f"{short(str(adapter))} (the adapter)")
