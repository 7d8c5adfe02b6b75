"""Writes each version of the weights into a new directory, for engines that read files."""

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
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from lightning_serl.checkpoints.atomic_write import sync, sync_tree
from lightning_serl.errors import EngineFailure

#: A file system in memory: an adapter is read back within milliseconds, and nothing stays on disk.
RAM = Path("/dev/shm")
#: Size at which a file is written: no more than this is held in memory in addition to the model.
SHARD_BYTES = 2 * 1024**3

_PREFIX = "lightning-serl-weights"


@dataclass(frozen=True)
class SavedWeights:
    """One ``Policy.version`` of the weights on disk, in a directory that no other version uses."""

    path: Path
    version: int


class WeightWriter:
    """Writes versions of the weights into new directories of one folder and removes old ones.

    A finished directory is renamed into place, so that no reader sees an incomplete one. Its path is new even where the
    same version is written twice: engines cache what they read by its path. This process holds a lock on the folder;
    folders that killed processes left on this machine are removed by the next writer with the same root.

    Args:
        root: Where the folder is created; by default ``/dev/shm`` if ``needed_bytes`` fit there, else the temporary
            directory. Engines on other machines need a root that they see under the same path.
        keep: Versions kept; an engine may still be reading the one before the last.
        needed_bytes: Size of ``keep + 1`` versions, for the choice of the default root.

    Raises:
        EngineFailure: if the folder cannot be created.
    """

    def __init__(self, root: str | Path | None = None, keep: int = 2, needed_bytes: int = 0) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.keep = keep
        self._option = "TMPDIR" if root is None else "data.engine.publish_to"
        self.root = default_root(needed_bytes) if root is None else Path(root).expanduser().absolute()
        self._kept: list[Path] = []
        self._count = 0
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            _remove_stale(self.root)
            self.folder = self.root / f"{_PREFIX}-{socket.gethostname()}-{uuid.uuid4().hex[:12]}"
            # under another name until it is locked, so that no other process removes it
            unlocked = self.root / f".{self.folder.name}"
            # servers of other users may read below a root that was named, as far as the umask allows
            unlocked.mkdir(mode=0o700 if root is None else 0o777)
            self._lock: int | None = os.open(unlocked / "lock", os.O_CREAT | os.O_RDWR, 0o600)
            with contextlib.suppress(OSError):  # a file system without locks, where no folder is removed as stale
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unlocked.rename(self.folder)
        except OSError as error:
            raise EngineFailure(
                f"no folder for the engine's weights can be created in {self.root} ({error.strerror}); set "
                f"{self._option} to a writable folder with free space"
            ) from error

    def write_adapter(
        self, tensors: Iterable[tuple[str, Tensor]], config: Mapping[str, Any], version: int
    ) -> SavedWeights:
        """Write a LoRA adapter as peft would save it; EngineFailure if that fails.

        The names of ``tensors`` are those of ``get_peft_model_state_dict``, and ``config`` is ``LoraConfig.to_dict()``.
        """
        with self._new_directory(version) as (staging, saved):
            _write_shards(staging, tensors, "adapter_model", None)
            plain = json.dumps({**config, "inference_mode": True}, indent=2, sort_keys=True, default=_plain)
            (staging / "adapter_config.json").write_text(plain, encoding="utf-8")
        return saved

    def write_full(
        self, tensors: Iterable[tuple[str, Tensor]], version: int, parts: Sequence[Any] = ()
    ) -> SavedWeights:
        """Write full weights as a Hugging Face directory; EngineFailure if that fails.

        ``tensors`` are taken one at a time. The output layer must be one of them even where it is tied, since engines
        keep a separate copy of it. ``parts`` are configuration and tokenizer, if a reader needs them.
        """
        with self._new_directory(version) as (staging, saved):
            for part in parts:
                part.save_pretrained(staging)
            _write_shards(staging, tensors, "model", SHARD_BYTES)
        return saved

    @contextlib.contextmanager
    def _new_directory(self, version: int) -> Iterator[tuple[Path, SavedWeights]]:
        """Yield a directory to fill, and the place it is moved to on leaving."""
        if self._lock is None:
            raise EngineFailure("the folder for the engine's weights was closed; start the engine again")
        self._count += 1
        final = self.folder / f"v{version}-{self._count}"
        staging = self.folder / f".v{version}-{self._count}"
        try:
            staging.mkdir()
            yield staging, SavedWeights(final, version)
            sync_tree(staging)
            staging.rename(final)
            sync(self.folder)
        except BaseException as error:
            shutil.rmtree(staging, ignore_errors=True)
            # safetensors raises another type than OSError when a write fails
            full = "No space left" in str(error) or getattr(error, "errno", None) == errno.ENOSPC
            if full or isinstance(error, OSError):
                raise EngineFailure(
                    f"weights of version {version} cannot be written to {self.folder} "
                    f"({'no space left' if full else error}); set {self._option} to a folder with "
                    f"space for {self.keep + 1} versions"
                ) from error
            raise
        self._kept.append(final)
        while len(self._kept) > self.keep:
            shutil.rmtree(self._kept.pop(0), ignore_errors=True)

    def close(self) -> None:
        """Remove the folder and all its contents; calling it twice is harmless."""
        if self._lock is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            os.close(self._lock)
            self._lock, self._kept = None, []


def read_names(folder: Path) -> tuple[frozenset[str], int]:
    """Names and total bytes of the tensors in a directory, from the headers of its safetensors files."""
    names: list[str] = []
    size = 0
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__", None)
        names += header
        size += sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in header.values())
    return frozenset(names), size


def default_root(needed_bytes: int) -> Path:
    """Where weights are written unless a root is named: in memory if there is enough, else the temporary directory."""
    temporary = Path(tempfile.gettempdir())
    try:
        stat = os.statvfs(RAM)
    except OSError:  # not Linux
        return temporary
    # at most half of it: containers often have only 64 MB there, and the rest is also the machine's memory
    enough = stat.f_bavail * stat.f_frsize >= 2 * needed_bytes
    return RAM if enough and os.access(RAM, os.W_OK) else temporary


def _remove_stale(root: Path) -> None:
    """Remove the folders of ended processes of this machine, whose locks the system has released."""
    for folder in root.glob(f"{_PREFIX}-{socket.gethostname()}-*"):
        try:
            lock = os.open(folder / "lock", os.O_RDWR)
        except OSError:  # belongs to another user, or is being created or removed
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # its process is alive
            pass
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]], stem: str, limit: int | None) -> None:
    """Write safetensors files of about ``limit`` bytes, with an index where there are several."""
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
        # the format refuses tensors that share memory, as tied ones do, and would write all of a view's storage
        shared = any(storage.data_ptr() == t.untyped_storage().data_ptr() for t in shard.values())
        shard[name] = tensor.clone() if shared or storage.nbytes() > size else tensor
        where[name] = files
        held, total = held + size, total + size
    if not where:
        raise EngineFailure("there are no weights to push; train full weights, or set model.lora")
    flush()
    if files == 1:
        (folder / f"{stem}-00000.safetensors").rename(folder / f"{stem}.safetensors")
    else:
        finals = [f"{stem}-{k + 1:05d}-of-{files:05d}.safetensors" for k in range(files)]
        for k in range(files):
            (folder / f"{stem}-{k:05d}.safetensors").rename(folder / finals[k])
        index = {"metadata": {"total_size": total}, "weight_map": {n: finals[k] for n, k in where.items()}}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def _plain(value: Any) -> Any:
    """The JSON value of an enumeration or a set in a peft configuration."""
    return value.value if isinstance(value, Enum) else sorted(value)
