"""Append-only jsonl files that a resumed run cuts back to the size they had at its checkpoint."""

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
    """One append-only jsonl file, created by its first row, with its size in bytes and the CRC-32 of its content."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = path.stat().st_size if path.exists() else 0
        self.checksum = self._checksum(self.offset)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows; they survive the end of this process, but not yet that of the machine."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if not text:
            return
        # a model can produce lone surrogates, which utf-8 cannot encode
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
        """Wait until all rows are on disk, before a checkpoint counts them."""
        if self.offset:
            sync(self.path)

    def set_aside(self) -> None:
        """Rename the file of an earlier run in the same folder, so that the rows of two runs are not mixed."""
        if not self.offset:
            return
        number = 1
        while (other := self.path.with_suffix(f".{number}{self.path.suffix}")).exists():
            number += 1
        self.path.rename(other)
        rank_zero_info(f"{self.path.name} of an earlier run was renamed to {other.name}")
        self.offset = self.checksum = 0

    def truncate(self, offset: int, checksum: int | None = None) -> None:
        """Cut the file to its size at a checkpoint, since the resumed run writes the rows after it again.

        A file whose first ``offset`` bytes have another checksum belongs to another run and is renamed.
        """
        if self.offset < offset:
            rank_zero_warn(
                f"{self.path.name} has {self.offset} bytes but had {offset} at the checkpoint; the rows in between "
                "are lost and are not written again"
            )
            data = self.path.read_bytes() if self.offset else b""
            self._cut(data.rfind(b"\n") + 1)  # without a last row that was cut off
        elif checksum is not None and self._checksum(offset) != checksum:
            rank_zero_warn(f"{self.path.name} in {self.path.parent} was written by another run than the checkpoint")
            self.set_aside()
        else:
            self._cut(offset)

    def _cut(self, offset: int) -> None:
        if self.offset > offset:
            os.truncate(self.path, offset)
        self.offset, self.checksum = offset, self._checksum(offset)

    def _checksum(self, size: int) -> int:
        """CRC-32 of the first ``size`` bytes."""
        value = 0
        if size:
            with self.path.open("rb") as file:
                while size and (data := file.read(min(size, 1 << 20))):
                    value, size = zlib.crc32(data, value), size - len(data)
        return value
