"""What a command leaves behind: chooses, checks and locks the run folder, and finds its last checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lightning_serl.errors import InputError
from lightning_serl.report.folder import runs_inside

#: Environment variable that gives the run folder to the processes that this one starts.
VARIABLE = "LIGHTNING_SERL_RUN"


@dataclass
class CommandState:
    """How far a command came, and what it left behind."""

    began: bool = False  # whether work began: the first rollout of any stage
    trained: bool = False  # whether a fit took a step
    ended_by: BaseException | None = None  # the exception that ended the Trainer's work
    run_folder: Path | None = None  # once it is chosen
    hung_up: bool = False  # whether the terminal was closed (SIGHUP), which ends a command as SIGTERM does
    command: str = ""  # fit, validate, test or predict
    lock: int | None = None  # descriptor that locks the run folder; the end of the process releases it
    children: Callable[[], list[subprocess.Popen[bytes]]] = list  # the processes of further ranks, once there are any
    written_config: tuple[Path, bytes | None] | None = None  # the `config.yaml` that was written, and what it replaced


def choose(given: Any) -> Path:
    """``trainer.default_root_dir`` if given, else a new folder under ``runs/``; equal on all processes of a run."""
    if given is not None:
        return Path(str(given)).expanduser().absolute()
    shared = os.environ.get(VARIABLE)
    if shared:
        return Path(shared)
    name = Path("runs").absolute() / datetime.now().strftime("%Y%m%d-%H%M%S")
    root, number = name, 1
    while root.exists():
        number += 1
        root = name.with_name(f"{name.name}-{number}")
    os.environ[VARIABLE] = str(root)
    return root


def is_first_process() -> bool:
    """Whether this is the first process of the run, as torchrun, SLURM or Lightning number them."""
    names = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    return not any(int(os.environ.get(name, "0")) for name in names)


def check(root: Path, command: str, ckpt_path: Any) -> None:
    """Refuse a folder that holds another run, and one that cannot be written; creates it."""
    if not is_first_process():
        return  # the first process has checked it, and may be writing already
    if command == "fit" and ckpt_path is None and (root / "ledger.jsonl").exists():
        raise InputError(
            f"{root} holds a run already; continue it with --ckpt_path last, or name another --trainer.default_root_dir"
        )
    try:
        place = next(one for one in (root, *root.parents) if one.exists())
        if not place.is_dir():
            said = f"the run folder {root} cannot be written, because {place} is a file"
            raise InputError(f"{said}; name another --trainer.default_root_dir")
        root.mkdir(parents=True, exist_ok=True)
        probe = root / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        said = f"the run folder {root} cannot be written: {error.strerror or error}"
        raise InputError(f"{said}; name another --trainer.default_root_dir") from error


def lock(root: Path) -> int | None:
    """Exclude every other fit from a folder until the returned descriptor is closed or this process ends.

    ``None`` where the system or the file system has no locks; an InputError if another fit holds the folder.
    """
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
                f"another fit is running in {root}; wait until it ends, or name another --trainer.default_root_dir"
            ) from error
        return None
    return folder


def in_use(root: Path) -> bool:
    """Whether a fit is running in a folder; ``False`` where that cannot be found out."""
    try:
        descriptor = lock(root)
    except InputError:
        return True
    except OSError:
        return False
    if descriptor is not None:
        os.close(descriptor)
    return False


def last_checkpoint(root: Path, command: str) -> str | None:
    """The checkpoint that ``--ckpt_path last`` means; ``None`` if there is none yet, so that the run begins.

    One command then serves a job that may be killed at any time. An InputError if the folder holds a finished run
    without a checkpoint, or checkpoints of other names, and if the command is not ``fit``.
    """
    last = root / "checkpoints" / "last.ckpt"
    if last.exists():
        return str(last)
    # a checkpoint is written twice, last.ckpt second: the run may have been killed in between
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
    if command != "fit" or finished:
        meant = runs_inside(root) or "; check --trainer.default_root_dir"
        raise InputError(f"--ckpt_path last: there is no {last}{meant}")
    if not is_first_process():
        return None  # the first process says it, and may be writing already
    if (root / "config.yaml").exists() or (root / "ledger.jsonl").exists():
        # its ledger, metrics and samples are renamed when training begins
        print(f"{root} holds a run that ended before its first checkpoint; it begins again", file=sys.stderr)
    else:
        print(f"--ckpt_path last: there is no checkpoint in {root} yet; the run begins", file=sys.stderr)
    return None


def restore(root: Path | None, written_config: tuple[Path, bytes | None] | None) -> None:
    """Undo what a refused command did to the run folder, which may be that of an earlier run; removed if empty."""
    if written_config is not None:
        target, former = written_config
        if former is None:
            target.unlink(missing_ok=True)
        else:
            target.write_bytes(former)
    if root is not None and root.is_dir() and not any(root.iterdir()):
        root.rmdir()
