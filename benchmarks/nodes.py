"""Two nodes on the loopback: by torchrun, by the variables of SLURM, and with a node that dies and comes back.

    python benchmarks/nodes.py [--only torchrun slurm death] [--rounds 4] [--out DIR]

Each node is a separate launcher with one process of the embedded policy; they find each other at 127.0.0.1. The
reference is a run of two processes that Lightning starts on one node. ``torchrun`` starts each node by
``torch.distributed.run --nnodes 2``; ``slurm`` sets what srun would set. Ledger, metrics without clock readings and
exported weights must equal those of the reference to the byte. ``death`` kills all processes of the second node in
the middle of the run: the first must end by itself, and after both are started again with ``--ckpt_path last`` the
results must be the same too. Exits 1 if one of it fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_LIMIT = 900.0
_EVERY = {"class_path": "lightning_serl.callbacks.Checkpoints", "init_args": {"every_n_train_steps": 1}}


def options(root: Path, rounds: int) -> list[str]:
    """Arguments of a small fit on two processes."""
    small = "--data.round.prompts_per_round 4 --data.round.samples_per_prompt 4 --data.probe.every 0"
    return [
        "fit", "-c", "preset:quickstart", *small.split(), "--data.evaluation.sets", "{}",
        "--data.rounds_per_epoch", str(rounds), "--trainer.accumulate_grad_batches", "1", "--trainer.strategy", "ddp",
        "--trainer.callbacks", json.dumps([_EVERY, {"class_path": "lightning_serl.callbacks.Export"}]),
        "--trainer.default_root_dir", str(root),
    ]  # fmt: skip


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def begin(arguments: list[str], log: Path, **variables: str) -> subprocess.Popen[bytes]:
    """Start a separate process group, without what another launcher has set."""
    known = ("SLURM_", "MASTER_", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "RANK", "LIGHTNING_SERL_RUN", "TORCHELASTIC")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(known)}
    env = kept | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"} | variables
    with log.open("ab") as out:
        return subprocess.Popen([sys.executable, *arguments], stdout=out, stderr=out, env=env, start_new_session=True)


def by_torchrun(fit: list[str], log: Path) -> list[subprocess.Popen[bytes]]:
    """Two nodes, each with its launcher."""
    port = str(free_port())
    shared = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1"]
    return [
        begin(
            [*shared, "--master-port", port, "--node-rank", str(node), "-m", "lightning_serl", *fit,
             "--trainer.num_nodes", "2", "--trainer.devices", "1"],
            log.with_suffix(f".{node}.log"),
        )
        for node in (0, 1)
    ]  # fmt: skip


def by_slurm(fit: list[str], log: Path) -> list[subprocess.Popen[bytes]]:
    """Two tasks with the variables that srun gives to those of two nodes."""
    shared = {
        "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "nodes", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NNODES": "2", "SLURM_NODELIST": "127.0.0.1", "SLURM_LOCALID": "0", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    fit = ["-m", "lightning_serl", *fit, "--trainer.num_nodes", "2", "--trainer.devices", "1"]
    return [
        begin(fit, log.with_suffix(f".{task}.log"), **shared, SLURM_PROCID=str(task), SLURM_NODEID=str(task))
        for task in (0, 1)
    ]


def kill(node: subprocess.Popen[bytes]) -> None:
    """End all processes of a node at once; torchrun's workers are in separate sessions."""
    found = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout.split()[2:]
    parents = {int(pid): int(parent) for pid, parent in zip(found[::2], found[1::2], strict=True)}
    doomed = [node.pid]
    for pid in doomed:
        doomed += [child for child, parent in parents.items() if parent == pid]
    for pid in doomed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    node.wait()


def ended(nodes: list[subprocess.Popen[bytes]]) -> list[int]:
    """Exit statuses; what is left after a quarter of an hour is killed."""
    until = time.monotonic() + _LIMIT
    try:
        return [node.wait(max(1.0, until - time.monotonic())) for node in nodes]
    finally:
        for node in nodes:
            if node.poll() is None:
                kill(node)


def steps(root: Path) -> int:
    """Optimizer steps that the run's metrics hold."""
    file = root / "metrics.jsonl"
    return sum('"loss"' in line for line in file.read_text().splitlines()) if file.is_file() else 0


def results(root: Path) -> dict[str, object]:
    """What must be equal."""
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in lines]
    ledger = (root / "ledger.jsonl").read_bytes()
    return {"ledger": ledger, "metrics": metrics, "weights": (root / "export" / "model.safetensors").read_bytes()}


def compare(name: str, root: Path, reference: dict[str, object]) -> int:
    """Print whether a run equals the reference."""
    found = results(root)
    different = [part for part in reference if found[part] != reference[part]]
    print(f"{name}: {'DIFFERENT: ' + ', '.join(different) if different else 'equal to the byte'}", flush=True)
    return int(bool(different))


def death(root: Path, fit: list[str]) -> int:
    """Kill the second node after two steps, and start both again; returns the number of faults."""
    nodes = by_torchrun(fit, root.with_name("death"))
    until = time.monotonic() + _LIMIT
    while steps(root) < 2 and time.monotonic() < until and nodes[0].poll() is None:
        time.sleep(0.05)
    kill(nodes[1])
    struck, held = time.monotonic(), steps(root)
    status = ended(nodes[:1])[0]
    print(f"death: the second node was killed after {held} steps; the first ended with {status} after "
          f"{time.monotonic() - struck:.0f} s", flush=True)  # fmt: skip
    again = ended(by_torchrun([*fit, "--ckpt_path", "last"], root.with_name("death-again")))
    print(f"death: both started again, statuses {again}", flush=True)
    return int(status == 0) + int(any(again))


def main() -> int:
    """The reference, then each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=["torchrun", "slurm", "death"],
                        default=["torchrun", "slurm", "death"])  # fmt: skip
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path, help="folder for the runs (default: a temporary one)")
    args = parser.parse_args()
    out = args.out or Path(tempfile.mkdtemp(prefix="nodes-"))
    out.mkdir(parents=True, exist_ok=True)
    first = out / "reference"
    if not (first / "export").is_dir():
        command = ["-m", "lightning_serl", *options(first, args.rounds), "--trainer.devices", "2"]
        if ended([begin(command, out / "reference.log")])[0]:
            raise SystemExit(f"the reference failed; see {out / 'reference.log'}")
    reference, faults = results(first), 0
    for name in args.only:
        root = out / name
        fit = options(root, args.rounds)
        if name == "death":
            wrong = death(root, fit)
        else:
            statuses = ended((by_torchrun if name == "torchrun" else by_slurm)(fit, out / f"{name}.log"))
            print(f"{name}: statuses {statuses}", flush=True)
            wrong = int(any(statuses))
        faults += wrong or compare(name, root, reference)
    print("met" if not faults else f"MISSED: {faults} faults; logs in {out}")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
