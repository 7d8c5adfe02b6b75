"""``lightning-serl compare``: the same fit for several methods, controls and run seeds, and one table of results."""

from __future__ import annotations

import difflib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lightning_serl.callbacks.run_folder.comparison_picture import draw_comparison
from lightning_serl.callbacks.run_folder.phase_clock import duration
from lightning_serl.cli import run_folder
from lightning_serl.cli.arm_check import Checked, check_arm
from lightning_serl.cli.arm_process import ArmProcess, Steps, reason_of, run_arms, seconds_left, threads_of
from lightning_serl.cli.comparison_folder import (
    PICTURE,
    RESULT,
    TABLE,
    Run,
    arms_of,
    check_folder,
    folder_of,
    write_json,
    write_text,
)
from lightning_serl.cli.methods import CONTROLS, LABELLED, Method, read_method, read_methods
from lightning_serl.cli.parser_errors import ParserRefusal
from lightning_serl.cli.run_folder import CommandState
from lightning_serl.errors import InputError, SeRLError
from lightning_serl.evaluation import comparison, comparison_tables
from lightning_serl.evaluation.comparison import GOLD, RANDOM

_OWN = ("--methods", "--seeds", "--gold", "--jobs")
# Options of fit that the comparison sets itself, with what to give in their place.
_TAKEN = {
    "--data.reward": "list rewards at --methods, with options as in 'MajorityVote --data.reward.soft true'",
    "--seed_everything": "each run has its seed from --seeds",
    "--data.seed": "each run has its seed from --seeds",
    "--ckpt_path": "the same command goes on by itself; start from a model with --model.model_name_or_path",
    "--push": "publish one run by lightning-serl push RUN --repo NAME",
    "--print_config": "print the options of one run by lightning-serl fit ... --print_config",
}
_FOLDER = "--trainer.default_root_dir"
_RECORD = ("--trainer.callbacks+", "lightning_serl.callbacks.ComparisonRecord")
_HELP = """usage: lightning-serl compare --methods METHOD [METHOD ...] [--seeds 0 1 2] [--gold METHOD] [--jobs N]
                              [options of fit]

Trains and measures several methods in the same way, beside the controls random, format, frozen and gold, and writes one
table with intervals: comparison.md, comparison.json and comparison.png in --trainer.default_root_dir (runs/compare).

  --methods   each a reward (MajorityVote), a preset (method-scrl), a class path of your own (my_parts.Mine: a reward, a
              source or a callback such as a filter) or a yaml file; in quotation marks with further options of fit
              ('MajorityVote --data.reward.soft true'), with a name before = (soft='MajorityVote ...')
  --seeds     run seeds; 0 by default
  --gold      method of the gold arm; by default labelled seeds, scored against their labels
  --jobs      runs at a time; 1 by default. They share the cores and the GPUs of this machine

All further options are those of fit (lightning-serl fit --help) and hold for every run; --data.evaluation.sets.NAME
must be a labelled problem set. The same command again runs what is missing. docs/compare.md says how to read the table.
"""


@dataclass(frozen=True)
class Request:
    """The arguments of the command: its own, and those of ``fit`` that hold for every arm, without the run folder."""

    methods: list[Method]
    seeds: list[int]
    gold: Method | None
    common: list[str]
    root: str | None
    jobs: int


def compare(arguments: Sequence[str], state: CommandState) -> None:
    """Run the command; raises an InputError before work begins, and a SeRLError if no method could be measured."""
    if {"-h", "--help"} & set(arguments):
        print(_HELP, end="")
        return
    request = read_request(arguments)
    if not run_folder.is_first_process() or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("compare starts the processes of each run itself; start it once, with --trainer.devices")
    random = CONTROLS[0]
    checked = {random.label: check_arm(random.arguments(request.common))}
    _check_measured(checked[random.label])
    root = Path(request.root or checked[random.label].root or "runs/compare").expanduser().absolute()
    check_folder(root)
    runs, said = _runs(request, checked, root)
    run_folder.check(root, "compare", None)
    state.run_folder, state.command, state.lock = root, "compare", run_folder.lock(root)
    about = _about(runs, said)
    print(about, flush=True)
    state.began = True
    try:
        _Comparison(runs, root, about, request.jobs).run(state)
    finally:
        result = _write(root, runs, about)
        _print(result)
    arms = arms_of(root, runs)
    if not any(arm.state == "done" and not arm.control for arm in arms):
        raise SeRLError(f"no method could be measured; {TABLE} in {root} says why")


def read_request(arguments: Sequence[str]) -> Request:
    """Divide the arguments; an InputError names what cannot be used."""
    own: dict[str, list[str]] = {}
    common: list[str] = []
    taking: list[str] | None = None
    root = None
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name in _OWN:
            if name in own:
                raise InputError(f"{name} is given twice; list all at one")
            taking = own[name] = [value] if equals else []
        elif taking is not None and not word.startswith("-"):
            taking.append(word)
        else:
            taking = None
            _check_common(name)
            if name == _FOLDER:
                root = value if equals else next(words, "")
            else:
                common.append(word)
    if not own.get("--methods"):
        raise InputError("compare needs --methods, as in --methods MajorityVote method-scrl my_parts.Mine mine.yaml")
    gold = own.get("--gold")
    if gold is not None and len(gold) != 1:
        raise InputError("--gold takes one method, quoted if it has options")
    return Request(
        read_methods(own["--methods"]),
        _seeds(own.get("--seeds", ["0"])),
        None if gold is None else replace(read_method(gold[0], "--gold"), label=GOLD, control=True),
        common,
        root,
        _jobs(own.get("--jobs", ["1"])),
    )


def _check_common(name: str) -> None:
    for taken, advice in _TAKEN.items():
        if name == taken or name.startswith(f"{taken}."):
            raise InputError(f"compare does not take {name}: {advice}")
    if name.startswith("--") and "." not in name and (near := difflib.get_close_matches(name, _OWN, n=1, cutoff=0.75)):
        raise InputError(f"there is no option {name[:60]}; did you mean {near[0]}?")


def _seeds(given: Sequence[str]) -> list[int]:
    for word in given:
        if not word.isdecimal() or int(word) >= 2**32:
            raise InputError(
                f"--seeds: {word[:60]!r} is no run seed; give whole numbers from 0 on, as in --seeds 0 1 2"
            )
    seeds = [int(word) for word in given]
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError("--seeds needs run seeds, each once, as in --seeds 0 1 2")
    return seeds


def _jobs(given: Sequence[str]) -> int:
    if len(given) != 1 or not given[0].isdecimal() or int(given[0]) < 1:
        said = f", got {' '.join(given)[:60]}" if given else ""
        raise InputError(f"--jobs takes one whole number from 1 on, the runs at a time{said}")
    return int(given[0])


def _check_measured(checked: Checked) -> None:
    if not any(checked.labelled.values()):
        sets = ", ".join(checked.labelled)
        none = f"no problem of {sets} has an answer" if sets else "there is no problem set to measure on"
        raise InputError(
            f"compare measures on labelled problems, but {none}; give --data.evaluation.sets.NAME FILE with the fields "
            "problem and answer (--data.evaluation.fields.answer)"
        )
    if checked.options.get("trainer.fast_dev_run"):
        raise InputError("trainer.fast_dev_run measures nothing; give few rounds instead, --data.rounds_per_epoch 2")


def _runs(request: Request, checked: dict[str, Checked], root: Path) -> tuple[list[Run], str]:
    """Every arm in the order of running, seed by seed, and what is to be said of the gold arm.

    ``checked`` holds the options of the methods by label, at first those of ``random`` alone. An InputError for options
    that ``fit`` would refuse, or that differ from those of a run in the folder.
    """
    gold, labelled = request.gold, checked[RANDOM].labelled_seeds
    said = "" if gold else f"gold trains on the {labelled} labelled seeds"
    if gold is None and labelled:
        gold = LABELLED
    elif gold is None:
        said = "there is no gold arm, since no seed has an answer; --gold METHOD gives one"
    by_method = {
        method.label: _runs_of(method, request, checked, root)
        for method in (*request.methods, *([gold] if gold else []), *CONTROLS)
    }
    return [run for one_seed in zip(*by_method.values(), strict=True) for run in one_seed], said


def _runs_of(method: Method, request: Request, checked: dict[str, Checked], root: Path) -> list[Run]:
    """The arms of one method, checked."""
    arguments = method.arguments(request.common)
    if method.label not in checked:
        try:
            checked[method.label] = check_arm(arguments)
        except (InputError, ParserRefusal, ValueError) as error:
            raise InputError(f"{method.label}: {' '.join(str(error).split())}") from error
    options = checked[method.label].options
    arguments += _RECORD
    if options.get("data.reward") is None:  # gold labels would be used where seeds have them
        arguments += ["--data.reward", "MajorityVote"]
    runs = []
    for seed in request.seeds:
        folder = folder_of(root, method, seed)
        own = ["--seed_everything", str(seed), _FOLDER, str(folder), "--ckpt_path", "last"]
        runs.append(Run(method, seed, folder, ("fit", *arguments, *own), options))
        runs[-1].check_options()
    return runs


def _about(runs: Sequence[Run], said: str) -> str:
    """One line on what is compared under which budget."""
    seeds, options = list(dict.fromkeys(run.seed for run in runs)), runs[0].options
    methods = len({run.method.label for run in runs})
    epochs = options.get("trainer.max_epochs") or 1
    rounds = f"at most {epochs * options['data.rounds_per_epoch']} " if epochs > 0 else ""
    size = f"{options.get('data.round.prompts_per_round')} x {options.get('data.round.samples_per_prompt')}"
    runs_said = f"run seed {seeds[0]}" if len(seeds) == 1 else f"run seeds {', '.join(map(str, seeds))}"
    line = f"{methods} methods and controls, {runs_said}, {rounds}rounds of {size} responses each"
    return f"{line}; {said}" if said else line


# -- running -----------------------------------------------------------------------------------------------------------


@dataclass
class _Comparison:
    """The running of arms: what is printed of them, how long they take, and the files written meanwhile."""

    runs: list[Run]
    root: Path
    about: str
    jobs: int
    ended: list[float] = field(default_factory=list)  # seconds of each arm that ended
    began: dict[str, float] = field(default_factory=dict)  # when each running arm began, by name
    waiting: int = 0

    def run(self, state: CommandState) -> None:
        """Run the arms that have not ended, ``jobs`` at a time; the files are written again when one starts or ends."""
        missing = [run for run in self.runs if not run.ended]
        if len(missing) < len(self.runs):
            print(f"{len(self.runs) - len(missing)} of {len(self.runs)} runs have ended before")
        self.jobs, self.waiting = max(1, min(self.jobs, len(missing))), len(missing)
        if self.jobs > 1:
            print(_sharing(self.jobs, missing[0].options), flush=True)
        starts = [partial(self._steps, run, f"run {n} of {len(missing)}") for n, run in enumerate(missing, 1)]
        run_arms(starts, self.jobs, state)

    def _steps(self, run: Run, place: str) -> Steps:
        """Run one arm, note its end, and say what became of it."""
        name = f"{run.method.label}, seed {run.seed}"
        _write(self.root, self.runs, self.about)
        print(f"{place}: {name} (log: {run.log}){self._left()}", flush=True)
        run.folder.mkdir(parents=True, exist_ok=True)
        lock = run_folder.lock(run.folder)  # refused while an orphan of a killed comparison still trains there
        if lock is not None:
            os.close(lock)
        run.note("running")
        began = self.began[name] = time.monotonic()
        self.waiting -= 1
        lead = f"{name}: " if self.jobs > 1 else "  "
        start = partial(ArmProcess, log=run.log, relay=partial(relay, lead), threads=_threads(self.jobs, run.options))
        try:
            status = yield start(run.arguments)
        except BaseException:
            run.note("interrupted", seconds=time.monotonic() - began)
            raise
        seconds = time.monotonic() - began
        said = f"in {duration(seconds)}"
        if status == 0:
            run.note("done", seconds=seconds)
        else:
            reason = reason_of(status, run.log)
            said = f"failed after {duration(seconds)}: {reason}"
            if status < 0 or status in (130, 143):
                # what a signal ended may not come again: the next command continues it
                run.note("killed", reason, seconds)
            else:
                if (run.folder / "checkpoints" / "last.ckpt").exists():
                    yield start(("validate", *run.arguments[1:]))  # the policy that it left
                run.note("failed", reason, seconds)
        del self.began[name]
        self.ended.append(time.monotonic() - began)
        print(f"{lead}{run.figures}{said}", flush=True)

    def _left(self) -> str:
        """How long all that is missing takes, once an arm has ended."""
        if not self.ended:
            return ""
        running = [time.monotonic() - began for began in self.began.values()]
        return f"; about {duration(seconds_left(self.ended, running, self.waiting, self.jobs))} left"


def _threads(jobs: int, options: Mapping[str, Any]) -> int | None:
    """See :func:`threads_of`; the ranks of an arm share its cores."""
    devices = options.get("trainer.devices")
    return threads_of(jobs, devices if isinstance(devices, int) and devices > 0 else 1)


def _sharing(jobs: int, options: Mapping[str, Any]) -> str:
    """One line on what runs share that go on at the same time."""
    threads = _threads(jobs, options)
    said = "OMP_NUM_THREADS as you set it" if threads is None else f"OMP_NUM_THREADS={threads}"
    line = f"{jobs} runs at a time, each process with {said}"
    if options.get("trainer.accelerator") != "cpu" and torch.cuda.is_available():
        line += "; all of them use the same GPUs, whose memory must hold them together"
    return line


def relay(lead: str, line: str) -> None:
    """Print a line of a running arm."""
    print(f"{lead}{line[:110]}", flush=True)


# -- results -----------------------------------------------------------------------------------------------------------


def _write(root: Path, runs: list[Run], about: str) -> dict[str, Any]:
    result = {"about": about, **comparison.compare(arms_of(root, runs))}
    write_json(root / RESULT, result)
    write_text(root / TABLE, comparison_tables.markdown(result))
    draw_comparison(result, root / PICTURE)
    return result


def _print(result: dict[str, Any]) -> None:
    """The main tables on the terminal; what is wide stays in the files."""
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 140)
    for name, one in result["sets"].items():
        head = comparison_tables.columns(one["k"])
        wanted = [place for place, title in enumerate(head) if title != "notes"]
        table = Table(*(head[place] for place in wanted), title=name or None, title_justify="left")
        random = comparison_tables.row_of_random(one["rows"])
        for row in one["rows"]:
            cells = comparison_tables.cells(row, one["k"], random)
            table.add_row(*(cells[place] for place in wanted))
        console.print(table)
        for row in one["rows"]:
            for note in comparison_tables.notes(row, random):
                console.print(f"{row['method']}: {note}", soft_wrap=True, markup=False)
