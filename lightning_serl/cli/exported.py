"""The options that an exported model was trained with, as defaults of the commands that use it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_serl.policy.export import options_file

# Options that are said; the others of the file follow from them or seldom differ.
_SAID = ("data.solve.answer_format", "data.solve.system", "data.grader", "data.max_tokens", "model.temperature")


def exported_options(config: Any) -> Path | None:
    """The configuration in the export that a command other than ``fit`` uses; ``None`` where there is none."""
    command = config.get("subcommand")
    options = None if command in (None, "fit") else config.get(command)
    model = None if options is None else options.get("model")
    if model is None or not hasattr(model, "get"):
        return None
    lora = model.get("lora")
    names = (lora.get("start_from") if hasattr(lora, "get") else None, model.get("model_name_or_path"))
    return next((found for name in names if isinstance(name, str) and (found := options_file(name))), None)


def said_of_export(path: Path, options: Any) -> str:
    """One line on which options come from the export, and which of the user's win over it."""
    stored = dict(_flat(json.loads(path.read_text(encoding="utf-8"))))
    taken = {name: value for name, value in stored.items() if name in options and _same(options[name], value)}
    said = ", ".join(f"{name} {json.dumps(taken[name])[:60]}" for name in _SAID if name in taken)
    others = ", ".join(name for name in stored if name not in taken and name in options)
    won = f"; yours win: {others}" if others else ""
    return f"asked as in training ({path.name} of the model): {said}{won}"


def _same(value: Any, stored: Any) -> bool:
    return (list(value) if isinstance(value, tuple) else value) == stored


def _flat(options: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values by option name; the arguments of a chat template are one value."""
    for name, value in options.items():
        if isinstance(value, dict) and name != "chat_kwargs":
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
