"""The prediction stream: a data set of problems that the policy wrote, with answers that it voted for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_serl.datamodules.session import Session
from lightning_serl.errors import InputError
from lightning_serl.types import Round


class PredictionStream:
    """Plays rounds without training and appends every problem with a voted answer to a jsonl file.

    Group filters take no part: they select what is worth training on, and would drop the most certain votes.
    """

    def __init__(self, session: Session, target: Path, rounds: int) -> None:
        self.session, self.target, self.rounds = session, target, rounds
        #: Rows so far.
        self.written = 0

    def last_line(self) -> str:
        """What was written, for the terminal."""
        return f"predictions: {self.written} problems with answers in {self.target}"

    def __len__(self) -> int:
        return self.rounds

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for _ in range(len(self)):
            played = self.session.play(filter_groups=False)
            assert played is not None, "only a fit is ended by the health probe"
            rows = _rows(played)
            if self.session.ranks.leads:
                # a model may write lone surrogates, which UTF-8 cannot hold: they are escaped
                with self.target.open("a", encoding="utf-8", errors="backslashreplace") as file:
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            self.written += len(rows)
            self.session.commit(played, [])
            yield rows


def check_target(path: Path, make: bool = False) -> None:
    """Refuse a path that holds something or cannot be written; ``make`` leaves an empty file there."""
    try:
        if path.exists() and path.stat().st_size:
            raise InputError(f"data.predict_to {path} exists already; remove it or name another file")
        if make:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    except OSError as error:
        raise InputError(f"data.predict_to {path} cannot be written: {error.strerror or error}") from error


def _rows(played: Round) -> list[dict[str, Any]]:
    """The groups of a round that have a voted answer."""
    rows = []
    for group, verdict in zip(played.groups, played.verdicts, strict=True):
        if verdict.label is None:
            continue
        row = {
            "problem": group.instruction.prompt,
            "answer": verdict.label,
            "confidence": round(verdict.confidence, 6),
            "round": played.number,
        }
        meta = group.instruction.meta
        rows.append(row | ({"choices": meta["choices"]} if "choices" in meta else {}))
    return rows
