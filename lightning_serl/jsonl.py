"""Reads jsonl files of the user, with file and line in every error."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from lightning_serl.errors import InputError


def read_text(path: Path, what: str, advice: str) -> str:
    """The content of a UTF-8 file without a byte-order mark; errors name ``what`` (option and file) and ``advice``."""
    what = what if len(what) <= 150 else f"...{what[-147:]}"
    try:
        data = path.read_bytes()
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        said = f"{what}:{line} is not UTF-8 text (byte {error.start})"
        raise InputError(f"{said}; convert the file to UTF-8, or {advice}") from error
    except (OSError, ValueError) as error:  # ValueError: a path that contains NUL
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{what} cannot be read ({reason}); {advice}") from error


def numbered_lines(text: str) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1."""
    # str.splitlines would also split at form feeds and other characters that JSON strings may contain
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def decode(text: str, start: int, where: str, unique: bool = True) -> tuple[Any, int]:
    """The JSON value that begins at ``start``, and the index after it; ``unique`` refuses a repeated field."""
    try:
        return (_UNIQUE if unique else _ANY).raw_decode(text, start)
    except json.JSONDecodeError as error:
        said = f"{error.msg} at column {error.colno}"
        raise InputError(f"{where} is not JSON ({said}); write one JSON object per line") from error
    except (RecursionError, ValueError) as error:
        said = str(error) if isinstance(error, _RepeatedField) else type(error).__name__
        raise InputError(f"{where} is not JSON that can be read ({said}); correct or remove it") from error


def skip_blanks(text: str, start: int) -> int:
    """The index after the white space that JSON allows."""
    match = _BLANKS.match(text, start)
    assert match is not None
    return match.end()


def parse_line(line: str, where: str, unique: bool = True) -> Any:
    """The one JSON value of a line, as :func:`decode` reads it; errors name ``where`` (file and line)."""
    value, end = decode(line, skip_blanks(line, 0), where, unique)
    if skip_blanks(line, end) != len(line):
        raise InputError(f"{where} holds more than one JSON value (column {end + 1}); write one JSON object per line")
    return value


def check_unicode(text: str, what: str) -> str:
    """The text itself; refuses half of a surrogate pair, which a JSON escape can write and UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{what} holds half of a surrogate pair; correct the file's encoding") from None
    return text


class _RepeatedField(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedField(f"field {next(n for n in names if names.count(n) > 1)!r:.40} is there twice")
    return made


_BLANKS = re.compile("[ \t\n\r]*")
_ANY, _UNIQUE = json.JSONDecoder(), json.JSONDecoder(object_pairs_hook=_object)
