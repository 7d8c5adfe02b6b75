"""The tokenizer and the pre-training corpus of ``tiny:world``: an endless stream of steps determined by a seed.

Three kinds of rows: lists of questions, solutions whose first token, the method, is learnt in the shares of the world's
profiles, and solutions whose method is given, so that a method is mastered however rarely the base chooses it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import Any

from lightning_serl.tiny.corpus import Row, train_tokenizer
from lightning_serl.tiny.language import numbered, solve_prompt
from lightning_serl.tiny.world import METHODS, World, list_of_questions, parse, question, solution, world

STEPS = 600
_LIST_EVERY = 5  # steps
_LISTS = 8
_LIST_LENGTH = 10
_ROWS = 48
_GIVEN_METHOD = 0.6  # share of the solutions
_RIGHT_GIVEN = 0.7  # share of the right method among them, the rest are shortcuts
_TEXTS = 1500


def build_tokenizer() -> Any:
    """Train the tokenizer of the world; it is the same for every seed."""
    rng = random.Random(0)
    texts = [numbered(list_of_questions(rng, _LIST_LENGTH)) for _ in range(_TEXTS // _LIST_LENGTH)]
    for _ in range(_TEXTS):
        text = question(rng)
        read = parse(text)
        assert read is not None, "the generator draws well-posed questions only"
        texts += [solve_prompt(text) + "".join(solution(read, method, rng)) for method in METHODS]
    return train_tokenizer(texts)


def corpus(tokenizer: Any, seed: int) -> Iterator[list[Row]]:
    """Yield the rows of one optimizer step after another, without end.

    Every fifth step has 8 lists of 10 questions, the form in which the model later writes questions itself. The other
    steps have 48 solutions.
    """
    rng, of = random.Random(f"world {seed} corpus"), world(seed)
    encode = partial(tokenizer.encode, add_special_tokens=False)
    end = [tokenizer.eos_token_id]
    for step in count(1):
        if step % _LIST_EVERY == 0:
            lists = (list_of_questions(rng, _LIST_LENGTH) for _ in range(_LISTS))
            yield [Row(encode(numbered(questions)) + end, 0) for questions in lists]
        else:
            yield [_solved(of, encode, end, rng) for _ in range(_ROWS)]


def _solved(of: World, encode: Any, end: list[int], rng: random.Random) -> Row:
    text = question(rng)
    read = parse(text)
    assert read is not None, "the generator draws well-posed questions only"
    given = rng.random() < _GIVEN_METHOD
    method = METHODS[rng.random() >= _RIGHT_GIVEN] if given else of.method(read, rng)
    name, rest = solution(read, method, rng)
    prompt = encode(solve_prompt(text))
    first = encode(name)
    return Row(prompt + first + encode(rest) + end, len(prompt) + len(first) * given)
