"""Reads configuration files: packaged presets, `extends`, and keys given twice."""

from __future__ import annotations

import difflib
import os
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import yaml
from lightning_serl.cli.exit_status import _Refused


def presets() -> list[str]:
    """Names of the packaged presets."""
    names = (p.name for p in (files("lightning_serl") / "configs").iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def _preset_path(name: str) -> str:
    if name not in presets():
        near = [p for p in presets() if name and p.startswith(name)] or difflib.get_close_matches(name, presets(), n=3)
        known = f"did you mean {' or '.join(near)}?" if near else "`lightning-serl fit --help` lists them at --config"
        raise _Refused(f"there is no preset {name[:60]!r}; {known}")
    return str(files("lightning_serl") / "configs" / f"{name}.yaml")


def _check_keys(name: str, node: yaml.Node | None) -> None:
    """No mapping of a configuration file may hold a key twice: YAML keeps the last one and says nothing."""
    import yaml

    waiting, looked_at = [node], set()
    while waiting:
        node = waiting.pop()
        if id(node) in looked_at:  # an alias
            continue
        looked_at.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += reversed(node.value)
        if not isinstance(node, yaml.MappingNode):
            continue
        first: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            line = key.start_mark.line + 1
            if key.value in first:
                raise _Refused(
                    f"{name[-120:]}:{line} holds {key.value[:60]!r} a second time, which would undo line "
                    f"{first[key.value]}; put both under one {key.value[:60]!r}"
                )
            first[key.value] = line
        waiting += [value for _, value in reversed(node.value)]


def _split_extends(name: str) -> tuple[list[str], str | None]:
    """The files that a configuration file extends, and its text without that entry; ``None`` where it extends none.

    ``extends`` is a list of ``preset:NAME`` and of files, which are looked up from the folder of the file.
    """
    import yaml

    path = Path(name)
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return [], None  # whatever is wrong with it is told where it is read as a configuration
    _check_keys(name, node)
    entries = node.value if isinstance(node, yaml.MappingNode) else []
    for entry in entries:
        key, value = entry
        if key.value == "extends":
            items = value.value if isinstance(value, yaml.SequenceNode) else []
            if not items or any(item.tag != "tag:yaml.org,2002:str" for item in items):
                raise _Refused("extends must be a list of preset:NAME and file names, as in extends: [preset:serl]")
            found = [item.value for item in items]
            entries.remove(entry)
            rest = yaml.serialize(node) if entries else ""
            return [one if one.startswith("preset:") else os.path.normpath(path.parent / one) for one in found], rest
    return [], None
