"""Reads problem files: jsonl or one JSON list, with line numbers in errors."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_serl import tiny
from lightning_serl.datamodules.problems.rows import Fields, subject_of, to_problem
from lightning_serl.errors import InputError
from lightning_serl.types import Instruction


def read_problems(name: str, fields: Fields, prefix: str) -> list[Instruction]:
    """Read a problem file; a subject is kept in ``meta["subject"]``.

    Args:
        name: Path of a jsonl or JSON file, or ``tiny:seeds`` / ``tiny:held_out``.
        fields: Names of its fields.
        prefix: Start of the uids, which are ``PREFIX-LINE`` (in a JSON list ``PREFIX-ITEM``).

    Raises:
        InputError: with file and line, if the file is missing, empty, not JSON, or a row lacks the problem; without a
            line, if no row has a field that was named.
    """
    problems = []
    rows = read_rows(name, fields)
    check_named(name, fields, (row for _, _, row in rows), "--data.fields")
    for number, where, row in rows:
        problem = to_problem(row, fields, where, f"{prefix}-{number:05d}")
        subject = subject_of(row, fields)
        if subject is not None:
            problem = replace(problem, meta={**problem.meta, "subject": subject})
        problems.append(problem)
    return problems


def check_named(name: str, fields: Fields, rows: Iterable[Any], option: str, strict: bool = False) -> None:
    """A field that the user named must be in some row: read as absent, a mistyped name would change what is trained on.

    Args:
        name: What the rows are of, for the message.
        fields: Names of its fields. The one of the problem must be in every row, see :func:`to_problem`.
        rows: Its JSON values.
        option: The option that names the fields, for the message.
        strict: Whether the default answer field must be there, too.

    Raises:
        InputError: naming the fields there are.
    """
    named = {"answer": fields.answer, "choices": fields.choices, "level": fields.level, "subject": fields.subject}
    asked = {part: field for part, field in named.items() if field is not None and field != getattr(Fields, part)}
    if strict and fields.answer is not None:
        asked["answer"] = fields.answer
    if not asked:
        return
    has = sorted({str(field) for row in rows if isinstance(row, dict) for field in row})
    for part, field in asked.items():
        if has and field not in has:
            near = difflib.get_close_matches(field, has, n=1)
            meant = f", did you mean {near[0][:20]}?" if near else ""
            known = ", ".join(one[:20] for one in has[:10])
            advice = " (null ignores labels)" if part == "answer" else ""
            raise InputError(f"{name} has no field {field[:40]!r} (it has {known}{meant}); set {option}.{part}{advice}")


def read_rows(name: str, fields: Fields) -> list[tuple[int, str, Any]]:
    """The JSON values of a problem file.

    Args:
        name: As for :func:`read_problems`.
        fields: Names of its fields, for the message about an empty file.

    Returns:
        For each row its number (of the line, in a JSON list of the item), where it stands, and its value.

    Raises:
        InputError: with file and line, if the file is missing, empty or not JSON.
    """
    if not name.strip():
        raise InputError("the name of a problem file is empty; give a jsonl file of problems")
    rows = [(number, f"{name}:{line}", row) for number, line, row in _rows(Path(tiny.resolve(name)), name)]
    if not rows:
        raise InputError(f"{name} holds no problems; give one JSON object with a {fields.problem!r} field per line")
    return rows


def _rows(path: Path, name: str) -> list[tuple[int, int, Any]]:
    """(number, line, value) of every row of a file."""
    try:
        if path.is_dir():
            raise InputError(f"{name} is a directory; give a jsonl file of problems")
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(
            f"problem file {name} does not exist; check the path (it is looked up from {Path.cwd().name}/)"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        if isinstance(error, InputError):
            raise
        raise InputError(f"problem file {name[:100]!r} cannot be read: {getattr(error, 'strerror', error)}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name}:{line} is not UTF-8 text (byte {error.start}); convert the file to UTF-8") from error
    if text.lstrip().startswith("["):
        listed = _listed(text, name)
        if listed is not None:
            return listed
    # str.splitlines would also split at form feeds and other signs that JSON strings may hold
    lines = enumerate(text.split("\n"), 1)
    return [(i, i, _parse(line, f"{name}:{i}")) for i, line in lines if line.strip()]


def _listed(text: str, name: str) -> list[tuple[int, int, Any]] | None:
    """The rows of a file that is one JSON list; ``None`` if its first line is a value of its own."""
    start = text.index("[") + 1
    rows: list[tuple[int, int, Any]] = []
    while True:
        start = _blanks(text, start)
        line = text.count("\n", 0, start) + 1
        if text[start : start + 1] == "]":
            break
        if rows:
            if text[start : start + 1] != ",":
                raise InputError(f"{name}:{line} does not go on with a comma or the end of the list; mend the JSON")
            start = _blanks(text, start + 1)
            line = text.count("\n", 0, start) + 1
        value, start = _decode(text, start, f"{name}:{line}")
        rows.append((len(rows) + 1, line, value))
    end = _blanks(text, start + 1)
    if end == len(text):
        return rows
    if "\n" not in text[text.index("[") : start]:
        return None
    raise InputError(f"{name}:{text.count(chr(10), 0, end) + 1} goes on after the end of its list; give one JSON list")


def _blanks(text: str, start: int) -> int:
    """Where the white space that JSON allows ends."""
    match = _BLANKS.match(text, start)
    assert match is not None
    return match.end()


def _parse(text: str, where: str) -> Any:
    value, end = _decode(text, _blanks(text, 0), where)
    if _blanks(text, end) != len(text):
        raise InputError(f"{where} holds more than one JSON value (column {end + 1}); write one JSON object per line")
    return value


def _decode(text: str, start: int, where: str) -> tuple[Any, int]:
    """One JSON value and where it ends."""
    try:
        return _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        said = f"{error.msg} at column {error.colno}"
        raise InputError(f"{where} is not JSON ({said}); write one JSON object per line") from error
    except (RecursionError, ValueError) as error:
        said = str(error) if isinstance(error, _Twice) else type(error).__name__
        raise InputError(f"{where} is not JSON that can be read ({said}); mend or remove it") from error


class _Twice(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(f"field {next(n for n in names if names.count(n) > 1)!r:.40} is there twice")
    return made


_BLANKS = re.compile("[ \t\n\r]*")
_DECODER = json.JSONDecoder(object_pairs_hook=_object)
