"""The pre-training corpus: an endless stream of training steps determined by a seed, and its hash.

The corpus mixes two ways of answering: plain expressions are mostly worked out, stories are mostly guessed. So the base
model mostly guesses although it can work problems out, and self-play can improve it by preferring worked answers.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

from lightning_serl.tiny.language import drill, held_out, is_expression, numbered, question, solution, solve_prompt
from lightning_serl.tiny.tokenizer import build_tokenizer

_LIST_EVERY = 4  # steps
_LISTS = 8
_LIST_LENGTH = 8
_ROWS = 48
_DRILL_SHARE = 0.25
_WORKED_EXPRESSIONS = 0.8
_WORKED_STORIES = 0.35
_NEVER_SOLVED = 1000  # held-out questions
_HASHED_STEPS = 200


class Row(NamedTuple):
    """One document: its token ids with the end of text, and the length of the prompt, which carries no loss."""

    ids: list[int]
    prompt_length: int


def corpus(tokenizer: Any, seed: int) -> Iterator[list[Row]]:
    """Yield the rows of one optimizer step after another, without end.

    Every fourth step has 8 lists of 8 questions, the form in which the model later writes questions itself. The other
    steps have 48 rows of drills and solved questions.

    Args:
        tokenizer: From :func:`build_tokenizer`.
        seed: Seed of the corpus.
    """
    # Seed s draws its corpus from s + 1, as in the measured recipe.
    rng = random.Random(seed + 1)
    never_solved = frozenset(held_out(_NEVER_SOLVED))

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    end = [tokenizer.eos_token_id]
    step = 0
    while True:
        step += 1
        rows: list[Row] = []
        if step % _LIST_EVERY == 0:
            for _ in range(_LISTS):
                rows.append(Row(encode(numbered([question(rng) for _ in range(_LIST_LENGTH)])) + end, 0))
            yield rows
            continue
        while len(rows) < _ROWS:
            if rng.random() < _DRILL_SHARE:
                rows.append(Row(encode(drill(rng)) + end, 0))
                continue
            text = question(rng)
            if text in never_solved:
                continue
            prompt = encode(solve_prompt(text))
            worked = rng.random() < (_WORKED_EXPRESSIONS if is_expression(text) else _WORKED_STORIES)
            rows.append(Row(prompt + encode(" " + solution(text, worked)) + end, len(prompt)))
        yield rows


def corpus_hash(seed: int) -> str:
    """A sha256 over token ids and prompt lengths of the first 200 steps, tokenizer included, as 64 hex digits."""
    digest = hashlib.sha256()
    for rows in islice(corpus(build_tokenizer(), seed), _HASHED_STEPS):
        digest.update(repr([tuple(row) for row in rows]).encode())
    return digest.hexdigest()
