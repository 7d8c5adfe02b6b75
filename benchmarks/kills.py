"""Kills a run many times and checks that its results equal those of an uninterrupted run.

    python benchmarks/kills.py [--kills 20] [--ranks 1] [--seed 0] [--rounds 24] [--out DIR] [--soft] [OPTION ...]

An uninterrupted run of the command line, then the same run under kill -9: every process is killed in a phase chosen
beforehand, a random time after it began, and continued with ``--ckpt_path last``. The log shows the phase of each
kill. With ``--soft`` SIGTERM and Ctrl-C take turns with kill -9. Further options, such as ``--model.lora.r 4``, are
those of the runs. With two ranks every second kill ends one rank alone, and the other has to exit by itself. Exits 1
if ledger, metrics, samples or exported weights differ from the uninterrupted run's, or a phase was hit less than twice
(once with fewer than ten kills).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PHASES = ("writing", "answering", "voting", "training", "saving")
#: Over too soon to be struck from outside: these processes kill themselves.
INSIDE = ("voting",)
_LIMIT = 300.0


@dataclass
class Kill:
    """Where one kill struck.

    Attributes:
        phase: The phase of the first rank when it died, or that of the rank that was killed alone.
        detail: The micro-batch within its accumulation window, or the file that was being written.
        alone: The rank that was killed alone, if one was.
        seconds: Since the life began.
    """

    phase: str
    detail: str
    alone: int | None
    seconds: float


def command(root: Path, options: list[str], beacons: Path | None, **deadly: Any) -> list[str]:
    """The command line of a fit, with a checkpoint after every step."""
    every = {"class_path": "lightning_serl.callbacks.Checkpoints", "init_args": {"every_n_train_steps": 1}}
    callbacks = [every]
    if beacons is not None:
        callbacks.append({"class_path": "beacon.Beacon", "init_args": {"folder": str(beacons), **deadly}})
    fit = [sys.executable, "-m", "lightning_serl", "fit", *options, "--trainer.default_root_dir", str(root)]
    return [*fit, "--trainer.callbacks", json.dumps(callbacks)]


def begin(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process group of its own, its output in a file."""
    here = Path(__file__).resolve().parent
    paths = os.pathsep.join([str(here), str(here.parent)])
    ours = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LIGHTNING_SERL_RUN")
    env = {k: v for k, v in os.environ.items() if k not in ours}
    env |= {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("ab") as out:
        return subprocess.Popen(arguments, stdout=out, stderr=out, env=env, start_new_session=True)


def read(beacons: Path, rank: int = 0) -> tuple[int, str, str, int] | None:
    """What a rank last said: (count, phase, detail, process id)."""
    for path in beacons.glob(f"{rank}-*"):
        words = path.read_text().split(maxsplit=2)
        if len(words) > 1:
            return int(words[0]), words[1], words[2].strip() if len(words) > 2 else "", int(path.name.split("-")[1])
    return None


def end_all(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
    """A signal for the first process of a life, which ends in its own time; then SIGKILL for all that is left."""
    if number != signal.SIGKILL:
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LIMIT)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def strike(
    process: subprocess.Popen[bytes],
    beacons: Path,
    phase: str,
    skip: int,
    delay: float,
    alone: int | None,
    number: int = signal.SIGKILL,
) -> Kill | None:
    """Kill a life in a phase.

    Args:
        process: The life.
        beacons: Where its ranks say what they do.
        phase: The phase to strike in, or ``training 2``: the second micro-batch of a window.
        skip: How often the phase may pass before.
        delay: Seconds to wait after it began.
        alone: The rank to kill alone; ``None`` kills all.
        number: The signal, if all are killed.

    Returns:
        Where it struck; ``None`` if the run came to its end first.
    """
    began, seen, last = time.monotonic(), 0, 0
    if phase in INSIDE:
        try:
            process.wait(_LIMIT)
        finally:
            end_all(process)
        found = read(beacons)
        return Kill(*found[1:3], None, time.monotonic() - began) if found and process.returncode < 0 else None
    wanted, _, place = phase.partition(" ")
    while process.poll() is None:
        if time.monotonic() - began > _LIMIT:
            end_all(process)
            raise TimeoutError(f"the run did not come to {phase} within {_LIMIT:.0f} s")
        now = read(beacons, alone or 0)
        if now is None or now[0] == last:
            time.sleep(0.0005)
            continue
        last = now[0]
        if now[1] != wanted or (place and not now[2].startswith(place)):
            continue
        seen += 1
        if seen <= skip:
            continue
        time.sleep(delay)
        if alone is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(now[3], signal.SIGKILL)
            try:
                process.wait(_LIMIT)
            except subprocess.TimeoutExpired:
                end_all(process)
                raise TimeoutError(f"rank {alone} was killed and the others went on for {_LIMIT:.0f} s") from None
        found = read(beacons, alone or 0)
        end_all(process, number if alone is None else signal.SIGKILL)
        found = found if number != signal.SIGKILL else read(beacons, alone or 0)
        assert found is not None
        return Kill(found[1], found[2], alone, time.monotonic() - began)
    return None


def survive(root: Path, options: list[str], plan: list[tuple[str, int, float, int | None]], work: Path,
            numbers: Sequence[int] = (signal.SIGKILL,)) -> list[Kill]:  # fmt: skip
    """A run that is killed by plan and continued until it ends.

    Args:
        root: The run folder.
        options: Of the command line.
        plan: (phase, occurrences to skip, seconds into it, rank to kill alone) of each kill.
        work: For logs.
        numbers: The signals, which take turns.

    Returns:
        Where each kill struck.

    Raises:
        RuntimeError: if a life fails by itself.
    """
    work.mkdir(parents=True, exist_ok=True)
    kills: list[Kill] = []
    again = ["--ckpt_path", "last"]  # one command for every life
    for number, (phase, skip, delay, alone) in enumerate(plan):
        beacons = work / f"life-{number}"
        beacons.mkdir(parents=True)
        deadly = {"deadly": phase, "fatal": skip + 1} if phase in INSIDE else {}
        process = begin([*command(root, options, beacons, **deadly), *again], work / "log")
        kill = strike(process, beacons, phase, skip, delay, alone, numbers[number % len(numbers)])
        if kill is None and process.returncode == 0:
            print(f"the run came to its end before kill {number + 1}; more --rounds leave time for it", flush=True)
            return kills
        if kill is None:
            raise RuntimeError(f"life {number} ended by itself: {(work / 'log').read_text()[-800:]}")
        kills.append(kill)
        where = f"{kill.phase} {kill.detail}".strip() + ("" if alone is None else f", rank {alone} alone")
        print(f"kill {number + 1:>2}: meant for {phase:<11} struck {where:<34} after {kill.seconds:.1f} s", flush=True)
    process = begin([*command(root, options, None), *again], work / "log")
    if process.wait():
        raise RuntimeError(f"the last life failed: {(work / 'log').read_text()[-800:]}")
    return kills


def differences(root: Path, other: Path) -> list[str]:
    """What two runs that should be equal differ in."""

    def rows(path: Path) -> list[dict[str, Any]]:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]

    names = ("ledger.jsonl", "samples.jsonl", "export/model.safetensors")
    out = [name for name in names if (root / name).read_bytes() != (other / name).read_bytes()]
    return out + (["metrics.jsonl"] if rows(root / "metrics.jsonl") != rows(other / "metrics.jsonl") else [])


def make_plan(kills: int, ranks: int, seed: int) -> list[tuple[str, int, float, int | None]]:
    """All phases in turn, one of the trainings inside an accumulation window; moments are random."""
    rng = random.Random(seed)
    longest = {"writing": 0.2, "answering": 0.2, "voting": 0.02, "training": 0.02, "saving": 0.01}
    plan: list[tuple[str, int, float, int | None]] = []
    for number in range(kills):
        phase = PHASES[number % len(PHASES)]
        delay = rng.uniform(0, longest[phase])
        alone = rng.randrange(ranks) if ranks > 1 and number % 2 and phase not in ("saving", *INSIDE) else None
        meant = "training 2" if phase == "training" and number % 2 else phase
        plan.append((meant, rng.randrange(2), delay, alone))
    return plan


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the runs (default: a temporary one)")
    parser.add_argument("--soft", action="store_true", help="SIGTERM and Ctrl-C take turns with kill -9")
    args, further = parser.parse_known_args()
    # a shell starts what is in its background with Ctrl-C ignored, and the runs would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    work = (args.out or Path(tempfile.mkdtemp(prefix="kills-"))).absolute()
    options = ["-c", "preset:quickstart", "--data.rounds_per_epoch", str(args.rounds), "--data.evaluation.sets", "{}"]
    options += ["--data.round.prompts_per_round", "2", "--data.round.samples_per_prompt", "4"]
    options += ["--data.writing.prompts_per_call", "2", "--trainer.devices", str(args.ranks)]
    options += ["--trainer.strategy", "ddp"] if args.ranks > 1 else []
    options += further
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGKILL] if args.soft else [signal.SIGKILL]
    survive(work / "undisturbed", options, [], work / "undisturbed-logs")
    kills = survive(work / "killed", options, make_plan(args.kills, args.ranks, args.seed), work / "logs", numbers)
    struck = Counter(kill.phase for kill in kills)
    apart = differences(work / "undisturbed", work / "killed")
    wanted = min(2, len(kills) // len(PHASES))
    rare = [phase for phase in PHASES if struck[phase] < wanted]
    print(f"\nstruck: {', '.join(f'{phase} {count}' for phase, count in struck.most_common())}")
    print(f"- {'MISSED' if rare else 'met'}: at least {wanted} kills in each of {', '.join(PHASES)}")
    said = f"differ: {', '.join(apart)}" if apart else "equal"
    print(f"- {'MISSED' if apart else 'met'}: ledger, metrics, samples and weights of the undisturbed run ({said})")
    return int(bool(apart or rare))


if __name__ == "__main__":
    sys.exit(main())
