"""Checks of checkpoints before anything is restored from them, so that a damaged one leaves no run half restored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from math import isclose
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch

from lightning_serl.checkpoints.module_state import check_kind
from lightning_serl.checkpoints.serialize import load_completion, load_instruction, load_pair
from lightning_serl.errors import InputError
from lightning_serl.pool.pool import STATUSES
from lightning_serl.types import RolloutBatch

_ADVICE = "give another file, or begin a new run"
# Parts of every Lightning checkpoint, and further parts of one that a fit can continue from.
_PARTS: dict[str, type] = {"pytorch-lightning_version": str, "state_dict": dict}
_FIT_PARTS: dict[str, type] = {"loops": dict, "callbacks": dict, "optimizer_states": list, "lr_schedulers": list}
_COUNTERS = ("seed", "rounds", "steps_per_round", "first_round")
_COLUMNS = {"prompts": str, "uids": str, "roles": str, "metas": dict, "statuses": str}


def check_checkpoint(path: Path, command: str) -> None:
    """Refuse a checkpoint file that the command cannot restore from.

    Only tensors and plain values are loaded, and no code in the file runs. Unknown parts are ignored, since a later
    version may have added them, and so is the content of a sharded checkpoint's directory. ``fit`` needs more parts.
    """
    if not path.exists():
        raise InputError(f"--ckpt_path {path} does not exist; give a file, or last")
    if path.is_dir():
        if not (path / ".metadata").is_file():
            raise InputError(f"--ckpt_path {path} is a directory without a checkpoint in it; give a file, or last")
        return
    if not is_zipfile(path):
        raise InputError(f"--ckpt_path {path} is no checkpoint, or a damaged one; {_advice(path)}")
    check_sums(path, f"--ckpt_path {path}", _advice(path))
    try:
        # mapped, so that the weights of a large model are not read here
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # damaged files raise many kinds of error
        raise InputError(
            f"--ckpt_path {path} cannot be read: it is damaged, or holds more than tensors and plain values "
            f"({type(error).__name__}); {_advice(path)}"
        ) from error
    if not isinstance(checkpoint, Mapping):
        raise InputError(f"--ckpt_path {path} is no checkpoint of a run but {type(checkpoint).__name__}; {_ADVICE}")
    wanted = _PARTS | (_FIT_PARTS if command == "fit" else {})
    for name, kind in wanted.items():
        if not isinstance(checkpoint.get(name), kind):
            problem = "lacks" if name not in checkpoint else "has a damaged part"
            raise InputError(f"--ckpt_path {path} {problem} {name!r}, so {command} cannot use it; {_ADVICE}")
    state = checkpoint.get("SelfPlayDataModule")
    if state:
        check_stream_state(state, f"--ckpt_path {path}")
    elif command == "fit" and checkpoint.get("global_step"):
        # its rounds would be played, and written to the ledger, a second time
        raise InputError(f"--ckpt_path {path} does not say which rounds were played; {_ADVICE}")


def check_sums(path: Path, where: str, advice: str = _ADVICE) -> None:
    """Compare every byte with the checksums in the file, which torch writes but does not check.

    If they differ, or the file cannot be read to its end, the InputError names it ``where`` and gives the ``advice``.
    """
    facts = path.stat()
    damage = _damage(path, facts.st_mtime_ns, facts.st_size)
    if damage is not None:
        raise InputError(f"{where} is damaged ({damage}); {advice}")


@lru_cache(maxsize=8)
def _damage(path: Path, changed: int, size: int) -> str | None:
    """What is wrong with an archive, if anything; cached, since both the command line and the Trainer check it."""
    try:
        with ZipFile(path) as file:
            damaged = file.testzip()
    except (BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        return type(error).__name__
    return None if damaged is None else f"{Path(damaged).name} is not what was written"


def _advice(path: Path) -> str:
    """What to do about a damaged checkpoint: the newest undamaged one of its folder is named, if there is one."""
    others = [p for p in path.parent.glob("*.ckpt") if p != path and p.is_file()]
    for other in sorted(others, key=lambda p: p.stat().st_mtime, reverse=True):
        try:
            check_sums(other, other.name)
        except InputError:
            continue
        return f"{other.name} in the same folder is undamaged; give that"
    return _ADVICE


def check_stream_state(state: Any, where: str = "the checkpoint") -> None:
    """Refuse a state of ``SelfPlayDataModule`` that could not be restored completely; further entries are ignored."""
    if not isinstance(state, Mapping):
        raise InputError(f"{where} holds {type(state).__name__} in place of the state of the rounds; {_ADVICE}")
    checks: dict[str, Callable[[Any], bool]] = dict.fromkeys(_COUNTERS, _is_count)
    checks |= {"first_step": lambda v: v is None or _is_count(v), "source": lambda v: isinstance(v, Mapping)}
    checks |= {"pool": _is_pool, "queue": _is_queue, "pending": _is_pending}
    for name, sound in checks.items():
        if name not in state:
            raise InputError(f"{where} lacks {name!r} in the state of the rounds; {_ADVICE}")
        if not sound(state[name]):
            raise InputError(
                f"{where} has a damaged {name!r} in the state of the rounds, or one of another version; {_ADVICE}"
            )
    for name, sound in {"carried": _is_carried, "ahead": _is_ahead}.items():
        if name in state and not sound(state[name]):
            raise InputError(f"{where} has a damaged {name!r} in the state of the rounds; {_ADVICE}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_pool(pool: Any) -> bool:
    """Whether its columns have one length and the right types, with no uid twice."""
    if not isinstance(pool, Mapping) or not all(isinstance(pool.get(name), list) for name in _COLUMNS):
        return False
    typed = all(isinstance(value, kind) for name, kind in _COLUMNS.items() for value in pool[name])
    return (
        typed
        and len({len(pool[name]) for name in _COLUMNS}) == 1
        and set(pool["statuses"]) <= set(STATUSES)
        and len(set(pool["uids"])) == len(pool["uids"])
    )


def _is_queue(queue: Any) -> bool:
    """Whether its instructions can be rebuilt."""
    try:
        made = [load_instruction(facts) for facts in queue]
    except (TypeError, AttributeError):
        return False
    return all(isinstance(i.prompt, str) and isinstance(i.uid, str) and isinstance(i.meta, Mapping) for i in made)


def _is_pending(pending: Any) -> bool:
    """Whether its micro-batches can be rebuilt, rank by rank."""
    try:
        batches = [RolloutBatch.from_state_dict(batch) for one in pending for batch in one]
    except TypeError:
        return False
    return all(isinstance(b.input_ids, torch.Tensor) and isinstance(b.advantages, torch.Tensor) for b in batches)


def _is_carried(carried: Any) -> bool:
    """Whether its groups can be rebuilt."""
    try:
        return all(
            _is_count(one["round"]) and _is_count(one["step"]) and all(load_pair(pair) for pair in one["pairs"])
            for one in carried
        )
    except (KeyError, TypeError, ValueError):
        return False


def _is_ahead(ahead: Any) -> bool:
    """Whether the completions written ahead for the next round, if there are any, can be rebuilt."""
    try:
        return ahead is None or (
            _is_count(ahead["step"]) and all(load_completion(c) for _, w in ahead["written"] for c in w)
        )
    except (KeyError, TypeError, ValueError):
        return False


def check_overrides(optimizer: torch.optim.Optimizer, ckpt_path: Any) -> None:
    """Refuse another optimizer, or the first option that the checkpoint's would replace without a message."""
    if ckpt_path is None or not Path(ckpt_path).is_file():
        return
    try:
        checkpoint = torch.load(ckpt_path, map_location="cpu", mmap=True, weights_only=True)
        stored = checkpoint["optimizer_states"][0]["param_groups"][0]
    except Exception:  # it is refused where it is restored
        return
    check_kind(checkpoint, optimizer)
    scheduled = {"betas", "momentum"} if "initial_lr" in optimizer.param_groups[0] else set()
    for name in sorted(set(optimizer.defaults) - scheduled):
        # a scheduler keeps the initial value under another name
        here = optimizer.param_groups[0].get(f"initial_{name}", optimizer.param_groups[0][name])
        there = stored.get(f"initial_{name}", stored.get(name))
        there = tuple(there) if isinstance(there, list) else there
        if name == "lr" and isinstance(there, float):
            there /= _lowered(checkpoint)
        if name == "lr" and isinstance(there, float) and isclose(here, there, rel_tol=1e-9):
            continue
        if isinstance(here, (int, float, tuple)) and there is not None and here != there:
            raise InputError(
                f"model.optimizer has {name} {here} but the checkpoint was made with {there}, which would win; "
                "give that value, or begin a new run"
            )


def _lowered(checkpoint: Mapping[str, Any]) -> float:
    """What ``CollapseGuard`` has multiplied the learning rate of a checkpoint's run by."""
    states = checkpoint.get("callbacks", {}).values()
    return float(next((state["lowered"] for state in states if isinstance(state, Mapping) and "lowered" in state), 1.0))
