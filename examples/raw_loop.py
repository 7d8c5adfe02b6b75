"""SeRL (arXiv 2505.20347) in one file of torch and transformers, on the embedded policy.

    python examples/raw_loop.py [--rounds 20] [--seed 0]

No code of the package is used, only the model and the problems that it ships. Every round the policy writes problems
after few-shot examples, filters reject poor and repeated ones, the policy answers each problem 16 times, the majority
answer becomes the label, groups that are too easy or too hard are dropped, and one GRPO step trains on the others. The
package adds what a real run needs: vLLM, sharding, resume, records, evaluation, other objectives.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

TINY = Path(__file__).resolve().parents[1] / "lightning_serl" / "tiny"
PROMPTS, SAMPLES = 16, 16  # groups of a round, responses of a group
EXEMPLARS, CALLS = 4, 8  # problems in a few-shot prompt, few-shot prompts at a time
ATTEMPTS = 2  # times that a round writes and answers to fill up
NOVELTY = 0.7  # a problem with a larger ROUGE-L to a known one is a duplicate
EASY, HARD = 0.8, 0.2  # mean scores outside this band are not trained on
BETA, CLIP, RATE = 0.01, 0.2, 1e-4  # weight of the divergence, clip distance of the ratio, learning rate
MICRO_BATCHES = 4


@dataclass
class Group:
    """A problem and its responses."""

    problem: str
    prompt: list[int]  # token ids
    responses: list[list[int]]  # token ids of each, the end-of-sequence token included where it was written
    texts: list[str]
    label: str | None = None  # the majority answer
    scores: list[float] = field(default_factory=list)  # 1 for each response that agrees with the label, else 0


# -- writing and answering -------------------------------------------------------------------------------------------


@torch.no_grad()
def generate(model: Any, tokenizer: Any, prompts: Sequence[str], n: int, max_tokens: int, greedy: bool = False) -> list:
    """``n`` responses to each prompt, as ``(prompt ids, [response ids])``; left-padded, at temperature 1 or greedy."""
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    longest, end = max(map(len, ids)), tokenizer.eos_token_id
    padded = torch.tensor([[end] * (longest - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
    how = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    out = model.generate(
        padded, attention_mask=mask, num_return_sequences=n, max_new_tokens=max_tokens, pad_token_id=end, **how
    )
    rows = out[:, longest:].tolist()
    rows = [row[: row.index(end) + 1] if end in row else row for row in rows]
    return [(prompt, rows[i * n : (i + 1) * n]) for i, prompt in enumerate(ids)]


def write_problems(model: Any, tokenizer: Any, seeds: Sequence[str], rng: random.Random) -> list[str]:
    """The problems that the policy adds to numbered lists of seeds; one that is cut off is left out."""
    prompts = []
    for _ in range(CALLS):
        shown = rng.sample(seeds, EXEMPLARS)
        items = "".join(f"{i}. {problem}\n" for i, problem in enumerate(shown, 1))
        prompts.append(f"Write new math questions.\n{items}{EXEMPLARS + 1}.")
    problems: list[str] = []
    for _, (row,) in generate(model, tokenizer, prompts, 1, 170):
        items = re.split(r"^\s*\d+\.", tokenizer.decode(row, skip_special_tokens=True), flags=re.MULTILINE)
        finished = row[-1] == tokenizer.eos_token_id
        problems += [item.strip() for item in (items if finished else items[:-1])]
    return problems


def answer(model: Any, tokenizer: Any, problems: Sequence[str]) -> list[Group]:
    """Answer every problem ``SAMPLES`` times."""
    written = generate(model, tokenizer, [f"Question: {p}\nSolution:" for p in problems], SAMPLES, 56)
    texts = [tokenizer.batch_decode(rows, skip_special_tokens=True) for _, rows in written]
    return [Group(p, prompt, rows, said) for p, (prompt, rows), said in zip(problems, written, texts, strict=True)]


# -- filters -----------------------------------------------------------------------------------------------------------


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """F-measure of the longest common subsequence of two lists of words."""
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], diagonal + 1 if x == y else max(row[j], row[j - 1])
    return 2 * row[-1] / (len(a) + len(b)) if a and b else 0.0


def is_new_and_sound(problem: str, known: Sequence[Sequence[str]]) -> bool:
    """Whether a problem is no fragment, brings no solution along, and resembles no known problem."""
    words = re.findall(r"\w+", problem.lower())
    if not 4 <= len(problem.split()) <= 150 or "\\boxed" in problem or not problem[0].isalnum():
        return False
    return all(rouge_l(words, other) <= NOVELTY for other in known)


# -- the label and the reward ----------------------------------------------------------------------------------------


def read_answer(text: str) -> str | None:
    r"""The content of the last ``\boxed{}``, numbers in lowest terms; ``None`` without one."""
    found = re.findall(r"\\boxed\{([^{}]*)\}", text)
    if not found or not found[-1].strip():
        return None
    try:
        return str(Fraction(found[-1].strip()))
    except (ValueError, ZeroDivisionError):
        return found[-1].strip()


def vote(group: Group) -> None:
    """Label the group by its most common answer (ties go to the smaller text) and score each response against it."""
    answers = [read_answer(text) for text in group.texts]
    sizes = Counter(a for a in answers if a is not None)
    group.label = min(sizes, key=lambda a: (-sizes[a], a), default=None)
    group.scores = [float(a is not None and a == group.label) for a in answers]


def is_trainable(group: Group) -> bool:
    """Whether the group's mean score lies in the band; equal scores throughout would have advantage 0."""
    mean = sum(group.scores) / len(group.scores)
    return HARD <= mean <= EASY


# -- GRPO --------------------------------------------------------------------------------------------------------------


def advantages(group: Group) -> list[float]:
    """(score - mean) / (standard deviation + 1e-4) within the group (GRPO, 2402.03300)."""
    scores = torch.tensor(group.scores, dtype=torch.float64)
    return ((scores - scores.mean()) / (scores.std() + 1e-4)).tolist()


def log_probs(model: Any, rows: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """Log-probability of every response token and the mask of these, both (B, T - 1)."""
    longest = max(len(prompt) + len(response) for prompt, response in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    attention, mask = torch.zeros_like(ids), torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, (prompt, response) in enumerate(rows):
        both = len(prompt) + len(response)
        ids[i, :both] = torch.tensor(prompt + response)
        attention[i, :both] = 1
        mask[i, len(prompt) : both] = True
    logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1].float()
    logp = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return logp, mask[:, 1:]


def grpo_loss(model: Any, reference: Any, rows: Sequence[tuple[list[int], list[int], float]], tokens: int) -> Tensor:
    """Clipped surrogate plus the k3 divergence to the reference policy, summed over tokens and divided by ``tokens``.

    Every round makes one step, so the weights that sampled are those that are trained and the ratio is 1 here; the
    clip matters where a round makes several steps.
    """
    pairs = [(prompt, response) for prompt, response, _ in rows]
    logp, mask = log_probs(model, pairs)
    with torch.no_grad():
        ref, _ = log_probs(reference, pairs)
    advantage = torch.tensor([value for _, _, value in rows], dtype=logp.dtype)[:, None]
    ratio = (logp - logp.detach()).exp()
    surrogate = -torch.min(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
    k3 = (ref - logp).exp() - (ref - logp) - 1
    return ((surrogate + BETA * k3) * mask).sum() / tokens


def update(model: Any, reference: Any, optimizer: torch.optim.Optimizer, groups: Sequence[Group]) -> float:
    """One optimizer step on all responses, in micro-batches of similar length; returns the loss."""
    rows = [(g.prompt, r, a) for g in groups for r, a in zip(g.responses, advantages(g), strict=True)]
    rows.sort(key=lambda row: len(row[0]) + len(row[1]))
    tokens = sum(len(response) for _, response, _ in rows)
    size, total = -(-len(rows) // MICRO_BATCHES), 0.0
    for start in range(0, len(rows), size):
        loss = grpo_loss(model, reference, rows[start : start + size], tokens)
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return total


# -- the loop ----------------------------------------------------------------------------------------------------------


def accuracy(model: Any, tokenizer: Any) -> float:
    """Share of the held-out problems that are answered right greedily; training never sees these labels."""
    rows = [json.loads(line) for line in (TINY / "held_out.jsonl").read_text(encoding="utf-8").splitlines()]
    prompts = [f"Question: {row['problem']}\nSolution:" for row in rows]
    texts = [tokenizer.decode(r[0]) for _, r in generate(model, tokenizer, prompts, 1, 56, greedy=True)]
    return sum(read_answer(t) == row["answer"] for t, row in zip(texts, rows, strict=True)) / len(rows)


def main() -> None:
    """Train, and print the accuracy before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(TINY / "base")
    model = AutoModelForCausalLM.from_pretrained(TINY / "base", dtype=torch.float32)
    reference = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.0)
    seeds = [json.loads(line)["problem"] for line in (TINY / "seeds.jsonl").read_text(encoding="utf-8").splitlines()]
    known = [re.findall(r"\w+", seed.lower()) for seed in seeds]
    queue: list[str] = []
    print(f"held-out accuracy before: {accuracy(model, tokenizer):.1%}")
    for number in range(args.rounds):
        kept: list[Group] = []
        for _ in range(ATTEMPTS):
            for _ in range(8):  # the policy may write nothing usable
                if len(queue) >= PROMPTS - len(kept):
                    break
                for problem in write_problems(model, tokenizer, seeds, rng):
                    if problem and is_new_and_sound(problem, known):
                        known.append(re.findall(r"\w+", problem.lower()))
                        queue.append(problem)
            chosen, queue = queue[: PROMPTS - len(kept)], queue[PROMPTS - len(kept) :]
            groups = answer(model, tokenizer, chosen) if chosen else []
            for group in groups:
                vote(group)
            kept += filter(is_trainable, groups)
        if kept:
            loss = update(model, reference, optimizer, kept)
            agreement = sum(sum(g.scores) for g in kept) / (SAMPLES * len(kept))
            print(f"round {number}: {len(kept)} groups, agreement {agreement:.2f}, loss {loss:.4f}", flush=True)
    print(f"held-out accuracy after: {accuracy(model, tokenizer):.1%}")


if __name__ == "__main__":
    main()
