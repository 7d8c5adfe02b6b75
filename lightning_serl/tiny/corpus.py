r"""The tokenizer and the pre-training corpus: an endless stream of training steps determined by a seed, and its hash.

The tokenizer has one token per digit, whole words, and ``\boxed{`` as one piece.

The corpus mixes two ways of answering: plain expressions are mostly worked out, stories are mostly guessed. So the base
model mostly guesses although it can work problems out, and self-play can improve it by preferring worked answers.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count, islice
from typing import Any, NamedTuple

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lightning_serl.tiny.language import drill, held_out, is_expression, numbered, question, solution, solve_prompt

_END = "<|endoftext|>"
# More than the language needs, so that every word becomes one token: training ends at 448 entries.
_MOST_ENTRIES = 512
_QUESTIONS = 1500  # of each template
_CONTEXT = 512
# " 4" and "4" are two tokens, which distinguishes the first digit of a number from the later ones.
_PIECES = r" ?\d| ?\\boxed\{| ?[A-Za-z]+|\n| ?[^A-Za-z\d\s]| +"
_LIST_EVERY = 4  # steps
_LISTS = 8
_LIST_LENGTH = 8
_ROWS = 48
_DRILL_SHARE = 0.25
_WORKED_EXPRESSIONS = 0.8
_WORKED_STORIES = 0.35
_NEVER_SOLVED = 1000  # held-out questions
_HASHED_STEPS = 200


def build_tokenizer() -> Any:
    """Train the tokenizer of the tiny language; its texts come from a fixed seed, so it is always the same."""
    rng = random.Random(0)
    solved = [question(rng) for _ in range(_QUESTIONS)]
    listed = [question(rng) for _ in range(_QUESTIONS)]
    texts = [f"{solve_prompt(q)} {solution(q, worked=True)}" for q in solved]
    texts += [numbered(listed[i : i + _LIST_LENGTH]) for i in range(0, _QUESTIONS, _LIST_LENGTH)]
    return train_tokenizer(texts)


def train_tokenizer(texts: Sequence[str]) -> Any:
    """Train a byte-level BPE tokenizer on ``texts``: a token per digit, with and without a blank before it, and words.

    Its end-of-text token also pads, and it adds no special tokens itself.
    """
    tokenizer = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(_PIECES), "isolated")
    octets = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, octets])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_MOST_ENTRIES, special_tokens=[_END], initial_alphabet=list("0123456789"), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_END,
        pad_token=_END,
        clean_up_tokenization_spaces=False,
        model_max_length=_CONTEXT,
        model_input_names=["input_ids", "attention_mask"],
    )


class Row(NamedTuple):
    """One document: its token ids with the end of text, and the length of the prompt, which carries no loss."""

    ids: list[int]
    prompt_length: int


def corpus(tokenizer: Any, seed: int) -> Iterator[list[Row]]:
    """Yield the rows of one optimizer step after another, without end.

    Every fourth step has 8 lists of 8 questions, the form in which the model later writes questions itself. The other
    steps have 48 rows of drills and solved questions.
    """
    # Seed s draws its corpus from s + 1, as in the measured recipe.
    rng = random.Random(seed + 1)
    never_solved = frozenset(held_out(_NEVER_SOLVED))
    encode = partial(tokenizer.encode, add_special_tokens=False)
    end = [tokenizer.eos_token_id]
    for step in count(1):
        rows: list[Row] = []
        if step % _LIST_EVERY == 0:
            lists = ([question(rng) for _ in range(_LIST_LENGTH)] for _ in range(_LISTS))
            yield [Row(encode(numbered(questions)) + end, 0) for questions in lists]
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


#: Draws the rows of one optimizer step after another with a tokenizer, from a seed.
Corpus = Callable[[Any, int], Iterator[list[Row]]]


def corpus_hash(seed: int, draw: Corpus = corpus, tokenizer: Any = None) -> str:
    """A sha256 over token ids and prompt lengths of the first 200 steps, tokenizer included, as 64 hex digits."""
    digest = hashlib.sha256()
    for rows in islice(draw(tokenizer or build_tokenizer(), seed), _HASHED_STEPS):
        digest.update(repr([tuple(row) for row in rows]).encode())
    return digest.hexdigest()
