"""Compares the results of two checkouts, byte for byte: a change of structure must not change what a run does.

    python benchmarks/same_results.py FORMER [--now CHECKOUT] [--rounds 20] [--quick] [--only NAME ...] [--out DIR]

Every case runs in both checkouts with the same seed: the quickstart, its LoRA form, the published rules, two ranks
under DDP, two ranks with sharded weights, and a resume in mid-round from a checkpoint that the former checkout wrote.
Compared are ``ledger.jsonl``, ``metrics.jsonl`` without ``time/*`` and every file of ``export/``. Exits 1 if anything
differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

_OURS = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LIGHTNING_SERL_RUN")
_QUICK = ("-c", "preset:quickstart")
# Two optimizer steps a round, so that an odd step lies in mid-round; the former checkout stops at step 3.
_HALVES = (*_QUICK, "--model.minibatches", "2", "--trainer.accumulate_grad_batches", "2")
_STOP = "3"


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        name: Printed, and the name of its run folders.
        options: Options of ``lightning-serl fit``.
        ranks: Processes of the run.
        resumed: Whether the run continues one that the former checkout began and left in mid-round.
    """

    name: str
    options: tuple[str, ...]
    ranks: int = 1
    resumed: bool = False


_TWO = ("--trainer.devices", "2", "--trainer.strategy")
CASES = (
    Case("quickstart", _QUICK),
    Case("quickstart-lora", ("-c", "preset:quickstart-lora")),
    Case("as-published", (*_QUICK, "-c", "preset:as-published")),
    Case("ddp", (*_QUICK, *_TWO, "ddp"), ranks=2),
    Case("sharded", (*_QUICK, *_TWO, "sharded"), ranks=2),
    Case("resumed", _HALVES, resumed=True),
)


def run(checkout: Path, options: tuple[str, ...], root: Path) -> None:
    """Run a fit of one checkout; raises ``SystemExit`` with the end of its log if it fails."""
    env = {k: v for k, v in os.environ.items() if k not in _OURS}
    env |= {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "lightning_serl", "fit", *options, "--trainer.default_root_dir", str(root)]
    ended = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)}\nin {checkout} ended with {ended.returncode}:\n{ended.stderr[-2000:]}")


def results(root: Path) -> dict[str, bytes]:
    """What a run leaves behind, by file, without what a clock measured."""
    found = {"ledger.jsonl": (root / "ledger.jsonl").read_bytes()}
    rows = [json.loads(line) for line in (root / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]
    found["metrics.jsonl"] = json.dumps(kept).encode()
    files = (p for p in sorted((root / "export").rglob("*")) if p.is_file())
    return found | {str(p.relative_to(root)): p.read_bytes() for p in files}


def differences(case: Case, former: Path, now: Path, out: Path, size: tuple[str, ...]) -> list[str]:
    """Run one case in both checkouts; returns the files that differ."""
    roots = [out / f"{case.name}-{which}" for which in ("former", "now")]
    options = (*case.options, *size)
    if case.resumed:
        begun = out / f"{case.name}-begun"
        run(former, (*options, "--trainer.max_steps", _STOP), begun)
        for root in roots:
            shutil.copytree(begun, root)
        options += ("--ckpt_path", "last")
    for checkout, root in zip((former, now), roots, strict=True):
        run(checkout, options, root)
    theirs, ours = map(results, roots)
    return sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))


def main() -> int:
    """Run the cases and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("former", type=Path, help="a checkout of the code before the change")
    parser.add_argument("--now", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="three rounds, and short evaluations")
    parser.add_argument("--only", nargs="+", choices=[c.name for c in CASES], default=[c.name for c in CASES])
    parser.add_argument("--out", type=Path, help="keep the run folders here")
    args = parser.parse_args()
    out = args.out or Path(tempfile.mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    size = ("--data.rounds_per_epoch", str(3 if args.quick else args.rounds))
    size += ("--data.evaluation.samples", "2") if args.quick else ()
    failed = False
    for case in (c for c in CASES if c.name in args.only):
        began = time.monotonic()
        differ = differences(case, args.former.resolve(), args.now.resolve(), out, size)
        failed = failed or bool(differ)
        said = f"differ: {', '.join(differ)}" if differ else "equal"
        print(f"{case.name:16} {time.monotonic() - began:6.0f} s  {said}", flush=True)
    if args.out is None:
        shutil.rmtree(out)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
