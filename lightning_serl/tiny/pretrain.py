"""Pre-trains the tiny base model by a measured recipe, reproducible bit for bit on one machine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from lightning_serl.tiny.corpus import Corpus, Row, corpus

STEPS = 2000
# Sums depend on how they are split over threads. One thread is also the fastest on a busy machine.
_THREADS = 1
_MATRIX_RATE = 0.02
_OTHER_RATE = 3e-3
_WEIGHT_DECAY = 0.01
_WARM_UP = 50
_LOWEST_SCALE = 0.05
_CLIP = 1.0
_IGNORED = -100


class StepReport(NamedTuple):
    """The loss of one optimizer step and the number of its tokens, padding included."""

    loss: float
    tokens: int


@contextmanager
def _fixed_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(_THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def build_model(tokenizer: Any, seed: int) -> Any:
    """A new ``LlamaForCausalLM`` of 549,760 float32 parameters; the caller's random state stays as it was."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=256,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]), _fixed_threads():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


def _collate(rows: Sequence[Row], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and targets, both (B, T) int64 and right-padded; target t is the token after t, or ignored."""
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad)
    targets = torch.full((len(rows), width), _IGNORED)
    for i, (tokens, prompt_length) in enumerate(rows):
        ids[i, : len(tokens)] = torch.tensor(tokens)
        first = max(prompt_length, 1)  # nothing comes before the first token, so nothing predicts it
        targets[i, first - 1 : len(tokens) - 1] = ids[i, first : len(tokens)]
    return ids, targets


def _scale(step: int, steps: int) -> float:
    """The learning rate's factor at ``step`` (from 0): linear warm-up times a cosine down to 5 %."""
    cosine = (1 + math.cos(math.pi * step / steps)) / 2
    return min(1.0, (step + 1) / _WARM_UP) * (_LOWEST_SCALE + (1 - _LOWEST_SCALE) * cosine)


def train(model: Any, tokenizer: Any, seed: int, steps: int, draw: Corpus = corpus) -> Iterator[StepReport]:
    """Train ``model`` in place on the rows that ``draw`` yields, and yield a report after each step.

    Muon trains the hidden matrices, AdamW embeddings and norms; with AdamW alone lists are learnt far more slowly. The
    learning rate reaches its minimum at ``steps``.
    """
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        is_hidden = parameter.ndim == 2 and "embed" not in name
        (matrices if is_hidden else others).append(parameter)
    muon = torch.optim.Muon(matrices, lr=_MATRIX_RATE, momentum=0.95, weight_decay=_WEIGHT_DECAY)
    adamw = torch.optim.AdamW(others, lr=_OTHER_RATE, betas=(0.9, 0.98), weight_decay=_WEIGHT_DECAY)
    optimizers: list[tuple[torch.optim.Optimizer, float]] = [(muon, _MATRIX_RATE), (adamw, _OTHER_RATE)]
    model.train()
    for step, rows in enumerate(islice(draw(tokenizer, seed), steps)):
        with _fixed_threads():
            ids, targets = _collate(rows, tokenizer.pad_token_id)
            # Padding stands on the right, where causal attention hides it from every token with a target.
            logits = model(input_ids=ids).logits[:, :-1]
            loss = functional.cross_entropy(logits.flatten(0, 1), targets[:, :-1].flatten(), ignore_index=_IGNORED)
            model.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
            for optimizer, rate in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate * _scale(step, steps)
                optimizer.step()
        yield StepReport(loss.item(), ids.numel())
