"""Self-play on a model that somebody else made: before and after, beside true labels, random rewards and no training.

    python benchmarks/real.py [--model DIR] [--out runs/real] [--print]
    python benchmarks/real.py --tasks sums opposites --arms vote gold --seeds 0 1 [--weights full] [--source mix:0.5]
    python benchmarks/real.py --base

Every row of the table is one ``lightning-serl fit`` in a separate folder below ``--out``. A run that was stopped goes
on where it stopped, a finished one is only printed, one that failed is a row with its error and is tried again. Without
``--tasks`` the rows are those of ``docs/real-model.md``. ``--base`` measures the untrained model on all tasks, and
``--print`` runs nothing. ``make real-model`` writes the default model.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import real_tasks

ROOT = Path(__file__).resolve().parents[1]
ARMS: dict[str, list[str]] = {
    "vote": [],
    "gold": [],  # the same command on seeds that have labels
    "random": ["--data.reward", "RandomReward"],
    "frozen": ["-c", "preset:control-frozen"],
}
# An adapter gets the default rate, on a base of bfloat16, which halves the time. Single steps of all weights would be
# lost in bfloat16, and their default rate, 1e-6, is meant for hundreds of steps.
WEIGHTS = {"lora": ["--model.lora.r", "16", "--model.dtype", "bfloat16"], "full": ["--model.lr", "1e-5"]}
MARKS = "<!-- rows of benchmarks/real.py -->", "<!-- end of the rows -->"
METRICS = {"greedy": "pass@1", "mean@k": "mean@k", "maj@k": "maj@k"}


@dataclass(frozen=True)
class Row:
    """One run: what is trained, on which problems, for which reward."""

    task: str
    arm: str = "vote"
    seed: int = 0
    weights: str = "lora"
    source: str = "seeds"
    engine: str = "default"

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return "-".join(str(part).replace(" ", "_").replace(":", "_") for part in asdict(self).values())


@dataclass(frozen=True)
class Settings:
    """What all rows share; everything else is the product's default."""

    model: str
    rounds: int = 16
    prompts: int = 8
    samples: int = 8
    measured: int = 4
    temperature: float = 0.7
    more: tuple[str, ...] = ()

    def options(self, task: real_tasks.Task) -> list[str]:
        """Options of the command line for every run on a task."""
        given: dict[str, Any] = {
            "model.model_name_or_path": self.model,
            "model.temperature": self.temperature,
            "data.max_tokens": task.tokens,
            "data.evaluation.temperature": self.temperature,
            "data.evaluation.samples": self.measured,
            "data.round.prompts_per_round": self.prompts,
            "data.round.samples_per_prompt": self.samples,
            "data.rounds_per_epoch": self.rounds,
            "trainer.max_epochs": 1,
        }
        if task.answer_format is not None:
            given["data.solve.answer_format"] = task.answer_format
        return [part for name, value in given.items() for part in (f"--{name}", str(value))] + list(self.more)


# The rows of docs/real-model.md.
TASKS = ("sums", "opposites", "letters")
DEFAULT_ROWS = [
    *(Row(task, seed=seed) for task in TASKS for seed in (0, 1, 2)),
    Row("opposites", source="mix:0.5"),
    *(Row(task, arm) for task in TASKS[:2] for arm in ("random", "frozen", "gold")),
]


def options_of(row: Row, settings: Settings, root: Path) -> list[str]:
    """The options of a row's run, after ``lightning-serl fit``; writes its problems."""
    task = real_tasks.TASKS[row.task]
    seeds, held_out = task.write(row.task, root / "problems", labelled=row.arm == "gold")
    given = [*settings.options(task), "--data.seeds", str(seeds), "--data.evaluation.sets.held_out", str(held_out)]
    given += ["--data.source", row.source, "--seed_everything", str(row.seed), *WEIGHTS[row.weights], *ARMS[row.arm]]
    return given if row.engine == "default" else [*given, "--data.engine", row.engine]


class Run:
    """A row's folder: ``run/`` is the run's own, ``options.json`` and ``result.json`` are this script's."""

    def __init__(self, row: Row, root: Path) -> None:
        self.row, self.folder = row, root / row.name

    @property
    def result(self) -> dict[str, Any] | None:
        """The figures, or ``error``; ``None`` before the run's end."""
        path = self.folder / "result.json"
        return json.loads(path.read_text()) if path.is_file() else None

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do; a failed run is tried again."""
        return self.result is not None and "error" not in self.result

    def check(self, options: list[str]) -> None:
        """Keep the run's options; exits if the folder was begun with others."""
        path = self.folder / "options.json"
        if path.is_file() and json.loads(path.read_text()) != options:
            sys.exit(f"{self.folder} was begun with other options; give them again, or another folder with --out")
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(options))

    def go_on(self, options: list[str]) -> None:
        """Begin the run, or continue it where it stopped, and keep its figures; weights are deleted at the end."""
        self.check(options)
        where = ["--trainer.default_root_dir", str(self.folder / "run"), "--ckpt_path", "last"]
        status = 0
        if not (self.folder / "run" / "summary.json").is_file():
            with (self.folder / "log.txt").open("a") as log:
                command = [sys.executable, "-m", "lightning_serl", "fit", *options, *where]
                status = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
        if status in (130, 143, -2, -15):
            sys.exit(f"{self.row.name} was stopped; the same command continues it")
        if status:
            result = {"error": (self.folder / "log.txt").read_text().strip().splitlines()[-1][-300:]}
        else:
            result = figures(self.folder / "run")
            for weights in ("export", "checkpoints"):
                shutil.rmtree(self.folder / "run" / weights, ignore_errors=True)
        (self.folder / "result.json").write_text(json.dumps(result, indent=1))


def figures(run: Path) -> dict[str, Any]:
    """Figures of a finished run: each metric with its interval before and after, and what was written and kept."""
    points = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluations = [p for p in points if "val/held_out/pass@1" in p]
    summary = json.loads((run / "summary.json").read_text())
    counts = {name: summary[name] for name in ("proposed", "kept", "trained", "rejected", "dropped", "rounds", "kl")}
    return {"before": shares(evaluations[0]), "after": shares(evaluations[-1]), **counts}


def shares(point: dict[str, float]) -> dict[str, list[float]]:
    """Each metric of an evaluation in per cent, with Wilson's 95 % interval for that many problems.

    For mean@k the interval is too wide rather than too narrow, since a problem's share varies less than one answer.
    """
    n, found = point["val/held_out/n"], {}
    for shown, name in METRICS.items():
        p, z = point[f"val/held_out/{name}"], 1.96
        middle, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        found[shown] = [100 * x for x in (p, (middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n))]
    return found


def table(runs: list[Run]) -> list[str]:
    """The rows as a markdown table."""
    lines = [
        "| task | reward | trained | problems | seed | greedy | mean@k | maj@k | written / kept |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return lines + [line_of(run) for run in runs if run.result is not None]


def line_of(run: Run) -> str:
    """One row of the table."""
    row, result = run.row, run.result or {}
    source = row.source if row.engine == "default" else f"{row.source}, {row.engine}"
    head = f"| {row.task} | {row.arm} | {row.weights} | {source} | {row.seed} | "
    if "error" in result:
        return f"{head}failed: {result['error']} | | | |"
    cells = [" → ".join(figure(result[when][shown]) for when in ("before", "after")) for shown in METRICS]
    lifts = [result["after"][shown][0] - result["before"][shown][0] for shown in METRICS]
    shown = " | ".join(f"{cell} ({lift:+.1f})" for cell, lift in zip(cells, lifts, strict=True))
    written = result["proposed"] if row.source != "seeds" else 0
    return f"{head}{shown} | {f'{written} / ' if written else ''}{result['kept']} |"


def figure(value: list[float]) -> str:
    """A percentage with its 95 % interval."""
    middle, low, high = value
    return f"{middle:.1f} [{low:.0f}, {high:.0f}]"


def verdicts(runs: list[Run]) -> list[str]:
    """The targets, each with what was reached: lifts are means over the seeds of the same task."""
    lifts: dict[tuple[str, str], dict[str, list[float]]] = {}
    for run in runs:
        result = run.result
        if result is None or "error" in result or run.row.weights != "lora":
            continue
        arm = run.row.arm if run.row.source == "seeds" else "written"
        for shown in METRICS:
            lift = result["after"][shown][0] - result["before"][shown][0]
            lifts.setdefault((arm, run.row.task), {}).setdefault(shown, []).append(lift)
    vote = {task: one for (arm, task), one in lifts.items() if arm == "vote"}
    better = sorted(task for task, one in vote.items() if mean(one["mean@k"]) >= 20)
    greedy = sorted(task for task, one in vote.items() if mean(one["greedy"]) >= 15)
    worst = min((lift for one in vote.values() for lift in one["greedy"]), default=0.0)
    written = [lift for (arm, _), one in lifts.items() if arm == "written" for lift in one["mean@k"]]
    controls = [lift for (arm, _), one in lifts.items() if arm in ("random", "frozen") for lift in one["mean@k"]]
    most = max(map(abs, controls), default=math.nan)
    checks = {
        f"vote: mean@k up by 20 on at least three tasks ({', '.join(better) or 'none'})": len(better) >= 3,
        f"vote: greedy up by 15 on at least two tasks ({', '.join(greedy) or 'none'})": len(greedy) >= 2,
        f"vote: greedy lower in no run (least {worst:+.1f})": worst >= 0,
        f"problems it wrote: mean@k up by 20 (most {max(written, default=0.0):+.1f})": max(written, default=0.0) >= 20,
        f"random and frozen: mean@k within 4 (most {most:.1f})": most <= 4,
    }
    return [f"- {'met' if met else 'MISSED'}: {text}" for text, met in checks.items()]


def put_into(page: Path, lines: list[str], marks: tuple[str, str] = MARKS) -> None:
    """Replace what a markdown page has between two marks."""
    before, _, rest = page.read_text("utf-8").partition(marks[0])
    after = rest.partition(marks[1])[2]
    page.write_text("\n".join([before + marks[0], *lines, marks[1] + after]), "utf-8")


def base_table(settings: Settings, names: list[str], root: Path, run_now: bool) -> list[str]:
    """Measures the untrained model on the held-out problems of tasks, or reads what was measured."""
    lines = ["| task | kind | greedy | mean@k | maj@k | agreement | no answer |", "|---|---|---|---|---|---|---|"]
    for name in names:
        task, folder = real_tasks.TASKS[name], root / "base" / name.replace(" ", "_")
        if run_now and not (folder / "evaluation.json").is_file():
            _, held_out = task.write(name, root / "problems")
            command = [sys.executable, "-m", "lightning_serl", "validate", *settings.options(task)]
            command += ["--data.evaluation.sets.held_out", str(held_out), "--trainer.default_root_dir", str(folder)]
            subprocess.run(command, check=False, capture_output=True)
        if (folder / "evaluation.json").is_file():
            one = json.loads((folder / "evaluation.json").read_text())["held_out"]
            cells = [f"{100 * one[key]:.1f}" for key in ("pass@1", "mean@k", "maj@k", "agreement", "no_answer")]
            lines.append(f"| {name} | {task.kind} | {' | '.join(cells)} |")
    return lines


def main() -> int:
    """Run what is missing and print the table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the run that is under way too
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "models" / "smollm2-135m-instruct"), help="directory or hub name")
    parser.add_argument("--out", type=Path, default=Path("runs/real"), help="folder of the runs")
    parser.add_argument("--tasks", nargs="+", choices=real_tasks.TASKS)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["vote"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=["lora"])
    parser.add_argument("--source", nargs="+", default=["seeds"], help="data.source: seeds, self, mix:SHARE")
    parser.add_argument("--engine", nargs="+", default=["default"], help="data.engine, such as VLLMEngine")
    parser.add_argument("--base", action="store_true", help="measure the untrained model alone")
    parser.add_argument("--print", action="store_true", help="run nothing")
    parser.add_argument("--rounds", type=int, default=Settings.rounds)
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="more options of lightning-serl fit")
    parser.add_argument("--into", type=Path, help="a markdown file; replaces what is between its two marks")
    args = parser.parse_args()
    if not (Path(args.model) / "config.json").is_file() and Path(args.model).is_absolute():
        parser.error(f"--model: no model in {args.model}; `make real-model` writes one")
    root = args.out.resolve()
    settings = Settings(args.model, args.rounds, more=tuple(args.options))
    if args.base:
        print("\n".join(base_table(settings, args.tasks or list(real_tasks.TASKS), root, not args.print)))
        return 0
    chosen = product(args.tasks or [], args.arms, args.seeds, args.weights, args.source, args.engine)
    runs = [Run(row, root) for row in ([Row(*one) for one in chosen] if args.tasks else DEFAULT_ROWS)]
    for run in [] if args.print else runs:
        if not run.finished:
            run.go_on(options_of(run.row, settings, root))
            print(line_of(run), flush=True)
    lines = [*table(runs), "", *verdicts(runs)]
    print("\n".join(lines))
    if args.into:
        put_into(args.into, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
