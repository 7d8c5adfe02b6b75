"""The folder of a comparison: the state of each arm, and what its run folder holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_serl.callbacks.run_folder.comparison_record import AFTER, BEFORE, FACTS
from lightning_serl.checkpoints.atomic_write import write_whole
from lightning_serl.cli.methods import Method
from lightning_serl.errors import InputError
from lightning_serl.evaluation.comparison import Arm, read_graded

RESULT, TABLE, PICTURE = "comparison.json", "comparison.md", "comparison.png"
_ARMS, _STATE, _LOG = "arms", "arm.json", "log.txt"


@dataclass(frozen=True)
class Run:
    """One arm: a method, a run seed, its run folder, and its options of ``fit``."""

    method: Method
    seed: int
    folder: Path
    arguments: tuple[str, ...]
    options: Mapping[str, Any]

    @property
    def log(self) -> Path:
        """Output of its process."""
        return self.folder / _LOG

    @property
    def ended(self) -> bool:
        """Whether it is done, or failed in a way that would come again."""
        state = _read(self.folder / _STATE).get("state")
        return state in ("done", "failed") or (self.folder / "summary.json").exists()

    @property
    def figures(self) -> str:
        """Greedy pass@1 before and after on the first set, for the terminal; empty without both."""
        arm = _arm(self.folder, self.method.label, self.seed, self.method.control)
        name = next(iter(arm.after), None)
        if name is None or name not in arm.before:
            return ""
        both = (100 * float(one[name].figures["pass@1"].mean()) for one in (arm.before, arm.after))
        return f"{name} {' → '.join(f'{value:.1f}' for value in both)} %, "

    def note(self, state: str, reason: str = "", seconds: float = 0.0) -> None:
        """Write its state: ``running``, ``done``, ``failed``, ``interrupted`` or ``killed``; seconds add up."""
        seconds += _read(self.folder / _STATE).get("seconds", 0.0)
        facts = {"method": self.method.label, "seed": self.seed, "control": self.method.control}
        facts |= {"state": state, "reason": reason, "seconds": round(seconds, 2), "options": dict(self.options)}
        write_json(self.folder / _STATE, facts)

    def check_options(self) -> None:
        """Refuse options that differ from those that the arm was begun with; the InputError names one."""
        former = _read(self.folder / _STATE).get("options")
        if former is None:
            return
        now = json.loads(json.dumps(self.options))
        for name in sorted({*former, *now}):
            if former.get(name) != now.get(name):
                was, given = (json.dumps(one.get(name))[:60] for one in (former, now))
                raise InputError(
                    f"{name} is {given} but was {was} when {self.method.label} ran in this comparison; give the former "
                    f"options, another --trainer.default_root_dir, or remove {str(self.folder)[-80:]}"
                )


def folder_of(root: Path, method: Method, seed: int) -> Path:
    """The run folder of an arm."""
    return root / _ARMS / f"{method.folder}-{seed}"


def check_folder(root: Path) -> None:
    """Refuse a folder that holds something else than a comparison."""
    if root.is_file():
        raise InputError(f"--trainer.default_root_dir {root} is a file; name a folder for the comparison")
    if (root / "ledger.jsonl").exists():
        raise InputError(f"{root} holds a run, not a comparison; name another --trainer.default_root_dir")
    if root.is_dir() and any(root.iterdir()) and not (root / _ARMS).is_dir():
        raise InputError(f"{root} holds other files; name a new --trainer.default_root_dir for the comparison")


def arms_of(root: Path, runs: list[Run]) -> list[Arm]:
    """What is known of every arm: first those of the command in its order, then others that the folder holds."""
    folders = {run.folder: run for run in runs}
    order = [run for run in runs if not run.method.control] + [run for run in runs if run.method.control]
    found = [_arm(run.folder, run.method.label, run.seed, run.method.control) for run in order]
    for state in sorted((root / _ARMS).glob(f"*/{_STATE}")):
        if state.parent not in folders:
            facts = _read(state)
            found.append(_arm(state.parent, facts["method"], facts["seed"], facts["control"]))
    return [arm for arm in found if not arm.control] + [arm for arm in found if arm.control]


def _arm(folder: Path, method: str, seed: int, control: bool) -> Arm:
    facts, record, summary = (_read(folder / name) for name in (_STATE, FACTS, "summary.json"))
    state = "done" if summary else facts.get("state", "waiting")
    state = {"running": "interrupted", "killed": "failed"}.get(state, state)
    before, after = (read_graded(_rows(folder / name)) for name in (BEFORE, AFTER))
    if facts.get("state") == "killed":
        after = {}  # an evaluation in the middle of the run
    return Arm(
        method,
        seed,
        control,
        state,
        facts.get("reason", ""),
        before,
        after,
        record.get("rounds", 0),
        record.get("tokens"),
        summary.get("seconds", facts.get("seconds")),
        tuple(record.get("health", ())),
        _learning_rate(folder / "metrics.jsonl") if summary else None,
    )


def _learning_rate(metrics: Path) -> float | None:
    """The largest learning rate of a run that has ended."""
    return max((row["learning_rate"] for row in _rows(metrics) if "learning_rate" in row), default=None)


def _read(path: Path) -> dict[str, Any]:
    """A JSON file; empty if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one step."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step."""
    write_whole(path, lambda file: file.write(text.encode("utf-8", errors="backslashreplace")))
