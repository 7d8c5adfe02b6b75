"""Rebuilds an embedded base model: ``python -m lightning_serl.tiny.build --seed S --out DIR [--task world]``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from lightning_serl.errors import InputError
from lightning_serl.tiny import world, world_corpus
from lightning_serl.tiny.corpus import Corpus, build_tokenizer, corpus, corpus_hash
from lightning_serl.tiny.language import held_out, is_expression, parse, seed_questions
from lightning_serl.tiny.pretrain import STEPS, build_model, train

SEEDS = 64
HELD_OUT = 200
WORLD_SEEDS = 30
WORLD_HELD_OUT = 120  # of the seeded skills, and as many of the others
# Records how a model was built, and marks a folder that another build may overwrite.
RECORD = "build.json"
_BUILDER = "lightning_serl.tiny.build"
_REPORT_EVERY = 100  # steps
_FIRST_LOSSES = 3  # by which a rebuild of a few steps is compared with a whole one


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def _is_former_build(folder: Path) -> bool:
    record = folder / RECORD
    if not record.is_file():
        return False
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except ValueError:
        return False  # a file of the same name from another program
    return isinstance(content, dict) and content.get("builder") == _BUILDER


def _prepare(out: Path) -> None:
    """Create the output folder and check, before the training starts, that it is empty or holds a former build."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        occupied = any(out.iterdir()) and not _is_former_build(out)
    except OSError as error:
        raise InputError(f"cannot use {out} as the output directory: {error.strerror}") from error
    if occupied:
        raise InputError(f"{out} is not empty and was not written by {_BUILDER}; name a new directory with --out")
    if not os.access(out, os.W_OK):
        raise InputError(f"cannot write to the output directory {out}: permission denied")


Rows = Iterable[Mapping[str, str]]


def _write_jsonl(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8", newline="\n")


def _labelled(text: str) -> dict[str, str]:
    truth = parse(text)
    assert truth is not None, "the generator draws well-posed questions only"
    return {"problem": text, "answer": str(truth.answer)}


def _with_subject(text: str) -> dict[str, str]:
    """A seed with its category, which few-shot prompts by subject and curricula read."""
    return {"problem": text, "subject": "expression" if is_expression(text) else "story"}


def _quickstart_files(seed: int) -> dict[str, Rows]:
    """The problem files of the quickstart, the same for every seed."""
    return {
        "seeds.jsonl": map(_with_subject, seed_questions(SEEDS)),
        "held_out.jsonl": map(_labelled, held_out(HELD_OUT)),
    }


def _world_files(seed: int) -> dict[str, Rows]:
    """The problem files of the world of a seed; the subject of a problem is its skill, the level its size."""
    of = world.world(seed)
    seeds = [{"problem": text, "subject": skill} for text, skill in world.seed_questions(of, WORLD_SEEDS)]
    files: dict[str, Rows] = {"seeds.jsonl": seeds}
    shown = {row["problem"] for row in seeds}
    for name, seeded in (("seeded.jsonl", True), ("unseeded.jsonl", False)):
        files[name] = [
            {
                "problem": text,
                "answer": world.SKILLS[read.skill].right(read.numbers),
                "subject": read.skill,
                "level": read.size,
            }
            for text, read in world.held_out(of, seeded, WORLD_HELD_OUT, without=shown)
        ]
    return files


@dataclass(frozen=True)
class Task:
    """What a base is pre-trained on: tokenizer, corpus and number of steps, and the problem files beside it."""

    tokenizer: Callable[[], Any]
    corpus: Corpus
    steps: int
    dtype: torch.dtype
    files: Callable[[int], dict[str, Rows]]


TASKS = {
    "quickstart": Task(build_tokenizer, corpus, STEPS, torch.float32, _quickstart_files),
    "world": Task(world_corpus.build_tokenizer, world_corpus.corpus, world_corpus.STEPS, torch.float16, _world_files),
}
_DEFAULT = "quickstart"


def _write(out: Path, model: Any, tokenizer: Any, record: Mapping[str, Any], files: Mapping[str, Rows]) -> None:
    # The record comes first, so that an interrupted build can be repeated in the same folder.
    (out / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8", newline="\n")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    for name, rows in files.items():
        _write_jsonl(out / name, rows)


def build(seed: int, out: Path, steps: int | None = None, task: str = _DEFAULT) -> None:
    """Pre-train a base model and write it as a Hugging Face directory, together with its problems.

    ``out`` receives the model (safetensors, float32; float16 for the world), its generation config and tokenizer,
    ``build.json`` and ``seeds.jsonl``, problems without labels; problems with answers are in ``held_out.jsonl``, those
    of the world in ``seeded.jsonl`` and ``unseeded.jsonl``, by whether the seeds have the skill. Nothing is written
    before the training has ended. The last line printed is the corpus hash. Raises :class:`InputError` for an
    impossible seed or number of steps, or an ``out`` that must not be written to.
    """
    made = TASKS[task]
    steps = made.steps if steps is None else steps
    if not 0 <= seed < 2**63:
        raise InputError(f"--seed is {seed}; it must be 0 or above and below 2**63")
    if steps < 1:
        raise InputError(f"--steps is {steps}; it must be 1 or more")
    _prepare(out)
    tokenizer = made.tokenizer()
    model = build_model(tokenizer, seed)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(tokenizer)} tokens, {parameters} parameters, {steps} steps", flush=True)
    started = time.monotonic()
    tokens, losses = 0, []
    for step, report in enumerate(train(model, tokenizer, seed, steps, made.corpus), start=1):
        tokens += report.tokens
        losses += [report.loss] * (step <= _FIRST_LOSSES)
        if step % _REPORT_EVERY == 0 or step == steps:
            wall, cpu = time.monotonic() - started, time.process_time()
            done = f"step {step}/{steps}  loss {report.loss:.3f}  {tokens / wall:.0f} tokens/s"
            print(f"{done}  {wall:.0f} s wall  {cpu:.0f} s CPU", flush=True)
    fingerprint = corpus_hash(seed, made.corpus, tokenizer)
    record = {"builder": _BUILDER, "seed": seed, "steps": steps, "corpus": fingerprint}
    if task != _DEFAULT:
        record |= {"task": task, "first_losses": losses}
    _write(out, model.to(made.dtype), tokenizer, record, made.files(seed))
    print(f"wrote {out}")
    print(f"corpus: {fingerprint}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 1 if writing fails, 2 for bad input, 130 after Ctrl-C."""
    parser = _Parser(
        prog=f"python -m {_BUILDER}",
        description="Pre-trains a tiny embedded base model from scratch, on one CPU thread (about 7 minutes), and "
        "writes it as a Hugging Face directory together with its seed problems and held-out problems.",
        epilog="The same seed gives the same bytes on the same machine and library versions.",
    )
    parser.add_argument(
        "--seed", type=int, required=True, help="seed of the first weights and of the corpus, 0 or above"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        required=True,
        help="directory to write; new, empty, or that of a former build (overwritten)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        help="optimizer steps (default: those of the shipped base of the task; with half of them votes are unreliable)",
    )
    parser.add_argument(
        "--task",
        choices=list(TASKS),
        default=_DEFAULT,
        help="quickstart (tiny:base) or world (tiny:world), whose habits the seed draws (default: %(default)s)",
    )
    try:
        options = parser.parse_args(arguments)
        build(options.seed, options.out, options.steps, options.task)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: cannot write to {options.out}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
