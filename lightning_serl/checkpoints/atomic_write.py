"""Files that are whole or absent after a crash: written beside, synced, moved into place."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from lightning_serl.errors import StorageFailure

_MARK = ".unfinished"


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replace a file in one step; what stood there before survives any failure.

    Args:
        path: The file; its folder is made if absent.
        write: Writes the content.

    Raises:
        StorageFailure: if it cannot be written, with the reason.
    """
    staging = path.with_name(f".{path.name}.{os.getpid()}{_MARK}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with staging.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(staging, path)
        except BaseException:
            staging.unlink(missing_ok=True)
            raise
        sync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> StorageFailure:
    """The sentence for a file that the system refused to take."""
    why = error.strerror or type(error).__name__
    return StorageFailure(f"{path} cannot be written ({why}); make room or mend the folder, then continue the run")


def sync(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Wait until everything in a folder is on the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            sync(path)
    sync(folder)


def forget_unfinished(folder: Path) -> None:
    """Remove what processes that were killed while writing have left."""
    for staging in folder.glob(f".*{_MARK}"):
        staging.unlink(missing_ok=True)
