"""Writes ``summary.json``, ``evaluation.json`` and ``curves.png``, and prints a table at the end of a run."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from rich.console import Console
from rich.table import Table

from lightning_serl.callbacks.health import Health
from lightning_serl.callbacks.rollout_hooks import RolloutHooks
from lightning_serl.callbacks.run_folder.ledger import Ledger
from lightning_serl.callbacks.run_folder.phase_clock import duration, plain
from lightning_serl.callbacks.run_folder.profile import RoundProfile, in_words, peak_memory, shares, shares_sentence
from lightning_serl.callbacks.time_advice import DOMINATES, advice, situation_of
from lightning_serl.checkpoints.atomic_write import write_whole
from lightning_serl.protocols import Reports, module_of
from lightning_serl.types import Round

#: The picture of the curves in the run folder.
PICTURE = "curves.png"
Results = dict[str, Mapping[str, Any]]  # by set
# Panels of the curves, and the metrics of each as a pattern.
_PANELS = {
    "accuracy on held-out problems": r"val/.*/(pass@1|mean@k|maj@k)",
    "agreement and answers": r"serl/(vote/agreement_mean|vote/no_answer_frac|filter/yield)",
    "KL to the starting policy": "kl",
    "length of answers, tokens": "completions/mean_length",
}


class Summary(RolloutHooks):
    """Compares the first evaluation of a run with the last, and sums up what became of the written problems."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Results = {}  # of the first evaluation
        self.after: Results = {}  # of the last
        self._first_round: dict[str, float] = {}
        self._seconds = 0.0
        self._times: dict[str, float] = {}  # seconds of each part before the run was resumed
        self._taken = self._given = 0  # seeds and problems of the user's own source among the proposals
        self._began: float | None = None
        self._trainer: pl.Trainer | None = None  # of the fit
        self._first_step: int | None = None
        self.deferred = False  # set it to evaluate once more after the fit, and then call `finish`

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._began, self._trainer = time.monotonic(), trainer

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the step that this fit starts from."""
        self._first_step = trainer.global_step

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the results and write ``evaluation.json``, after ``validate`` ``evaluation_items.jsonl`` too."""
        if trainer.sanity_checking:
            return
        results = dict(module_of(trainer).last_results)
        if not self.before and trainer.global_step == 0:  # later on, the policy has been trained already
            self.before = results
        self.after = results
        if trainer.state.fn == "validate":
            self._write_evaluation(trainer)
        elif trainer.is_global_zero and not trainer.fast_dev_run:
            _write_json(Path(trainer.default_root_dir) / "evaluation.json", dict(module_of(trainer).last_report))

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the same files as after ``validate``."""
        self._write_evaluation(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the metrics of the first step, which take the place of a first evaluation where there is none."""
        if not self._first_round:
            self._first_round = dict(_ledger(trainer).last_metrics)

    def on_round_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, played: Round) -> None:
        """Count the seeds among the proposals; the ledger counts them together with written problems."""
        self._taken += played.taken
        self._given += played.given

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print what the stream has to report."""
        stream = trainer.predict_dataloaders
        if trainer.is_global_zero and isinstance(stream, Reports):
            Console(file=sys.stdout, highlight=False).print(stream.last_line(), soft_wrap=True, markup=False)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the files and print the table."""
        if not self.deferred:
            self.finish(trainer)

    def finish(self, trainer: pl.Trainer) -> None:
        """Write the files and print the table, on rank 0."""
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        if self._first_step == trainer.global_step:
            rank_zero_warn(
                "no optimizer step was made: the run had ended before; raise trainer.max_epochs (or trainer.max_steps) "
                "to go on"
            )
        root = Path(trainer.default_root_dir)
        summary = self.summarise(trainer)
        _write_json(root / "summary.json", summary)
        if self.after and (report := module_of(trainer).last_report):
            _write_json(root / "evaluation.json", report)
        draw_curves(root / "metrics.jsonl", root / PICTURE)
        without_kl = "model.objective.beta is 0" if trainer.global_step else "no optimizer step was made"
        self._print(summary, without_kl, _remedy(trainer, summary["times"]))
        warnings = [w for c in trainer.callbacks if isinstance(c, Health) for w in c.outside]
        if warnings:
            signs = "; ".join(w.partition(": ")[0] for w in warnings)
            Console(file=sys.stdout, highlight=False).print(f"health: {signs} (docs/health.md)", soft_wrap=True)

    def summarise(self, trainer: pl.Trainer) -> dict[str, Any]:
        """Content of ``summary.json``; the README describes its fields."""
        ledger = _ledger(trainer)
        name = next(iter(self.after), None)
        summary: dict[str, Any] = {
            "before": _short(self.before.get(name, {})) if name else _label_free(self._first_round),
            "after": _short(self.after.get(name, {})) if name else _label_free(ledger.last_metrics),
            "set": name,
            "labels": bool(name and (self.after[name].get("labelled") or 0)),
            "kl": ledger.last_metrics.get("kl"),  # absent with beta 0
            "proposed": ledger.counts.get("proposed", 0),
            "kept": ledger.counts.get("kept", 0),
            "trained": ledger.counts.get("trained", 0),
            "rejected": dict(sorted(ledger.reasons["rejected"].items())),
            "dropped": dict(sorted(ledger.reasons["dropped"].items())),
            "rounds": int(trainer.global_step // max(1, module_of(trainer).steps_per_round)),
            "seconds": round(self._elapsed(), 2),
            "memory": peak_memory(trainer.strategy.root_device),
            "times": {name: round(s, 2) for name, s in sorted(self._parts(trainer).items())},
        }
        if len(self.after) > 1:
            summary["sets"] = {
                n: {"before": _short(self.before.get(n, {})), "after": _short(self.after[n])} for n in self.after
            }
        return summary

    def compared(self) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
        """The first and the last evaluation of every set, as in the table."""
        return {name: (_short(self.before.get(name, {})), _short(after)) for name, after in self.after.items()}

    def _print(self, summary: dict[str, Any], without_kl: str, remedy: str) -> None:
        console = Console(file=sys.stdout, highlight=False)
        before, after = summary["before"], summary["after"]
        title = f"held-out problems: {summary['set']}" if summary["set"] else "training rounds"
        table = Table("", "before", "after", "change", title=title, title_justify="left")
        names = {"pass@1": "greedy pass@1", "agreement": "agreement of answers", "no_answer": "share without answer"}
        for key, value in after.items():
            first = before.get(key)
            change = "" if first is None or value is None else f"{100 * (value - first):+.1f}"
            if key != "n":
                table.add_row(names.get(key, key), _percent(first), _percent(value), change)
        console.print(table)
        if not summary["labels"]:
            console.print("no labels here: agreement, answers and KL show health, not accuracy", soft_wrap=True)
        kl = f"not measured ({without_kl})" if summary["kl"] is None else plain(summary["kl"], 4)
        console.print(f"KL to the starting policy: {kl}")
        written = summary["proposed"] - self._taken - self._given
        proposed = [f"{written} written"] * bool(written or not (self._taken or self._given))
        proposed += [f"{self._taken} taken from the seeds"] * bool(self._taken)
        proposed += [f"{self._given} from data.source"] * bool(self._given)
        console.print(
            f"problems: {', '.join(proposed)}, "
            f"{sum(summary['rejected'].values())} rejected{_why(summary['rejected'])}, "
            f"{sum(summary['dropped'].values())} dropped{_why(summary['dropped'])}, "
            f"{summary['kept']} kept",
            soft_wrap=True,
        )
        rounds = summary["rounds"]
        parts = shares_sentence(summary["times"])
        took = f"time: {duration(summary['seconds'])} for {rounds} round{'' if rounds == 1 else 's'}"
        console.print(f"{took}; {parts}" if parts else took, soft_wrap=True)
        if remedy:
            console.print(remedy, soft_wrap=True)

    def _write_evaluation(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        root = Path(trainer.default_root_dir)
        root.mkdir(parents=True, exist_ok=True)
        report = dict(module_of(trainer).last_report)
        _write_json(root / "evaluation.json", report)
        if not self.deferred:  # within a fit, training changes the answers
            items = module_of(trainer).evaluation_items
            rows = ({"set": name, **problem.facts} for name, problems in items.items() for problem in problems)
            _write(root / "evaluation_items.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        console = Console(file=sys.stdout, highlight=False)
        for name, result in report.items():
            figures = ", ".join(_with_interval(k, v, result) for k, v in _short(result).items() if k != "n")
            some = f"{result['labelled']} of " if 0 < result["labelled"] < result["n"] else ""
            console.print(f"{name}: {figures} over {some}{result['n']} problems", soft_wrap=True, markup=False)

    def state_dict(self) -> dict[str, Any]:
        """Results and times so far, for the table of a resumed run."""
        return {
            "before": self.before,
            "after": self.after,
            "first_round": self._first_round,
            "seconds": self._elapsed(),
            "times": self._parts(self._trainer),
            "taken": self._taken,
            "given": self._given,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        self.before, self._first_round = state_dict["before"], state_dict["first_round"]
        self.after = state_dict.get("after", {})
        self._seconds, self._taken = state_dict["seconds"], state_dict.get("taken", 0)
        self._given = state_dict.get("given", 0)
        self._times = dict(state_dict.get("times", {}))

    def _parts(self, trainer: pl.Trainer | None) -> dict[str, float]:
        """Seconds of each part of the run so far."""
        callbacks = [] if trainer is None else trainer.callbacks
        found = [self._times, *(c.totals for c in callbacks if isinstance(c, RoundProfile))]
        return {name: sum(one.get(name, 0.0) for one in found) for name in {n for one in found for n in one}}

    def _elapsed(self) -> float:
        return self._seconds + (0.0 if self._began is None else time.monotonic() - self._began)


def _remedy(trainer: pl.Trainer, seconds: Mapping[str, float]) -> str:
    """What to change if one part took most of the time; empty if none did."""
    part, share = next(iter(shares(seconds).items()), ("", 0.0))
    said = advice(part, situation_of(trainer)) if share >= DOMINATES else ""
    return f"{in_words(part)} took most of it; what saves time: {said}" if said else ""


def draw_curves(metrics: Path, target: Path) -> None:
    """Draw ``metrics.jsonl``, if there is one, over the optimizer steps as a PNG; panels without data are left out."""
    if not metrics.exists():
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines() if line]
    series = []
    for title, pattern in _PANELS.items():
        keys = sorted({k for row in rows for k in row if re.fullmatch(pattern, k)})
        curves = {k: [(r["step"], r[k]) for r in rows if r.get(k) is not None] for k in keys}
        if any(curves.values()):
            series.append((title, curves))
    if not series:
        return
    figure, axes = pyplot.subplots(len(series), 1, figsize=(7, 2.4 * len(series)), sharex=True, squeeze=False)
    for axis, (title, curves) in zip(axes[:, 0], series, strict=True):
        for key, points in curves.items():
            label = key.removeprefix("val/").removeprefix("serl/")
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
        axis.set_title(title, fontsize=10, loc="left")
        axis.legend(fontsize=7, frameon=False)
        axis.grid(alpha=0.3)
    axes[-1, 0].set_xlabel("optimizer step")
    figure.tight_layout()
    # without date and version in the file, equal runs write equal files
    write_whole(target, lambda file: figure.savefig(file, format="png", dpi=110, metadata={"Software": None}))
    pyplot.close(figure)


def _ledger(trainer: pl.Trainer) -> Ledger:
    return next((c for c in trainer.callbacks if isinstance(c, Ledger)), None) or Ledger()


def _short(result: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of one evaluation that the table shows, with the number of samples in their names."""
    if not result:
        return {}
    k = result["k"]
    if not result["labelled"]:
        return {"agreement": result["agreement"], "no_answer": result["no_answer"], "n": result["n"]}
    sampled = {f"mean@{k}": result["mean@k"], f"maj@{k}": result["maj@k"]} if k else {}
    return {"pass@1": result["pass@1"], **sampled, "n": result["n"]}


def _with_interval(key: str, value: float | None, result: Mapping[str, Any]) -> str:
    """A metric for the terminal, with its confidence interval where there is one of that name."""
    text = f"{key} {_percent(value)}"
    ends = result["intervals"].get(key)
    return text if ends is None else f"{text} [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"


def _label_free(metrics: dict[str, float]) -> dict[str, float]:
    pairs = {"agreement": "serl/vote/agreement_mean", "no_answer": "serl/vote/no_answer_frac"}
    return {name: metrics[key] for name, key in pairs.items() if key in metrics}


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _why(reasons: dict[str, int]) -> str:
    """The four most frequent reasons with their counts, in brackets."""
    top = sorted(reasons.items(), key=lambda r: (-r[1], r[0]))[:4]
    return f" ({', '.join(f'{name} {count}' for name, count in top)})" if top else ""


def _write_json(path: Path, value: Any) -> None:
    _write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    # a model can produce lone surrogates, which utf-8 cannot encode
    write_whole(path, lambda file: file.write(text.encode("utf-8", errors="backslashreplace")))
