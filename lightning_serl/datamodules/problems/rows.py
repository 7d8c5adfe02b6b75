"""Turns the rows of problem files into problems, and refuses rows that cannot be one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_serl.answers.reading.letters import LETTERS
from lightning_serl.errors import InputError
from lightning_serl.jsonl import check_unicode
from lightning_serl.types import Instruction

_OTHER_CHOICES = "options"
_OTHER_PROBLEM_FIELDS = ("question", "prompt", "instruction")
# Fields beside the problem that hold a part of it, and those that come after it (alpaca's `input`).
_CONVERSATIONS = ("messages", "conversations", "conversation", "turns")
_BEFORE, _AFTER = ("context", "passage", "body", "story", "background"), ("input",)
_AS_TEXT = (
    'write its user turn as text, {"problem": "..."}; a system turn is data.solve.system, and the chat template is '
    "applied to each problem"
)
#: More characters are no problem but a mistake in the file.
LONGEST_PROBLEM = 200_000
_SUBJECTS = ("subject", "type", "data_topic", "category")
_LEVELS = ("level", "grade")


@dataclass(frozen=True)
class Fields:
    """Names of the fields of a problem file.

    Args:
        problem: The problem. Without a field of the default name, ``question``, ``prompt`` or ``instruction`` is read.
            The ``input`` of an ``instruction`` is put behind it, and ``context``, ``passage``, ``body``, ``story`` or
            ``background`` before it.
        answer: The gold answer, for rewards and evaluations that use labels; null ignores labels.
        choices: The options of a multiple-choice problem: a list of strings, or an object as
            ``{"text": [...], "label": ["A", ...]}`` or ``{"A": "...", "B": "..."}``. Without a field of the default
            name, ``options`` is read.
        level: Difficulty, for results by level of an evaluation set and curricula over the levels of seeds; by default
            ``level`` or ``grade``.
        subject: Subject, for results by subject and for exemplars of one subject; by default the first there is of
            ``subject``, ``type``, ``data_topic`` and ``category``.
    """

    problem: str = "problem"
    answer: str | None = "answer"
    choices: str = "choices"
    level: str | None = None
    subject: str | None = None


def to_problem(row: Any, fields: Fields, where: str, uid: str, option: str = "--data.fields") -> Instruction:
    """Make a problem of a JSON value, or refuse it: errors name ``where`` (file and line) or the fields' ``option``."""
    if not isinstance(row, dict):
        raise InputError(f'{where} holds {_kind(row)}, not an object; write {{"{fields.problem}": "..."}}')
    problem = _problem(row, fields, where, option)
    choices = _choices(row, fields, where)
    label = _label(row, fields, where)
    if label is not None and choices is not None:
        what = f"{where}: field {fields.answer!r}"
        number = row.get(str(fields.answer))
        label = _letter(label, choices, what, option)
        if isinstance(number, int) and 0 <= number < len(choices) and LETTERS[number] != label:
            raise InputError(
                f"{what} holds the number {number}, which is the text of option {label} and the index of option "
                f"{LETTERS[number]}; write the letter"
            )
    return Instruction(problem, uid, label=label, meta={} if choices is None else {"choices": choices})


def _problem(row: Mapping[str, Any], fields: Fields, where: str, option: str) -> str:
    field = fields.problem
    if field not in row and field == Fields.problem:
        field = next((f for f in _OTHER_PROBLEM_FIELDS if f in row), field)
    if field not in row:
        if talk := next((name for name in _CONVERSATIONS if isinstance(row.get(name), list)), None):
            raise InputError(f"{where}: field {talk!r} holds a conversation; {_AS_TEXT}")
        has = ", ".join(name[:20] for name in sorted(row)[:8]) or "no fields"
        raise InputError(f"{where} has no field {field!r} (it has {has}); set {option}.problem")
    problem = row[field]
    if isinstance(problem, list) and problem and all(isinstance(turn, dict) and "role" in turn for turn in problem):
        raise InputError(f"{where}: field {field!r} holds a conversation; {_AS_TEXT}")
    if not isinstance(problem, str):
        raise InputError(f"{where}: field {field!r} holds {_kind(problem)}, not a string")
    if not problem.strip():
        raise InputError(f"{where}: field {field!r} is empty; write a problem or remove the line")
    problem = _whole(row, field, problem)
    if len(problem) > LONGEST_PROBLEM:
        said = f"{where}: field {field!r} has {len(problem):,} characters, a problem at most {LONGEST_PROBLEM:,}"
        raise InputError(f"{said}; shorten the problem or remove the line")
    return check_unicode(problem, f"{where}: field {field!r}")


def _whole(row: Mapping[str, Any], field: str, problem: str) -> str:
    """The problem with what the fields beside it hold of it: the text it asks about, the input of an instruction."""

    def held(names: tuple[str, ...]) -> list[str]:
        texts = [row[name].strip() for name in names if name != field and isinstance(row.get(name), str)]
        return [text for text in texts if text and text not in problem]

    after = held(_AFTER) if field == "instruction" else []
    return "\n".join([*held(_BEFORE), problem, *after]) if after or held(_BEFORE) else problem


def _choices(row: Mapping[str, Any], fields: Fields, where: str) -> list[str] | None:
    field = fields.choices
    choices = _listed(row.get(field))
    if field not in row and field == Fields.choices:
        # a field of this name may be about something else, which does not make the row a wrong one
        field, others = _OTHER_CHOICES, _listed(row.get(_OTHER_CHOICES))
        choices = others if isinstance(others, list) else None
    if choices is None:
        return None
    what = f"{where}: field {field!r}"
    if not isinstance(choices, list):
        raise InputError(f"{what} must be a list of strings, got {_kind(choices)}")
    if not 2 <= len(choices) <= len(LETTERS):
        raise InputError(f"{what} must hold 2 to {len(LETTERS)} options, got {len(choices)}")
    for choice in choices:
        if isinstance(choice, bool) or not isinstance(choice, (str, int, float)):
            raise InputError(f"{what} must be a list of strings, one is {_kind(choice)}")
    return [check_unicode(str(c), what) for c in choices]


def _listed(choices: Any) -> Any:
    """The texts of options that are an object with a letter for each; any other value as it is."""
    if not isinstance(choices, dict):
        return choices
    texts, letters = choices.get("text"), choices.get("label")
    if not (len(choices) == 2 and isinstance(texts, list) and isinstance(letters, list)):
        texts, letters = list(choices.values()), list(choices)
    # any other order, or digits in place of letters, would make a label mean another option
    return texts if len(texts) > 1 and letters == list(LETTERS[: len(texts)]) else choices


def _letter(label: str, choices: list[str], what: str, option: str) -> str:
    """The letter of a multiple-choice label, which may also be the text of an option."""
    letters = LETTERS[: len(choices)]
    bare = label.strip("()[]. ").upper()
    if len(bare) == 1 and bare in letters:
        return bare
    same = [n for n, choice in enumerate(choices) if choice.strip().casefold() == label.casefold()]
    if len(same) == 1:
        return letters[same[0]]
    wanted = f"one of the letters {letters} or the text of one option"
    raise InputError(f"{what} must be {wanted}, got {label[:40]!r}; {option}.answer null ignores labels")


def _label(row: dict[str, Any], fields: Fields, where: str) -> str | None:
    label = row.get(fields.answer) if fields.answer is not None else None
    if label is None:
        return None
    if isinstance(label, bool) or not isinstance(label, (str, int, float)):
        raise InputError(f"{where}: field {fields.answer!r} must be a string or a number, got {_kind(label)}")
    if isinstance(label, float) and not math.isfinite(label):
        raise InputError(f"{where}: field {fields.answer!r} holds {label}; write null where no answer is known")
    return check_unicode(str(label).strip(), f"{where}: field {fields.answer!r}") or None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    names |= {int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def subject_of(row: Mapping[str, Any], fields: Fields) -> str | None:
    """The subject of a row: by the field that ``fields`` names, else by the first usual one that the row has."""
    return scalar(row, _SUBJECTS if fields.subject is None else (fields.subject,))


def level_of(row: Mapping[str, Any], fields: Fields) -> str | None:
    """The level of a row, by the field that ``fields`` names, else by a usual one; "Level 5" is 5."""
    level = scalar(row, _LEVELS if fields.level is None else (fields.level,))
    return level and (re.sub(r"(?i)^level\s+", "", level) or None)


def scalar(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """The value of the first field that holds a string or a number, as text; 5.0 becomes 5."""
    for name in names:
        value = row.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, (str, int, float)) and not isinstance(value, bool) and str(value).strip():
            return str(value).strip()[:100]
    return None
