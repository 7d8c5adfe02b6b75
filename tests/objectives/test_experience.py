"""From graded groups to the advantages of tokens, against the same rules in plain Python."""

import itertools
import math
from collections import Counter

import pytest
import torch
from helpers.slow_advantages import RULES, rules, slow_advantages
from helpers.small_models import save_model

from lightning_serl import SeRLModule
from lightning_serl.errors import InputError
from lightning_serl.objectives import Objective
from lightning_serl.objectives.experience import BatchLayout, micro_batch, rows_of, set_advantages
from lightning_serl.types import Completion, Group, Instruction, Verdict

# Group by group: tokens, scores and weights of the responses; then whether it was dropped, and its attempt. The order
# in which the groups come is no order of attempts; there are a lone response, a unanimous group, and one left alone.
GROUPS = [
    ([3, 11, 7, 2], [1.0, 0.0, 0.25, 0.0], [1.0, 1.0, 1.0, 1.0], False, 0),
    ([4, 1, 6], [0.0, 0.7, 0.1], [0.5, 0.5, 0.5], False, 1),
    ([5], [0.3], [1.0], False, 0),
    ([2, 8, 8], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0], True, 0),
    ([6, 2], [99.0, 0.4], [0.0, 1.0], False, 0),
    ([3, 9, 1, 4], [1.0, 0.0, 77.0, 1.0], [1.0, 1.0, 0.0, 1.0], True, 1),
    ([12, 5], [-1.0, 0.5], [1.0, 1.0], False, 1),
]


def played(scale=1.0, centred=()):
    """The groups, their verdicts, and by uid and length of a response its log-probs under policy and reference."""
    draw = torch.Generator().manual_seed(4)
    groups, verdicts = [], []
    for number, (lengths, scores, weights, dropped, attempt) in enumerate(GROUPS):
        completions = [Completion(tuple(range(1, n + 1)), "") for n in lengths]
        groups.append(Group(Instruction("", f"g{number}"), (1, 2, 3), completions))
        verdict = Verdict(torch.tensor(scores) * scale, weight=torch.tensor(weights), dropped=dropped, attempt=attempt)
        verdict.centred = number in centred
        verdicts.append(verdict)
    rows = rows_of(groups, verdicts)
    for row in rows:
        count = len(row.ids) - row.start
        row.old, row.ref = (-torch.rand(count, generator=draw, dtype=torch.float64) for _ in range(2))
    return rows


def as_dicts(rows):
    """The same rows for the slow reference."""
    return [
        {
            "score": r.score,
            "weight": r.weight,
            "group": r.group,
            "attempt": r.verdict.attempt,
            "centred": r.verdict.centred,
            "tokens": len(r.ids) - r.start,
            "logp": None if r.old is None else r.old.tolist(),
            "ref": None if r.ref is None else r.ref.tolist(),
        }
        for r in rows
    ]


def agree(rows, options, beta):
    expected = slow_advantages(as_dicts(rows), beta, rules(**options))
    set_advantages(rows, Objective(beta=beta, **options).resolve())
    for row, tokens in zip(rows, expected, strict=True):
        assert row.advantage.dtype == torch.float64
        assert row.advantage.tolist() == pytest.approx(tokens, rel=1e-11, abs=1e-12)
    return [row.advantage for row in rows]


def test_weight_0_is_no_row_and_a_dropped_group_is_one():
    rows = played()
    count = Counter(r.uid for r in rows)
    assert count == {"g0": 4, "g1": 3, "g2": 1, "g3": 3, "g4": 1, "g5": 3, "g6": 2}
    assert {r.uid for r in rows if r.verdict.dropped} == {"g3", "g5"}
    assert {r.uid for r in rows if r.verdict.attempt} == {"g1", "g5", "g6"}


@pytest.mark.parametrize("beta", [0.0, 0.4])
@pytest.mark.parametrize("order", [None, 5])
@pytest.mark.parametrize(("style", "name"), RULES)
def test_every_algorithm_by_its_name(style, name, order, beta):
    rows = played()
    if order is not None:  # members of a group apart
        rows = [rows[i] for i in torch.randperm(len(rows), generator=torch.Generator().manual_seed(order))]
    advantages = agree(rows, {"style": style, "name": name}, beta)
    assert max(a.abs().max() for a in advantages) > 0.3


CHOICES = itertools.product(
    ("group", "loo", "batch", "none"), ("group", "batch", "token", "none"), ("k1", "k2", "k3"), ("reward", "return")
)


@pytest.mark.parametrize(("baseline", "scale", "kl", "kl_in"), list(CHOICES))
def test_every_combination(baseline, scale, kl, kl_in):
    options = {"baseline": baseline, "scale": scale, "kl": kl, "kl_in": kl_in, "eps": 1e-3}
    with_it = agree(played(), options, 0.3)
    without = agree(played(), options | {"style": "serl"}, 0.0)
    assert any(not torch.equal(a, b) for a, b in zip(with_it, without, strict=True))


@pytest.mark.parametrize(("style", "name"), RULES)
def test_centred_scores_are_advantages_already(style, name):
    rows = played(centred=(1, 5))
    agree(rows, {"style": style, "name": name}, 0.0)
    for row in rows:
        if row.verdict.centred:
            assert row.advantage.tolist() == [row.score * row.weight] * (len(row.ids) - row.start)
    agree(played(centred=(1, 5)), {"style": style, "name": name}, 0.4)
    agree(played(centred=range(7)), {"style": style, "name": name}, 0.4)


def as_published(rows, estimator, beta, kl, in_loss):
    """SeRL's published arithmetic in its own steps: rewards of tokens, the score on the last, summed from behind."""
    groups = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row["score"])
    returns = []
    for row in rows:
        scores, r = groups[row["group"]], row["score"]
        n, mean = len(scores), sum(scores) / len(scores)
        if estimator == "rloo":
            r = r - (sum(scores) - r) / (n - 1)
        elif estimator in ("reinforce_baseline", "dr_grpo"):
            r = r - mean
        elif estimator == "group_norm":
            r = (r - mean) / (math.sqrt(sum((s - mean) ** 2 for s in scores) / (n - 1)) + 1e-9)
        r = min(max(r, -10.0), 10.0)
        rewards = [0.0] * row["tokens"]
        if not in_loss:
            for t, (a, b) in enumerate(zip(row["logp"], row["ref"], strict=True)):
                rewards[t] -= beta * {"k1": a - b, "k3": math.exp(b - a) - 1 - (b - a)}[kl]
        rewards[-1] += r
        total, line = 0.0, []
        for reward in reversed(rewards):
            total += reward
            line.insert(0, total)
        returns.append(line)
    if estimator not in ("group_norm", "dr_grpo"):
        tokens = [a for line in returns for a in line]
        mean = sum(tokens) / len(tokens)
        deviation = math.sqrt(max(sum((a - mean) ** 2 for a in tokens) / len(tokens), 1e-8))
        returns = [[(a - mean) / deviation for a in line] for line in returns]
    return returns


@pytest.mark.parametrize(
    ("name", "estimator", "kl", "in_loss"),
    [
        ("reinforce++", "reinforce", "k1", False),
        ("rloo", "rloo", "k1", False),
        ("reinforce++_baseline", "reinforce_baseline", "k1", False),
        ("grpo", "group_norm", "k3", True),
        ("dr_grpo", "dr_grpo", "k1", False),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 30.0])  # 30 reaches the clamp
def test_the_published_style_step_by_step(name, estimator, kl, in_loss, scale):
    # full groups, as the published code needs them; each attempt is one of its ticks
    rows = [r for r in played(scale) if r.uid in ("g0", "g1", "g3", "g6")]
    expected = {}
    for attempt in (0, 1):
        here = [(i, row) for i, row in enumerate(as_dicts(rows)) if row["attempt"] == attempt]
        lines = as_published([row for _, row in here], estimator, 0.2, kl, in_loss)
        expected |= {i: [a * row["weight"] for a in line] for (i, row), line in zip(here, lines, strict=True)}
    objective = Objective(name, "serl", beta=0.2).resolve()
    set_advantages(rows, objective)
    for i, row in enumerate(rows):
        assert row.advantage.tolist() == pytest.approx(expected[i], rel=1e-10, abs=1e-10)
    assert objective.kl_aggregation == "sequence"


def test_attempts_share_nothing():
    """Each attempt gets what it would get on its own."""
    for name in ("reinforce++", "reinforce++_baseline"):
        objective = Objective(name, beta=0.4).resolve()
        together = played()
        set_advantages(together, objective)
        apart = played()
        for attempt in (0, 1):
            set_advantages([r for r in apart if r.verdict.attempt == attempt], objective)
        for a, b in zip(together, apart, strict=True):
            assert torch.equal(a.advantage, b.advantage)
        one = played()
        for row in one:
            row.verdict.attempt = 0
        set_advantages(one, objective)
        assert any(not torch.allclose(a.advantage, b.advantage) for a, b in zip(one, together, strict=True))


def test_token_scores_come_on_top_and_the_divergence_is_summed():
    rows = [r for r in played() if r.uid in ("g0", "g6")]
    rows[1].token_scores = torch.arange(11.0)
    objective = Objective("reinforce++", beta=0.4).resolve()
    set_advantages(rows, objective)
    layout = BatchLayout(1, 2, 1, packs=False, pad_id=0, dtype=torch.float64, version=0)
    batch = micro_batch(rows, 10, 6, layout, objective)
    for i, row in enumerate(rows):
        extra = 0.0 if row.token_scores is None else row.token_scores
        assert torch.equal(batch.advantages[i, row.start : len(row.ids)], row.advantage + extra)
        assert not batch.advantages[i, : row.start].any()
        assert not batch.advantages[i, len(row.ids) :].any()
    divergence = sum(float((r.old - r.ref).sum()) for r in rows)
    assert batch.kl_in_reward == pytest.approx(divergence, rel=1e-12)
    assert batch.ref_logp is None


# -- the module --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_model(tmp_path_factory.mktemp("llama"), "llama_untied"))


def graded(dropped=(1,)):
    draw = torch.Generator().manual_seed(1)
    groups, verdicts = [], []
    for number, lengths in enumerate([(3, 5), (4, 2, 6), (1, 7)]):
        completions = [Completion(tuple(torch.randint(1, 400, (n,), generator=draw).tolist()), "") for n in lengths]
        groups.append(Group(Instruction("", f"g{number}"), (5, 6, 7), completions))
        verdicts.append(Verdict(torch.rand(len(lengths), generator=draw), dropped=number in dropped))
    return groups, verdicts


def test_dropped_rows_are_in_no_micro_batch_and_no_count(model):
    module = SeRLModule(model, objective=Objective("reinforce++", beta=0.1), minibatches=2)
    batches = module.experience(*graded())
    assert {uid for b in batches for uid in b.uids} == {"g0", "g2"}
    assert sum(len(b.uids) for b in batches) == 4
    assert sum(int(b.mask.sum()) for b in batches) == 3 + 5 + 1 + 7
    assert sum(b.num_tokens for b in batches) == 16
    assert sum(b.num_sequences for b in batches) == 4


def test_nothing_but_dropped_groups(model):
    module = SeRLModule(model, objective=Objective("reinforce++"))
    with pytest.raises(InputError, match="no response can be trained on"):
        module.experience(*graded(dropped=(0, 1, 2)))


@pytest.mark.parametrize(
    ("objective", "policy", "reference"),
    [
        (Objective("reinforce++", beta=0.1), 7, 7),
        (Objective("rloo", beta=0.1), 4, 4),  # the other groups do not depend on the dropped one
        (Objective("rloo", beta=0.1, scale="batch"), 7, 7),
        (Objective("reinforce++_baseline", beta=0.1), 0, 4),  # a divergence in the loss is of the loss alone
        (Objective("reinforce++", beta=0.0), 0, 0),
    ],
)
def test_dropped_rows_are_scored_only_where_statistics_need_them(model, monkeypatch, objective, policy, reference):
    module = SeRLModule(model, objective=objective)
    score, scored = module.policy.stats, Counter()

    def counting(rows, who="policy", **options):
        scored[who] += len(rows)
        return score(rows, who, **options)

    monkeypatch.setattr(module.policy, "stats", counting)
    module.experience(*graded())
    assert (scored["policy"], scored["reference"]) == (policy, reference)


def test_defaults_of_a_verdict_change_nothing():
    verdict = Verdict(torch.tensor([1.0, 0.0]))
    assert (verdict.dropped, verdict.attempt) == (False, 0)
    verdict = Verdict(torch.tensor([1.0, 0.0]), dropped=True, attempt=3).scaled(0.5)
    assert (verdict.dropped, verdict.attempt, verdict.weight.tolist()) == (True, 3, [0.5, 0.5])


def test_a_whole_batch_of_equal_tokens_earns_nothing():
    """Rounding must not be blown up by a division by almost nothing."""
    rows = [r for r in played() if r.uid == "g3"]
    for row in rows:
        row.score = 0.1
    for baseline in ("none", "batch", "group"):
        set_advantages(rows, Objective("reinforce++", beta=0.0, baseline=baseline).resolve())
        assert all(r.advantage.tolist() == [0.0] * len(r.advantage) for r in rows)
