"""Seconds of the phases of a round, against sums done by hand."""

import pytest

from lightning_serl.policy.roofline import (
    Machine,
    Round,
    Shape,
    Steps,
    Texts,
    attempts,
    forward_seconds,
    logprob_seconds,
    training_seconds,
    writing_seconds,
)

# products at 1000 FLOP/s, nothing else costs time
PRODUCTS = Machine(1000, 1000, 1e30, 1e30, 1e30, 1e30, 0, 0, 0, 1e30, 1e30)
# memory at 100 bytes/s, products cost nothing
MEMORY = Machine(1e30, 1e30, 100, 100, 100, 100, 0, 0, 0, 1e30, 1e30)
# a layer's operations take a second to start, a token of all rows two, one of each row eight
CALLS = Machine(1e30, 1e30, 1e30, 1e30, 1e30, 1e30, 1, 2, 8, 1e30, 1e30)
# two layers of 50 weights each, an output layer of 20
SHAPE = Shape(products=100, weights=100, head=20, layers=2, hidden=5, heads=4, kv_heads=2, inner=10, vocab=4,
              trained=120)  # fmt: skip
LORA = Shape(products=100, weights=100, head=20, layers=2, hidden=5, heads=4, kv_heads=2, inner=10, vocab=4,
             adapter=10, trained=10)  # fmt: skip


def test_a_forward_pass():
    # 10 tokens x (2 x 100 + 4 x 2 layers x 4 x context 3 = 96) + 5 scored x 2 x 20
    assert forward_seconds(PRODUCTS, SHAPE, 10, 3, 1, scored=5) == pytest.approx((10 * 296 + 200) / 1000)
    # the weights once for each of 3 passes: 120 x 4 bytes; per token and layer 24 x 5 + 8 x 6 + 6 x 10 elements;
    # per scored token 4 entries x 16 bytes
    moved = 10 * 2 * (120 + 48 + 60) * 4
    assert forward_seconds(MEMORY, SHAPE, 10, 3, 3, scored=5) == pytest.approx((3 * 480 + moved + 5 * 64) / 100)
    assert forward_seconds(CALLS, SHAPE, 10, 3, 3) == pytest.approx(3 * 2)
    # an adapter adds its own products and elements: 3 x (4 + 2 x 2 + 2 x 5 + 2 x 10) for each layer
    assert forward_seconds(PRODUCTS, LORA, 10, 0, 1) == pytest.approx(10 * 2 * 110 / 1000)
    assert LORA.moved - SHAPE.moved == 2 * 3 * 38


def test_writing():
    texts = Texts(prompts=2, prompt_tokens=6, each=4, tokens=10, limit=16)
    assert (texts.written, texts.longest) == (80, 16)
    assert Texts(1, 6, 1, 4, 16).longest == 12
    # reading 12 prompt tokens, each of which sees 3; 80 tokens pass the output layer, their attention costs its bytes
    reading, each = 12 * (200 + 32 * 3), 200 + 40
    assert writing_seconds(PRODUCTS, SHAPE, texts, rows=8) == pytest.approx((reading + 80 * each) / 1000)
    # 8 rows at a time: as long as the longest; 2 rows: 40 steps; two devices: half of the rows each
    for rows, ranks, steps in ((8, 1, 16), (2, 1, 40), (2, 2, 20), (8, 4, 16)):
        wanted = 2 + steps * (2 + 2) + 80 / ranks * 8
        assert writing_seconds(CALLS, SHAPE, texts, rows, ranks) == pytest.approx(wanted), (rows, ranks)
    # a step reads the weights, 480 bytes, and each token keys and values of 11 others, 32 bytes each
    reading = 480 + 12 * 2 * 228 * 4
    each = 11 * 32 + 2 * 228 * 4 + 4 * 28
    assert writing_seconds(MEMORY, SHAPE, texts, rows=8) == pytest.approx((reading + 80 * each + 16 * 480) / 100)
    assert writing_seconds(PRODUCTS, SHAPE, texts.times(0), rows=8) == 0


def test_training():
    steps = Steps(count=2, micro_batches=3, tokens=50, scored=20, context=0)
    # 50 tokens x 6 x 100 weights, 20 through the output layer, which all weights take three products of
    assert training_seconds(PRODUCTS, SHAPE, steps) == pytest.approx((50 * 600 + 20 * 6 * 20) / 1000)
    # forward twice with checkpointing
    twice = Steps(count=2, micro_batches=3, tokens=50, scored=20, context=0, checkpointing=True)
    assert training_seconds(PRODUCTS, SHAPE, twice) == pytest.approx((50 * 800 + 20 * 6 * 20) / 1000)
    # a frozen base takes two products in place of three, its output layer two; the adapter three
    lora = Steps(count=2, micro_batches=3, tokens=50, scored=20, context=0, full=False)
    assert training_seconds(PRODUCTS, LORA, lora) == pytest.approx((50 * (400 + 60) + 20 * 4 * 20) / 1000)
    # forward and one and a half of it backward, for 6 micro-batches of 2 layers
    assert training_seconds(CALLS, SHAPE, steps) == pytest.approx(6 * 2 * 2.5)
    # two steps of 120 weights: 32 bytes and the state twice
    rest = 50 * 3 * 2 * 228 * 4 + 20 * 64 + 6 * 480
    assert training_seconds(MEMORY, SHAPE, steps) == pytest.approx((rest + 2 * 120 * (32 + 16)) / 100)


def test_training_on_several_devices():
    link = Machine(1e30, 1e30, 1e30, 1e30, 1e30, 1e30, 0, 0, 0, 100, 1e30)
    steps = Steps(count=2, micro_batches=3, tokens=50, scored=20, context=0)
    # gradients are reduced once a step: twice 120 x 4 bytes, three quarters of them from other devices
    assert training_seconds(link, SHAPE, steps, ranks=4) == pytest.approx(2 * 0.75 * 960 / 100)
    # sharded: weights twice and gradients once for each micro-batch
    assert training_seconds(link, SHAPE, steps, 4, sharded=True) == pytest.approx(2 * 0.75 * 3 * 3 * 480 / 100)
    assert training_seconds(PRODUCTS, SHAPE, steps, 4) == pytest.approx((50 * 600 + 20 * 120) / 4 / 1000)


def test_logprobs():
    steps = Steps(count=1, micro_batches=1, tokens=50, scored=20, context=0, reference=True)
    assert logprob_seconds(PRODUCTS, SHAPE, steps) == pytest.approx((50 * 200 + 20 * 40) / 1000)
    both = Steps(count=1, micro_batches=1, tokens=50, scored=20, context=0, reference=True, old=True)
    assert logprob_seconds(PRODUCTS, SHAPE, both) == pytest.approx(2 * (50 * 200 + 20 * 40) / 1000)
    assert logprob_seconds(PRODUCTS, SHAPE, Steps(1, 1, 50, 20, 0)) == 0


def test_a_round_that_is_written_ahead_takes_the_longer_half():
    parts = {"writing": 1.0, "answering": 6.0, "training": 4.0, "sync": 1.0}
    assert Round(parts).seconds == 12
    assert Round(parts, ahead=True).seconds == 7
    assert Round(parts).limit == "answering"
    assert [attempts(kept, 4) for kept in (1.0, 0.7, 0.4, 0.1)] == [1, 2, 3, 4]
