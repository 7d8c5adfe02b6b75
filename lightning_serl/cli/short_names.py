"""Class paths of the rewards, graders and sources that a user names shortly and gives options.

jsonargparse finds the subclasses of a class by their short names, but not the classes that fit a protocol. A short name
without options stays as it is: the datamodule makes the object then, with the run's grader and seed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from inspect import isclass

import yaml

from lightning_serl import answers, rewards
from lightning_serl.datamodules import sources

_PACKAGES = {"data.grader": answers, "data.reward": rewards, "data.role_rewards": rewards, "data.source": sources}
#: Class paths by option and short name; ``math`` is a short name of ``MathGrader``.
CLASS_PATHS: dict[str, dict[str, str]] = {
    option: {
        short: f"{package.__name__}.{name}"
        for name in package.__all__
        if isclass(part := getattr(package, name)) and not getattr(part, "_is_protocol", False)
        for short in (name, name.removesuffix("Grader").lower())
    }
    for option, package in _PACKAGES.items()
}


def spell_out(arguments: Sequence[str]) -> list[str]:
    """Arguments of the command line in which every short name that has options is its class path."""
    out = _role_rewards(arguments)
    for option, paths in CLASS_PATHS.items():
        with_options = any(argument.startswith(f"--{option}.") for argument in out)
        for place, value in _values(out, f"--{option}"):
            named = paths.get(value) if with_options else None
            if value.lstrip().startswith("{"):
                named = _mapping(value, paths)
            if named is not None:
                out[place] = out[place].removesuffix(value) + named
        for name in ("class_path", "help"):
            for place, value in _values(out, f"--{option}.{name}"):
                out[place] = out[place].removesuffix(value) + paths.get(value, value)
    return out


def _role_rewards(arguments: Sequence[str]) -> list[str]:
    """Arguments in which the classes at ``--data.role_rewards.ROLE`` are one mapping, at the place of the first.

    jsonargparse sets the options of a role's class, but not the class of a role that has none.
    """
    out: list[str] = []
    found: dict[str, dict[str, str]] = {}
    start: int | None = None
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        name, given, value = argument.partition("=")
        role = name.removeprefix("--data.role_rewards.")
        if role == name or "." in role or not (given or waiting):
            out.append(argument)
            continue
        start = len(out) if start is None else start
        value = value if given else waiting.pop(0)
        found[role] = {"class_path": CLASS_PATHS["data.role_rewards"].get(value, value)}
    return out if start is None else [*out[:start], "--data.role_rewards", json.dumps(found), *out[start:]]


def spell_out_file(root: yaml.Node | None) -> bool:
    """Replace the short names at ``class_path`` in a configuration file; returns whether there were any."""
    found = False
    for option, paths in CLASS_PATHS.items():
        group, name = option.split(".")
        for data in _entries(root, group):
            for part in _entries(data, name):
                found |= _spell_out_node(part, paths)
    return found


def _values(arguments: Sequence[str], option: str) -> Iterator[tuple[int, str]]:
    """Place and value of every occurrence of an option."""
    for place, argument in enumerate(arguments):
        if argument == option and place + 1 < len(arguments):
            yield place + 1, arguments[place + 1]
        elif argument.startswith(f"{option}="):
            yield place, argument.removeprefix(f"{option}=")


def _mapping(value: str, paths: dict[str, str]) -> str | None:
    """A mapping in YAML or JSON with class paths in place of short names; ``None`` if it has none or is none."""
    try:
        node = yaml.compose(value)
    except yaml.YAMLError:
        return None  # the parser reports what is wrong with it
    return yaml.serialize(node, width=2**31).strip() if _spell_out_node(node, paths) else None


def _spell_out_node(node: yaml.Node | None, paths: dict[str, str]) -> bool:
    """Replace the short name at ``class_path`` of a class's mapping, or those of a mapping with a class per role."""
    classes = _entries(node, "class_path")
    if not classes and isinstance(node, yaml.MappingNode):
        classes = [one for _, role in node.value for one in _entries(role, "class_path") or [role]]
    replaced = [_replace(one, paths) for one in classes]
    return any(replaced)


def _replace(node: yaml.Node, paths: dict[str, str]) -> bool:
    known = isinstance(node, yaml.ScalarNode) and node.value in paths
    if known:
        node.value = paths[node.value]
    return known


def _entries(node: yaml.Node | None, key: str) -> list[yaml.Node]:
    """The value at a key of a mapping, in a list that is empty without one."""
    entries = node.value if isinstance(node, yaml.MappingNode) else []
    return [value for name, value in entries if name.value == key]
