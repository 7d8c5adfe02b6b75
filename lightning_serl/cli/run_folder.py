"""Chooses, checks and locks the run folder, and finds its last checkpoint."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from lightning_serl.cli.exit_status import _Watch
from lightning_serl.errors import InputError

_RUN_VARIABLE = "LIGHTNING_SERL_RUN"


def _run_folder(given: Any) -> Path:
    """The run folder: what the user named, else a new one under ``runs/``; equal on all processes of a run."""
    if given is not None:
        return Path(str(given)).expanduser().absolute()
    shared = os.environ.get(_RUN_VARIABLE)
    if shared:
        return Path(shared)
    name = datetime.now().strftime("%Y%m%d-%H%M%S")
    root = Path("runs") / name
    number = 1
    while root.exists():
        number += 1
        root = Path("runs") / f"{name}-{number}"
    os.environ[_RUN_VARIABLE] = str(root.absolute())
    return root.absolute()


def _leads() -> bool:
    """Whether this is the first process of the run, as torchrun, SLURM or Lightning number them."""
    names = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    return not any(int(os.environ.get(name, "0")) for name in names)


def _check_run_folder(root: Path, command: str, ckpt_path: Any) -> None:
    if not _leads():
        return  # the first process has looked, and may be writing by now
    if command == "fit" and ckpt_path is None and (root / "ledger.jsonl").exists():
        raise InputError(
            f"{root} holds a run already; continue it with --ckpt_path last, or name another --trainer.default_root_dir"
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"the run folder {root} cannot be written: {why}; name another one") from error


def _take(root: Path) -> int | None:
    """Keep every other fit out of a folder until the returned descriptor is closed, or this process ends in any way."""
    try:
        import fcntl
    except ImportError:
        return None  # Windows
    folder = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(folder)
        if isinstance(error, BlockingIOError):
            raise InputError(
                f"another fit is at work in {root}; wait until it has ended, or name another --trainer.default_root_dir"
            ) from error
        return None  # a file system without locks
    return folder


def _last_checkpoint(root: Path, command: str) -> str | None:
    """The checkpoint that ``last`` means; ``None`` for a run that ended before its first one, so it begins again."""
    last = root / "checkpoints" / "last.ckpt"
    if last.exists():
        return str(last)
    # a run killed after its first checkpoint was written and before it was written a second time as the last one
    steps = sorted(last.parent.glob("step=*.ckpt"), key=lambda p: p.stat().st_mtime_ns)
    others = sorted(p.name for p in last.parent.glob("*.ckpt"))
    if steps and len(steps) == len(others):
        print(f"there is no {last.name} in {last.parent}; continuing from {steps[-1].name}", file=sys.stderr)
        return str(steps[-1])
    if others:
        raise InputError(
            f"--ckpt_path last: there is no {last}, but there is {', '.join(others)}; name the file to use"
        )
    finished = (root / "summary.json").exists() or (root / "export").exists()
    if command != "fit" or finished or not (root / "config.yaml").exists():
        raise InputError(f"--ckpt_path last: there is no {last}; check --trainer.default_root_dir")
    print(f"{root} holds a run that ended before its first checkpoint; it begins again", file=sys.stderr)
    return None  # its ledger, metrics and samples are set aside when training begins


def _leave_no_trace(watch: _Watch) -> None:
    """A command that was refused leaves the run folder as it was; ours may be the folder of an earlier run."""
    if watch.config is not None:
        target, former = watch.config
        if former is None:
            target.unlink(missing_ok=True)
        else:
            target.write_bytes(former)
    if watch.root is not None and watch.root.is_dir() and not any(watch.root.iterdir()):
        watch.root.rmdir()
