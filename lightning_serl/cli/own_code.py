"""Modules of the user's own: finds them in the working directory, and says where they fail to be imported."""

from __future__ import annotations

import os
import pkgutil
import re
import sys
from collections.abc import Sequence
from itertools import pairwise

from lightning_serl.errors import InputError, own_place, said_by

_OPTIONS = ("data.source", "data.reward", "data.grader", "data.engine")
_CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def find_modules_here() -> None:
    """Let modules of the working directory be imported, as ``python -m`` does; not under Python's option ``-P``."""
    if not sys.flags.safe_path and not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())


def check_class_paths(arguments: Sequence[str]) -> None:
    """Refuse class paths on the command line that cannot be imported; the parser would not say where they fail."""
    for option in _OPTIONS:
        values = [value for name, value in pairwise(arguments) if name == f"--{option}"]
        values += [a.partition("=")[2] for a in arguments if a.startswith(f"--{option}=")]
        for path in values[-1:]:
            if _CLASS_PATH.fullmatch(path) and (trouble := import_trouble(path)):
                raise InputError(f"{option}: {trouble}")


def import_trouble(path: str) -> str | None:
    """Why nothing can be imported from ``package.module.Name``, with the place in the user's code; else ``None``."""
    try:
        pkgutil.resolve_name(path)
    except Exception as error:  # a module may raise anything while it is imported
        place = own_place(error)
        if place is not None:
            return f"{path!r} cannot be imported: {said_by(error)} in {place}"
        advice = ""
        if isinstance(error, ModuleNotFoundError):
            advice = f"; modules are looked for in {os.getcwd()} and among the installed packages"
        return f"there is no {path!r} ({error}){advice}"
    return None
