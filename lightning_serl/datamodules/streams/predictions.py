"""The prediction stream: a data set of problems that the policy wrote, with answers that it voted for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_serl.callbacks.publishing.data_set import rows_of_predictions, write_data_set, write_parquet
from lightning_serl.datamodules.session import Session
from lightning_serl.errors import InputError
from lightning_serl.protocols import module_of
from lightning_serl.types import Round

#: The ending of a ``data.predict_to`` that names a parquet file.
PARQUET = ".parquet"


class PredictionStream:
    """Plays rounds without training and appends every problem with a voted answer to a jsonl file.

    Group filters take no part: they select what is worth training on, and would drop the most certain votes. After the
    last round, or an error, the rows are written as parquet too: into a directory with a card beside the jsonl file, or
    to the file that was named if its name ends in ``.parquet``.
    """

    def __init__(self, session: Session, named: Path, rounds: int) -> None:
        self.session, self.named, self.rounds = session, named, rounds
        #: The file of the rows, and the directory of the data set.
        self.target, self.data_set = outputs(named)
        #: Rows so far.
        self.written = 0

    def last_line(self) -> str:
        """What was written, for the terminal."""
        also = self.named if self.named.suffix == PARQUET else self.data_set
        said = f"predictions: {self.written} problems with answers in {self.target}"
        return f"{said} and, as parquet, in {also}" if self.written else said

    def __len__(self) -> int:
        return self.rounds

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        try:
            for number in range(len(self)):
                rows = self._play()
                if number == len(self) - 1:  # a loop that knows the length asks for nothing after the last round
                    self._write_parquet()
                yield rows
        except (Exception, KeyboardInterrupt):
            self._write_parquet()
            raise

    def _play(self) -> list[dict[str, Any]]:
        """One round, whose rows are in the file before anything else is generated."""
        played = self.session.play(filter_groups=False)
        assert played is not None, "only a fit is ended by the health probe"
        rows = _rows(played)
        if self.session.ranks.leads:
            # a model may write lone surrogates, which UTF-8 cannot hold: they are escaped
            with self.target.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self.written += len(rows)
        self.session.commit(played, [])
        return rows

    def _write_parquet(self) -> None:
        if not self.session.ranks.leads or not self.written:
            return
        rows = rows_of_predictions(self.target)
        if self.named.suffix == PARQUET:
            write_parquet(self.named, rows)
        else:
            model = module_of(self.session.trainer).model_name_or_path
            write_data_set(self.data_set, rows, None if model is None else Path(model).name)


def outputs(named: Path) -> tuple[Path, Path]:
    """The jsonl file and the directory of the data set that go with a value of ``data.predict_to``."""
    target = named.with_suffix(".jsonl") if named.suffix == PARQUET else named
    folder = target.with_suffix("")
    return target, folder if folder != target else target.with_name(f"{target.name}-dataset")


def check_target(named: Path, make: bool = False) -> None:
    """Refuse a path that holds something or cannot be written; ``make`` leaves an empty file there."""
    target, folder = outputs(named)
    path = named
    try:
        for path in dict.fromkeys((named, target)):
            if path.is_dir() or (path.exists() and path.stat().st_size):
                raise InputError(f"data.predict_to {path} exists already; remove it or name another file")
        if named.suffix != PARQUET and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            said = f"the data set beside it is written to {folder}, which exists already"
            raise InputError(f"data.predict_to {named}: {said}; remove it or name another file")
        if make:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
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
        rows.append(row | {name: meta[name] for name in ("choices", "passage") if name in meta})
    return rows
