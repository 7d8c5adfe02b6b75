"""The prediction stream: a labelled data set that the policy wrote and voted on by itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_serl.errors import InputError

if TYPE_CHECKING:
    from lightning_serl.datamodules.self_play import SelfPlayDataModule


class PredictionStream:
    """Plays ``rounds_per_epoch`` rounds without training and writes every voted problem to a jsonl file.

    Group filters stay out: they choose what is worth training on, and would drop the votes one can be surest of.

    Args:
        data: The datamodule that plays the rounds.
        target: The file; it must not exist, or be empty.

    Raises:
        InputError: if the file exists or cannot be written.
    """

    def __init__(self, data: SelfPlayDataModule, target: Path) -> None:
        self.data, self.target = data, target
        #: Rows so far.
        self.written = 0
        with data.ranks.stage("opening the prediction file"):
            if data.ranks.leads:
                self._open()

    def _open(self) -> None:
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            if self.target.exists() and self.target.stat().st_size:
                raise InputError(f"data.predict_to {self.target} exists already; remove it or name another file")
            self.target.touch()
        except OSError as error:
            raise InputError(f"data.predict_to {self.target} cannot be written: {error.strerror or error}") from error

    def last_line(self) -> str:
        """What was written, for the terminal."""
        return f"predictions: {self.written} problems with answers in {self.target}"

    def __len__(self) -> int:
        return self.data.rounds_per_epoch

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for _ in range(len(self)):
            played = self.data.play(filter_groups=False)
            rows = [
                {
                    "problem": group.instruction.prompt,
                    "answer": verdict.label,
                    "confidence": round(verdict.confidence, 6),
                    "round": played.number,
                    **({"choices": group.instruction.meta["choices"]} if "choices" in group.instruction.meta else {}),
                }
                for group, verdict in zip(played.groups, played.verdicts, strict=True)
                if verdict.label is not None
            ]
            if self.data.ranks.leads:
                # lone surrogates can come out of a model: written escaped rather than refused
                with self.target.open("a", encoding="utf-8", errors="backslashreplace") as file:
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            self.written += len(rows)
            self.data.commit(played, [])
            yield rows
