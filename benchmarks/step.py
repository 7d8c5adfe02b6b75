"""Processor time of one optimizer step with answers of varying lengths: ours and TRL's ``GRPOTrainer``.

    python benchmarks/step.py [--steps 5] [--rounds 2] [--hidden 128] [--layers 2] [--new 100]

needs TRL 1.16.0, which this project does not install: use a separate environment with ``trl`` and this checkout on
``PYTHONPATH``. Both sides train the same small Qwen2 with the same prompts through their own trainer: 16 prompts of
30 to 40 characters x 16 samples by transformers, three end tokens out of 128, a Python reward, one forward and
backward over the round, clipping, AdamW, no reference model. TRL generates with its default and pads to the longest
answer; ours runs once as chosen for this model (packed) and once with ``packing=none`` (padded rows in
``--micro`` micro-batches, which any model can do). One thread, sides alternate, the first step of each run is
dropped, medians. Exits 1 if a side of ours is not at least twice as fast.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import string
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import lightning.pytorch as pl
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from lightning_serl import SeRLModule
from lightning_serl.engines import TransformersEngine
from lightning_serl.engines.base import Request, Sampling
from lightning_serl.objectives import Objective
from lightning_serl.types import Group, Instruction, RolloutBatch, Verdict

ENDS = [2, 3, 4]
TARGET = 2.0
PHASES = ("generate", "old", "forward", "backward")


def build(folder: str, hidden: int, layers: int) -> None:
    """A random model over printable characters."""
    words = ["<pad>", "<bos>", "<eos>", "<e3>", "<e4>", *string.printable]
    inner = Tokenizer(models.WordLevel({c: i for i, c in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=128, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers, eos_token_id=ENDS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, bos_token_id=1, pad_token_id=0,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = ENDS
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def prompts(count: int) -> list[str]:
    """30 to 40 characters each."""
    rng = random.Random(0)
    return ["".join(rng.choice("0123456789+-*= ") for _ in range(40 - rng.randint(0, 10))) for _ in range(count)]


def score(completions: list[str], **_: Any) -> list[float]:
    """Digits of each answer."""
    return [float(sum(c.isdigit() for c in text)) for text in completions]


class Clock:
    """Seconds of each phase, per step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.begun = 0.0

    def begin(self) -> None:
        """A step begins."""
        self.steps.append(defaultdict(float))
        self.begun = time.process_time()

    def end(self) -> None:
        """It is over."""
        self.steps[-1]["step"] = time.process_time() - self.begun

    def timed(self, phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, its seconds counted."""

        def run(*given: Any, **more: Any) -> Any:
            start = time.process_time()
            try:
                return call(*given, **more)
            finally:
                if self.steps:
                    self.steps[-1][phase] += time.process_time() - start

        return run


def run_trl(folder: str, options: argparse.Namespace) -> Clock:
    """TRL's trainer."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    clock = Clock()

    class Steps(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.end()

    rows = options.prompts * options.samples
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=rows, num_generations=options.samples,
        max_completion_length=options.new, max_steps=options.steps, report_to=[], use_cpu=True, bf16=False, beta=0.0,
        logging_steps=10**6, save_strategy="no", disable_tqdm=True, gradient_checkpointing=False, learning_rate=1e-5,
    )  # fmt: skip
    asked = [{"prompt": p} for p in prompts(options.prompts * (options.steps + 1))]
    trainer = GRPOTrainer(
        folder, score, args=config, train_dataset=Dataset.from_list(asked), callbacks=[Steps()],
        processing_class=AutoTokenizer.from_pretrained(folder),
    )  # fmt: skip
    trainer._generate_single_turn = clock.timed("generate", trainer._generate_single_turn)
    forward = trainer._get_per_token_logps_and_entropies
    old, new = clock.timed("old", forward), clock.timed("forward", forward)
    trainer._get_per_token_logps_and_entropies = lambda *a, **k: (new if torch.is_grad_enabled() else old)(*a, **k)
    trainer.accelerator.backward = clock.timed("backward", trainer.accelerator.backward)
    trainer.train()
    return clock


class Rollouts:
    """Rounds of one step each, as any training stream gives them."""

    def __init__(self, module: SeRLModule, options: argparse.Namespace, clock: Clock, slots: int) -> None:
        self.module, self.options, self.clock, self.slots = module, options, clock, slots
        self.engine = TransformersEngine()

    def __len__(self) -> int:
        return self.options.steps * self.slots

    def __iter__(self) -> Iterator[RolloutBatch]:
        options, policy = self.options, self.module.policy
        self.engine.start(policy)
        asked = [tuple(policy.tokenizer.encode(p)) for p in prompts(options.prompts * (options.steps + 1))]
        sampling = Sampling(max_tokens=options.new)
        for step in range(options.steps):
            self.clock.begin()
            chosen = asked[step * options.prompts : (step + 1) * options.prompts]
            first = step * options.prompts * options.samples
            seeds = [tuple(range(first + i, first + i + options.samples)) for i in range(0, 10**6, options.samples)]
            requests = [Request(ids, s, sampling) for ids, s in zip(chosen, seeds, strict=False)]

            def generate(requests: list[Request] = requests) -> dict[int, Any]:
                with policy.gathered(self.module.trainer):
                    return dict(self.engine.generate(requests))

            written = self.clock.timed("generate", generate)()
            groups = [Group(Instruction("", f"{step}-{i}"), ids, written[i]) for i, ids in enumerate(chosen)]
            yield from self.module.experience(groups, [Verdict(torch.tensor(score(g.texts))) for g in groups])


def run_ours(folder: str, options: argparse.Namespace, packing: str) -> Clock:
    """Ours, through Lightning's Trainer."""
    clock, slots = Clock(), options.micro if packing == "none" else 1
    module = SeRLModule(
        folder, Objective(beta=0.0), packing=packing, optimizer=lambda weights: torch.optim.AdamW(weights, lr=1e-5)
    )
    policy = module.policy
    policy.forward = clock.timed("forward", policy.forward)
    module.backward = clock.timed("backward", module.backward)

    class Steps(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if (batch_idx + 1) % slots == 0:
                clock.end()

    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tempfile.mkdtemp(), gradient_clip_val=1.0,
        accumulate_grad_batches=slots, callbacks=[Steps()],
    )  # fmt: skip
    trainer.fit(module, Rollouts(module, options, clock, slots))
    return clock


def main() -> int:
    """Run all sides in turn, print the phases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {
        "prompts": 16, "samples": 16, "new": 100, "steps": 5, "rounds": 2, "hidden": 128, "layers": 2, "micro": 8
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    folder = tempfile.mkdtemp()
    build(folder, options.hidden, options.layers)
    sides: dict[str, Callable[[], Clock]] = {
        "trl": lambda: run_trl(folder, options),
        "ours, padded rows": lambda: run_ours(folder, options, "none"),
        "ours, packed": lambda: run_ours(folder, options, "auto"),
    }
    steps: dict[str, list[dict[str, float]]] = defaultdict(list)
    with open(os.devnull, "w") as nowhere:
        for _ in range(options.rounds):
            for name, run in sides.items():
                with contextlib.redirect_stdout(nowhere):
                    steps[name] += run().steps[1:]
    print(f"trl {version('trl')}, transformers {version('transformers')}, torch {torch.__version__}")
    print(f"\n| seconds per step | {' | '.join(PHASES)} | other | step | ratio |\n|---|{'---|' * (len(PHASES) + 3)}")
    whole = {name: statistics.median(s["step"] for s in found) for name, found in steps.items()}
    for name, found in steps.items():
        of = [statistics.median(s.get(phase, 0.0) for s in found) for phase in PHASES]
        rest = [whole[name] - sum(of), whole[name]]
        cells = " | ".join(f"{x:.3f}" for x in (*of, *rest))
        print(f"| {name} | {cells} | {whole['trl'] / whole[name]:.2f} |")
    met = True
    for name in [n for n in sides if n != "trl"]:
        ratio = whole["trl"] / whole[name]
        met &= ratio >= TARGET
        print(
            f"{'PASS' if ratio >= TARGET else 'MISS'}  {name}: {ratio:.2f} times TRL's step, target at least {TARGET}"
        )
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
