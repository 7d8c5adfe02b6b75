"""What each part of SeRL is worth: ``preset:world`` whole and with every part left out in turn.

    python benchmarks/worth.py [--worlds 0] [--seeds 0 1 2 3 4] [--arms full "no KL"] [--out runs/worth] [--options ...]

A world other than 0, which is in the package, is built first in ``--out`` (600 steps of one core): it has
another base, and other skills have the habits and are in the seeds. Runs are made one after another in this process; a
run that is in ``--out`` already is read, and one that was interrupted goes on. Prints one row for each arm: the mean
over worlds and run seeds, and the paired difference to ``full`` with its 95 % interval, which resamples problems and
runs (``lightning_serl.evaluation.comparison``).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lightning_serl.callbacks.run_folder.comparison_record import AFTER, BEFORE
from lightning_serl.cli import main as lightning_serl
from lightning_serl.evaluation.comparison import interval
from lightning_serl.tiny.build import build

FILTERS = "lightning_serl.callbacks."


def filters(*names: str) -> list[str]:
    """Options that put these filters in place of SeRL's three."""
    return [word for name in names for word in ("--trainer.callbacks+", f"{FILTERS}{name}")]


FULL = "full"
ARMS = {
    FULL: [],
    "no self-instruction": ["--data.source", "seeds"],
    "no seeds in the mixture": ["--data.source", "self"],
    "no novelty filter": filters("QualityFilter", "DifficultyFilter"),
    "no difficulty band": filters("QualityFilter", "NoveltyFilter"),
    "no vote threshold": ["--data.reward.init_args.min_share", "0"],
    "no KL": ["--model.objective.beta", "0"],
    "true answers": ["--data.reward", "oracle.WorldAnswer"],
    "random reward": ["--data.reward", "RandomReward"],
}
SETS = ("seeded", "unseeded")
Row = dict[str, object]


def data_of(world: int, root: Path) -> list[str]:
    """The options that choose a world, which is built if it is not there."""
    if world == 0:
        return []
    base = root / f"world-{world}"
    if not (base / "unseeded.jsonl").is_file():
        build(world, base, task="world")
    sets = [word for name in SETS for word in (f"--data.evaluation.sets.{name}", str(base / f"{name}.jsonl"))]
    return ["--model.model_name_or_path", str(base), "--data.seeds", str(base / "seeds.jsonl"), *sets]


def run(arm: str, world: int, seed: int, root: Path, options: list[str]) -> Path:
    """The folder of one run, which is made, continued or found."""
    folder = root / f"{arm.replace(' ', '-')}-{world}-{seed}"
    if (folder / "summary.json").is_file():
        return folder
    command = ["fit", "-c", "preset:world", *data_of(world, root), "--ckpt_path", "last"]
    command += ["--seed_everything", str(seed), "--trainer.default_root_dir", str(folder), "--data.probe.every", "0"]
    command += ["--trainer.callbacks+", f"{FILTERS}ComparisonRecord", *ARMS[arm], *options]
    folder.mkdir(parents=True, exist_ok=True)
    kept, began = dict(os.environ), time.process_time()
    try:
        with (folder / "log.txt").open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            status = lightning_serl(command)
    finally:
        os.environ.clear()
        os.environ.update(kept)
    if status:
        sys.exit(f"{arm}, world {world}, seed {seed} failed: {(folder / 'log.txt').read_text().splitlines()[-1]}")
    (folder / "processor_seconds.txt").write_text(f"{time.process_time() - began:.1f}\n")
    print(f"{folder.name}: {100 * figure(read(folder, AFTER), 'mean').mean():.1f}", file=sys.stderr, flush=True)
    return folder


def read(folder: Path, name: str) -> list[Row]:
    """The graded problems of a run, one of the two files of ``ComparisonRecord``."""
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def figure(rows: list[Row], name: str) -> np.ndarray:
    """(n,) share of right samples by problem (``mean``), or whether the greedy answer is right (``greedy``)."""
    values = [np.mean(row["right"]) if name == "mean" else float(bool(row["greedy_right"])) for row in rows]
    return np.array(values, dtype=np.float64)


def same_options(root: Path, options: list[str]) -> None:
    """End with an error if the folder's runs were made with other options."""
    file = root / "options.json"
    if file.is_file() and json.loads(file.read_text()) != options:
        sys.exit(f"{file} holds other --options than these; give another folder with --out")
    root.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(options))


def cells(tables: dict[str, np.ndarray], arm: str, part: np.ndarray) -> list[str]:
    """The mean of an arm over the problems of ``part``, and its paired difference to ``full``."""
    mine = tables[arm][:, part]
    said = [f"{100 * mine.mean():.1f}"]
    if arm == FULL or FULL not in tables:
        return [*said, ""]
    difference = 100 * (mine - tables[FULL][:, part])
    low, high = interval(difference)
    clear = " *" if low > 0 or high < 0 else ""
    return [*said, f"{difference.mean():+.1f} [{low:+.1f}, {high:+.1f}]{clear}"]


def report(runs: dict[str, list[Path]]) -> None:
    """Print the table; a star marks an interval without zero."""
    first = next(iter(runs.values()))
    begun = [read(folder, BEFORE) for folder in first]
    of = np.array([row["set"] for row in begun[0]])
    everything = {
        name: {
            "base": np.stack([figure(rows, name) for rows in begun]),
            **{arm: np.stack([figure(read(folder, AFTER), name) for folder in some]) for arm, some in runs.items()},
        }
        for name in ("mean", "greedy")
    }
    parts = {"all": of != "", **{name: of == name for name in SETS}}
    heads = [f"{word}{name}" for name in parts for word in ("", "− full, ")] + ["greedy", "− full, greedy"]
    print(f"| arm | {' | '.join(heads)} | by run |")
    print("|---" * (len(heads) + 2) + "|")
    for arm in ("base", *runs):
        row = [cell for part in parts.values() for cell in cells(everything["mean"], arm, part)]
        row += cells(everything["greedy"], arm, parts["all"])
        by_run = " ".join(f"{100 * value:.1f}" for value in everything["mean"][arm].mean(axis=1))
        print(f"| {arm} | {' | '.join(row)} | {by_run} |")
    print(f"\n{len(first)} runs per arm; mean share of right samples in %, the last but two greedy accuracy.")


def main() -> int:
    """Run all arms and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, nargs="+", default=[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--out", type=Path, help="folder for the runs (default: a temporary one)")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="more options for every run")
    args = parser.parse_args()
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)  # their handlers keep the terminal, whatever is redirected
    root = args.out or Path(tempfile.mkdtemp(prefix="worth-"))
    same_options(root, args.options)
    runs: dict[str, list[Path]] = {arm: [] for arm in args.arms}
    for world in args.worlds:
        for seed in args.seeds:
            for arm in args.arms:
                runs[arm].append(run(arm, world, seed, root, args.options))
    report(runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
