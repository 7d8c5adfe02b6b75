"""What the command-line parser refuses, told in one sentence."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

_EXPECTED = re.compile(r"[Ee]xpected an? <class '([\w.]+)'>\.?")
# Alternatives of a union that nobody meant: "nothing at all", or "a whole mapping".
_IDLE = re.compile(r"^(Expected a <class '(NoneType|dict|list)'>|Not a valid subclass|Not of type)")
_UNKNOWN = re.compile(
    r"[Uu]nrecognized arguments: (\S+)|(?:[Kk]ey|accept option) ['\"]([\w.]+)['\"]|Option ['\"]\w+['\"] is not accepted"
)
_HEADINGS = ("Subtypes:", "Given value", "Errors:", "Does not validate against any")


def refusal(text: str, options: Iterable[str] = ()) -> str:
    """The parser's message, often many lines, as one: which option, and the reason that matters.

    Args:
        text: The message.
        options: All known option names, to suggest the nearest for a mistyped one.
    """
    unknown = _UNKNOWN.search(text)
    key = re.search(r'[Pp]arser key "([^"]+)"', text)
    where = f"{key[1]}: " if key else ""
    if unknown and unknown[1]:
        return f"unrecognized arguments: {unknown[1]}{_nearest(unknown[1], options)}"
    if unknown and unknown[2]:
        nearest = _nearest("--" + unknown[2], options).replace("--", "")
        return f"{where}there is no option {unknown[2]!r}{nearest}"
    lines = [line.strip(" -\t") for line in text.splitlines()]
    lines = [line for line in lines if line and not re.fullmatch(r'[Pp]arser key "[^"]+":', line)]
    reasons = [line for line in lines if not line.startswith(_HEADINGS) and "either not accessible or invalid" not in line]
    reasons = [r for r in dict.fromkeys(reasons) if not _IDLE.match(r)] or reasons or lines
    reason = reasons[0]
    if reason.startswith("Problem with given class_path") and len(reasons) > 1:
        reason = f"{reason.rstrip(':')}: {reasons[1]}"
    missing = re.match(r"Expected a dot import path string: (\S+)", reason)
    if missing:
        reason = f"there is no {missing[1]!r}; give a known name or a full class path such as package.module.Name"
    reason = _EXPECTED.sub(r"expected \1", reason).replace("Got value:", "but got")
    return " ".join((reason if key is None or key[1] in reason else where + reason).split())


def _nearest(name: str, options: Iterable[str]) -> str:
    found = difflib.get_close_matches(name.split("=")[0], list(options), n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


def option_names(parser: Any) -> list[str]:
    """All option names of a parser and of its subcommands."""
    names: list[str] = []
    for action in parser._actions:
        names += [o for o in action.option_strings if o.startswith("--")]
        choices = getattr(action, "choices", None)
        if isinstance(choices, dict):
            for sub in choices.values():
                if hasattr(sub, "_actions"):
                    names += option_names(sub)
    return list(dict.fromkeys(names))
