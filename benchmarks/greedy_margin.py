"""Why the quickstart's greedy accuracy moves more than its mean accuracy: the first token of an answer.

    python benchmarks/greedy_margin.py [RUN ...]

The embedded policy begins an answer with " So", a guess, or with a calculation. Its log-odds are those of the likeliest
first token of a calculation against " So". Prints what greedy accuracy and the mean would be if the log-odds of all
held-out problems were moved by the same number, and how far each RUN (a run folder with an export) has moved those of
the problems that the base guesses.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList
from transformers.generation.logits_process import SuppressTokensLogitsProcessor

from lightning_serl import tiny
from lightning_serl.answers import MathGrader

BASE = tiny.resolve("tiny:base")
TOKENIZER = AutoTokenizer.from_pretrained(BASE, padding_side="left")
PROBLEMS = [json.loads(line) for line in tiny.path("held_out").read_text(encoding="utf-8").splitlines()]
PROMPTS = TOKENIZER([f"Question: {p['problem']}\nSolution:" for p in PROBLEMS], return_tensors="pt", padding=True)
(GUESS,) = TOKENIZER.encode(" So", add_special_tokens=False)
MOVES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0)


def first_token(folder: str | Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-odds of a calculation's likeliest first token, and the probability of a guess, each (200,)."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        log_probs = torch.log_softmax(model(**PROMPTS).logits[:, -1], -1)
    guess = log_probs[:, GUESS].clone()
    log_probs[:, GUESS] = -torch.inf
    return log_probs.max(-1).values - guess, guess.exp()


def right(suppressed: list[int]) -> torch.Tensor:
    """Which greedy answers of the base are right if it may not begin with some tokens, (200,)."""
    model, width, grader = (
        AutoModelForCausalLM.from_pretrained(BASE).eval(),
        PROMPTS["input_ids"].shape[1],
        MathGrader(),
    )
    suppress = SuppressTokensLogitsProcessor(suppressed)

    def at_first(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return suppress(ids, scores) if ids.shape[1] == width else scores

    written = model.generate(
        **PROMPTS, max_new_tokens=56, do_sample=False, logits_processor=LogitsProcessorList([at_first])
    )
    answers = [grader.extract(TOKENIZER.decode(row[width:], skip_special_tokens=True)) for row in written]
    pairs = zip(answers, PROBLEMS, strict=True)
    return torch.tensor([a is not None and grader.same(a, p["answer"]) for a, p in pairs]).float()


def main() -> None:
    """Print both tables."""
    odds, p_guess = first_token(BASE)
    guessed, worked = right([i for i in range(len(TOKENIZER)) if i != GUESS]), right([GUESS])
    print(f"all guessed: {100 * guessed.mean():.1f} % right; all worked out: {100 * worked.mean():.1f} %\n")
    print("| log-odds moved by | greedy | mean |\n|---|---|---|")
    for move in MOVES:
        greedy = torch.where(odds + move > 0, worked, guessed).mean()
        guesses = torch.sigmoid(torch.logit(p_guess) - move)
        print(f"| {move:+.2f} | {100 * greedy:.1f} | {100 * (guesses * guessed + (1 - guesses) * worked).mean():.1f} |")
    guessing = odds < 0
    low, middle, high = odds[guessing].quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
    print(
        f"\n{guessing.sum()} problems are guessed greedily; their log-odds: {low:.2f}, {middle:.2f}, {high:.2f} "
        "(5, 50, 95 %)"
    )
    if sys.argv[1:]:
        print("\n| run | their log-odds, mean change | greedy | mean@16 |\n|---|---|---|---|")
    for run in map(Path, sys.argv[1:]):
        moved = (first_token(run / "export")[0] - odds)[guessing].mean()
        summary = json.loads((run / "summary.json").read_text())
        greedy, mean = (100 * (summary["after"][k] - summary["before"][k]) for k in ("pass@1", "mean@16"))
        print(f"| {run.name} | {moved:+.2f} | {greedy:+.1f} | {mean:+.1f} |")


if __name__ == "__main__":
    main()
