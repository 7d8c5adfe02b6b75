"""Documents as ground, on facts that no base can know: a policy that can read is trained on a folder of passages.

    python benchmarks/documents.py [--seeds 0 1 2] [--rounds 30] [--base DIR] [--out DIR]

The world is made up: 48 names, each with a colour, a home, a pet and so on, drawn at random. The base (0.5 M parameters,
built by this script in about five minutes of one CPU core, or taken from ``--base``) is pre-trained on facts that are
drawn anew for every row: it can answer from a passage, guesses without one, and writes questions about a passage, of
which some cannot be answered from it, some speak of "the text" and some contain their answer. A corpus is a folder of
text with one paragraph for each of 24 names, four facts each. The held-out questions are about these facts, in two
wordings that the base never writes.

- *documents*: ``--data.documents DIR`` with the default settings of ``data.reading``;
- *scores alone*: the same with ``--data.reading.imitate 0``, the shape of SPICE;
- *random reward*: ``--data.reward RandomReward``, which also turns imitation off;
- *other corpus*: trained on a folder with the same names and other facts, measured on the facts of the first.

Checks, besides the table: every problem that was trained on leads to its passage by the ledger, whose offsets are those
of the file; with 2 rounds, a run that was interrupted and resumed, and one on two ranks, leave the same ledger (two
ranks) and the same ledger, metrics and weights (resumed). Exits 1 if *documents* rises by less than 20 points, a control
by more than 8, or a check fails.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, decoders, trainers, Regex
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from lightning_serl.tiny.pretrain import build_model

SYLLABLES = ("Mi", "Zo", "Ka", "Lu", "Te", "Ro", "Ve", "Du"), ("ra", "lin", "mo", "vek", "sa", "dor")
NAMES = [first + last for first in SYLLABLES[0] for last in SYLLABLES[1]]
VALUES = {
    "color": "red blue green black white gold silver brown pink purple orange yellow gray teal navy amber".split(),
    "home": "tower cave barn hut cabin castle mill tent lodge farm ship inn cellar loft palace bunker".split(),
    "pet": "owl cat dog fox wolf hare crow goat pig hen duck mule swan toad newt bear".split(),
    "job": "baker miner smith tailor guard pilot cook judge nurse clerk farmer painter mason sailor monk scribe".split(),
    "food": "rice bread soup fish corn cheese honey beans stew plums pears nuts eggs kale figs oats".split(),
    "tool": "rope axe saw drill lamp map net pump hook spade brush chisel needle ladder anvil whip".split(),
}
FACTS = ("The {a} of {n} is {v}.", "{n} has the {a} {v}.", "{n} chose {v} as {a}.")
WRITTEN = ("What is the {a} of {n}?", "Which {a} does {n} have?")
HELD_OUT = ("Tell me what {a} {n} has.", "Say which is the {a} of {n}.")
ASK = "Text:\n{passage}\n\nQuestions:\n1."
LENGTH, STEPS, ROWS = 4, 1400, 40


def facts(rng: random.Random, count: int) -> dict[str, str]:
    """Some attributes of one name with their values."""
    chosen = rng.sample(list(VALUES), count)
    return {a: rng.choice(VALUES[a]) for a in chosen}


def passage(rng: random.Random, name: str, held: dict[str, str]) -> str:
    """A paragraph with the facts of one name."""
    return " ".join(rng.choice(FACTS).format(n=name, a=a, v=v) for a, v in held.items())


def solution(attribute: str, value: str) -> str:
    """An answer."""
    return f" The {attribute} is {value}. So \\boxed{{{value}}}."


def question(rng: random.Random, name: str, attribute: str, wordings: Sequence[str] = WRITTEN + HELD_OUT) -> str:
    """A question for one fact."""
    return rng.choice(wordings).format(a=attribute, n=name)


def written(rng: random.Random, name: str, held: dict[str, str]) -> str:
    """A question about a passage as the base writes it: one in five has a fault."""
    fault, attribute = rng.random(), rng.choice(list(held))
    if fault < 0.08:  # the passage does not say
        attribute = rng.choice([a for a in VALUES if a not in held])
    elif fault < 0.14:
        return f"What is the {attribute} in the text?"
    elif fault < 0.2:
        return f"What is the {attribute} of {name} if the {attribute} is {held[attribute]}?"
    return question(rng, name, attribute, WRITTEN)


def row(rng: random.Random) -> tuple[str, str]:
    """Prompt and continuation of one row of the pre-training."""
    name, held, kind = rng.choice(NAMES), facts(rng, LENGTH), rng.random()
    text = passage(rng, name, held)
    if kind < 0.35:
        questions = [written(rng, name, held) for _ in range(3)]
        return ASK.format(passage=text), "".join(f" {q}\n{i}." for i, q in enumerate(questions[:2], 2)) + f" {questions[2]}"
    attribute = rng.choice(list(VALUES))
    asked = f"Question: {question(rng, name, attribute)}\nSolution:"
    guess = rng.choice(VALUES[attribute])
    if kind < 0.55:
        return asked, solution(attribute, guess)
    return f"{text}\n\n{asked}", solution(attribute, held.get(attribute, guess))


def build_tokenizer() -> Any:
    """A tokenizer with whole words."""
    rng = random.Random(0)
    tokenizer = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(r" ?\d| ?\\boxed\{| ?[A-Za-z]+|\n| ?[^A-Za-z\d\s]| +"), "isolated")
    octets = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence([pieces, octets]), decoders.ByteLevel()
    texts = ["".join(row(rng)) for _ in range(6000)]
    trainer = trainers.BpeTrainer(vocab_size=1200, special_tokens=["<|end|>"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>", model_max_length=512,
        clean_up_tokenization_spaces=False, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def build_base(folder: Path, steps: int) -> None:
    """Pre-train the base and write it as a directory."""
    tokenizer = build_tokenizer()
    model, rng = build_model(tokenizer, 0), random.Random(1)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [(torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.01), 0.02),
                  (torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01), 3e-3)]  # fmt: skip
    model.train()
    for step in range(steps):
        rows = [row(rng) for _ in range(ROWS)]
        heads = [tokenizer.encode(prompt) for prompt, _ in rows]
        ids = [head + tokenizer.encode(rest) + [tokenizer.eos_token_id] for head, (_, rest) in zip(heads, rows, strict=True)]
        width = max(map(len, ids))
        batch = torch.tensor([one + [0] * (width - len(one)) for one in ids])
        target = torch.full_like(batch, -100)
        for i, one in enumerate(ids):
            target[i, len(heads[i]) - 1 : len(one) - 1] = batch[i, len(heads[i]) : len(one)]
        logits = model(input_ids=batch).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-100)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scale = min(1.0, (step + 1) / 50) * max(0.05, 1 - step / steps)
        for optimizer, rate in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
            optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}", file=sys.stderr, flush=True)
    model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    began = time.process_time()
    build_base(Path(sys.argv[1]), int(sys.argv[2]))
    print("cpu seconds", time.process_time() - began)
