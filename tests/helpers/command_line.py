"""Runs of the command line: in this process where possible, in another one for signals and hash seeds."""

import contextlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from helpers.forks import Forked

from lightning_serl import tiny
from lightning_serl.cli import main
from lightning_serl.types import Group, Verdict

LONGEST = 300
TESTS = Path(__file__).parents[1]


@dataclass
class Ended:
    """What a command left behind in the terminal."""

    status: int
    out: str
    err: str

    @property
    def error(self):
        """The one sentence of a failed command; it must be the last line and the only one of its kind."""
        lines = self.err.splitlines()
        assert lines, "nothing on stderr"
        assert lines[-1].startswith("error: "), lines[-1]
        assert len(lines[-1]) <= LONGEST
        assert [line for line in lines if line.startswith("error:")] == lines[-1:]
        assert "Traceback" not in self.err + self.out
        return lines[-1].removeprefix("error: ")

    @property
    def run(self):
        """The run folder named by the last line on stdout."""
        last = self.out.splitlines()[-1]
        assert last.startswith("run: "), last
        return Path(last.removeprefix("run: "))


def cli(*arguments, picture=False):
    """The command line in this process, which it leaves as it was; ``curves.png`` is only drawn if asked for."""
    out, err = io.StringIO(), io.StringIO()
    environment, argv, signals = dict(os.environ), sys.argv, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in signals}
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    # Lightning's own: pytest's would be closed, and the stream with them, when vLLM configures the logging
    streams = [handler for logger in loggers for handler in logger.handlers if type(handler) is logging.StreamHandler]
    kept = [(handler, handler.stream) for handler in streams]
    sys.argv = ["lightning-serl"]
    try:
        with contextlib.ExitStack() as here:
            here.enter_context(contextlib.redirect_stdout(out))
            here.enter_context(contextlib.redirect_stderr(err))
            if not picture:
                here.enter_context(mock.patch("lightning_serl.callbacks.run_folder.summary.draw_curves"))
            for handler in streams:
                handler.setStream(err)
            status = main([str(a) for a in arguments])
    finally:
        for handler, stream in kept:
            handler.setStream(stream)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        sys.argv = argv
        os.environ.clear()
        os.environ.update(environment)
    return Ended(status, out.getvalue(), err.getvalue())


def environment(**more):
    """For another process: this checkout whichever one is installed, one thread, and no trace of this one's runs."""
    ours = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "LIGHTNING_SERL_DEBUG", "LIGHTNING_SERL_RUN", "PYTHONHASHSEED")
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {k: v for k, v in os.environ.items() if k not in (*ours, *ranks)}
    path = f"{TESTS}{os.pathsep}{TESTS.parent}"
    fixed = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "200"}
    return kept | fixed | more


def start(*arguments, program=("-m", "lightning_serl"), cwd=None, **more):
    """The command line in a process that begins with nothing imported, its output in pipes."""
    return subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment(**more),
    )


def fork(*arguments, cwd=None, **more):
    """The command line in a process forked from one that has imported everything."""
    return Forked(arguments, cwd or os.getcwd(), environment(**more))


def finish(process, limit=180):
    """Wait for a process of :func:`start` or :func:`fork`; at the limit it is killed."""
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return Ended(process.returncode, out, err)


def write_rows(path, rows):
    """A jsonl file of problems."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def problems(count, skip=0):
    """Rows of the embedded held-out set, labels included."""
    lines = tiny.path("held_out").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[skip : skip + count]]


def small(root, held_out=None, rounds=2, samples=0):
    """Options of a run of a second or two on the embedded base, without the health probe."""
    options = ["-c", "preset:quickstart", "--trainer.default_root_dir", root, "--data.rounds_per_epoch", rounds]
    options += ["--data.round.prompts_per_round", 2, "--data.round.samples_per_prompt", 4]
    options += ["--data.writing.prompts_per_call", 2, "--data.evaluation.samples", samples]
    options += ["--data.probe.every", 0]
    sets = {} if held_out is None else {"held_out": str(held_out)}
    return [*options, "--data.evaluation.sets", json.dumps(sets)]


def rows(path):
    """A jsonl file."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


class Judge:
    """A reward of a user's own, by class path: scores alternate, and from its ``fail_at``-th call on it raises."""

    needs: frozenset[str] = frozenset()

    def __init__(self, fail_at: int = 0, constant: bool = False):
        self.fail_at, self.constant, self.calls = fail_at, constant, 0

    def __call__(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:

        self.calls += 1
        if self.calls == self.fail_at:
            raise RuntimeError("the judge\nis gone")
        return [Verdict(torch.tensor([float(i % 2 or self.constant) for i in range(len(g))])) for g in groups]
