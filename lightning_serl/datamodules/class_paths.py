"""A user's own part by its class path, ``package.module.Name``."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from lightning_serl.errors import InputError


def load(path: str, option: str, known: str) -> Any:
    """What a class path leads to; a class is made into an object without arguments.

    Args:
        path: ``package.module.Name``.
        option: The option it was given for, for the message.
        known: What else could be given, for the message.

    Raises:
        InputError: if there is nothing at that path, or the class cannot be made.
    """
    if path.lstrip().startswith("{"):  # what the parser could not make an object of
        raise InputError(f"{option}: this class takes other options, or its methods are not those asked for; {known}")
    module, _, attribute = path.rpartition(".")
    if not module:
        raise InputError(f"{option}: there is no {path[:80]!r}; {known}")
    try:
        found = getattr(import_module(module), attribute)
        return found() if isinstance(found, type) else found
    except Exception as error:  # the user's module may raise anything while it is imported
        said = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{option}: {path[:80]!r} cannot be used ({said}); {known}") from error
