"""How many usable problems a model writes after few-shot prompts of several forms.

    python benchmarks/proposal_forms.py MODEL [--seeds benchmarks/seeds/*.jsonl] [--forms plain-list ...] [--calls 24]

prints for each file of seeds and each form: problems read per call, the share that passes :class:`QualityFilter`, and
those that pass :class:`NoveltyFilter` too, per call and per 1,000 written tokens. ``--show N`` prints N of the accepted
problems of each form, evenly spaced by index, for a reader to judge. Nothing is trained. On one CPU core a model of
135 M parameters takes about a minute for 24 calls of 120 tokens.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_serl.answers import split_choices
from lightning_serl.callbacks.filters import NoveltyFilter, QualityFilter
from lightning_serl.datamodules.problems.files import read_problems
from lightning_serl.datamodules.problems.rows import Fields
from lightning_serl.pool import InstructionPool
from lightning_serl.prompts import InstructionTemplate, split_items
from lightning_serl.types import Instruction

ASK = "Write a numbered list of new and different problems of one kind, each with one short answer. Do not solve them."


@dataclass(frozen=True)
class AnswerBegun(InstructionTemplate):
    """The request as user turn, and the list as the beginning of the model's answer."""

    def encode(self, tokenizer: Any, exemplars: Sequence[Instruction]) -> list[int]:
        """The prompt's token ids."""
        turns = [{"role": "user", "content": self.header}]
        opened = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        listed = InstructionTemplate(header="").render(exemplars)
        return list(tokenizer(opened + listed, add_special_tokens=False)["input_ids"])


#: The forms: chat or plain text, several problems a call or one, with an instruction or without.
FORMS = {
    "chat-list": InstructionTemplate(chat=True),
    "chat-list-bare": InstructionTemplate(header="", chat=True),
    "chat-one": InstructionTemplate(chat=True, stop=["\n10."]),
    "answer-list": AnswerBegun(header=ASK, chat=True),
    "answer-one": AnswerBegun(header=ASK, chat=True, stop=["\n10."]),
    "plain-list": InstructionTemplate(),
    "plain-list-bare": InstructionTemplate(header=""),
    "plain-one": InstructionTemplate(stop=["\n10."]),
}
EXEMPLARS = 8


def write(
    model: Any, tokenizer: Any, template: InstructionTemplate, seeds: list[Instruction], options: Any
) -> list[Any]:
    """The completions of ``options.calls`` few-shot prompts: (text, tokens written, whether it ended by itself)."""
    rng = random.Random(0)
    torch.manual_seed(0)
    prompts = [template.encode(tokenizer, rng.sample(seeds, EXEMPLARS)) for _ in range(options.calls)]
    stop, out = template.stop_strings(tokenizer), []
    for start in range(0, len(prompts), options.batch):
        batch = prompts[start : start + options.batch]
        width = max(map(len, batch))
        ids = torch.tensor([[tokenizer.eos_token_id] * (width - len(p)) + p for p in batch])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch])
        made = model.generate(
            ids, attention_mask=mask, do_sample=True, temperature=0.8, top_p=0.95, max_new_tokens=options.max_tokens,
            pad_token_id=tokenizer.eos_token_id, **({"stop_strings": stop, "tokenizer": tokenizer} if stop else {}),
        )[:, width:]  # fmt: skip
        for row in made.tolist():
            end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
            text = tokenizer.decode(row[:end], skip_special_tokens=True)
            at = min([text.find(s) for s in stop if s in text], default=-1)
            text = text if at < 0 else text[:at]
            out.append((text, end, at >= 0 or end < options.max_tokens))
    return out


def judge(written: list[Any], seeds: list[Instruction]) -> tuple[int, Counter[str], list[Instruction]]:
    """Problems read, rejections by reason, and the accepted problems."""
    pool, quality, novelty = InstructionPool(seeds), QualityFilter(), NoveltyFilter()
    read, reasons, accepted = 0, Counter[str](), []
    for text, _, finished in written:
        for item in split_items(text, first=EXEMPLARS + 1, finished=finished):
            read += 1
            meta: dict[str, Any] = {"truncated": True} if item.truncated else {}
            problem, options = split_choices(item.text) if pool.multiple_choice else (item.text, None)
            new = Instruction(problem, f"new-{read}", meta=meta | ({"choices": options} if options else {}))
            reason = quality.reject(new, pool) or novelty.reject(new, pool)
            if reason is not None:
                reasons[reason] += 1
                continue
            pool.add(new)
            accepted.append(new)
    return read, reasons, accepted


def main() -> None:
    """Measure and print a markdown table."""
    parser = argparse.ArgumentParser(
        description="Compare forms of the few-shot prompt by what a model writes after them."
    )
    parser.add_argument("model", help="directory or hub name of a model with a chat template")
    parser.add_argument(
        "--seeds", type=Path, nargs="+", default=sorted(Path(__file__).with_name("seeds").glob("*.jsonl"))
    )
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--calls", type=int, default=24, help="few-shot prompts of each form")
    parser.add_argument("--max-tokens", type=int, default=120)
    parser.add_argument("--batch", type=int, default=24, help="prompts completed at once")
    parser.add_argument("--show", type=int, default=0, help="accepted problems printed of each form")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    titles = ["seeds", "form", "tokens", "read a call", "well-formed by the filter", "accepted", "accepted a call"]
    print("| " + " | ".join([*titles, "accepted per 1,000 tokens", "rejected"]) + " |\n" + "|---" * 9 + "|", flush=True)
    shown = []
    for path in options.seeds:
        seeds = read_problems(str(path), Fields(), "seed")
        for form in options.forms:
            with torch.inference_mode():
                written = write(model, tokenizer, FORMS[form], seeds, options)
            read, reasons, accepted = judge(written, seeds)
            tokens = sum(count for _, count, _ in written)
            formed = read - sum(count for reason, count in reasons.items() if reason != "duplicate")
            cells = [path.stem, form, f"{tokens:,}", f"{read / options.calls:.1f}", f"{formed / max(1, read):.0%}"]
            cells += [str(len(accepted)), f"{len(accepted) / options.calls:.2f}", f"{1e3 * len(accepted) / tokens:.1f}"]
            print(
                "| " + " | ".join([*cells, ", ".join(f"{r} {c}" for r, c in reasons.most_common())]) + " |", flush=True
            )
            step = max(1, len(accepted) // max(1, options.show))
            for index in range(0, len(accepted), step)[: options.show]:
                new = accepted[index]
                said = " / ".join([new.prompt, *map(str, new.meta.get("choices") or ())])
                shown.append(f"{path.stem} {form} {index}: {said!r}")
    print("\n" + "\n".join(shown) if shown else "")


if __name__ == "__main__":
    main()
