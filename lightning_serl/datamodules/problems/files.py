"""Reads problem files (jsonl or one JSON list) and the problems of earlier runs, with line numbers in errors."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_serl import tiny
from lightning_serl.datamodules.problems.formats import refuse_encoding, refuse_other_formats
from lightning_serl.datamodules.problems.rows import Fields, level_of, subject_of, to_problem
from lightning_serl.errors import InputError
from lightning_serl.jsonl import decode, numbered_lines, parse_line, read_text, skip_blanks
from lightning_serl.types import Instruction


def read_problems(name: str, fields: Fields, prefix: str) -> list[Instruction]:
    """Read a jsonl or JSON file, ``tiny:seeds`` or ``tiny:held_out``; subject and level of a problem are in its meta.

    Uids are ``PREFIX-LINE``, in a JSON list ``PREFIX-ITEM``. Raises :class:`InputError`, with file and line, if
    the file is missing, empty or not JSON, a row lacks the problem, or no row has a field that was named.
    """
    problems = []
    rows = read_rows(name, fields)
    check_named(name, fields, (row for _, _, row in rows), "--data.fields")
    for number, where, row in rows:
        problem = to_problem(row, fields, where, f"{prefix}-{number:05d}")
        found = {"subject": subject_of(row, fields), "level": level_of(row, fields)}
        facts = {name: value for name, value in found.items() if value is not None}
        problems.append(replace(problem, meta={**problem.meta, **facts}))
    return problems


def check_named(name: str, fields: Fields, rows: Iterable[Any], option: str, strict: bool = False) -> None:
    """Refuse a field that an option names and no row has: ignoring a mistyped name would change what is trained on.

    ``strict`` checks the answer field even under its default name; :func:`to_problem` checks the problem in each row.
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
    """For each row of a problem file its number (of the line, or of the JSON list's item), ``FILE:LINE``, and value.

    Raises :class:`InputError`, with file and line, if the file is missing, empty or not JSON.
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
    save = "datasets.load_dataset('ORGANISATION/NAME', split='train').to_json('seeds.jsonl')"
    if name.startswith("hub:"):
        said = "seeds are read from files only, hub names are for data.evaluation.sets; save the data set first"
        raise InputError(f"{name}: {said}: {save}")
    if re.match(r"\w+://", name):
        raise InputError(f"{name[-150:]} is an address, but problems are read from files; download it first")
    # the hub's names have one slash and no ending: organisation/name
    if name.count("/") == 1 and not path.suffix and not path.parent.exists():
        said = (
            f"does not exist; a data set of the hub is hub:{name} among data.evaluation.sets, for seeds save it first"
        )
        raise InputError(f"{name} {said}: {save}")
    refuse_other_formats(path, name)
    try:
        text = read_text(path, name, "give a jsonl file of problems")
    except InputError as error:
        if isinstance(error.__cause__, UnicodeDecodeError):
            refuse_encoding(error, path.read_bytes(), name)
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        where = "" if path.is_absolute() else f" (it is relative to {Path.cwd().name}/)"
        option = "data.seeds or data.evaluation.sets"
        raise InputError(f"problem file {name} does not exist; check the path at {option}{where}") from None
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


def read_pool(name: str) -> list[tuple[Instruction, str]]:
    """What a run accepted, from its folder or ledger: (problem, ``kept`` or ``spent``), in the order of proposal.

    Raises :class:`InputError` if there is no ledger, or it cannot be read.
    """
    if not name.strip():
        raise InputError("data.pool_from is empty; give the folder of an earlier run, or leave it out")
    path = Path(name).expanduser()
    # os.path.isdir returns False where Path.is_dir raises: a name too long for the file system
    if os.path.isdir(path):
        path = path / "ledger.jsonl"
    text = read_text(path, f"data.pool_from {name}: {path.name}", "give the folder of an earlier run")
    proposed: dict[str, tuple[str, dict[str, Any]]] = {}
    status: dict[str, str] = {}
    last = text.count("\n") + 1
    for number, line in numbered_lines(text):
        try:
            row = json.loads(line)
            if row["event"] == "rolled_back":  # of the whole run
                continue
            uid, event = str(row["uid"]), row["event"]
            if event == "proposed" and row.get("role", "solve") == "solve":
                choices = row.get("choices")
                listed = {"choices": [str(c) for c in choices]} if isinstance(choices, list) else {}
                proposed[uid] = str(row["prompt"]), listed
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number == last:
                break  # a killed run may leave half a row
            said = f"data.pool_from {name}: line {number} of {path.name} is no event of a run"
            raise InputError(f"{said}; give a ledger.jsonl") from error
        if event in ("accepted", "kept"):
            status[uid] = "kept" if event == "kept" else "spent"
    if not status.keys() & proposed.keys():
        said = f"data.pool_from {name}: {path.name} holds no accepted problem"
        raise InputError(f"{said}; give the folder of an earlier run")
    return [
        (Instruction(prompt, uid, meta={"origin": "self"} | choices), status[uid])
        for uid, (prompt, choices) in proposed.items()
        if uid in status
    ]
