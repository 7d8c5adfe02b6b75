"""The problems of earlier runs, so that a new one does not write them again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lightning_serl.errors import InputError
from lightning_serl.types import Instruction


def read_pool(name: str) -> list[tuple[Instruction, str]]:
    """What an earlier run accepted, from its ledger.

    Args:
        name: A run folder, or a ledger file.

    Returns:
        (instruction, status) in the order they were proposed; the status is ``kept`` or ``spent``.

    Raises:
        InputError: if there is no ledger, or it cannot be read.
    """
    if not name.strip():
        raise InputError("data.pool_from is empty; give the folder of an earlier run, or leave it out")
    path = Path(name).expanduser()
    # os.path, which answers no where pathlib raises (a name too long for the file system)
    if os.path.isdir(path):
        path = path / "ledger.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"data.pool_from {name}: {path.name} cannot be read ({reason}); give the folder of an earlier run"
        ) from error
    proposed: dict[str, dict[str, Any]] = {}
    status: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            uid, event = str(row["uid"]), row["event"]
            if event == "proposed" and row.get("role", "solve") == "solve":
                proposed[uid] = {"prompt": str(row["prompt"]), "choices": row.get("choices")}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number == len(lines):
                break  # a run that was killed may leave half a row
            raise InputError(
                f"data.pool_from {name}: line {number} of {path.name} is no event of a run; give a ledger"
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
