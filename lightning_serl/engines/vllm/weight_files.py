"""Versions of weights as directories, for engines that read files: written whole or not at all, one after another."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import save_file
from torch import Tensor

from lightning_serl.checkpoints.atomic_write import sync, sync_tree
from lightning_serl.errors import EngineFailure

#: In RAM where there is any: an adapter is read back within milliseconds, and nothing of a run is left on a disk.
RAM = Path("/dev/shm")
#: Tensors are gathered into files of about this size, so that no more than this much is held beside the model.
SHARD_BYTES = 2 * 1024**3

_PREFIX = "lightning-serl-weights"


class Saved(Protocol):
    """A configuration or tokenizer of transformers."""

    def save_pretrained(self, save_directory: Any) -> Any:
        """Write its files."""


@dataclass(frozen=True)
class Published:
    """One version on disk.

    Attributes:
        path: Its directory, never used before and never written to again.
        version: ``Policy.version`` of the weights.
        names: Names of the tensors, in the order they were written.
        bytes: Their size together.
    """

    path: Path
    version: int
    names: tuple[str, ...]
    bytes: int


class Publisher:
    """Writes versions of weights into fresh directories under one folder and removes old ones.

    A version appears by renaming a finished directory, so that no reader ever sees half of one; it gets a name that no
    other publication had, also where the same version is published twice, because engines remember what they read by
    its path. The folder carries a lock of this process; folders that a killed process left on this machine are removed
    by the next publisher with the same root.

    Args:
        root: Where the folder is made; by default in RAM (``/dev/shm``) if ``room`` is free there, else in the
            temporary directory. Engines on other machines need one that they see under the same path.
        keep: Versions kept; an engine may still be reading the one before the last.
        room: Bytes that ``keep + 1`` versions will take, for the choice of the default root.

    Raises:
        EngineFailure: if the folder cannot be made.
    """

    def __init__(self, root: str | Path | None = None, keep: int = 2, room: int = 0) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.keep = keep
        self.root = _default_root(room) if root is None else Path(root).expanduser().absolute()
        self._kept: list[Path] = []
        self._count = 0
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            _sweep(self.root)
            self.folder = self.root / f"{_PREFIX}-{socket.gethostname()}-{uuid.uuid4().hex[:12]}"
            # under another name until it is locked, so that no other process sweeps it
            unlocked = self.root / f".{self.folder.name}"
            # a named root is there to be read by others, as far as the umask goes
            unlocked.mkdir(mode=0o700 if root is None else 0o777)
            self._lock: int | None = os.open(unlocked / "lock", os.O_CREAT | os.O_RDWR, 0o600)
            with contextlib.suppress(OSError):  # a file system without locks: then nobody sweeps it either
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unlocked.rename(self.folder)
        except OSError as error:
            raise EngineFailure(
                f"no folder for the engine's weights can be made in {self.root} ({error.strerror}); "
                "name a writable folder with free space"
            ) from error

    def adapter(self, tensors: Iterable[tuple[str, Tensor]], config: Mapping[str, Any], version: int) -> Published:
        """Publish a LoRA adapter as peft would save it.

        Args:
            tensors: (name, tensor) under the names of ``get_peft_model_state_dict``.
            config: ``LoraConfig.to_dict()``.
            version: ``Policy.version`` of these weights.

        Raises:
            EngineFailure: if it cannot be written.
        """
        with self._fresh(version) as (staging, final):
            names, size = _write_shards(staging, tensors, "adapter_model", None)
            plain = json.dumps(_plain({**config, "inference_mode": True}), indent=2, sort_keys=True)
            (staging / "adapter_config.json").write_text(plain, encoding="utf-8")
        return Published(final, version, names, size)

    def full(self, tensors: Iterable[tuple[str, Tensor]], version: int, parts: Sequence[Saved] = ()) -> Published:
        """Publish whole weights as a Hugging Face directory.

        Args:
            tensors: (name, tensor) under the names of the Hugging Face model, taken one at a time; the output layer
                must be among them also where it is tied, since engines keep their own copy of it.
            version: ``Policy.version`` of these weights.
            parts: Configuration, generation configuration, tokenizer: what a reader needs beside the weights.

        Raises:
            EngineFailure: if it cannot be written.
        """
        with self._fresh(version) as (staging, final):
            for part in parts:
                part.save_pretrained(staging)
            names, size = _write_shards(staging, tensors, "model", SHARD_BYTES)
        return Published(final, version, names, size)

    @contextlib.contextmanager
    def _fresh(self, version: int) -> Iterator[tuple[Path, Path]]:
        """A directory to fill and the path it moves to once it is full and on disk."""
        if self._lock is None:
            raise EngineFailure("the folder for the engine's weights was closed; start the engine again")
        self._count += 1
        final = self.folder / f"v{version}-{self._count}"
        staging = self.folder / f".v{version}-{self._count}"
        try:
            staging.mkdir()
            yield staging, final
            sync_tree(staging)
            staging.rename(final)
            sync(self.folder)
        except BaseException as error:
            shutil.rmtree(staging, ignore_errors=True)
            # safetensors wraps the reason of a failed write into an error of its own
            full = "No space left" in str(error) or getattr(error, "errno", None) == errno.ENOSPC
            if full or isinstance(error, OSError):
                raise EngineFailure(
                    f"weights of version {version} cannot be written to {self.folder} "
                    f"({'no space left' if full else error}); name a folder with room for {self.keep + 1} versions"
                ) from error
            raise
        self._kept.append(final)
        while len(self._kept) > self.keep:
            shutil.rmtree(self._kept.pop(0), ignore_errors=True)

    def close(self) -> None:
        """Remove the folder with everything in it; calling it twice is harmless."""
        if self._lock is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            os.close(self._lock)
            self._lock, self._kept = None, []


def read_names(folder: Path) -> tuple[tuple[str, ...], int]:
    """Names and bytes of the tensors in a directory, from the headers of its files: what a reader will find there."""
    names: list[str] = []
    size = 0
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__", None)
        names += header
        size += sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in header.values())
    return tuple(names), size


def _default_root(room: int) -> Path:
    temporary = Path(tempfile.gettempdir())
    try:
        stat = os.statvfs(RAM)
    except OSError:  # not Linux
        return temporary
    # half of it at most: containers often have 64 MB there, and what is free is also the machine's memory
    enough = stat.f_bavail * stat.f_frsize >= 2 * room
    return RAM if enough and os.access(RAM, os.W_OK) else temporary


def _sweep(root: Path) -> None:
    """Remove folders of processes of this machine that are gone: their lock went with them."""
    for folder in root.glob(f"{_PREFIX}-{socket.gethostname()}-*"):
        try:
            lock = os.open(folder / "lock", os.O_RDWR)
        except OSError:  # another user's, or just being made or removed
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # alive
            pass
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _write_shards(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], stem: str, limit: int | None
) -> tuple[tuple[str, ...], int]:
    """Write safetensors files of about ``limit`` bytes, with an index where there are several.

    Returns:
        Names in the order of writing, and bytes of all tensors.
    """
    where: dict[str, int] = {}
    shard: dict[str, Tensor] = {}
    held = total = files = 0

    def flush() -> None:
        nonlocal shard, held, files
        # "pt" is what transformers and vLLM look for
        save_file(shard, folder / f"{stem}-{files:05d}.safetensors", metadata={"format": "pt"})
        shard, held, files = {}, 0, files + 1

    for name, tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if shard and limit is not None and held + size > limit:
            flush()
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        # the format refuses tensors that share memory, as tied ones do, and would write the whole of a view's storage
        shared = any(storage.data_ptr() == t.untyped_storage().data_ptr() for t in shard.values())
        shard[name] = tensor.clone() if shared or storage.nbytes() > size else tensor
        where[name] = files
        held, total = held + size, total + size
    if not where:
        raise EngineFailure("there are no weights to publish; train full weights or give model.lora")
    flush()
    if files == 1:
        (folder / f"{stem}-00000.safetensors").rename(folder / f"{stem}.safetensors")
    else:
        finals = [f"{stem}-{k + 1:05d}-of-{files:05d}.safetensors" for k in range(files)]
        for k in range(files):
            (folder / f"{stem}-{k:05d}.safetensors").rename(folder / finals[k])
        index = {"metadata": {"total_size": total}, "weight_map": {n: finals[k] for n, k in where.items()}}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return tuple(where), total


def _plain(value: Any) -> Any:
    """A peft configuration as JSON holds it."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(_plain, value))
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value.value if isinstance(value, Enum) else value
