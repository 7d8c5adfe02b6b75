"""Problem files: jsonl (or a JSON list) with one object per problem, checked line by line before anything loads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_serl import tiny
from lightning_serl.errors import InputError
from lightning_serl.types import Instruction

_LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Fields:
    """Names of the fields of a problem file.

    Args:
        problem: The problem; a file that has none of this name but a ``question`` or ``prompt`` is read by that.
        answer: The gold answer, used only where labels are asked for; null ignores labels.
        choices: The options of a multiple-choice problem, a list of strings.
    """

    problem: str = "problem"
    answer: str | None = "answer"
    choices: str = "choices"


_OTHER_PROBLEM_FIELDS = ("question", "prompt", "instruction")


def read_problems(name: str, fields: Fields, prefix: str) -> list[Instruction]:
    """Read a problem file.

    Args:
        name: Path of a jsonl or JSON file, or ``tiny:seeds`` / ``tiny:held_out``.
        fields: Names of its fields.
        prefix: Start of the uids, which are ``PREFIX-LINE``.

    Raises:
        InputError: with file and line, if the file is missing, empty, not JSON, or a row lacks the problem.
    """
    path = Path(tiny.resolve(name))
    rows = _rows(path, name)
    out = []
    for number, row in rows:
        out.append(_problem(row, fields, f"{name}:{number}", f"{prefix}-{number:05d}"))
    if not out:
        raise InputError(f"{name} holds no problems; give one JSON object with a {fields.problem!r} field per line")
    return out


def _rows(path: Path, name: str) -> list[tuple[int, Any]]:
    if path.is_dir():
        raise InputError(f"{name} is a directory; give a jsonl file of problems")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"problem file {name} does not exist; check the path (it is looked up from {Path.cwd().name}/)") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text (byte {error.start}); convert it to UTF-8") from error
    except OSError as error:
        raise InputError(f"problem file {name} cannot be read: {error.strerror or error}") from error
    if text.lstrip().startswith("["):
        listed = _parse(text, name)
        if not isinstance(listed, list):
            raise InputError(f"{name} must hold a JSON list or one JSON object per line")
        return list(enumerate(listed, 1))
    # str.splitlines would also split at form feeds and other signs that JSON strings may hold
    return [(i, _parse(line, f"{name}:{i}")) for i, line in enumerate(text.split("\n"), 1) if line.strip()]


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON ({error.msg} at column {error.colno}); write one JSON object per line") from error
    except (RecursionError, ValueError) as error:
        raise InputError(f"{where} is not JSON that can be read ({type(error).__name__})") from error


def _problem(row: Any, fields: Fields, where: str, uid: str) -> Instruction:
    if not isinstance(row, dict):
        raise InputError(f"{where} holds {_kind(row)}, not an object; write {{\"{fields.problem}\": \"...\"}}")
    field = fields.problem
    if field not in row and field == Fields.problem:
        field = next((f for f in _OTHER_PROBLEM_FIELDS if f in row), field)
    if field not in row:
        has = ", ".join(sorted(map(str, row))[:8]) or "no fields"
        raise InputError(f"{where} has no field {field!r} (it has {has}); set --data.fields.problem")
    problem = row[field]
    if not isinstance(problem, str):
        raise InputError(f"{where}: field {field!r} holds {_kind(problem)}, not a string")
    if not problem.strip():
        raise InputError(f"{where}: field {field!r} is empty; write a problem or remove the line")
    try:
        problem.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{where}: field {field!r} holds half of a surrogate pair; mend the encoding of the file") from None
    meta: dict[str, Any] = {}
    choices = row.get(fields.choices)
    if choices is not None:
        if not isinstance(choices, list) or not all(isinstance(c, (str, int, float)) for c in choices):
            raise InputError(f"{where}: field {fields.choices!r} must be a list of strings, got {_kind(choices)}")
        if not 2 <= len(choices) <= len(_LETTERS):
            raise InputError(f"{where}: field {fields.choices!r} must hold 2 to {len(_LETTERS)} options, got {len(choices)}")
        meta["choices"] = [str(c) for c in choices]
    return Instruction(problem, uid, label=_label(row, fields, where), meta=meta)


def _label(row: dict[str, Any], fields: Fields, where: str) -> str | None:
    label = row.get(fields.answer) if fields.answer is not None else None
    if label is None:
        return None
    if isinstance(label, bool) or not isinstance(label, (str, int, float)):
        raise InputError(f"{where}: field {fields.answer!r} must be a string or a number, got {_kind(label)}")
    return str(label).strip() or None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
