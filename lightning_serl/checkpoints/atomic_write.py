"""Atomic file writes: write to a temporary file, fsync, rename."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from lightning_serl.errors import StorageFailure

_MARK = ".unfinished"


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` write a file atomically, in a folder that is made if absent.

    After a StorageFailure, which gives the reason, the former file is unchanged.
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
    """The error for a file that the system could not write."""
    why = error.strerror or type(error).__name__
    return StorageFailure(f"{path} cannot be written ({why}); free space or fix the folder, then continue the run")


def sync(path: Path) -> None:
    """Flush a file, or a folder's directory entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush a folder and all files in it to the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            sync(path)
    sync(folder)


def forget_unfinished(folder: Path) -> None:
    """Remove the temporary files that killed processes left."""
    for staging in folder.glob(f".*{_MARK}"):
        staging.unlink(missing_ok=True)
