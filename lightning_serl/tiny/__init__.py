"""The embedded models: tiny languages, tokenizers and policies that self-play improves on two CPU cores.

On the command line the packaged files are ``tiny:base``, ``tiny:seeds`` and ``tiny:held_out`` of the quickstart, and
``tiny:world``, ``tiny:world_seeds``, ``tiny:world_seeded`` and ``tiny:world_unseeded`` of a world of several skills.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from lightning_serl.errors import InputError

_PREFIX = "tiny:"
_FILES = {
    "base": "base",
    "seeds": "seeds.jsonl",
    "held_out": "held_out.jsonl",
    "world": "world_base",
    "world_seeds": "world_base/seeds.jsonl",
    "world_seeded": "world_base/seeded.jsonl",
    "world_unseeded": "world_base/unseeded.jsonl",
}


def path(name: str) -> Path:
    """The path of a packaged file: ``base`` and ``world`` are model directories, the others jsonl files.

    Raises :class:`InputError` for another name.
    """
    if name not in _FILES:
        known = ", ".join(_PREFIX + n for n in _FILES)
        raise InputError(f"there is no {_PREFIX + name!r} in this package; the embedded names are {known}")
    return Path(str(files(__name__) / _FILES[name]))


def resolve(name: str) -> str:
    """The packaged path for ``tiny:NAME``; any other string is returned unchanged."""
    return str(path(name.removeprefix(_PREFIX))) if name.startswith(_PREFIX) else name
