"""Problem files: jsonl (or a JSON list) with one object per problem, checked line by line before anything loads."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_serl import tiny
from lightning_serl.errors import InputError
from lightning_serl.types import Instruction

_LETTERS = "ABCDEFGHIJ"
_SUBJECTS = ("subject", "type", "data_topic", "category")


@dataclass(frozen=True)
class Fields:
    """Names of the fields of a problem file.

    Args:
        problem: The problem; a file that has none of this name but a ``question`` or ``prompt`` is read by that.
        answer: The gold answer, used only where labels are asked for; null ignores labels.
        choices: The options of a multiple-choice problem, a list of strings.
        level: Difficulty, for the results per level of an evaluation set; by default whichever of ``level`` and
            ``grade`` is there.
        subject: The same for results per subject; by default whichever of ``subject``, ``type``, ``data_topic`` and
            ``category`` is there.
    """

    problem: str = "problem"
    answer: str | None = "answer"
    choices: str = "choices"
    level: str | None = None
    subject: str | None = None


_OTHER_PROBLEM_FIELDS = ("question", "prompt", "instruction")


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


def to_problem(row: Any, fields: Fields, where: str, uid: str, option: str = "--data.fields") -> Instruction:
    """One row as a problem.

    Args:
        row: A JSON value.
        fields: Names of its fields.
        where: Where it stands, for messages.
        uid: The problem's uid.
        option: The option that names the fields, for messages.

    Raises:
        InputError: if it is no object, lacks the problem, or a field holds what it cannot hold.
    """
    if not isinstance(row, dict):
        raise InputError(f'{where} holds {_kind(row)}, not an object; write {{"{fields.problem}": "..."}}')
    field = fields.problem
    if field not in row and field == Fields.problem:
        field = next((f for f in _OTHER_PROBLEM_FIELDS if f in row), field)
    if field not in row:
        has = ", ".join(name[:20] for name in sorted(row)[:8]) or "no fields"
        raise InputError(f"{where} has no field {field!r} (it has {has}); set {option}.problem")
    problem = row[field]
    if not isinstance(problem, str):
        raise InputError(f"{where}: field {field!r} holds {_kind(problem)}, not a string")
    if not problem.strip():
        raise InputError(f"{where}: field {field!r} is empty; write a problem or remove the line")
    _check_unicode(problem, field, where)
    meta: dict[str, Any] = {}
    choices = row.get(fields.choices)
    if choices is not None:
        if not isinstance(choices, list):
            raise InputError(f"{where}: field {fields.choices!r} must be a list of strings, got {_kind(choices)}")
        if not 2 <= len(choices) <= len(_LETTERS):
            least = f"2 to {len(_LETTERS)}"
            raise InputError(f"{where}: field {fields.choices!r} must hold {least} options, got {len(choices)}")
        for choice in choices:
            if isinstance(choice, bool) or not isinstance(choice, (str, int, float)):
                raise InputError(f"{where}: field {fields.choices!r} must be a list of strings, one is {_kind(choice)}")
        meta["choices"] = [_check_unicode(str(c), fields.choices, where) for c in choices]
    label = _label(row, fields, where)
    if label is not None and "choices" in meta:
        what = f"{where}: field {fields.answer!r}"
        number = row.get(str(fields.answer))
        label = _letter(label, meta["choices"], what, option)
        if isinstance(number, int) and 0 <= number < len(meta["choices"]) and _LETTERS[number] != label:
            raise InputError(
                f"{what} holds the number {number}, which is the text of option {label} and the index of option "
                f"{_LETTERS[number]}; write the letter"
            )
    return Instruction(problem, uid, label=label, meta=meta)


def _letter(label: str, choices: list[str], what: str, option: str) -> str:
    """A multiple-choice label as its letter, also where the file gives the option's text."""
    letters = _LETTERS[: len(choices)]
    bare = label.strip("()[]. ").upper()
    if len(bare) == 1 and bare in letters:
        return bare
    same = [
        letter for letter, choice in zip(letters, choices, strict=True) if choice.strip().casefold() == label.casefold()
    ]
    if len(same) == 1:
        return same[0]
    raise InputError(
        f"{what} must be one of the letters {letters} or the text of one option, got {label[:40]!r}; "
        f"{option}.answer null ignores labels"
    )


def _label(row: dict[str, Any], fields: Fields, where: str) -> str | None:
    label = row.get(fields.answer) if fields.answer is not None else None
    if label is None:
        return None
    if isinstance(label, bool) or not isinstance(label, (str, int, float)):
        raise InputError(f"{where}: field {fields.answer!r} must be a string or a number, got {_kind(label)}")
    if isinstance(label, float) and not math.isfinite(label):
        raise InputError(f"{where}: field {fields.answer!r} holds {label}; write null where no answer is known")
    return _check_unicode(str(label).strip(), str(fields.answer), where) or None


def _check_unicode(text: str, field: str, where: str) -> str:
    """The text itself, unless a JSON escape put half of a surrogate pair into it, which no file can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        said = f"field {field!r} holds half of a surrogate pair"
        raise InputError(f"{where}: {said}; mend the encoding of the file") from None
    return text


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"} | dict.fromkeys(
        (int, float), "a number"
    )
    return "null" if value is None else names.get(type(value), type(value).__name__)


def subject_of(row: Mapping[str, Any], fields: Fields) -> str | None:
    """The subject of a row, by the field that is named or by the first of the usual ones that it has."""
    return scalar(row, _SUBJECTS if fields.subject is None else (fields.subject,))


def scalar(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """The first of some fields that holds a string or a number, as text; 5.0 is 5."""
    for name in names:
        value = row.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, (str, int, float)) and not isinstance(value, bool) and str(value).strip():
            return str(value).strip()[:100]
    return None
