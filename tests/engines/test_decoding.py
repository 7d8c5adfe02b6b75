"""Rows that take the places of finished ones, the cache they are in, and attention of one token per row."""

import random

import pytest
import torch
from helpers.small_models import small_policy

from lightning_serl.engines import Request, Sampling, TransformersEngine
from lightning_serl.engines.decoding_attention import decoding_attention
from lightning_serl.policy.decoding_batch import RowBatch, WholeBatch, decoding_batch
from lightning_serl.policy.kv_cache import RowCache


def written(policy, requests, max_rows):
    engine = TransformersEngine(max_rows)
    engine.start(policy)
    with policy.gathered():
        out = dict(engine.generate(requests))
    return [[(c.token_ids, c.finished) for c in out[i]] for i in range(len(requests))]


@pytest.mark.parametrize(
    "name", ["llama_tied", "qwen2", "gpt2", "opt", "mistral_window", "gemma2_window", "qwen3_next"]
)
def test_rows_that_begin_late_write_what_they_write_alone(name):
    # greedy and drawn, end tokens that come at different times, prompts of 2 to 40 tokens in windows of 6
    policy = small_policy(name)
    # in float64 no draw falls between two roundings of a probability; not every model can run in it
    exact = name not in ("gemma2_window", "qwen3_next")
    policy = policy.double() if exact else policy
    generator = random.Random(5)
    policy.model.generation_config.eos_token_id = [0, *generator.sample(range(1, 448), 40)]
    lengths = (2, 40, 3, 11, 25, 7, 2, 19, 33, 5)
    for temperature in (0.0, 1.0) if exact else (0.0,):
        sampling = Sampling(48, temperature)
        requests = [
            Request(tuple(generator.randrange(1, 400) for _ in range(n)), (2 * n, 2 * n + 1), sampling) for n in lengths
        ]
        alone = [written(policy, [request], 2)[0] for request in requests]
        assert len({len(ids) for pair in alone for ids, _ in pair}) > 1
        assert written(policy, requests, 5) == alone
        assert written(policy, requests, 64) == alone


def test_rows_stay_full_while_prompts_wait(monkeypatch):
    policy = small_policy("llama_tied")
    policy.model.generation_config.eos_token_id = [0, *range(1, 60)]
    sizes, drawn = [], RowBatch.append
    monkeypatch.setattr(RowBatch, "append", lambda self, actor, ids: sizes.append(self.rows) or drawn(self, actor, ids))
    requests = [Request((5, 6, 7 + i), tuple(range(8 * i, 8 * i + 8)), Sampling(64)) for i in range(16)]
    out = written(policy, requests, 16)
    tokens = sum(len(ids) for group in out for ids, _ in group)
    longest = max(len(ids) for group in out for ids, _ in group)
    assert longest > 3 * tokens / 128  # a batch that waits for its longest row would be half empty
    while_waiting = sizes[: len(sizes) - longest]
    assert sum(while_waiting) > 0.75 * 16 * len(while_waiting)


def test_the_cache_drops_columns_that_no_row_uses(monkeypatch):
    policy = small_policy("llama_tied").double()
    widest, trimmed, trim = [], [], RowCache.trim
    monkeypatch.setattr(RowCache, "trim", lambda self, columns: trimmed.append(columns) or trim(self, columns))
    append = RowBatch.append
    monkeypatch.setattr(
        RowBatch, "append",
        lambda self, actor, ids: append(self, actor, ids) or widest.append(self._cache.layers[0].columns),
    )  # fmt: skip
    requests = [Request((5, 6, 7 + i), (i,), Sampling(40)) for i in range(24)]
    policy.model.generation_config.eos_token_id = [0, *range(1, 40)]
    together = written(policy, requests, 3)
    assert trimmed
    assert max(widest) <= 2 * (3 + 40)
    assert together == [written(policy, [request], 1)[0] for request in requests]


def test_models_with_another_cache_begin_their_rows_together():
    assert isinstance(decoding_batch(small_policy("llama_tied"), 4), RowBatch)
    assert isinstance(decoding_batch(small_policy("gemma2_window"), 4), RowBatch)
    for name in ("qwen3_next", "falcon_h1"):
        assert isinstance(decoding_batch(small_policy(name), 4), WholeBatch)


@pytest.mark.parametrize("name", ["llama_tied", "qwen2", "mistral_window"])
def test_grouped_heads_attend_without_copies_of_keys(name, monkeypatch):
    import transformers.integrations.sdpa_attention as sdpa

    policy = small_policy(name)
    repeated, repeat = [], sdpa.repeat_kv
    monkeypatch.setattr(sdpa, "repeat_kv", lambda states, n: repeated.append(states.shape[-2]) or repeat(states, n))
    before = policy.model.config._attn_implementation
    requests = [Request(tuple(range(5, 5 + n)), (n,), Sampling(12, 0.0)) for n in (3, 9)]
    ours = written(policy, requests, 4)
    assert repeated == 4 * [9]  # the prompts alone: keys and values of two layers
    assert policy.model.config._attn_implementation == before
    for request, ((ids, _),) in zip(requests, ours, strict=True):
        usual = policy.model.generate(
            torch.tensor([request.prompt_ids]), max_new_tokens=12, do_sample=False, pad_token_id=0
        )
        assert usual[0, len(request.prompt_ids) :].tolist() == list(ids)


def test_the_models_attention_returns_after_an_error():
    policy = small_policy("llama_tied")
    inside = []

    def fail():
        with decoding_attention(policy.causal_lm):
            inside.append(policy.model.config._attn_implementation)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert inside == ["decoding_sdpa"]
    assert policy.model.config._attn_implementation == "sdpa"
