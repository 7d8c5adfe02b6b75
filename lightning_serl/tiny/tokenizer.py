r"""The tokenizer of the tiny language: one token per digit, whole words, and ``\boxed{`` as one piece."""

from __future__ import annotations

import random
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lightning_serl.tiny.language import numbered, question, solution, solve_prompt

_END = "<|endoftext|>"
# More than the language needs, so that every word becomes one token: training ends at 448 entries.
_MOST_ENTRIES = 512
_QUESTIONS = 1500  # of each template
_LIST_LENGTH = 8
_CONTEXT = 512
# " 4" and "4" are two tokens, which distinguishes the first digit of a number from the later ones.
_PIECES = r" ?\d| ?\\boxed\{| ?[A-Za-z]+|\n| ?[^A-Za-z\d\s]| +"


def build_tokenizer() -> Any:
    """Train the byte-level BPE tokenizer; its texts come from a fixed seed, so it is always the same.

    Returns:
        A ``PreTrainedTokenizerFast`` whose end-of-text token also pads. It adds no special tokens itself.
    """
    rng = random.Random(0)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    solved = [question(rng) for _ in range(_QUESTIONS)]
    listed = [question(rng) for _ in range(_QUESTIONS)]
    texts = [f"{solve_prompt(q)} {solution(q, worked=True)}" for q in solved]
    texts += [numbered(listed[i : i + _LIST_LENGTH]) for i in range(0, _QUESTIONS, _LIST_LENGTH)]
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
