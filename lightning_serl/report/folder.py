"""Reads the files of a run folder, also those of a run that is still writing or was killed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lightning_serl.errors import InputError, short

#: Files by which a folder is known as a run.
_OF_A_RUN = ("ledger.jsonl", "metrics.jsonl", "evaluation.json")
#: Folder of the runs inside the folder of a comparison.
_ARMS = "arms"

Row = dict[str, Any]


@dataclass
class RunFolder:
    """What the files of one run hold.

    Attributes:
        root: The folder.
        label: What it is called beside other runs; by default the name of the folder.
        metrics: Rows of ``metrics.jsonl``.
        ledger: Rows of ``ledger.jsonl``.
        samples: Rows of ``samples.jsonl``.
        summary: ``summary.json``, empty before the end of the run.
        evaluation: ``evaluation.json``, the last evaluation by set.
        options: ``config.yaml``.
        unreadable: Lines that are no JSON objects, by file; a last line that a running process has not finished does
            not count.
    """

    root: Path
    label: str = ""
    metrics: list[Row] = field(default_factory=list)
    ledger: list[Row] = field(default_factory=list)
    samples: list[Row] = field(default_factory=list)
    summary: Row = field(default_factory=dict)
    evaluation: Row = field(default_factory=dict)
    options: Row = field(default_factory=dict)
    unreadable: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the run is called."""
        return self.label or self.root.absolute().name or str(self.root)

    def option(self, path: str, default: Any = None) -> Any:
        """An option by its dotted name, as in ``data.reward``."""
        found: Any = self.options
        for part in path.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return default if found is None else found

    @classmethod
    def read(cls, root: Path) -> RunFolder:
        """Read a folder; files that are absent are empty.

        Raises:
            InputError: if the folder holds no run, or a file cannot be opened.
        """
        if not is_run(root):
            raise InputError(
                f"report: {short(str(root))} is no run folder: it has no {' or '.join(_OF_A_RUN)}; name a folder that "
                "lightning-serl fit, validate or compare wrote"
            )
        run = cls(root)
        for name in ("metrics", "ledger", "samples"):
            rows: list[Row] = getattr(run, name)
            for row in _rows(root / f"{name}.jsonl"):
                if row is None:
                    run.unreadable[f"{name}.jsonl"] = run.unreadable.get(f"{name}.jsonl", 0) + 1
                else:
                    rows.append(row)
        run.summary, run.evaluation = _json(root / "summary.json"), _json(root / "evaluation.json")
        run.options = _yaml(root / "config.yaml")
        return run


def is_run(root: Path) -> bool:
    """Whether a folder holds the files of a run."""
    return any((root / name).is_file() for name in _OF_A_RUN)


def run_folders(given: str) -> list[Path]:
    """The run folders that an argument names: one, or all of a comparison that have begun.

    Raises:
        InputError: if there is none.
    """
    root = Path(given).expanduser()
    if not root.exists():
        raise InputError(f"report: there is no folder {short(given)}; name a run folder, such as those under runs/")
    if root.is_file():
        raise InputError(f"report: {short(given)} is a file; name the run folder that holds it")
    arms = root / _ARMS
    if not is_run(root) and arms.is_dir() and (found := sorted(p for p in arms.iterdir() if is_run(p))):
        return found
    if not is_run(root) and (meant := runs_inside(root)):
        raise InputError(f"report: {short(given)} is no run folder{meant}")
    return [root]


def labels_of(folders: Sequence[Path]) -> list[str]:
    """What runs are called: the names of their folders, or where these are equal, what distinguishes their paths.

    A folder that is called ``run`` is named by the one around it.
    """
    paths = [list(folder.absolute().parts) for folder in folders]
    if len(set(map(tuple, paths))) < len(paths) or len({path[-1] for path in paths}) == len(paths):
        return ["/".join(path[-2 if path[-1] == "run" else -1 :]) for path in paths]
    while len({path[-1] for path in paths}) == 1:
        paths = [path[:-1] for path in paths]
    while len({path[0] for path in paths}) == 1 and min(map(len, paths)) > 1:
        paths = [path[1:] for path in paths]
    return ["/".join(path) for path in paths]


def runs_inside(root: Path, part: str = "") -> str:
    """``; did you mean RUN?`` with the runs in a folder and in its folders, the last changed first; else empty.

    ``part`` is a folder of a run that must be there, such as ``export``, and is named with it.
    """
    places = (one for pattern in ("*", "*/*") for one in root.glob(pattern) if is_run(one) and (one / part).is_dir())
    found = sorted(places, key=lambda one: one.stat().st_mtime_ns, reverse=True)
    if not found:
        return ""
    shown = " or ".join(short(str(one / part)) for one in found[:2])
    return f"; did you mean {shown}{f', or another of the {len(found)} runs in it' if len(found) > 2 else ''}?"


def _rows(path: Path) -> Iterator[Row | None]:
    """The objects of a jsonl file in order, ``None`` for a line that is none."""
    for line in _bytes(path).split(b"\n"):
        if not line.strip():
            continue
        try:
            # a line of the last write may be torn; bytes that are no UTF-8 must not hide the rest of a file
            row = json.loads(line.decode("utf-8", errors="replace"))
        except (ValueError, RecursionError):
            row = None
        yield row if isinstance(row, dict) else None


def _bytes(path: Path) -> bytes:
    """The content of a file up to its last whole line; empty if there is none."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise InputError(
            f"report: {short(str(path))} cannot be read ({error.strerror}); fix its permissions"
        ) from error
    return data[: data.rfind(b"\n") + 1]


def _json(path: Path) -> Row:
    """A JSON object; empty if the file is absent or damaged."""
    try:
        found = json.loads(path.read_bytes().decode("utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _yaml(path: Path) -> Row:
    """A mapping; empty if the file is absent or damaged."""
    try:
        found = yaml.load(path.read_bytes().decode("utf-8", errors="replace"), _LOADER)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


# the loader in C is ten times as fast, where libyaml is there
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
