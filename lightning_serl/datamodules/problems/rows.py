"""Problem files: jsonl (or a JSON list) with one object per problem, checked line by line before anything loads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_serl.answers.choice_grader import LETTERS
from lightning_serl.errors import InputError
from lightning_serl.types import Instruction

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
        if not 2 <= len(choices) <= len(LETTERS):
            least = f"2 to {len(LETTERS)}"
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
        if isinstance(number, int) and 0 <= number < len(meta["choices"]) and LETTERS[number] != label:
            raise InputError(
                f"{what} holds the number {number}, which is the text of option {label} and the index of option "
                f"{LETTERS[number]}; write the letter"
            )
    return Instruction(problem, uid, label=label, meta=meta)


def _letter(label: str, choices: list[str], what: str, option: str) -> str:
    """A multiple-choice label as its letter, also where the file gives the option's text."""
    letters = LETTERS[: len(choices)]
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
