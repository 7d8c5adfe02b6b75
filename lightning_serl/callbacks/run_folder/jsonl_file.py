"""Append-only jsonl files of a run folder that a resumed run continues exactly where its checkpoint was made."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_serl.checkpoints.atomic_write import cannot_write, sync


class RunFile:
    """One jsonl file, appended and flushed row by row.

    Args:
        path: Where it lies; made on the first write.

    Attributes:
        offset: Its bytes.
        checksum: Their CRC-32.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = path.stat().st_size if path.exists() else 0
        self.checksum = self._checksum(self.offset)

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
        self.checksum = zlib.crc32(data, self.checksum)

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
        self.offset = self.checksum = 0

    def truncate(self, offset: int, checksum: int | None = None) -> None:
        """Forget what was written after a checkpoint, since it will be written again.

        Args:
            offset: Bytes that the checkpoint counts.
            checksum: Of these bytes; a file that differs is of another run, and is set aside whole.
        """
        if self.offset < offset:
            rank_zero_warn(
                f"{self.path.name} holds {self.offset} bytes and the checkpoint counts {offset}: rows of the run "
                "before it are missing here"
            )
            self._cut(self._whole_rows())
        elif checksum is not None and self._checksum(offset) != checksum:
            rank_zero_warn(f"{self.path.name} in {self.path.parent} is not that of the checkpoint's run")
            self.set_aside()
        else:
            self._cut(offset)

    def _cut(self, offset: int) -> None:
        if self.offset > offset:
            os.truncate(self.path, offset)
        self.offset, self.checksum = offset, self._checksum(offset)

    def _checksum(self, size: int) -> int:
        """Of the first ``size`` bytes."""
        value = 0
        if size:
            with self.path.open("rb") as file:
                while size and (data := file.read(min(size, 1 << 20))):
                    value, size = zlib.crc32(data, value), size - len(data)
        return value

    def _whole_rows(self) -> int:
        """Bytes up to the end of the last whole row."""
        data = self.path.read_bytes() if self.offset else b""
        return data.rfind(b"\n") + 1
