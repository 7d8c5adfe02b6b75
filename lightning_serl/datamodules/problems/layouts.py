"""Converts rows of published evaluation sets: one function for each layout."""

from __future__ import annotations

import re
from collections.abc import Callable
from string import ascii_uppercase
from typing import Any

from lightning_serl.datamodules.problems.rows import Fields, level_of, subject_of

Row = dict[str, Any]

_ASDIV = frozenset({"body", "question", "answer", "solution_type"})
#: The groups in which the paper reports MMLU-Pro.
MMLU_PRO_GROUPS = {
    "STEM": ("biology", "chemistry", "computer science", "engineering", "math", "physics"),
    "Humanities": ("history", "law", "philosophy"),
    "Social": ("business", "economics", "health", "psychology"),
    "Other": ("other",),
}
_GROUP_OF = {category: group for group, categories in MMLU_PRO_GROUPS.items() for category in categories}


def has_several_answers(row: Any) -> bool:
    """Whether a row is a problem of ASDiv with several answers, which SeRL and others leave out."""
    if not isinstance(row, dict) or not row.keys() >= _ASDIV:
        return False
    return isinstance(row["answer"], str) and ";" in row["answer"]


def _asdiv(row: Row) -> Row:
    """Join body and question; remove the answer's unit in parentheses."""
    body, question, answer = row["body"], row["question"], row["answer"]
    if not (isinstance(body, str) and isinstance(question, str) and isinstance(answer, str)):
        return row  # to_problem refuses it
    body, question = body.strip(), question.strip()
    problem = question if question.startswith(body) else f"{body} {question}"
    return row | {"problem": problem, "answer": re.sub(r"\(.*?\)", "", answer).strip() or answer}


def _college_math(row: Row) -> Row:
    """Remove the answer's dollar signs."""
    answer = row["answer"]
    return row | {"answer": answer.replace("$", "").strip()} if isinstance(answer, str) else row


def _gsm8k(row: Row) -> Row:
    """Keep only the number after the solution, without commas."""
    answer = row["answer"]
    if not isinstance(answer, str) or "####" not in answer:
        return row
    return row | {"answer": answer.rpartition("####")[2].replace(",", "").strip()}


def _math(row: Row) -> Row:
    """Use the solution as answer if there is none; graders read its box."""
    solution = row["solution"]
    if row.get("answer") is not None or not isinstance(solution, str) or "\\boxed" not in solution:
        return row
    return row | {"answer": solution}


def _mmlu_pro(row: Row) -> Row:
    """Remove the padding at the end of the options."""
    options = row["options"]
    if row.get("choices") is not None:
        return row
    if isinstance(options, dict) and options and list(options) == list(ascii_uppercase[: len(options)]):
        options = list(options.values())  # {"A": "4", "B": "5"}
    if not isinstance(options, list):
        return row
    while options and options[-1] == "N/A":
        options = options[:-1]
    return row | {"choices": options}


# the conversion of rows that have all of certain fields
_LAYOUTS: tuple[tuple[frozenset[str], Callable[[Row], Row]], ...] = (
    (_ASDIV, _asdiv),
    (frozenset({"question", "answer", "data_topic"}), _college_math),
    (frozenset({"question", "answer"}), _gsm8k),
    (frozenset({"problem", "solution"}), _math),
    (frozenset({"question", "options"}), _mmlu_pro),
)


def converted(row: Any) -> Any:
    """The row with the fields ``problem``, ``answer`` and ``choices`` as far as its layout is known."""
    if not isinstance(row, dict):
        return row  # to_problem refuses it
    for needed, convert in _LAYOUTS:
        if needed <= row.keys():
            row = convert(row)
    return row


def strata_in(row: Row, fields: Fields) -> dict[str, str]:
    """The level, subject and MMLU-Pro group that a row has."""
    found = {"level": level_of(row, fields), "subject": subject_of(row, fields)}
    if isinstance(row.get("options"), list):
        found["group"] = _GROUP_OF.get(str(row.get("category")))
    return {key: value for key, value in found.items() if value}
