"""Reads problem files: jsonl or one JSON list, with line numbers in errors."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_serl import tiny
from lightning_serl.datamodules.problems.rows import Fields, subject_of, to_problem
from lightning_serl.errors import InputError
from lightning_serl.jsonl import decode, numbered_lines, parse_line, read_text, skip_blanks
from lightning_serl.types import Instruction


def read_problems(name: str, fields: Fields, prefix: str) -> list[Instruction]:
    """Read a problem file; the subject of a problem is kept in ``meta["subject"]``.

    Args:
        name: Path of a jsonl or JSON file, or ``tiny:seeds`` / ``tiny:held_out``.
        fields: Names of its fields.
        prefix: Start of the uids, which are ``PREFIX-LINE`` (in a JSON list ``PREFIX-ITEM``).

    Raises:
        InputError: with file and line, if the file is missing, empty or not JSON, or a row lacks the problem; with the
            file, if no row has a field that an option names.
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
    """Refuse a field that an option names and no row has: ignoring a mistyped name would change what is trained on.

    Args:
        name: The file or set, for the message.
        fields: Names of its fields. The field of the problem is checked in every row, see :func:`to_problem`.
        rows: Its JSON values.
        option: The option that names the fields, for the message.
        strict: Whether to check the answer field also if it has the default name.

    Raises:
        InputError: naming the fields that the rows have.
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
        For each row its number (of the line, or of the item in a JSON list), ``FILE:LINE``, and its value.

    Raises:
        InputError: with file and line, if the file is missing, empty or not JSON.
    """
    if not name.strip():
        raise InputError("data.seeds or data.evaluation.sets names an empty path; give a jsonl file of problems")
    rows = [(number, f"{name}:{line}", row) for number, line, row in _rows(Path(tiny.resolve(name)), name)]
    if not rows:
        raise InputError(f"{name} holds no problems; give one JSON object with a {fields.problem!r} field per line")
    return rows


def _rows(path: Path, name: str) -> list[tuple[int, int, Any]]:
    """(number, line, value) of every row of a file."""
    if os.path.isdir(path):  # Path.is_dir raises if the name is too long
        raise InputError(f"{name} is a directory; give a jsonl file of problems")
    try:
        text = read_text(path, name, "give a jsonl file of problems")
    except InputError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise InputError(
            f"problem file {name} does not exist; check the path (it is relative to {Path.cwd().name}/)"
        ) from None
    if text.lstrip().startswith("["):
        listed = _listed(text, name)
        if listed is not None:
            return listed
    return [(number, number, parse_line(line, f"{name}:{number}")) for number, line in numbered_lines(text)]


def _listed(text: str, name: str) -> list[tuple[int, int, Any]] | None:
    """The rows of a file that is one JSON list; ``None`` if the list is only the first of several lines.

    The list is parsed item by item, because :mod:`json` does not tell on which line an item begins.
    """
    start = text.index("[") + 1
    rows: list[tuple[int, int, Any]] = []
    while True:
        start = skip_blanks(text, start)
        line = text.count("\n", 0, start) + 1
        if text[start : start + 1] == "]":
            break
        if rows:
            if text[start : start + 1] != ",":
                raise InputError(f"{name}:{line} has neither a comma nor the end of the list; correct the JSON")
            start = skip_blanks(text, start + 1)
            line = text.count("\n", 0, start) + 1
        value, start = decode(text, start, f"{name}:{line}")
        rows.append((len(rows) + 1, line, value))
    end = skip_blanks(text, start + 1)
    if end == len(text):
        return rows
    if "\n" not in text[text.index("[") : start]:
        return None
    line = text.count("\n", 0, end) + 1
    raise InputError(f"{name}:{line} has more text after the end of the list; give one JSON list")
