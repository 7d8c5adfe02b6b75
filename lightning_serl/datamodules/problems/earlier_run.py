"""Reads the problems of earlier runs, so that a new run does not write them again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lightning_serl.errors import InputError
from lightning_serl.jsonl import numbered_lines, read_text
from lightning_serl.types import Instruction


def read_pool(name: str) -> list[tuple[Instruction, str]]:
    """What an earlier run accepted, from its ledger.

    Args:
        name: A run folder, or a ledger file.

    Returns:
        (instruction, status) in the order of the proposals; the status is ``kept`` or ``spent``.

    Raises:
        InputError: if there is no ledger, or it cannot be read.
    """
    if not name.strip():
        raise InputError("data.pool_from is empty; give the folder of an earlier run, or leave it out")
    path = Path(name).expanduser()
    # os.path.isdir returns False where Path.is_dir raises: a name too long for the file system
    if os.path.isdir(path):
        path = path / "ledger.jsonl"
    text = read_text(path, f"data.pool_from {name}: {path.name}", "give the folder of an earlier run")
    proposed: dict[str, dict[str, Any]] = {}
    status: dict[str, str] = {}
    last = text.count("\n") + 1
    for number, line in numbered_lines(text):
        try:
            row = json.loads(line)
            uid, event = str(row["uid"]), row["event"]
            if event == "proposed" and row.get("role", "solve") == "solve":
                proposed[uid] = {"prompt": str(row["prompt"]), "choices": row.get("choices")}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number == last:
                break  # a killed run may leave half a row
            raise InputError(
                f"data.pool_from {name}: line {number} of {path.name} is no event of a run; give a ledger.jsonl"
            ) from error
        if event in ("accepted", "kept"):
            status[uid] = "kept" if event == "kept" else "spent"
    if not status.keys() & proposed.keys():
        raise InputError(
            f"data.pool_from {name}: {path.name} holds no accepted problem; give the folder of an earlier run"
        )
    return [
        (Instruction(facts["prompt"], uid, meta=_meta(facts["choices"])), status[uid])
        for uid, facts in proposed.items()
        if uid in status
    ]


def _meta(choices: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"origin": "self"}
    return made | {"choices": [str(c) for c in choices]} if isinstance(choices, list) else made
