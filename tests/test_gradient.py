"""Through ``Trainer.fit`` with the real module: the gradient is that of all responses of the step at once."""

import random
import warnings
from dataclasses import replace

import pytest
import torch
from helpers.gradients import (
    Plain,
    distance,
    flat,
    gpt2,
    mixed_round,
    off_by,
    recorded_round,
    token_rows,
    train_recorded,
    widen,
)
from helpers.slow_advantages import RULES

from lightning_serl.objectives import Objective
from lightning_serl.objectives.experience import minibatches
from lightning_serl.types import Group, Verdict

BOUND = 1e-10
AGGREGATIONS = ("token", "sequence", "constant")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_accumulation_padding_and_order_leave_the_gradient_alone(model, tmp_path, aggregation, kl_in):
    groups, verdicts = recorded_round()
    plain = Plain(model, (groups, verdicts), aggregation=aggregation, length=64, beta=0.3, kl="k1", kl_in=kl_in)
    objective, (truth, _, _) = plain.objective, plain.gradient()
    assert flat(truth).norm() > 1e-3

    def run(rounds, **options):
        (step,), _ = train_recorded(model, tmp_path, objective, [rounds], **options)
        return distance(step["gradient"], truth)

    for accumulate in (1, 2, 4):
        assert run((groups, verdicts), accumulate=accumulate) < BOUND
    assert run((groups, verdicts), accumulate=2, change=widen) < BOUND

    shuffled = list(zip(groups, verdicts, strict=True))
    random.Random(1).shuffle(shuffled)
    turned = []
    for group, verdict in shuffled:
        order = random.Random(len(group)).sample(range(len(group)), len(group))
        turned.append(
            (
                Group(group.instruction, group.prompt_ids, [group.completions[i] for i in order]),
                Verdict(verdict.scores[order], weight=verdict.weight[order]),
            )
        )
    assert run(tuple(zip(*turned, strict=True)), accumulate=2) < BOUND


def test_a_dropped_group_is_as_good_as_absent(model, tmp_path):
    groups, verdicts = recorded_round()
    kept = [i for i, v in enumerate(verdicts) if v.weight.any()]
    assert len(kept) == len(groups) - 1
    objective = Objective(beta=0.0)
    (all_of_them,), _ = train_recorded(model, tmp_path, objective, [(groups, verdicts)])
    rest = [groups[i] for i in kept], [verdicts[i] for i in kept]
    (without,), _ = train_recorded(model, tmp_path, objective, [rest])
    assert torch.equal(flat(all_of_them["gradient"]), flat(without["gradient"]))


def test_more_slots_than_rows(model, tmp_path):
    objective = Objective(beta=0.3, aggregation="token", kl="k2")
    groups, verdicts = recorded_round()
    rounds = ([groups[1]], [verdicts[1]])  # three responses
    (few,), _ = train_recorded(model, tmp_path, objective, [rounds], accumulate=1)
    (many,), _ = train_recorded(model, tmp_path, objective, [rounds], accumulate=5)
    assert sum(not b.mask.any() for b in many["batches"]) >= 2
    assert distance(many["gradient"], few["gradient"]) < BOUND


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("dual_clip", [None, 1.015])
def test_later_steps_of_a_round_use_the_log_probs_it_began_with(model, tmp_path, aggregation, dual_clip):
    groups, verdicts = recorded_round(3)
    verdicts[2].weight.fill_(1.0)
    rounds, clips = (groups, verdicts), {"clip": (0.01, 0.02), "dual_clip": dual_clip}
    plain = Plain(model, rounds, **clips, aggregation=aggregation, length=20, beta=0.2, kl="k3", entropy=0.05)
    uids = [groups[r["group"]].instruction.uid for r in plain.rows]
    for accumulate in (1, 2):
        steps, _ = train_recorded(
            model, tmp_path, plain.objective, [(groups, verdicts)], accumulate=accumulate, steps=(2, 2)
        )
        assert len(steps) == 4
        far = []
        for number, step in enumerate(steps):
            chosen = minibatches(uids, 2, number // 2)[number % 2]
            rows = [plain.rows[i] for i in chosen]
            assert sorted(token_rows(step["batches"])) == sorted(r["ids"] for r in rows)
            truth, ratio, _ = plain.gradient(rows, step["weights"], recorded_old=True)
            assert distance(step["gradient"], truth) < BOUND
            far.append(ratio)
        assert far[0] < 1e-12
        assert min(far[1:]) > 0.02, "the later steps are meant to be off-policy, beyond the clip"


def test_both_inner_epochs_see_every_response_once(model, tmp_path):
    groups, verdicts = recorded_round()
    steps, _ = train_recorded(model, tmp_path, Objective(beta=0.0), [(groups, verdicts)], accumulate=2, steps=(2, 3))
    want = sorted(
        (*g.prompt_ids, *c.token_ids)
        for g, v in zip(groups, verdicts, strict=True)
        for c, w in zip(g.completions, v.weight, strict=True)
        if w > 0
    )
    for epoch in (0, 1):
        batches = [b for step in steps[3 * epoch : 3 * epoch + 3] for b in step["batches"]]
        assert sorted(token_rows(batches)) == want


def test_logged_loss_is_the_loss_of_the_whole_step(model, tmp_path):
    rounds = recorded_round()
    plain = Plain(model, rounds, beta=0.2, kl="k2", aggregation="sequence", scale="none", entropy=0.1)
    _, _, truth = plain.gradient()
    for accumulate in (1, 3):
        _, module = train_recorded(model, tmp_path, plain.objective, [rounds], accumulate=accumulate)
        assert module.step_metrics["loss"] == pytest.approx(truth, rel=1e-10)


def test_the_reference_has_the_precision_of_the_policy(model, tmp_path):
    """A frozen copy outside the module tree misses Lightning's conversion; its log-probs would be of another model."""
    rounds = recorded_round()
    for precision in ("64-true", "bf16-true", "32-true"):
        # packed rows round differently, in bfloat16 visibly
        _, module = train_recorded(
            model, tmp_path, Objective(beta=0.2), [rounds], precision=precision, options={"packing": "none"}
        )
        (policy_type,) = {p.dtype for p in module.policy.parameters()}
        assert {p.dtype for p in module.policy.frozen["reference"].parameters()} == {policy_type}
        assert module.step_metrics["kl"] == pytest.approx(0.0, abs=1e-12)  # nothing has moved yet


@pytest.mark.parametrize(("style", "name"), RULES)
def test_every_algorithm_by_name(model, tmp_path, style, name):
    """Over two rounds: in the second the policy has left the reference, so the divergence must show."""
    rounds = mixed_round()
    plain = Plain(model, rounds, style=style, name=name, beta=0.7, entropy=0.05, length=64)
    objective = Objective(name, style, beta=0.7, entropy=0.05, constant_length=64, correction="none")
    first, second = train_recorded(model, tmp_path, objective, [rounds] * 2, accumulate=3)[0]
    begun, _, _ = plain.gradient()
    assert distance(first["gradient"], begun) < BOUND
    plain.begin(second["weights"])
    truth, _, _ = plain.gradient()
    assert distance(second["gradient"], truth) < BOUND
    assert distance(begun, truth) > 1e-3
    kept = sorted(row["ids"] for row in plain.trained)
    assert sorted(token_rows(second["batches"])) == kept
    assert len(kept) == len(plain.rows) - 6


@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
@pytest.mark.parametrize(("kl_in", "scale"), [("reward", "none"), ("return", "batch"), ("return", "token")])
def test_the_divergence_moves_the_advantages(model, tmp_path, kl, kl_in, scale):
    rounds = mixed_round()
    plain = Plain(model, rounds, beta=0.7, kl=kl, kl_in=kl_in, baseline="batch", scale=scale)
    _, second = train_recorded(model, tmp_path, plain.objective, [rounds] * 2)[0]
    before = flat(plain.gradient(weights=second["weights"])[0])
    plain.begin(second["weights"])
    truth, _, _ = plain.gradient()
    assert distance(second["gradient"], truth) < BOUND
    assert float((before - flat(truth)).norm()) > 1e-3 * float(flat(truth).norm())


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_entropy_bonus_is_aggregated_as_the_loss_is(model, tmp_path, aggregation):
    rounds = recorded_round()
    plain = Plain(model, rounds, beta=0.0, entropy=0.3, aggregation=aggregation, length=32)
    (step,), _ = train_recorded(model, tmp_path, plain.objective, [rounds], accumulate=2)
    truth, _, _ = plain.gradient()
    assert distance(step["gradient"], truth) < BOUND
    plain.entropy = 0.0
    assert distance(plain.gradient()[0], truth) > 1e-2


@pytest.mark.parametrize("name", ["grpo", "rloo", "reinforce++"])
def test_a_dropped_group_serves_the_statistics_of_a_batch_alone(model, tmp_path, name):
    groups, verdicts = mixed_round()
    kept = [i for i, v in enumerate(verdicts) if not v.dropped]
    objective = Objective(name, beta=0.3)
    (with_them,), module = train_recorded(model, tmp_path, objective, [(groups, verdicts)])
    rest = [groups[i] for i in kept], [verdicts[i] for i in kept]
    (without,), _ = train_recorded(model, tmp_path, objective, [rest])
    same = torch.equal(flat(with_them["gradient"]), flat(without["gradient"]))
    assert same == (name != "reinforce++")
    assert module.step_metrics["num_tokens"] == sum(len(i) for b in without["batches"] for i in b.mask.nonzero()) / 2


CORRECTIONS = [
    ("token_truncate", "product", 1.15, 0.0, "token"),
    ("token_mask", "product", 1.15, 0.9, "sequence"),
    ("sequence_truncate", "product", 1.3, 0.8, "constant"),
    ("sequence_mask", "product", 1.3, 0.0, "token"),
    ("sequence_mask", "geometric", 1.05, 0.9, "sequence"),
]


@pytest.mark.parametrize(("correction", "ratio", "cap", "floor", "aggregation"), CORRECTIONS)
def test_the_correction_weighs_tokens_and_leaves_the_clip_alone(
    model, tmp_path, correction, ratio, cap, floor, aggregation
):
    """Over both steps of a round, with a dual clip: in the second the policy has left the clip's range."""
    rounds = off_by(model, recorded_round(3), 0.2, holes=True)
    chosen = {"correction": correction, "correction_ratio": ratio, "correction_cap": cap, "correction_floor": floor}
    plain = Plain(
        model, rounds, correction=chosen, aggregation=aggregation, length=20, beta=0.2, entropy=0.05,
        clip=(0.01, 0.02), dual_clip=1.015,
    )  # fmt: skip
    metrics = []
    for accumulate in (1, 3):
        steps, module = train_recorded(
            model, tmp_path, plain.objective, [rounds], accumulate=accumulate, steps=(2, 1), lr=0.5
        )
        for step in steps:
            truth, ratio, _ = plain.gradient(weights=step["weights"], recorded_old=True)
            assert distance(step["gradient"], truth) < BOUND
        assert ratio > 0.02, "the second step is meant to be beyond the clip"
        metrics.append(module.step_metrics)
    untouched = replace(plain.objective, correction="none")
    assert distance(train_recorded(model, tmp_path, untouched, [rounds])[0][0]["gradient"], truth) > 1e-3

    units = [plain.importance(r, r["old"]).expand(len(r["old"]) if "token" in correction else 1) for r in plain.rows]
    found = torch.cat(units)
    what = "masked" if "mask" in correction else "truncated"
    out = (found == 0) if "mask" in correction else (found == cap) | (found == floor)
    expected = {
        "sampling/importance_sampling_ratio/min": found.min(),
        "sampling/importance_sampling_ratio/mean": found.mean(),
        "sampling/importance_sampling_ratio/max": found.max(),
        "serl/sampling/effective_sample_size": 1 / ((found / found.mean()) ** 2).mean(),
        f"serl/sampling/{what}_frac": out.double().mean(),
    }
    assert 0 < out.double().mean() < 1, "some are meant to be out of bounds"
    for one in metrics:
        assert {k for k in one if "sampling/" in k} - expected.keys() == {
            "sampling/sampling_logp_difference/mean", "sampling/sampling_logp_difference/max",
        }  # fmt: skip
        for name, value in expected.items():
            assert one[name] == pytest.approx(float(value), rel=1e-10), name


def test_an_exact_sampler_is_corrected_by_nothing(model, tmp_path):
    rounds = off_by(model, recorded_round(), 0.0)
    for correction in ("token_truncate", "sequence_mask"):
        (corrected,), module = train_recorded(model, tmp_path, Objective(correction=correction), [rounds])
        (trusted,), _ = train_recorded(model, tmp_path, Objective(correction="none"), [rounds])
        assert distance(corrected["gradient"], trusted["gradient"]) < BOUND
        assert module.step_metrics["serl/sampling/effective_sample_size"] == pytest.approx(1.0, abs=1e-12)
        assert module.step_metrics["sampling/sampling_logp_difference/max"] < 1e-12


def test_a_large_gap_is_told_once_and_only_of_fresh_responses(model, tmp_path):
    def warned(spread, versions=0, **options):
        groups, verdicts = off_by(model, recorded_round(), spread)
        for group in groups:
            group.completions = [replace(c, version=versions) for c in group.completions]
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            train_recorded(model, tmp_path, Objective(), [(groups, verdicts)] * 2, lr=1e-9, **options)
        return [str(w.message) for w in said if "log-probs differ" in str(w.message)]

    (sentence,) = warned(0.02, versions=-1)
    assert "more than float64 explains (0.0005)" in sentence
    assert warned(0.02, versions=-1, precision="bf16-mixed") == []
    assert warned(1e-4, versions=-1) == []
    assert len(warned(0.02)) == 1, "the first of two rounds is as new as the policy, the second is not"


def test_the_capture_is_taken_before_clipping(model, tmp_path):
    """Guards the guard: clipped gradients of norm 0.01 would hide a wrong scale."""
    (step,), module = train_recorded(model, tmp_path, Objective(beta=0.0), [recorded_round()])
    assert module.step_metrics["grad_norm"] == pytest.approx(float(flat(step["gradient"]).norm()))
    assert module.step_metrics["grad_norm"] > 0.1
    moved = flat({n: p.detach() for n, p in module.policy.named_parameters()}) - flat(step["weights"])
    assert float(moved.norm()) == pytest.approx(0.5 * 0.01, rel=1e-3)
