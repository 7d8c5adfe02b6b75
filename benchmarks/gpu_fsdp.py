"""The loop with sharded weights (FSDP2) on one device in bf16-mixed, killed and resumed, with figures.

    python benchmarks/gpu_fsdp.py [--device cuda|cpu] [--models base half-billion] [--small] [--out DIR]

Two models: the embedded base, and random weights in the shape of a Qwen2 of half a billion parameters. Each runs
uninterrupted, then again until it kills itself with SIGKILL inside a round, then from its last checkpoint. ``--small``
shrinks everything for a try on a CPU. Needs no network. Exits 1 if a check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHILD_LIMIT = 600


def build_half_billion(folder: Path, small: bool) -> None:
    """Random weights in Qwen2's shape beside the embedded tokenizer."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    from lightning_serl import tiny

    tokenizer = AutoTokenizer.from_pretrained(tiny.path("base"))
    wide = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 33, "num_attention_heads": 14}
    if small:
        wide = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, **wide,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def child(args: argparse.Namespace) -> None:
    """One fit, in a process of its own."""
    import lightning.pytorch as pl
    import torch
    from lightning.pytorch.strategies import ModelParallelStrategy
    from torch.distributed.tensor import DTensor

    from lightning_serl import SelfPlayDataModule, SeRLModule
    from lightning_serl.callbacks import Checkpoints, DifficultyFilter
    from lightning_serl.callbacks.rollout_hooks import RolloutHooks
    from lightning_serl.datamodules import EvaluationOptions, RoundOptions
    from lightning_serl.datamodules.sources import Writing
    from lightning_serl.distributed.sharding import full
    from lightning_serl.engines.base import Sampling
    from lightning_serl.objectives import Objective
    from lightning_serl.prompts import InstructionTemplate, SolveTemplate

    cuda = args.device == "cuda"
    # what the kernels leave to chance would hide whether the resume is exact
    torch.use_deterministic_algorithms(True, warn_only=True)
    if not cuda:
        torch.set_num_threads(1)
    base = args.child == "base"
    rounds = {"base": 2 if args.small else 8, "half-billion": 2}[args.child]
    tokens = 24 if args.small else 56

    class Meter(RolloutHooks):
        """Seconds and tokens of rollouts and of training, and the kill."""

        def __init__(self) -> None:
            self.written = self.trained = self.rounds = 0
            self.writing = self.training = 0.0
            self.mark = 0.0

        def _lap(self) -> float:
            if cuda:
                torch.cuda.synchronize()
            before, self.mark = self.mark, time.monotonic()
            return self.mark - before

        def on_rollout_start(self, trainer, pl_module, engine) -> None:
            self._lap()

        def on_round_end(self, trainer, pl_module, played) -> None:
            if trainer.training:
                self.writing += self._lap()
                self.written += sum(len(c.token_ids) for group, _ in played.answered for c in group.completions)
                self.rounds += 1

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            self.training += self._lap()
            self.trained += int(batch.attention_mask.sum())
            # in the middle of an accumulation window of a later round
            if args.mode == "killed" and batch_idx == 4 * (rounds // 2) + 2:
                os.kill(os.getpid(), signal.SIGKILL)

    held_out = EvaluationOptions(sets={"held_out": "tiny:held_out"} if base else {}, samples=0, batch_size=200)
    module = SeRLModule(
        "tiny:base" if base else str(args.out / "half-billion"),
        objective=Objective(beta=0.01),
        minibatches=2,
        gradient_checkpointing=not base,
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-4 if base else 1e-5),
    )
    data = SelfPlayDataModule(
        seeds="tiny:seeds",
        source="self" if base else "seeds",
        reward=None if base else "RandomReward",
        grader="math",
        solve=SolveTemplate(answer_format=""),
        max_tokens=tokens,
        writing=Writing(
            exemplars=4,
            from_kept=0,
            template=InstructionTemplate(header="Write new math questions."),
            sampling=Sampling(max_tokens=170),
        ),
        round=RoundOptions(prompts_per_round=4 if args.small else 16, samples_per_prompt=4 if args.small else 16,
                           max_attempts=2),
        rounds_per_epoch=rounds,
        evaluation=held_out,
    )  # fmt: skip
    root = args.out / args.child / ("whole" if args.mode == "whole" else "cut")
    meter = Meter()
    filters = [] if base else [DifficultyFilter(0.0, 1.0)]
    trainer = pl.Trainer(
        accelerator=args.device, devices=1, precision="bf16-mixed",
        strategy=ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1, save_distributed_checkpoint=False),
        max_epochs=1, accumulate_grad_batches=2, gradient_clip_val=1.0, log_every_n_steps=1, num_sanity_val_steps=0,
        logger=False, enable_progress_bar=False, enable_model_summary=False, inference_mode=False,
        default_root_dir=root, callbacks=[meter, *filters, Checkpoints(2, keep=0)],
    )  # fmt: skip
    began = time.monotonic()
    before = None
    if base and args.mode != "resumed":
        before = trainer.validate(module, data, verbose=False)[0]["val/held_out/pass@1"]
    last = root / "checkpoints" / "last.ckpt"
    trainer.fit(module, data, ckpt_path=last if args.mode == "resumed" else None)
    parameters = dict(module.policy.named_parameters())
    found = {
        "seconds": time.monotonic() - began,
        "parameters": sum(p.numel() for p in parameters.values()),
        "sharded": all(isinstance(p, DTensor) and p.device.type == args.device for p in parameters.values()),
        "written": meter.written / max(meter.writing, 1e-9),
        "trained": meter.trained / max(meter.training, 1e-9),
        "rounds": meter.rounds,
        "steps": trainer.global_step,
        "gigabytes": torch.cuda.max_memory_allocated() / 2**30
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "before": before,
        "after": module.last_results["held_out"]["pass@1"] if base else None,
        "finite": all(bool(torch.isfinite(full(p)).all()) for p in parameters.values()),
    }
    torch.save({n: full(p).cpu() for n, p in parameters.items()}, root / "weights.pt")
    (root / "found.json").write_text(json.dumps(found))


def run(args: argparse.Namespace, name: str, mode: str) -> int:
    """A child; its exit status."""
    command = [sys.executable, __file__, "--child", name, "--mode", mode, "--device", args.device]
    command += ["--out", str(args.out), *(["--small"] if args.small else [])]
    env = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "TOKENIZERS_PARALLELISM": "false"}
    log = args.out / f"{name}-{mode}.log"
    with log.open("w") as out:
        done = subprocess.run(command, env=env, stdout=out, stderr=subprocess.STDOUT, timeout=CHILD_LIMIT, check=False)
    wanted = -signal.SIGKILL if mode == "killed" else 0
    if done.returncode != wanted:
        print(f"{name}, {mode}: exit status {done.returncode} instead of {wanted}; the end of {log}:")
        print("\n".join(log.read_text().splitlines()[-25:]))
        sys.exit(1)
    return done.returncode


def rows(root: Path) -> list[dict]:
    """The metrics without what a clock measured."""
    lines = (root / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]


def check(args: argparse.Namespace, name: str) -> dict[str, bool]:
    """Compare the two runs of a model; sentences with whether they hold."""
    import torch

    whole, cut = args.out / name / "whole", args.out / name / "cut"
    first, second = (json.loads((r / "found.json").read_text()) for r in (whole, cut))
    a, b = (torch.load(r / "weights.pt", weights_only=True) for r in (whole, cut))
    apart = max(float((a[n].double() - b[n].double()).abs().max()) for n in a)
    checks = {
        f"{name}: all weights are sharded and on {args.device}": first["sharded"] and second["sharded"],
        f"{name}: weights are finite after {first['steps']} steps": first["finite"] and second["finite"],
        f"{name}: killed and resumed made the same {first['steps']} steps": first["steps"] == second["steps"],
        f"{name}: same ledger": (whole / "ledger.jsonl").read_bytes() == (cut / "ledger.jsonl").read_bytes(),
        f"{name}: same metrics": rows(whole) == rows(cut),
        f"{name}: same weights bit for bit (largest difference {apart:.1e})": apart == 0,
    }
    if first["before"] is not None and not args.small:
        gain = 100 * (first["after"] - first["before"])
        checks[f"{name}: held-out greedy pass@1 at least +10 points ({gain:+.1f})"] = gain >= 10
    return checks


def main() -> int:
    """Run both models and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--models", nargs="+", choices=["base", "half-billion"], default=["base", "half-billion"])
    parser.add_argument("--small", action="store_true", help="a few seconds on a CPU")
    parser.add_argument("--out", type=Path, help="folder for the runs (default: a temporary one)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--mode", default="whole", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return 0
    args.out = (args.out or Path(tempfile.mkdtemp(prefix="gpu-fsdp-"))).absolute()
    args.out.mkdir(parents=True, exist_ok=True)
    import torch
    import transformers

    where = torch.cuda.get_device_name() if args.device == "cuda" else "CPU, one thread"
    print(f"{where}; torch {torch.__version__}, transformers {transformers.__version__}", flush=True)
    if "half-billion" in args.models:
        build_half_billion(args.out / "half-billion", args.small)
    checks: dict[str, bool] = {}
    print("| model | run | parameters | rounds | seconds | written tokens/s | trained tokens/s | peak GiB |")
    print("|---|---|---|---|---|---|---|---|")
    for name in args.models:
        for mode in ("whole", "killed", "resumed"):
            run(args, name, mode)
            if mode == "killed":
                continue
            root = args.out / name / ("whole" if mode == "whole" else "cut")
            f = json.loads((root / "found.json").read_text())
            print(
                f"| {name} | {mode} | {f['parameters'] / 1e6:.1f} M | {f['rounds']} | {f['seconds']:.1f} | "
                f"{f['written']:.0f} | {f['trained']:.0f} | {f['gigabytes']:.2f} |",
                flush=True,
            )
        found = check(args, name)
        checks |= found
        for sentence, met in found.items():
            print(f"- {'PASS' if met else 'FAIL'}: {sentence}", flush=True)
    return int(not all(checks.values()))


if __name__ == "__main__":
    sys.exit(main())
