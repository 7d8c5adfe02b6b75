"""Every method that has a preset, for some rounds on the embedded policy: whole, interrupted and resumed, on two ranks.

    python benchmarks/methods.py [--only NAME ...] [--rounds 3] [--out DIR]

A method is a preset ``method-NAME``. For each one:

- *run*: ``lightning-serl fit -c preset:quickstart -c preset:method-NAME`` with 2 problems of 4 responses runs through,
  trains in every round, and moves the weights;
- *resumed*: the same run interrupted in the training of its last round, as by Ctrl-C, and continued with ``--ckpt_path
  last`` leaves the same ledger, metrics (without ``time/*``) and weights, byte for byte;
- *two ranks*: two processes write the same ledger; scores and confidences may differ by 1e-4, since log-probs depend on
  the size of the batch in their last digits.

The policy of 0.55 M parameters follows no instructions, so what this shows of methods that ask for judgements,
paraphrases or variations is that they run, not that they help. Prints a table; exits 1 if anything failed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from lightning_serl import SeRLModule, tiny
from lightning_serl.cli import main as lightning_serl
from lightning_serl.cli.config_files import presets

PREFIX = "method-"
SIZE = (
    "--data.round.prompts_per_round", "2", "--data.round.samples_per_prompt", "4", "--data.probe.every", "0",
    "--data.evaluation.samples", "0", "--data.evaluation.sets", "{}", "--trainer.accumulate_grad_batches", "2",
    "--seed_everything", "0",
)  # fmt: skip
TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
LIMIT = 300.0  # seconds of a run on two ranks


def fit(method: str, root: Path, rounds: int, *more: str) -> str | None:
    """Run a method in this process; returns the error that ended it, ``None`` if it ran through."""
    options = ["-c", "preset:quickstart", "-c", f"preset:{PREFIX}{method}", *SIZE]
    options += ["--data.rounds_per_epoch", str(rounds), "--trainer.default_root_dir", str(root), *more]
    said, kept = io.StringIO(), dict(os.environ)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            status = lightning_serl(["fit", *options])
    finally:
        os.environ.clear()
        os.environ.update(kept)
    lines = [line for line in said.getvalue().splitlines() if line.strip()]
    return None if status == 0 else (lines or ["it failed without a message"])[-1]


def interrupt(method: str, root: Path, rounds: int) -> str | None:
    """Run a method until its last round is trained on, and interrupt it there."""
    step = SeRLModule.training_step

    def training_step(module: SeRLModule, *batch: Any) -> Any:
        if module.global_step == rounds - 1:
            raise KeyboardInterrupt
        return step(module, *batch)

    with mock.patch.object(SeRLModule, "training_step", training_step):
        fit(method, root, rounds)
    return None if (root / "checkpoints" / "last.ckpt").exists() else "the interrupted run left no checkpoint"


class Pair:
    """Two processes that run methods together, one after another; both start again after a run that hung."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, list[subprocess.Popen[str]]()

    def start(self) -> None:
        """Start both as an external launcher would."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in (0, 1):
            found = {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            env = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **found}
            env["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
            with (self.folder / f"rank{rank}.log").open("a") as log:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, __file__, "--serve"],
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=env,
                    )
                )  # fmt: skip

    def fit(self, method: str, root: Path, rounds: int) -> str | None:
        """As :func:`fit`, on both ranks."""
        if not self.processes:
            self.start()
        order, end = json.dumps([method, str(root), rounds]), time.monotonic() + LIMIT
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(order + "\n")
            process.stdin.flush()
        errors = []
        for process in self.processes:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))
            line = process.stdout.readline() if ready else ""
            if not line:
                self.close()
                return "a rank ended or hung"
            errors.append(json.loads(line))
        return next((error for error in errors if error is not None), None)

    def close(self) -> None:
        """End both."""
        for process in self.processes:
            process.kill()
            process.communicate()
        self.processes = []


def serve() -> None:
    """Run the methods that come as lines, one rank of a pair; replies go to what was the standard output."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        method, root, rounds = json.loads(line)
        try:
            error = fit(method, Path(root), rounds, *TWO)
        except (Exception, SystemExit) as raised:
            error = repr(raised)
        replies.write(json.dumps(error) + "\n")
        replies.flush()


def ledger(root: Path) -> bytes:
    """The ledger of a run."""
    return (root / "ledger.jsonl").read_bytes()


def alike(one: Path, other: Path) -> bool:
    """Whether two ledgers are equal up to the last digits of scores."""
    rows = [[json.loads(line) for line in ledger(root).splitlines()] for root in (one, other)]
    numbers = [[[row.pop("confidence", 0.0), *row.pop("scores", [])] for row in table] for table in rows]
    return rows[0] == rows[1] and all(
        len(a) == len(b) and all(abs(x - y) <= 1e-4 for x, y in zip(a, b, strict=True))
        for a, b in zip(*numbers, strict=True)
    )


def metrics(root: Path) -> list[dict[str, object]]:
    """The metrics of a run, without what a clock measured."""
    rows = [json.loads(line) for line in (root / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def weights(root: Path) -> bytes:
    """The exported weights of a run."""
    return (root / "export" / "model.safetensors").read_bytes()


def check(method: str, root: Path, rounds: int, pair: Pair) -> dict[str, str]:
    """What is wrong with a method, by part; parts without a fault are absent."""
    whole, parted, two = (root / f"{method}-{name}" for name in ("whole", "parted", "two"))
    if (error := fit(method, whole, rounds)) is not None:
        return {"run": error}
    wrong = {}
    trained = sum("reward" in row for row in metrics(whole))
    if trained != rounds or weights(whole) == (tiny.path("base") / "model.safetensors").read_bytes():
        wrong["run"] = f"{trained} of {rounds} rounds were trained on, or the weights did not move"
    error = interrupt(method, parted, rounds) or fit(method, parted, rounds, "--ckpt_path", "last")
    readers = {"ledger": ledger, "metrics": metrics, "weights": weights}
    differ = [] if error else [name for name, read in readers.items() if read(whole) != read(parted)]
    if error or differ:
        wrong["resumed"] = error or f"{', '.join(differ)} differ"
    error = pair.fit(method, two, rounds)
    if error or not alike(two, whole):
        wrong["two ranks"] = error or "the ledger differs"
    return wrong


def main() -> int:
    """Check the methods and print a row for each."""
    names = [name.removeprefix(PREFIX) for name in presets() if name.startswith(PREFIX)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="keep the run folders here")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve()
        return 0
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)  # their handlers keep the terminal, whatever is redirected
    out = args.out or Path(tempfile.mkdtemp(prefix="methods-"))
    out.mkdir(parents=True, exist_ok=True)
    pair, failed = Pair(out), []
    print("| method | run | resumed | two ranks | seconds |")
    print("|---|---|---|---|---|")
    for name in args.only:
        began = time.monotonic()
        wrong = check(name, out, args.rounds, pair)
        rest = "not run" if list(wrong) == ["run"] else "equal"
        cells = [wrong.get("run", "ok"), wrong.get("resumed", rest), wrong.get("two ranks", rest)]
        print(f"| {name} | {' | '.join(cells)} | {time.monotonic() - began:.0f} |", flush=True)
        failed += [name] if wrong else []
    pair.close()
    if args.out is None:
        shutil.rmtree(out)
    said = f"; failed: {', '.join(failed)}" if failed else ""
    print(f"\n{len(args.only) - len(failed)} of {len(args.only)} methods passed{said}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
