"""What the command-line parser refuses, told in one sentence."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

_KEY = re.compile(r'[Pp]arser key "([^"]+)":?')
_ARGUMENTS = re.compile(r"[Uu]nrecognized arguments: (.+)")
_OPTION = re.compile(r"(?:(?:Subcommand|Group) '[\w.]+' does not accept option|Option) '([^']+)'")
_EXPECTED = re.compile(r"[Ee]xpected an? (?:<class '([\w.]+)'>|typing\.Literal\[(.*?)\])(?:\.|$)")
# Alternatives of a union that nobody meant: "nothing at all", or "a whole mapping".
_IDLE = re.compile(
    r"^(Expected a <class '(NoneType|dict|list)'>|Not a valid subclass|Not of type|Expected an instantiatable)"
)
_INACCESSIBLE = "either not accessible or invalid"  # whether a file of options was meant
_PROTOCOL = re.compile(r"Import path (\S+) does not implement protocol (\w+)")
_NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
_HEADINGS = ("Subtypes:", "Given value", "Errors:", "Does not validate against any", "Unable to load config")
# What a class path may be, and no more: advice of the parser, line by line.
_ADVICE = ("Subclass types expect one of", "a class path (str)", "a dict with", "a dict without")
_NAMES = {"NoneType": "null", "str": "a string", "int": "a whole number", "float": "a number", "bool": "true or false"}
_NAMES |= {"dict": "a mapping", "list": "a list"}


def refusal(text: str, options: Iterable[str] = ()) -> str:
    """The parser's message, often many lines, as one: which option, and the reason that matters.

    Args:
        text: The message.
        options: All known option names, to suggest the nearest for a mistyped one.
    """
    arguments = _ARGUMENTS.search(text)
    if arguments:
        said = arguments[1].split()
        name = next((one for one in said if one.startswith("-")), said[0]).split("=")[0].rstrip(";")
        return f"unrecognized arguments: {name}{_nearest(name, options) or '; --help lists the options of a command'}"
    keys = [key for key in _KEY.findall(text) if key]
    where = f"{keys[0]}: " if keys else ""
    unknown = _OPTION.search(text)
    if unknown:
        name = unknown[1]
        said_nearest = _nearest("--" + name, options).replace("--", "") if "." in name or not keys else ""
        return f"{where}there is no option {name!r}{said_nearest}"
    reason = _reason(_KEY.sub("", text))
    untyped = _PROTOCOL.search(text)
    if untyped:
        reason = f"the methods of {untyped[1]} lack the types that {untyped[2]} has; give them, or its bare path"
    given = re.search(r"^\s*Given value: (.*)$", text, re.MULTILINE)
    if given and reason.startswith("expected") and "but got" not in reason:
        reason = f"{reason}, but got {_cut(given[1])}"
    return " ".join((where + reason).split())


def _reason(text: str) -> str:
    """Of the alternatives that a value was held against, what is wrong with the likeliest."""
    lines = [re.sub(r"^\s*(- )?", "", line).rstrip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith(_ADVICE)]
    reasons = [line for line in lines if not line.startswith(_HEADINGS) and _INACCESSIBLE not in line]
    reasons = [r for r in dict.fromkeys(reasons) if not _IDLE.match(r)] or reasons or lines
    reason = reasons[0]
    if reason.startswith(("Unexpected config", "Problems parsing config")):
        return _no_configuration(text, reason)
    if reason.startswith("Problem with given class_path") and len(reasons) > 1:
        return f"{reason.rstrip(':')}: {reasons[1]}"
    callable_ = re.search(r"expects a function or a callable class: (.*?)\.* Got value: ", reason)
    if callable_:
        return callable_[1]
    missing = next((m for m in map(_NO_CLASS.match, reasons) if m), None)
    simple = [m for m in map(_EXPECTED.match, reasons) if m]
    # what looks like a class is meant as one
    named = missing is not None and (missing[1][0].isupper() or "." in missing[1])
    if simple and not named and all(_EXPECTED.match(r) or _NO_CLASS.match(r) or _IDLE.match(r) for r in reasons):
        kinds = " or ".join(dict.fromkeys(_NAMES.get(m[1], m[1]) if m[1] else f"one of {m[2]}" for m in simple))
        got = re.search(r"Got value: (.*)$", reason)
        return f"expected {kinds}" + (f", but got {_cut(got[1])}" if got else "")
    if missing:
        advice = _class_like(missing[1]) or "give a known name or a full class path such as package.module.Name"
        return f"there is no {_cut(missing[1])!r}; {advice}"
    return reason.replace("Got value:", "but got")


def _class_like(name: str) -> str:
    """The part of ours that a mistyped class name may have meant."""
    from lightning_serl import callbacks, engines

    near = difflib.get_close_matches(name, [*engines.__all__, *callbacks.__all__], n=1, cutoff=0.7)
    return f"did you mean {near[0]}?" if near else ""


def _no_configuration(text: str, reason: str) -> str:
    """A configuration that is no YAML, or YAML without options."""
    line = re.search(r"^\s*in .*?, (line \d+)", text, re.MULTILINE)
    said = _cut(" ".join(reason.partition(":")[2].split()).rstrip("."))
    if reason.startswith("Problems") or line:
        return f"not YAML ({said}{f', {line[1]}' if line else ''}); mend or replace it"
    return f"a configuration must hold options by name (model, data, trainer), but this one is {said or 'empty'}"


def _cut(value: str, most: int = 80) -> str:
    return value if len(value) <= most else f"{value[: most - 3]}..."


def _nearest(name: str, options: Iterable[str]) -> str:
    """The option a mistyped one may have meant: of the same group if one there is alike, else of all."""
    known = list(options)
    parent, _, leaf = name.rpartition(".")
    group = {one.rpartition(".")[2]: one for one in known if one.rpartition(".")[0] == parent} if parent else {}
    beside = difflib.get_close_matches(leaf.lower(), group, n=1, cutoff=0.45)
    found = [group[beside[0]]] if beside else difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.7)
    return f"; did you mean {found[0]}?" if found else ""


def option_names(parser: Any) -> list[str]:
    """All option names of a parser and of its subcommands."""
    names: list[str] = []
    for action in parser._actions:
        names += [o for o in action.option_strings if o.startswith("--") and not o.endswith((".help", "+"))]
        choices = getattr(action, "choices", None)
        if isinstance(choices, dict):
            for sub in choices.values():
                if hasattr(sub, "_actions"):
                    names += option_names(sub)
    return list(dict.fromkeys(names))
