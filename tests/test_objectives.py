"""Advantages, clipped losses and KL estimators against tables made by hand and a slow reference of their own."""

import itertools
import math
import statistics

import pytest
import torch

from lightning_serl.objectives import Objective, advantages, aggregate, clip_counts, kl, policy_loss

BASELINES = ("group", "loo", "batch", "none")
SCALES = ("group", "batch", "none")
NAN, INF = math.nan, math.inf


# --- advantages ------------------------------------------------------------------------------------------------------


def reference(scores, groups, baseline, scale, weights, eps):
    """The definition, response by response, in Python floats."""
    rows = [i for i, w in enumerate(weights) if w > 0]
    members = {g: [i for i in rows if groups[i] == g] for g in groups}

    def flat(indices):
        return len(indices) < 2 or len({scores[i] for i in indices}) == 1

    def centred(i):
        mates = members[groups[i]]
        if baseline == "none":
            return scores[i]
        if baseline == "batch":
            return 0.0 if len({scores[j] for j in rows}) == 1 else scores[i] - statistics.fmean(scores[j] for j in rows)
        if flat(mates):
            return 0.0
        if baseline == "group":
            return scores[i] - statistics.fmean(scores[j] for j in mates)
        return scores[i] - statistics.fmean(scores[j] for j in mates if j != i)

    differences = {i: centred(i) for i in rows}
    out = [0.0] * len(scores)
    for i in rows:
        value = differences[i]
        if scale == "group":
            mates = members[groups[i]]
            value = 0.0 if flat(mates) else value / (statistics.stdev(scores[j] for j in mates) + eps)
        elif scale == "batch":
            spread = len(rows) > 1 and len(set(differences.values())) > 1
            value = value / (statistics.stdev(differences.values()) + eps) if spread else 0.0
        out[i] = value
    return out


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
    expected = reference(scores, groups, baseline, scale, weights, eps)
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
        expected = reference(scores.tolist(), groups.tolist(), baseline, scale, weights.tolist(), 1e-3)
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
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
