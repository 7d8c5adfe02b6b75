"""Rebuilds the embedded base model: ``python -m lightning_serl.tiny.build --seed S --out DIR``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lightning_serl.errors import InputError
from lightning_serl.tiny.corpus import build_tokenizer, corpus_hash
from lightning_serl.tiny.language import held_out, is_expression, parse, seed_questions
from lightning_serl.tiny.pretrain import STEPS, build_model, train

SEEDS = 64
HELD_OUT = 200
# Records how a model was built, and marks a folder that another build may overwrite.
RECORD = "build.json"
_BUILDER = "lightning_serl.tiny.build"
_REPORT_EVERY = 100  # steps


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


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8", newline="\n")


def _labelled(text: str) -> dict[str, str]:
    truth = parse(text)
    assert truth is not None, "the generator draws well-posed questions only"
    return {"problem": text, "answer": str(truth.answer)}


def _with_subject(text: str) -> dict[str, str]:
    """A seed with its category, which few-shot prompts by subject and curricula read."""
    return {"problem": text, "subject": "expression" if is_expression(text) else "story"}


def _write(out: Path, model: Any, tokenizer: Any, record: Mapping[str, Any]) -> None:
    # The record comes first, so that an interrupted build can be repeated in the same folder.
    (out / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8", newline="\n")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    _write_jsonl(out / "seeds.jsonl", (_with_subject(q) for q in seed_questions(SEEDS)))
    _write_jsonl(out / "held_out.jsonl", (_labelled(q) for q in held_out(HELD_OUT)))


def build(seed: int, out: Path, steps: int = STEPS) -> None:
    """Pre-train the base model and write it as a Hugging Face directory, together with its problems.

    ``out`` receives the model (safetensors, float32), its generation config and tokenizer, ``build.json``,
    ``seeds.jsonl`` (64 problems without labels) and ``held_out.jsonl`` (200 problems with answers). Nothing is written
    before the training has ended. The last line printed is the corpus hash. Raises :class:`InputError` for an
    impossible seed or number of steps, or an ``out`` that must not be written to.
    """
    if not 0 <= seed < 2**63:
        raise InputError(f"--seed is {seed}; it must be 0 or above and below 2**63")
    if steps < 1:
        raise InputError(f"--steps is {steps}; it must be 1 or more")
    _prepare(out)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(tokenizer)} tokens, {parameters} parameters, {steps} steps", flush=True)
    started = time.monotonic()
    tokens = 0
    for step, report in enumerate(train(model, tokenizer, seed, steps), start=1):
        tokens += report.tokens
        if step % _REPORT_EVERY == 0 or step == steps:
            wall, cpu = time.monotonic() - started, time.process_time()
            done = f"step {step}/{steps}  loss {report.loss:.3f}  {tokens / wall:.0f} tokens/s"
            print(f"{done}  {wall:.0f} s wall  {cpu:.0f} s CPU", flush=True)
    fingerprint = corpus_hash(seed)
    _write(out, model, tokenizer, {"builder": _BUILDER, "seed": seed, "steps": steps, "corpus": fingerprint})
    print(f"wrote {out}")
    print(f"corpus: {fingerprint}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 1 if writing fails, 2 for bad input, 130 after Ctrl-C."""
    parser = _Parser(
        prog=f"python -m {_BUILDER}",
        description="Pre-trains the tiny embedded base model from scratch, on one CPU thread (about 7 minutes), and "
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
        default=STEPS,
        help="optimizer steps (default: %(default)s, the measured recipe; with 1000 the votes are not reliable enough)",
    )
    try:
        options = parser.parse_args(arguments)
        build(options.seed, options.out, options.steps)
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
