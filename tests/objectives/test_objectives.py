"""Advantages, clipped losses and KL estimators against tables made by hand and a slow reference of their own."""

import importlib.util
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from helpers.slow_advantages import RULES, rules, slow_kl, slow_shape, slow_whiten

from lightning_serl.objectives import (
    Objective,
    advantages,
    aggregate,
    clip_counts,
    effective_sample_size,
    importance_weights,
    kl,
    overlong_penalty,
    policy_loss,
    returns,
    whiten,
)

BASELINES = ("group", "loo", "batch", "none")
SCALES = ("group", "batch", "token", "none")
NAN, INF = math.nan, math.inf


# --- advantages ------------------------------------------------------------------------------------------------------


BATCHES = {
    "one group": ([1, 0, 0, 1], [3, 3, 3, 3], [1, 1, 1, 1]),
    "ragged": ([1, 0, 0.5, 2, -1, 0.25, 7], [0, 0, 1, 1, 1, 9, 9], [1] * 7),
    "not adjacent": ([1, 2, 3, 4, 5, 6], [5, -2, 5, 8, -2, 8], [1] * 6),
    "weight 0": ([1, 100, 0, 1, -50, 0], [0, 0, 0, 1, 1, 1], [1, 0, 1, 1, 0, 0.5]),
    "weights are no factors here": ([1, 0, 0, 1, 0], [0, 0, 0, 1, 1], [0.1, 2, 1, 0.5, 7]),
    "singletons": ([1, 0, 3, 0.1, 0.2], [0, 1, 2, 3, 3], [1] * 5),
    "one left by its weights": ([1, 0, 0, 1, 0], [0, 0, 0, 1, 1], [0, 1, 0, 1, 1]),
    "unanimous": ([0.1, 0.1, 0.1, 0.7, 0.2, 0.1], [0, 0, 0, 1, 1, 1], [1] * 6),
    "all unanimous": ([0.1, 0.1, 0.1, 0.7, 0.7, 0.7], [0, 0, 0, 1, 1, 1], [1] * 6),
    "all equal": ([0.1] * 7, [0, 0, 0, 1, 1, 1, 1], [1] * 7),
    "nothing counts": ([1, 2, 3], [0, 0, 1], [0, 0, 0]),
    "one response": ([2.0], [0], [1]),
    "no response": ([], [], []),
}


@pytest.mark.parametrize("eps", [1e-4, 0.0])
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize(("baseline", "scale"), list(itertools.product(BASELINES, SCALES)))
def test_advantages_equal_the_slow_reference(baseline, scale, name, eps):
    scores, groups, weights = BATCHES[name]
    expected = slow_shape(scores, groups, baseline, scale, weights, eps)
    got = advantages(
        torch.tensor(scores, dtype=torch.float64),
        torch.tensor(groups, dtype=torch.long),
        baseline,
        scale,
        torch.tensor(weights, dtype=torch.float64),
        eps,
    )
    assert got.dtype == torch.float64
    assert got.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-14)
    if all(weights):
        plain = advantages(
            torch.tensor(scores, dtype=torch.float64), torch.tensor(groups).long(), baseline, scale, None, eps
        )
        assert torch.equal(plain, got)


@pytest.mark.parametrize(("baseline", "scale"), list(itertools.product(BASELINES, SCALES)))
def test_advantages_of_random_ragged_batches(baseline, scale):
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        n = int(torch.randint(1, 25, (), generator=generator))
        groups = torch.randint(0, 6, (n,), generator=generator)
        scores = torch.randn(n, generator=generator, dtype=torch.float64)
        if seed % 2:
            scores = (scores > 0).double()
        weights = (torch.rand(n, generator=generator) > 0.25).double()
        expected = slow_shape(scores.tolist(), groups.tolist(), baseline, scale, weights.tolist(), 1e-3)
        got = advantages(scores, groups, baseline, scale, weights, 1e-3)
        assert got.tolist() == pytest.approx(expected, rel=1e-11, abs=1e-12), seed


def test_advantages_by_hand():
    scores, group = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.zeros(4, dtype=torch.long)
    assert advantages(scores, group, "group", "none").tolist() == [0.75, -0.25, -0.25, -0.25]
    assert advantages(scores, group, "loo", "none").tolist() == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])
    # the unbiased deviation of 1, 0, 0, 0 is 1/2
    assert advantages(scores, group, "group", "group", eps=0.0).tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5])
    two = advantages(torch.tensor([1.0, 0.0, 5.0, 3.0]), torch.tensor([0, 0, 1, 1]), "group", "batch", eps=0.0)
    # differences 1/2, -1/2, 1, -1 with deviation sqrt(2.5 / 3)
    assert two.tolist() == pytest.approx([0.5477226, -0.5477226, 1.0954451, -1.0954451])


@pytest.mark.parametrize("bad", [NAN, INF, -INF, 1e30])
@pytest.mark.parametrize(("baseline", "scale"), list(itertools.product(BASELINES, SCALES)))
def test_a_score_of_weight_0_cannot_leak(baseline, scale, bad):
    scores, group = torch.tensor([1.0, 0.0, bad, 0.5]), torch.tensor([0, 0, 0, 1])
    weight = torch.tensor([1.0, 1.0, 0.0, 1.0])
    got = advantages(scores, group, baseline, scale, weight)
    keep = torch.tensor([0, 1, 3])
    assert torch.equal(got[keep], advantages(scores[keep], group[keep], baseline, scale))
    assert got[2] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("baseline", "scale"), list(itertools.product(("group", "loo", "batch"), SCALES)))
def test_rounding_earns_no_advantage(baseline, scale, dtype):
    # 0.1 has no exact mean in binary
    got = advantages(torch.full((7,), 0.1, dtype=dtype), torch.zeros(7).long(), baseline, scale, eps=0.0)
    assert got.tolist() == [0.0] * 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2), torch.zeros(3).long()), "shape"),
        ((torch.zeros(2), torch.zeros(2).long(), "group", "group", torch.ones(3)), "shape"),
        ((torch.zeros(2), torch.zeros(2).long(), "mean"), "'mean'"),
        ((torch.zeros(2), torch.zeros(2).long(), "group", "std"), "'std'"),
        ((torch.zeros(2, dtype=torch.long), torch.zeros(2).long()), "floating point"),
    ],
)
def test_advantages_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        advantages(*arguments)


# --- advantages of tokens --------------------------------------------------------------------------------------------


def ragged(seed, rows=5, width=7):
    """Values and a mask whose rows have any length, 0 included, and holes."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    lengths = torch.randint(0, width + 1, (rows,), generator=generator)
    lengths[0] = 0
    mask = (torch.arange(width) < lengths[:, None]) & (torch.rand(rows, width, generator=generator) > 0.1)
    return values, mask


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_returns_equal_the_slow_reference(kind):
    for seed in range(10):
        (logp, mask), (ref, _) = ragged(seed), ragged(seed + 100)
        advantage = torch.randn(len(logp), dtype=torch.float64)
        got = returns(advantage, kl(logp, ref, kind), mask, 0.3)
        for b, t in itertools.product(*map(range, mask.shape)):
            later = [slow_kl(kind, float(logp[b, u]), float(ref[b, u])) for u in range(t, 7) if mask[b, u]]
            expected = float(advantage[b]) - 0.3 * math.fsum(later) if mask[b, t] else 0.0
            assert float(got[b, t]) == pytest.approx(expected, rel=1e-12, abs=1e-13)


def test_returns_by_hand():
    got = returns(
        torch.tensor([1.0]), torch.tensor([[0.5, 9.0, 0.25, NAN]]), torch.tensor([[True, False, True, False]]), 2
    )
    assert got.tolist() == [[1 - 2 * 0.75, 0.0, 1 - 2 * 0.25, 0.0]]


def test_whitening_equals_the_slow_reference():
    for seed in range(10):
        values, mask = ragged(seed)
        got = whiten(3 * values + 1, mask)
        rows = [[3 * float(v) + 1 for v, m in zip(*row, strict=True) if m] for row in zip(values, mask, strict=True)]
        assert not got[~mask].any()
        expected = [a for row in slow_whiten(rows) for a in row]
        assert got[mask].tolist() == pytest.approx(expected, rel=1e-11, abs=1e-12)
        assert (got.dtype, got.shape) == (values.dtype, values.shape)


def test_whitening_by_hand():
    mask = torch.tensor([[True, True, False], [True, False, False], [True, False, False]])
    values = torch.tensor([[1.0, 0.0, NAN], [0.0, INF, 5.0], [3.0, 1e30, -1.0]], dtype=torch.float64)
    # 1, 0, 0, 3: mean 1, variance 6/4 by count (2 if it were unbiased)
    root = math.sqrt(1.5)
    flat = [a for row in whiten(values, mask).tolist() for a in row]
    assert flat == pytest.approx([0, -1 / root, 0, -1 / root, 0, 0, 2 / root, 0, 0])
    # a variance of 2.5e-9 is less than the floor
    close = torch.tensor([[0.5, 0.5 + 1e-4]], dtype=torch.float64)
    assert whiten(close, torch.ones(1, 2).bool()).tolist()[0] == pytest.approx([-0.5, 0.5], rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whitening_of_equal_tokens_or_none_is_zero(dtype):
    mask = torch.rand(3, 9) > 0.3
    assert whiten(torch.full((3, 9), 0.1, dtype=dtype), mask).tolist() == [[0.0] * 9] * 3
    assert whiten(torch.full((3, 9), NAN, dtype=dtype), torch.zeros(3, 9).bool()).tolist() == [[0.0] * 9] * 3


# --- overlong responses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("longest", "buffer"), [(16, 4), (16, 16), (10, 3), (7, 1), (5, 0)])
def test_overlong_penalty_equals_the_slow_reference(longest, buffer):
    expected = []
    for length in range(2 * longest):
        if length <= longest - buffer:
            expected.append(0.0)
        elif length <= longest:
            expected.append((longest - buffer - length) / buffer)
        else:
            expected.append(-1.0)
    got = overlong_penalty(torch.arange(2 * longest), longest, buffer)
    assert got.dtype == torch.float32
    assert got.tolist() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("buffer", [-1, 17])
def test_overlong_penalty_refuses(buffer):
    with pytest.raises(ValueError, match=f"between 0 and max_tokens = 16, got {buffer}"):
        overlong_penalty(torch.tensor([3]), 16, buffer)


# --- aggregation -----------------------------------------------------------------------------------------------------

VALUES = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0], [5.0, 5.0, 5.0]], dtype=torch.float64)
MASK = torch.tensor([[True, True, False], [False, True, False], [False, False, False]])


@pytest.mark.parametrize(
    ("aggregation", "denominator", "length", "expected"),
    [
        ("token", None, 1, 19 / 3),
        ("token", 10, 1, 1.9),
        ("token", torch.tensor(10), 1, 1.9),
        ("sequence", None, 1, (1.5 + 16) / 2),
        ("sequence", 5, 1, 3.5),
        ("constant", None, 4, 19 / 8),
        ("constant", 5, 4, 0.95),
        ("token", 0, 1, 19.0),
        ("token", torch.tensor(0), 1, 19.0),
    ],
)
def test_aggregate_by_hand(aggregation, denominator, length, expected):
    assert aggregate(VALUES, MASK, aggregation, denominator, length).item() == pytest.approx(expected)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_aggregate_of_nothing_is_zero_with_a_graph(aggregation):
    values = torch.full((2, 3), INF, requires_grad=True)
    out = aggregate(values, torch.zeros(2, 3, dtype=torch.bool), aggregation)
    assert out.item() == 0
    out.backward()
    assert values.grad.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_micro_batches_with_the_global_count_add_up(aggregation):
    whole = aggregate(VALUES, MASK, aggregation, None, 4)
    count = 3 if aggregation == "token" else 2
    parts = [aggregate(VALUES[i : i + 1], MASK[i : i + 1], aggregation, count, 4) for i in range(3)]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-15)


def test_aggregate_refuses_an_unknown_way():
    with pytest.raises(ValueError, match="'mean'"):
        aggregate(VALUES, MASK, "mean")


# --- losses ----------------------------------------------------------------------------------------------------------


def slow_loss(logp, old, adv, mask, low, high, dual, aggregation, denominator, length):
    rows = []
    for b in range(len(logp)):
        row = []
        for t in range(len(logp[b])):
            if not mask[b][t]:
                continue
            a = adv[b][t] if isinstance(adv[b], list) else adv[b]
            ratio = math.exp(logp[b][t] - old[b][t])
            gain = min(ratio * a, min(max(ratio, 1 - low), 1 + high) * a)
            if dual is not None and a < 0:
                gain = max(gain, dual * a)
            row.append(-gain)
        rows.append(row)
    full = [r for r in rows if r]
    tokens = sum(map(len, full))
    if aggregation == "token":
        return sum(map(sum, full)) / (denominator or tokens)
    if aggregation == "sequence":
        return sum(sum(r) / len(r) for r in full) / (denominator or len(full))
    return sum(map(sum, full)) / ((denominator or len(full)) * length)


@pytest.mark.parametrize("dual", [None, 1.5])
@pytest.mark.parametrize("denominator", [None, 9])
@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.1, 0.28)])
def test_policy_loss_equals_the_slow_reference(low, high, dual, aggregation, denominator):
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        logp, step = (torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
        old = logp - 0.5 * step
        mask = torch.rand(4, 6, generator=generator) > 0.4
        mask[3] = False
        for adv in (torch.randn(4, 6, generator=generator).double(), torch.randn(4, generator=generator).double()):
            arguments = (low, high, dual, aggregation, denominator, 7)
            expected = slow_loss(logp.tolist(), old.tolist(), adv.tolist(), mask.tolist(), *arguments)
            assert policy_loss(logp, old, adv, mask, *arguments).item() == pytest.approx(expected, rel=1e-12)


def test_gspo_by_hand():
    """Two responses of two tokens, and one token that does not count: the ratio is the root of the tokens' product."""
    ratios = torch.tensor([[1.21, 1.0, 9.0], [1.5, 1.5, 1.0], [0.4, 0.9, 1.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, True, False], [True, True, False]])
    for signs, losses, slopes in (
        # 1.1 is inside of .3; 1.5 is clipped at 1.3; .6 is below .7 and a good response made rarer is pulled back
        ([2.0, 2.0, 2.0], [-2.2, -2.6, -1.2], [-1.1, 0.0, -0.6]),
        ([-2.0, -2.0, -2.0], [2.2, 3.0, 1.4], [1.1, 1.5, 0.0]),
    ):
        logp = ratios.log().requires_grad_()
        adv = torch.tensor(signs, dtype=torch.float64)
        for row in range(3):  # each alone: the mean over one response
            part = policy_loss(
                logp[row : row + 1], torch.zeros(1, 3).double(), adv[row : row + 1], mask[row : row + 1], 0.3, 0.3,
                aggregation="sequence", ratio="sequence",
            )  # fmt: skip
            assert part.item() == pytest.approx(losses[row])
            (slope,) = torch.autograd.grad(part, logp)
            # both tokens share the gradient of the ratio, half of it each
            assert slope[row].tolist() == pytest.approx([slopes[row], slopes[row], 0.0])
        counts = clip_counts(logp, torch.zeros(3, 3).double(), adv, mask, 0.3, 0.3, "sequence")
        assert (int(counts.low), int(counts.high)) == ((0, 2) if signs[0] > 0 else (2, 0))


@pytest.mark.parametrize(
    ("ratio", "adv", "weight"),
    [(1.0, 2.0, 1.0), (4.0, 2.0, 4.0), (7.0, 2.0, 5.0), (7.0, -2.0, 5.0), (0.01, -2.0, 0.01)],
)
def test_cispo_by_hand(ratio, adv, weight):
    """The term is -weight x advantage x log-prob, and the weight is a constant of at most 5."""
    old = torch.tensor([[-3.0, -1.0]], dtype=torch.float64)
    logp = (old + math.log(ratio)).requires_grad_()
    mask = torch.tensor([[True, False]])
    given = (logp, old, torch.tensor([adv]).double(), mask, 0.2, 4.0)
    got = policy_loss(*given, surrogate="cispo")
    got.backward()
    assert got.item() == pytest.approx(-weight * adv * (math.log(ratio) - 3.0))
    assert logp.grad.tolist() == [[pytest.approx(-weight * adv), 0.0]]
    low, high = clip_counts(*given, surrogate="cispo")
    assert (int(low), int(high)) == (0, int(ratio > 5 and adv > 0))


@pytest.mark.parametrize(
    ("ratio", "adv", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.6, 0.0),  # above 1 + clip_high
        (0.5, 2.0, -1.0, -1.0),  # a good token made rarer is always pulled back
        (0.5, -2.0, 1.4, 0.0),  # below 1 - clip_low = 0.7
        (1.5, -2.0, 3.0, 3.0),
        (5.0, -2.0, 8.0, 0.0),  # dual clip at 4
        (5.0, 0.0, 0.0, 0.0),
    ],
)
def test_clip_by_hand(ratio, adv, loss, slope):
    logp = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, 1, dtype=torch.bool)
    got = policy_loss(logp, torch.zeros(1, 1).double(), torch.tensor([adv]).double(), one, 0.3, 0.3, 4.0)
    got.backward()
    assert got.item() == pytest.approx(loss)
    assert logp.grad.item() == pytest.approx(slope)


@pytest.mark.parametrize("dual", [None, 1.5])
@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_policy_loss_gradcheck(aggregation, dual):
    generator = torch.Generator().manual_seed(3)
    logp = torch.randn(3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    old = logp.detach() - 0.4 * torch.randn(3, 4, generator=generator, dtype=torch.float64)
    adv = torch.randn(3, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]]).bool()
    arguments = (old, adv, mask, 0.2, 0.3, dual, aggregation, 5, 3)
    assert torch.autograd.gradcheck(lambda x: policy_loss(x, *arguments), (logp,))


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("where", ["logp", "old", "adv"])
@pytest.mark.parametrize("dual", [None, 1.5])
def test_nothing_leaks_from_outside_the_mask(bad, where, dual):
    mask = torch.tensor([[True, True, False], [False, True, False]])
    tables = {
        "logp": torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -0.5, -2.0]]),
        "old": torch.tensor([[-1.1, -2.5, -3.0], [-1.0, -0.7, -2.0]]),
        "adv": torch.tensor([[1.0, -1.0, 0.5], [2.0, -2.0, 0.1]]),
    }

    def run(tables):
        logp = tables["logp"].clone().requires_grad_()
        loss = policy_loss(logp, tables["old"], tables["adv"], mask, dual_clip=dual)
        loss.backward()
        counts = clip_counts(logp, tables["old"], tables["adv"], mask, 0.2, 0.2)
        return loss.detach(), logp.grad, counts.low, counts.high

    clean = run(tables)
    tables[where] = torch.where(mask, tables[where], bad)
    for a, b in zip(run(tables), clean, strict=True):
        assert torch.equal(a, b)
    assert not clean[1][~mask].any()
    assert clean[1][mask].abs().sum() > 0


@pytest.mark.parametrize("adv", [1.0, 0.0, -1.0])
@pytest.mark.parametrize("dual", [None, 3.0])
def test_a_huge_ratio_gives_finite_gradients(adv, dual):
    logp = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    old = torch.tensor([[-300.0, -1.0]])
    loss = policy_loss(logp, old, torch.tensor([[adv, 1.0]]), torch.ones(1, 2, dtype=torch.bool), dual_clip=dual)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logp.grad).all()
    assert logp.grad[0, 1].item() == pytest.approx(-0.5)
    if adv >= 0:
        assert logp.grad[0, 0] == 0


def test_clip_counts_by_hand():
    ratio = torch.tensor([[0.5, 1.0, 1.5, 0.5, 1.5, 1.5]])
    adv = torch.tensor([[-1.0, -1.0, 1.0, 1.0, -1.0, 1.0]])
    mask = torch.tensor([[True, True, True, True, True, False]])
    counts = clip_counts(ratio.log(), torch.zeros(1, 6), adv, mask, 0.2, 0.2)
    assert (counts.low.item(), counts.high.item()) == (1, 1)
    assert clip_counts(ratio.log(), torch.zeros(1, 6), adv, mask, 0.6, 0.2).low.item() == 0
    assert clip_counts(ratio.log(), torch.zeros(1, 6), torch.tensor([1.0]), mask, 0.2, 0.4).high.item() == 2


# --- KL --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "expected"), [("k1", 0.5), ("k2", 0.125), ("k3", math.exp(-0.5) - 0.5)])
def test_kl_by_hand(kind, expected):
    logp, ref = torch.tensor([-1.0, -2.0], dtype=torch.float64), torch.tensor([-1.5, -2.0], dtype=torch.float64)
    assert kl(logp, ref, kind).tolist() == pytest.approx([expected, 0.0])


def test_k1_and_k3_are_unbiased():
    torch.manual_seed(0)
    p, q = (torch.randn(2, 6, dtype=torch.float64)).log_softmax(-1)
    true = (p.exp() * (p - q)).sum()
    for kind in ("k1", "k3"):
        assert (p.exp() * kl(p, q, kind)).sum().item() == pytest.approx(true.item(), rel=1e-12)
    assert (kl(p, q, "k3") >= 0).all()
    assert (kl(p, q, "k1") < 0).any()


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_gradcheck(kind):
    torch.manual_seed(1)
    logp = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    ref = torch.randn(3, 4, dtype=torch.float64)
    mask = torch.rand(3, 4) > 0.3
    assert torch.autograd.gradcheck(lambda x: kl(x, ref, kind), (logp,))
    assert torch.autograd.gradcheck(lambda x: aggregate(kl(x, ref, kind, mask), mask, "sequence"), (logp,))


@pytest.mark.parametrize("bad", [NAN, INF, -INF, 1e4, -1e4])
@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_outside_the_mask_cannot_leak(kind, bad):
    mask = torch.tensor([[True, False, True]])
    logp = torch.tensor([[-1.0, -1.0, -2.0]], requires_grad=True)
    values = kl(logp, torch.tensor([[-1.5, bad, -1.0]]), kind, mask)
    aggregate(values, mask).backward()
    assert values[0, 1] == 0
    assert logp.grad[0, 1] == 0
    assert torch.isfinite(logp.grad).all()
    assert logp.grad[0, 0] != 0


def test_kl_refuses_an_unknown_kind():
    with pytest.raises(ValueError, match="'k4'"):
        kl(torch.zeros(1), torch.zeros(1), "k4")


# --- against TRL -----------------------------------------------------------------------------------------------------


RATIOS = [[0.5, 2.0, 4.0], [1.0, 1.5, 99.0]]  # of two responses, the second two tokens long
IMPORTANCE = [
    ("token_truncate", "product", [[0.8, 2.0, 3.0], [1.0, 1.5]], [[1, 0, 1], [0, 0]]),
    ("token_mask", "product", [[0.0, 2.0, 0.0], [1.0, 1.5]], [[1, 0, 1], [0, 0]]),
    ("sequence_truncate", "product", [[3.0], [1.5]], [[1], [0]]),
    ("sequence_mask", "product", [[0.0], [1.5]], [[1], [0]]),
    ("sequence_truncate", "geometric", [[4 ** (1 / 3)], [1.5**0.5]], [[0], [0]]),
]


@pytest.mark.parametrize(("correction", "ratio", "weights", "outside"), IMPORTANCE)
def test_importance_weights_by_hand(correction, ratio, weights, outside):
    old = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -4.0, NAN]], dtype=torch.float64, requires_grad=True)
    sampler = old.detach() - torch.tensor(RATIOS, dtype=torch.float64).log()
    mask = torch.tensor([[True] * 3, [True, True, False]])
    found = importance_weights(old, sampler, mask, correction, cap=3.0, floor=0.8, ratio=ratio)
    assert found.weight.shape == ((2, 3) if "token" in correction else (2, 1))
    assert not found.weight.requires_grad
    units = found.counted(mask)
    assert units.weight.tolist() == pytest.approx([w for row in weights for w in row], rel=1e-12)
    assert units.outside.tolist() == [bool(o) for row in outside for o in row]


def test_importance_weights_at_the_edges():
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    old, wild = torch.zeros(2, 3), torch.tensor([[NAN, NAN, NAN], [-INF, -1e30, 0.0]])
    for correction in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"):
        found = importance_weights(old, wild, ~nothing, correction)
        assert found.weight[0].eq(1).all(), "what the sampler did not say is trusted"
        expected = 3.0 if "truncate" in correction else 0.0
        assert found.weight[1, 0] == expected, "an infinite ratio is out of bounds, not infinite"
        assert importance_weights(old, wild, nothing, correction).counted(nothing).weight.numel() == 0
    assert importance_weights(old, old, ~nothing, "sequence_mask", ratio="geometric").weight.eq(1).all()
    for correction, ratio in (("none", "product"), ("tokens", "product"), ("token_mask", "mean")):
        with pytest.raises(ValueError, match="must be"):
            importance_weights(old, old, nothing, correction, ratio=ratio)


def test_effective_sample_size():
    assert effective_sample_size(4, 4.0, 4.0) == 1.0
    assert effective_sample_size(4, 1.0, 1.0) == 0.25
    assert effective_sample_size(4, 0.0, 0.0) == 0.0


def test_every_number_of_trl():
    """TRL's losses, gradients, advantages and penalties, recorded by benchmarks/against_trl.py."""
    root = Path(__file__).resolve().parents[2]
    spec = importlib.util.spec_from_file_location("against_trl", root / "benchmarks" / "against_trl.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    found = json.loads((root / "tests" / "recorded" / "trl_objectives.json").read_text(encoding="utf-8"))
    assert {c["loss_type"] for c in found["losses"]} == {"grpo", "bnpo", "dapo", "dr_grpo", "cispo"}
    assert {c["loss_type"] for c in found["losses"] if "level" in c} == {"grpo", "dapo"}  # ratios of sequences: GSPO
    assert not all(map(any, found["batch"]["mask"])), "a response of weight 0 belongs to the batch"
    worst = benchmark.compare(found)
    assert len(worst) == 65
    for name, value in worst.items():
        # TRL's rewards and penalties are float32, its losses are taken in float64 here
        assert value < (1e-12 if name.startswith("loss") else 1e-6), name


# --- the options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("style", "name"), RULES)
def test_a_name_decides_what_is_left_open(style, name):
    def read(objective):
        fields = ("baseline", "scale", "kl", "kl_in", "aggregation", "kl_aggregation", "eps")
        return {field: getattr(objective, field) for field in fields}

    expected = rules(style, name)
    del expected["clamp"]
    assert read(Objective(name, style).resolve()) == expected
    given = {"baseline": "none", "scale": "batch", "kl": "k2", "kl_in": "reward", "aggregation": "constant", "eps": 0.5}
    for field, value in given.items():
        follows = {"kl_aggregation": value} if field == "aggregation" and style == "default" else {}
        chosen = Objective(name, style, **{field: value})
        assert read(chosen.resolve()) == expected | {field: value} | follows
        assert {f for f in given if getattr(chosen, f) is None} == given.keys() - {field}


def test_newer_algorithms_by_name_have_the_numbers_of_their_papers():
    fields = ("baseline", "scale", "aggregation", "ratio", "surrogate", "clip_low", "clip_high", "beta")
    plain = ("group", "group", "token", "token", "clip", 0.2, 0.2, 0.001)
    for name, expected in {
        "grpo": plain,
        "dapo": (*plain[:6], 0.28, 0.0),
        "gspo": ("group", "group", "sequence", "sequence", "clip", 3e-4, 4e-4, 0.0),
        "cispo": (*plain[:4], "cispo", 0.2, 4.0, 0.0),
    }.items():
        assert tuple(getattr(Objective(name).resolve(), field) for field in fields) == expected
        chosen = Objective(name, clip_low=0.1, clip_high=0.5, beta=0.3, ratio="sequence").resolve()
        assert (chosen.clip_low, chosen.clip_high, chosen.beta, chosen.ratio) == (0.1, 0.5, 0.3, "sequence")
    for options, said in (
        ({"name": "gspo", "style": "serl"}, "gspo is not among the published code's algorithms"),
        ({"name": "cispo", "dual_clip": 3.0}, "dual_clip bounds the ratio of a clipped surrogate"),
        ({"surrogate": "cispo", "dual_clip": 3.0}, "dual_clip bounds"),
        ({"ratio": "response"}, "model.objective.ratio must be token or sequence"),
        ({"surrogate": "ppo"}, "model.objective.surrogate must be clip or cispo"),
    ):
        with pytest.raises(ValueError, match=said):
            Objective(**options)


def test_the_default_is_grpo():
    plain = Objective().resolve()
    named = Objective("grpo", baseline="group", scale="group", kl="k3", kl_in="loss", aggregation="token", eps=1e-4)
    assert plain == named.resolve()
    assert (plain.clip_low, plain.clip_high, plain.dual_clip, plain.beta, plain.entropy) == (0.2, 0.2, None, 0.001, 0.0)
    assert hash(plain) == hash(Objective(kl="k3").resolve())
    assert plain != Objective("rloo").resolve()
    assert plain.resolve() == plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "ppo"}, "model.objective.name must be grpo, .*got 'ppo'"),
        ({"correction": "tis"}, "correction must be none, token_truncate, token_mask"),
        ({"correction_ratio": "mean"}, "correction_ratio must be product or geometric"),
        ({"correction_cap": 1.0}, "correction_cap must be above 1 and below inf, got 1.0"),
        ({"correction_cap": NAN}, "correction_cap must be above 1 and below inf, got nan"),
        ({"correction_floor": 1.0}, "correction_floor must be at least 0 and below 1, got 1.0"),
        ({"style": "trl"}, "style must be default or serl, got 'trl'"),
        ({"kl_in": "rewards"}, "model.objective.kl_in must be loss, reward or return, got 'rewards'"),
        ({"kl": "k9"}, "objective.kl must"),
        ({"baseline": "mean"}, "objective.baseline must"),
        ({"scale": "std"}, "objective.scale must"),
        ({"aggregation": "tokens"}, "objective.aggregation must"),
        ({"entropy": -0.1}, "entropy"),
        ({"entropy": NAN}, "entropy"),
        ({"entropy": INF}, "entropy"),
        ({"beta": INF}, "beta"),
        ({"eps": INF}, "eps"),
        ({"clip_low": 0.0}, "clip_low"),
        ({"clip_low": 1.0}, "clip_low"),
        ({"clip_high": 0.0}, "clip_high"),
        ({"dual_clip": 1.0}, "dual_clip"),
        ({"constant_length": 0}, "constant_length"),
        ({"beta": -0.1}, "beta"),
        ({"eps": -1e-9}, "eps"),
        ({"clip_low": NAN}, "clip_low"),
        ({"beta": NAN}, "beta"),
        ({"eps": NAN}, "eps"),
        ({"clip_high": NAN}, "clip_high"),
        ({"dual_clip": NAN}, "dual_clip"),
    ],
)
def test_objective_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Objective(**options)
