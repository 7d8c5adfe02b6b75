"""Documents as ground, on facts that no base can know: a policy that can read is trained on a folder of passages.

    python benchmarks/documents.py [--seeds 0 1 2] [--rounds 64] [--base DIR] [--out DIR]

The world is made up: 48 names with a colour, a home, a pet and so on, drawn at random. The base (0.5 M parameters,
built by this script in some minutes of one CPU core, or taken from ``--base``) is pre-trained on facts that are drawn
for every row: it can answer from a passage, guesses without one, and writes questions about a passage, of
which some cannot be answered from it, some speak of "the text" and some contain their answer. A corpus is a folder of
text with one paragraph for each of 24 names, three facts each. The held-out questions are about these facts, in two
wordings that the base never writes.

- *documents*: ``--data.documents DIR`` with the defaults of ``data.reading``, its prompt and passage length aside;
- *scores alone*: the same with ``--data.reading.imitate 0``, the shape of SPICE; such a run may
  find nothing to learn from, and ends then;
- *random reward*: ``--data.reward RandomReward``, which also turns imitation off;
- *other corpus*: trained on a folder with the same names and other facts, measured on the facts of the first.

Checks, besides the table: every problem that was trained on leads to a paragraph of the corpus by file and offsets of
the ledger; with 2 rounds, a run that was interrupted and resumed leaves the same ledger, metrics and weights, and one
on two ranks the same ledger. Exits 1 if *documents* rises by less than 20 points, a control by more than 8, or a check
fails.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lightning_serl import SeRLModule
from lightning_serl.cli import main as lightning_serl
from lightning_serl.tiny.corpus import Row
from lightning_serl.tiny.pretrain import build_model, train

NAMES = [first + last for first in ("Mi", "Zo", "Ka", "Lu", "Te", "Ro", "Ve", "Du")
         for last in ("ra", "lin", "mo", "vek", "sa", "dor")]  # fmt: skip
WORDS = """
color: red blue green black white gold silver brown pink purple orange yellow gray teal navy amber
home: tower cave barn hut cabin castle mill tent lodge farm ship inn cellar loft palace bunker
pet: owl cat dog fox wolf hare crow goat pig hen duck mule swan toad newt bear
job: baker miner smith tailor guard pilot cook judge nurse clerk farmer painter mason sailor monk scribe
food: rice bread soup fish corn cheese honey beans stew plums pears nuts eggs kale figs oats
tool: rope axe saw drill lamp map net pump hook spade brush chisel needle ladder anvil whip
"""
VALUES = {line.partition(": ")[0]: line.partition(": ")[2].split() for line in WORDS.strip().splitlines()}
FACTS = ("The {a} of {n} is {v}.", "{n} has the {a} {v}.")
WRITTEN = ("What is the {a} of {n}?", "Which {a} does {n} have?")
HELD_OUT = ("Tell me what {a} {n} has.", "Say which is the {a} of {n}.")
ASK = "Text:\n{passage}\n\nQuestions:\n1."
END = "<|end|>"
LENGTH, STEPS, ROWS = 3, 1000, 16


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
    """Prompt and continuation of one row of the pre-training: questions about a passage, or four answered questions.

    Answers that can be read follow a passage, the others are guesses. Four in a row make more of each step.
    """
    name, held, kind = rng.choice(NAMES), facts(rng, LENGTH), rng.random()
    text = passage(rng, name, held)
    if kind < 0.3:
        questions = [written(rng, name, held) for _ in range(3)]
        listed = "".join(f" {q}\n{i}." for i, q in enumerate(questions[:2], 2)) + f" {questions[2]}"
        return ASK.format(passage=text), listed + END
    reads, pairs = kind >= 0.5, []
    for _ in range(4):
        attribute = rng.choice(list(held) if reads and rng.random() < 0.92 else list(VALUES))
        value = held.get(attribute) if reads else None
        asked = question(rng, name if reads else rng.choice(NAMES), attribute)
        pairs.append((f"Question: {asked}\nSolution:", solution(attribute, value or rng.choice(VALUES[attribute]))))
    rest = "".join(f"\n\n{asked}{answer}{END}" for asked, answer in pairs[1:])
    return (f"{text}\n\n" if reads else "") + pairs[0][0], pairs[0][1] + END + rest


def build_tokenizer() -> Any:
    """A tokenizer with whole words."""
    rng = random.Random(0)
    tokenizer = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(r" ?\d| ?\\boxed\{| ?[A-Za-z]+|\n| ?[^A-Za-z\d\s]| +"), "isolated")
    octets = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence([pieces, octets]), decoders.ByteLevel()
    texts = ["".join(row(rng)) for _ in range(6000)]
    trainer = trainers.BpeTrainer(vocab_size=1200, special_tokens=[END], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, model_max_length=512,
        clean_up_tokenization_spaces=False, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def draw(tokenizer: Any, seed: int) -> Iterator[list[Row]]:
    """The rows of one step of the pre-training after another, without end."""
    rng = random.Random(seed)
    while True:
        texts = [row(rng) for _ in range(ROWS)]
        heads = [tokenizer.encode(prompt) for prompt, _ in texts]
        yield [Row(h + tokenizer.encode(rest), len(h)) for h, (_, rest) in zip(heads, texts, strict=True)]


def build_base(folder: Path, steps: int) -> None:
    """Pre-train the base and write it as a directory."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, 0)
    for step, report in enumerate(train(model, tokenizer, 1, steps, draw)):
        if step % 100 == 0:
            print(f"step {step}: loss {report.loss:.3f}", file=sys.stderr, flush=True)
    model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Fact(NamedTuple):
    """One fact of a corpus."""

    name: str
    attribute: str
    value: str


def write_corpus(folder: Path, seed: int) -> list[Fact]:
    """Write a folder of text, six names a file, and return its facts."""
    rng, out = random.Random(f"corpus {seed}"), []
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(random.Random("names").sample(NAMES, 24))
    for number in range(4):
        paragraphs = []
        for name in names[6 * number : 6 * number + 6]:
            held = facts(rng, LENGTH)
            out += [Fact(name, attribute, value) for attribute, value in held.items()]
            paragraphs.append(passage(rng, name, held))
        (folder / f"part-{number}.txt").write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")
    return out


def write_held_out(path: Path, known: list[Fact]) -> None:
    """A question for each fact, in a wording that the base does not write."""
    rng = random.Random("held out")
    rows = [{"problem": question(rng, f.name, f.attribute, HELD_OUT), "answer": f.value} for f in known]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


ARMS = {
    "documents": [],
    "random reward": ["--data.reward", "RandomReward"],
    "other corpus": [],
    "scores alone": ["--data.reading.imitate", "0"],
}
SIZE = (
    "--data.grader", "text", "--data.solve.answer_format", "", "--data.max_tokens", "16",
    "--data.reading.ask.text", ASK, "--data.reading.passage_chars", "100",
    "--data.writing.sampling.max_tokens", "64", "--data.writing.sampling.temperature", "1.0",
    "--data.round.prompts_per_round", "24", "--data.round.samples_per_prompt", "4", "--data.round.max_attempts", "2",
    "--data.evaluation.samples", "0", "--data.evaluation.batch_size", "96",
    "--model.lr", "1e-3", "--model.objective.beta", "0", "--trainer.accelerator", "cpu",
    "--trainer.accumulate_grad_batches", "4", "--trainer.max_epochs", "1",
)  # fmt: skip


class World:
    """Base, two corpora of the same names, and the questions about the first, in one folder."""

    def __init__(self, root: Path, base: Path | None, steps: int) -> None:
        self.base, self.held_out = base or root / "base", root / "held_out.jsonl"
        self.corpora = {"one": root / "corpus", "other": root / "other"}
        root.mkdir(parents=True, exist_ok=True)
        known = write_corpus(self.corpora["one"], 1)
        write_corpus(self.corpora["other"], 2)
        write_held_out(self.held_out, known)
        if not (self.base / "config.json").is_file():
            build_base(self.base, steps)

    def options(self, arm: str, seed: int, rounds: int, folder: Path) -> list[str]:
        """The command of a run."""
        corpus = self.corpora["other" if arm == "other corpus" else "one"]
        return [
            "fit", "--model.model_name_or_path", str(self.base), "--data.documents", str(corpus), *SIZE,
            "--data.evaluation.sets.held_out", str(self.held_out), "--data.rounds_per_epoch", str(rounds),
            "--seed_everything", str(seed), "--trainer.default_root_dir", str(folder), *ARMS[arm],
        ]  # fmt: skip


def run(options: list[str]) -> str | None:
    """Run the command in this process; returns the error that ended it, ``None`` if it ran through."""
    said, kept = io.StringIO(), dict(os.environ)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            status = lightning_serl(options)
    finally:
        os.environ.clear()
        os.environ.update(kept)
    lines = [line for line in said.getvalue().splitlines() if line.strip()]
    return None if status == 0 else (lines or ["it failed without a message"])[-1]


def interrupted(options: list[str], rounds: int) -> str | None:
    """Interrupt a run in the training of its last round, as by Ctrl-C, and continue it."""
    step = SeRLModule.training_step

    def training_step(module: SeRLModule, *batch: Any) -> Any:
        if module.global_step == rounds - 1:
            raise KeyboardInterrupt
        return step(module, *batch)

    with mock.patch.object(SeRLModule, "training_step", training_step):
        run(options)
    return run([*options, "--ckpt_path", "last"])


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a jsonl file, without clock readings."""
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in found]


def traced(folder: Path, corpus: Path) -> tuple[list[str], float]:
    """Trained problems that lead to no paragraph of the corpus, and the share of the others whose label it holds."""
    lost: list[str] = []
    cited, labels, trained, held = {}, {}, set(), []
    for row in rows(folder / "ledger.jsonl"):
        if row["event"] == "proposed":
            cited[row["uid"]] = row.get("passage")
        elif row["event"] == "voted":
            labels[row["uid"]] = row["label"]
        elif row["event"] == "trained":
            trained.add(row["uid"])
    paragraphs = {p for file in corpus.iterdir() for p in file.read_text(encoding="utf-8").strip().split("\n\n")}
    for uid in sorted(trained):
        where = cited.get(uid)
        text = "" if where is None else (corpus / where["file"]).read_text(encoding="utf-8")
        part = "" if where is None else text[where["start"] : where["end"]]
        if part in paragraphs:
            held.append(str(labels[uid.partition(".")[0]]) in part.lower())
        else:
            lost.append(uid)
    return (lost, sum(held) / max(1, len(held))) if trained else (["nothing was trained on"], 0.0)


def checks(world: World, root: Path) -> list[str]:
    """What is wrong with a run that was interrupted, and with one on two ranks."""
    whole, parted, two = (root / f"check-{name}" for name in ("whole", "parted", "two"))
    for folder in (whole, parted, two):
        shutil.rmtree(folder, ignore_errors=True)
    size = ["--data.evaluation.sets", "{}", "--data.round.prompts_per_round", "4"]
    make = partial(world.options, "documents", 0, 2)
    wrong = [error for error in (run([*make(whole), *size]), interrupted([*make(parted), *size], 2)) if error]
    if not wrong:
        for name in ("ledger", "metrics"):
            if rows(whole / f"{name}.jsonl") != rows(parted / f"{name}.jsonl"):
                wrong.append(f"resumed: the {name} differs")
        weights = [(folder / "export" / "model.safetensors").read_bytes() for folder in (whole, parted)]
        wrong += ["resumed: the weights differ"] * (weights[0] != weights[1])
    ranks = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accumulate_grad_batches", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "lightning_serl", *make(two), *size, *ranks], capture_output=True, text=True, check=False
    )
    if done.returncode:
        wrong.append(f"two ranks: {done.stderr.strip().splitlines()[-1]}")
    elif not alike(rows(whole / "ledger.jsonl"), rows(two / "ledger.jsonl")):
        wrong.append("two ranks: the ledger differs")
    return wrong


def alike(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    """Whether two ledgers are equal up to the last digits of scores."""
    numbers = [[[row.pop("confidence", 0.0), *row.pop("scores", [])] for row in table] for table in (one, other)]
    return one == other and all(
        len(a) == len(b) and all(abs(x - y) <= 1e-4 for x, y in zip(a, b, strict=True))
        for a, b in zip(*numbers, strict=True)
    )


def main() -> int:
    """Run the arms, print the table and the checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--rounds", type=int, default=64)
    parser.add_argument("--steps", type=int, default=STEPS, help="of the pre-training")
    parser.add_argument("--base", type=Path, help="take the base of an earlier call")
    parser.add_argument("--out", type=Path, help="keep the run folders here; finished runs are read")
    parser.add_argument("--without-checks", action="store_true", help="print the table alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    root = (args.out or Path(tempfile.mkdtemp(prefix="documents-"))).resolve()
    world, changes, failed = World(root, args.base, args.steps), dict[str, list[float]](), list[str]()
    print(
        "| arm | seed | greedy | trained | label in its passage, % | asked | rejected or dropped most | CPU seconds |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for arm in args.arms:
        for seed in args.seeds:
            folder, began = root / f"{arm.replace(' ', '-')}-{seed}", time.process_time()
            if not (folder / "summary.json").is_file():
                shutil.rmtree(folder, ignore_errors=True)
                if error := run(world.options(arm, seed, args.rounds, folder)):
                    print(f"| {arm} | {seed} | ended: {error[:90]} | | | | | |", flush=True)
                    # scores alone run dry where no answer is right by chance, which is an outcome and no fault
                    dry = arm == "scores alone" and "groups survived" in error
                    failed += [] if dry else [f"{arm}, seed {seed}: {error}"]
                    continue
            summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
            before, after = summary["before"], summary["after"]
            changes.setdefault(arm, []).append(100 * (after["pass@1"] - before["pass@1"]))
            lost, right = traced(folder, world.corpora["other" if arm == "other corpus" else "one"])
            cells = line(before, after, folder, right)
            print(f"| {arm} | {seed} | {cells} | {time.process_time() - began:.0f} |", flush=True)
            if lost:
                failed.append(f"{arm}, seed {seed}: {len(lost)} trained problems without passage: {lost[:3]}")
    print()
    for arm, values in changes.items():
        mean = statistics.mean(values)
        spread = f" (from {min(values):+.1f} to {max(values):+.1f})" if len(values) > 1 else ""
        print(f"{arm}: {mean:+.1f} points greedy{spread}")
        if arm == "documents" and mean < 20:
            failed.append("documents rose by less than 20 points")
        if arm in ("random reward", "other corpus") and mean > 8:
            failed.append(f"{arm} rose by more than 8 points")
    failed += [] if args.without_checks else checks(world, root)
    print("\n" + ("; ".join(failed) if failed else "every check passed"))
    return int(bool(failed))


def line(before: dict[str, Any], after: dict[str, Any], folder: Path, right: float) -> str:
    """The cells of a run."""
    ledger = rows(folder / "ledger.jsonl")
    trained = {row["uid"].partition(".")[0] for row in ledger if row["event"] == "trained"}
    asked = {row["uid"] for row in ledger if row["event"] == "proposed" and "." not in row["uid"]}
    reasons = Counter(row["reason"] for row in ledger if "reason" in row).most_common(5)
    greedy = f"{100 * before['pass@1']:.1f} → {100 * after['pass@1']:.1f}"
    return " | ".join(
        [greedy, str(len(trained)), f"{100 * right:.1f}", str(len(asked)), ", ".join(f"{r} {n}" for r, n in reasons)]
    )


if __name__ == "__main__":
    sys.exit(main())
