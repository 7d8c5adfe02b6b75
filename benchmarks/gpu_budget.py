"""LoRA and QLoRA on one GPU, through full rounds of the real loop, compared with TRL's GRPOTrainer on the same work.

    python benchmarks/gpu_budget.py [--small] [--rounds 2] [--tokens 256] [--limit 280]

A Qwen2-style model of about 1.1 billion random weights is made first, with a vocabulary of 50k so that the output
layer matters, and the embedded tokenizer, most of whose ids it never emits: every completion has its full length. Both
sides do the same: 8 prompts x 8 samples x ``--tokens`` new tokens with transformers, rewards 0 and 1 in turn, the
reference's log-probs by the disabled adapter, one AdamW step over micro-batches of 8 rows with gradient checkpointing.
The first round warms up and is not counted. *Generation* is the time inside the engine (TRL: inside its generate),
*training* is all the rest of a round. A section that fails prints its traceback and the rest goes on. ``--small`` is
for CPUs.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lightning_serl import tiny
from lightning_serl.types import Verdict

CUDA = torch.cuda.is_available()


class Meter:
    """Seconds and peak memory of generation and of everything else, per round; the first round is not counted."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, float]] = []
        self.peaks = {"generation": 0.0, "training": 0.0}
        self._settle(None)
        self._began = time.perf_counter()
        self._now = {"generation": 0.0, "generated": 0.0, "trained": 0.0}

    def _settle(self, phase: str | None) -> None:
        if CUDA:
            torch.cuda.synchronize()
            if phase is not None:
                self.peaks[phase] = max(self.peaks[phase], torch.cuda.max_memory_allocated() / 2**30)
            torch.cuda.reset_peak_memory_stats()

    @contextmanager
    def generating(self) -> Iterator[None]:
        """What runs inside is generation."""
        self._settle("training")
        began = time.perf_counter()
        try:
            yield
        finally:
            self._settle("generation")
            self._now["generation"] += time.perf_counter() - began

    def count(self, **amounts: float) -> None:
        """Add tokens to the round at hand."""
        for name, amount in amounts.items():
            self._now[name] += amount

    def round_ends(self) -> None:
        """Close the round."""
        self._settle("training")
        now = time.perf_counter()
        self.rounds.append({**self._now, "total": now - self._began})
        self._began, self._now = now, dict.fromkeys(self._now, 0.0)

    def first(self) -> str:
        """What the round that is not counted took."""
        first = self.rounds[0]
        return f"its first round with loading {first['total']:.0f} s, {first['generation']:.0f} s of them generation"

    def row(self) -> str:
        """Peaks in GiB, tokens per second, seconds per round."""
        counted = self.rounds[1:]
        sums = {name: sum(r[name] for r in counted) for name in counted[0]}
        training = sums["total"] - sums["generation"]
        peaks = [f"{self.peaks[p]:.2f}" if CUDA else "-" for p in ("training", "generation")]
        return " | ".join(
            [
                *peaks,
                f"{sums['trained'] / training:,.0f}",
                f"{sums['generated'] / sums['generation']:,.0f}",
                f"{sums['total'] / len(counted):.1f}",
                f"{sums['trained'] / len(counted):,.0f}",
            ]
        )


def make_model(folder: Path, small: bool) -> int:
    """Save a model of random weights with the embedded tokenizer; returns its number of weights."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    sizes = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 16}
    if small:
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(
        **sizes, num_key_value_heads=4, vocab_size=2_000 if small else 50_304, max_position_embeddings=2048,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda" if CUDA else "cpu"):
        model = Qwen2ForCausalLM._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny.path("base")).save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def problems(count: int) -> list[str]:
    """The first seeds of the embedded set."""
    lines = tiny.path("seeds").read_text(encoding="utf-8").splitlines()[:count]
    return [json.loads(line)["problem"] for line in lines]


def ours(folder: Path, quantize: bool, shape: argparse.Namespace, root: Path) -> Meter:
    """Full rounds of SeRLModule and SelfPlayDataModule."""
    import lightning.pytorch as pl

    from lightning_serl import SelfPlayDataModule, SeRLModule
    from lightning_serl.datamodules import RoundOptions
    from lightning_serl.datamodules.rounds.health_probe import Probe
    from lightning_serl.engines import TransformersEngine
    from lightning_serl.policy.lora import LoraOptions
    from lightning_serl.prompts import SolveTemplate

    meter = Meter()

    class TimedEngine(TransformersEngine):
        def generate(self, requests: Sequence[Any], who: Any = "policy") -> Iterator[Any]:
            with meter.generating():
                written = list(super().generate(requests, who))
            meter.count(generated=sum(len(c.token_ids) for _, completions in written for c in completions))
            yield from written

    class Count(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            meter.count(trained=int(batch.attention_mask.sum()))
            if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
                meter.round_ends()

    def in_turn(groups: Sequence[Any], ctx: Any) -> list[Verdict]:
        return [Verdict(torch.tensor([float(i % 2) for i in range(len(group))])) for group in groups]

    seeds = root / "seeds.jsonl"
    seeds.write_text("".join(json.dumps({"problem": p}) + "\n" for p in problems(shape.prompts)))
    module = SeRLModule(
        str(folder),
        lora=LoraOptions(r=16, alpha=32),
        quantize="nf4" if quantize else None,
        dtype="bfloat16",
        gradient_checkpointing=True,
        optimizer=lambda params: torch.optim.AdamW(params, lr=1e-5),
    )
    data = SelfPlayDataModule(
        seeds=str(seeds),
        source="seeds",
        reward=in_turn,  # type: ignore[arg-type]
        grader="math",
        engine=TimedEngine(),
        round=RoundOptions(prompts_per_round=shape.prompts, samples_per_prompt=shape.samples, max_attempts=1),
        solve=SolveTemplate(answer_format=""),
        max_tokens=shape.tokens,
        rounds_per_epoch=shape.rounds,
        probe=Probe(every=0),  # it would write answers that the other side does not
    )
    trainer = pl.Trainer(
        accelerator="gpu" if CUDA else "cpu", devices=1, precision="bf16-mixed", max_epochs=1,
        accumulate_grad_batches=shape.prompts * shape.samples // shape.rows, callbacks=[Count()], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=root,
        gradient_clip_val=1.0, inference_mode=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, data)
    return meter


def theirs(folder: Path, quantize: bool, shape: argparse.Namespace, root: Path) -> Meter:
    """The same through TRL."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from lightning_serl.policy.quantization import quantization_config

    meter = Meter()
    extra: dict[str, Any] = {}
    if quantize:
        extra = {"quantization_config": quantization_config("nf4", torch.bfloat16),
                 "device_map": {"": "cuda:0" if CUDA else "cpu"}}  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **extra)

    class Rounds(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.round_ends()

    def in_turn(completions: list[Any], **_: Any) -> list[float]:
        return [float(i % 2) for i in range(len(completions))]

    args = GRPOConfig(
        output_dir=str(root), per_device_train_batch_size=shape.rows,
        gradient_accumulation_steps=shape.prompts * shape.samples // shape.rows, num_generations=shape.samples,
        max_completion_length=shape.tokens, max_steps=shape.rounds, beta=0.001, learning_rate=1e-5, max_grad_norm=1.0,
        lr_scheduler_type="constant", gradient_checkpointing=True, bf16=True, use_cpu=not CUDA, report_to="none",
        save_strategy="no", logging_strategy="no", seed=1, disable_tqdm=True,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=in_turn,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": f"Question: {p}\nSolution:"} for p in problems(shape.prompts)]),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Rounds()],
    )
    generate, score = trainer._generate_single_turn, trainer._generate_and_score_completions

    def timed(*given: Any, **more: Any) -> Any:
        with meter.generating():
            return generate(*given, **more)

    def counted(*given: Any, **more: Any) -> Any:
        out = score(*given, **more)
        completions = float(out["completion_mask"].sum())
        meter.count(generated=completions, trained=completions + float(out["prompt_mask"].sum()))
        return out

    trainer._generate_single_turn, trainer._generate_and_score_completions = timed, counted
    trainer.train()
    return meter


def free() -> None:
    """Memory of one section must not count in the next."""
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def installed(name: str) -> str:
    """Name and version."""
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} missing"


def main() -> int:
    """Run what is installed and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tiny model and short answers, for CPUs")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of each section; the first only warms up")
    parser.add_argument("--tokens", type=int, default=256, help="new tokens of each completion")
    parser.add_argument("--limit", type=float, default=280, help="seconds after which no further section begins")
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error("--rounds must be at least 2: the first one only warms up")
    shape = argparse.Namespace(prompts=8, samples=8, tokens=args.tokens, rows=8, rounds=args.rounds)
    if args.small:
        shape = argparse.Namespace(prompts=2, samples=4, tokens=12, rows=4, rounds=args.rounds)
    names = ("torch", "transformers", "peft", "bitsandbytes", "lightning", "trl")
    print(", ".join(installed(name) for name in names))
    print(f"device: {torch.cuda.get_device_name() if CUDA else 'CPU'}")
    began, failed = time.perf_counter(), 0
    with tempfile.TemporaryDirectory(prefix="gpu-budget-") as name:
        root = Path(name)
        size = make_model(root / "model", args.small)
        free()
        print(f"model: {size / 1e9:.3f}e9 weights; {shape.prompts} prompts x {shape.samples} samples x {shape.tokens} "
              f"tokens, micro-batches of {shape.rows} rows", flush=True)  # fmt: skip
        sections: dict[str, tuple[Callable[..., Meter], bool]] = {
            "ours, LoRA": (ours, False), "TRL, LoRA": (theirs, False),
            "ours, QLoRA": (ours, True), "TRL, QLoRA": (theirs, True),
        }  # fmt: skip
        if "missing" in installed("trl"):
            print("trl is not installed: only ours is measured")
            sections = {title: section for title, section in sections.items() if section[0] is ours}
        rows = []
        for number, (title, (run, quantize)) in enumerate(sections.items()):
            if time.perf_counter() - began > args.limit:
                print(f"{title}: left out, {args.limit:.0f} s are over")
                continue
            here = root / str(number)
            here.mkdir()
            start = time.perf_counter()
            try:
                meter = run(root / "model", quantize, shape, here)
                rows.append(f"| {title} | {meter.row()} |")
                print(f"{title}: done in {time.perf_counter() - start:.0f} s ({meter.first()})", flush=True)
                print(rows[-1], flush=True)
            except Exception:
                failed += 1
                print(f"{title}: FAILED", flush=True)
                traceback.print_exc(file=sys.stdout)
            free()
    print("\n| | peak GiB training | peak GiB generation | trained tokens/s | generated tokens/s | s per round | "
          "tokens per round |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
