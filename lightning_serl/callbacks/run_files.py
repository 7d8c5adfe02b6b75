"""Append-only jsonl files of a run folder that a resumed run continues exactly where its checkpoint was made."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_serl.durable import cannot_write, sync


class RunFile:
    """One jsonl file, appended and flushed row by row.

    Args:
        path: Where it lies; made on the first write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = path.stat().st_size if path.exists() else 0

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows; when this returns, they are out of this process's hands."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if not text:
            return
        # lone surrogates can come out of a model: written escaped rather than refused
        data = text.encode("utf-8", errors="backslashreplace")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(data)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self.offset += len(data)

    def sync(self) -> None:
        """Wait until what was appended is on the disk: a checkpoint is about to count it."""
        if self.offset:
            sync(self.path)

    def set_aside(self) -> None:
        """Give the rows of an earlier run in the same folder another name, so that two runs are never mixed."""
        if not self.offset:
            return
        number = 1
        while (other := self.path.with_suffix(f".{number}{self.path.suffix}")).exists():
            number += 1
        self.path.rename(other)
        rank_zero_info(f"{self.path.name} of an earlier run is now {other.name}")
        self.offset = 0

    def truncate(self, offset: int) -> None:
        """Forget what was written after a checkpoint, since it will be written again."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size > offset:
            os.truncate(self.path, offset)
        elif size < offset:
            rank_zero_warn(
                f"{self.path.name} holds {size} bytes and the checkpoint counts {offset}: rows of the run before it "
                "are missing here"
            )
        self.offset = min(size, offset)
