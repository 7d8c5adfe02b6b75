"""Evaluation metrics against numbers made by hand."""

import random

import numpy as np
import pytest
import torch
from torchmetrics.utilities import dim_zero_cat

from lightning_serl.evaluation.metrics import EvaluationSet, GradedProblem, bootstrap, wilson

PROBLEMS = [
    # greedy right, 3 of 4 right, the vote too
    GradedProblem(True, (True, True, True, False), True, True, 0.75, 4, 0),
    # greedy wrong, 1 of 4 right, the vote wrong
    GradedProblem(False, (True, False, False, False), False, True, 0.5, 4, 1),
    # nothing but silence: no vote
    GradedProblem(False, (False,) * 4, None, True, 0.0, 4, 4),
    # a prompt too long for the model: neither greedy nor sampled answers
    GradedProblem(False, (), None, True, 0.0, 0, 0),
    # no label: agreement alone
    GradedProblem(None, (), None, False, 1.0, 4, 0),
]
EXPECTED = {
    "n": 5,
    "labelled": 4,
    "k": 4,
    "correct": 1,
    "pass@1": 1 / 4,
    "mean@k": (3 / 4 + 1 / 4) / 4,
    "maj@k": 1 / 4,
    "pass@k": 2 / 4,
    "agreement": (0.75 + 0.5 + 0 + 1) / 4,
    "no_answer": 5 / 16,
    "vote_accuracy": 1 / 2,
}


def results(*batches, k=4, strata=None):
    one = EvaluationSet(k, strata)
    for batch in batches:
        one.update(batch)
    return one.compute()


def test_by_hand():
    got = results(PROBLEMS)
    intervals, pass_at = got.pop("intervals"), got.pop("pass_at")
    # of two of four answers at least one is right: always with three right ones, in three of six pairs with one
    assert pass_at == {"1": 1 / 4, "2": (1 + 3 / 6) / 4, "4": 2 / 4}
    assert list(got) == list(EXPECTED)
    assert got == pytest.approx(EXPECTED)
    assert intervals == {
        "pass@1": wilson(1, 4),
        "mean@k": bootstrap([3 / 4, 1 / 4, 0, 0]),
        "maj@k": wilson(1, 4),
        "pass@k": wilson(2, 4),
    }
    assert all(isinstance(got[name], int) for name in ("n", "labelled", "k", "correct"))


def test_batches_and_order_do_not_matter():
    whole = results(PROBLEMS)
    assert results(*([p] for p in reversed(PROBLEMS)), []) == whole
    assert results(PROBLEMS[:2], [], PROBLEMS[2:]) == whole


@pytest.mark.parametrize("cut", range(6))
def test_two_merged_equal_one(cut):
    one, two = EvaluationSet(4), EvaluationSet(4)
    one.update(PROBLEMS[:cut])
    two.update(PROBLEMS[cut:])
    one.merge_state(two)
    assert one.compute() == results(PROBLEMS)


def test_ranks_are_brought_together_by_concatenation():
    one = EvaluationSet(4)
    assert one._reductions == {"rows": dim_zero_cat}
    shares = [PROBLEMS[::2], PROBLEMS[1::2], []]  # the last rank has nothing to do
    metrics = []
    for share in shares:
        metrics.append(EvaluationSet(4))
        metrics[-1].update(share)
    one.rows = torch.cat([dim_zero_cat(m.rows) for m in metrics])  # as a synchronisation leaves it
    one._update_count = 1
    assert one.compute() == results(PROBLEMS)


def many(count, k=5):
    draw = random.Random(4)
    out = []
    for i in range(count):
        right = tuple(draw.random() < 0.3 for _ in range(k))
        strata = (draw.randrange(-1, 2), draw.randrange(3))
        out.append(GradedProblem(draw.random() < 0.4, right, right[0], True, draw.random(), k, 0, i, strata))
    return out


def test_shares_of_ranks_make_no_difference_to_the_last_bit():
    problems = many(301)
    strata = {"by_level": ["1", "2"], "by_subject": ["a", "b", "c"]}
    whole = results(problems, strata=strata)
    for size in (2, 3, 7):
        assert results(*(problems[rank::size] for rank in range(size)), strata=strata) == whole


def test_strata_by_hand():
    def problem(right, *strata):
        return GradedProblem(right, (right, False), right, True, 1.0, 2, 0, 0, strata)

    problems = [problem(True, 0, 1), problem(False, 0, -1), problem(True, 2, 1)]
    got = results(problems, k=2, strata={"by_level": ["1", "2", "3"], "by_subject": ["a", "b"]})
    assert list(got["by_level"]) == ["1", "3"]  # nothing of level 2 was measured
    assert {name: (r["n"], r["correct"], r["pass@1"], r["mean@k"]) for name, r in got["by_level"].items()} == {
        "1": (2, 1, 0.5, 0.25),
        "3": (1, 1, 1.0, 0.5),
    }
    assert {name: r["n"] for name, r in got["by_subject"].items()} == {"b": 2}
    assert list(got["by_level"]["1"]) == list(EXPECTED)


def test_wilson_by_hand():
    # (p + z2/2n -+ z sqrt(p(1-p)/n + z2/4n2)) / (1 + z2/n) with z2 = 3.8414588
    assert wilson(8, 10) == pytest.approx([0.49016, 0.94332], abs=1e-5)
    assert wilson(0, 10) == [0.0, pytest.approx(3.8414588 / 13.8414588, abs=1e-7)]
    assert wilson(10, 10) == [pytest.approx(10 / 13.8414588, abs=1e-7), 1.0]
    assert wilson(250, 500) == pytest.approx([0.45634, 0.54366], abs=1e-5)


def test_equal_problems_leave_room_for_doubt():
    assert bootstrap([1.0] * 50) == wilson(50, 50)
    assert bootstrap([0.0]) == wilson(0, 1)
    assert bootstrap([0.25] * 8) == [0.25, 0.25]


def test_recordings_with_fewer_samples_than_asked_for_say_how_many():
    problems = [GradedProblem(None, (True,) * n, True, True, 1.0, n, 0, n) for n in (3, 5, 0)]
    assert results(problems, k=16)["k"] == 5
    assert results([GradedProblem(None, (), None, True, 0.0, 0, 0)], k=16)["k"] == 16


def test_bootstrap_is_that_of_drawing_problems_again():
    draw = np.random.default_rng(1)
    values = draw.integers(0, 5, 120) / 4
    means = [draw.choice(values, len(values)).mean() for _ in range(10_000)]
    assert bootstrap(values) == pytest.approx(np.quantile(means, [0.025, 0.975]).tolist(), abs=0.006)
    half = 1.96 * values.std() / len(values) ** 0.5
    assert bootstrap(values) == pytest.approx([values.mean() - half, values.mean() + half], abs=0.006)
    assert bootstrap(values) == bootstrap(np.sort(values))
    assert bootstrap([0.5] * 9) == [0.5, 0.5]
    assert bootstrap([0.25]) == [0.25, 0.25]


def test_nothing_measured_is_none():
    empty = results([])
    assert empty.pop("intervals") == empty.pop("pass_at") == {}
    assert (empty["n"], empty["correct"]) == (0, 0)
    assert {v for k, v in empty.items() if k not in ("n", "labelled", "k", "correct")} == {None}
    assert results([], strata={"by_level": ["1"]})["by_level"] == {}
    unlabelled = results(PROBLEMS[4:])
    assert unlabelled["intervals"] == {}
    assert (unlabelled["n"], unlabelled["agreement"], unlabelled["pass@1"], unlabelled["maj@k"]) == (1, 1.0, None, None)
    greedy_only = results([GradedProblem(True, (), None, True, 0.0, 0, 0)], k=0)
    assert (greedy_only["pass@1"], greedy_only["correct"], greedy_only["mean@k"]) == (1.0, 1, None)
    assert greedy_only["agreement"] is None
    assert greedy_only["intervals"] == {"pass@1": wilson(1, 1)}


def test_prompts_that_are_all_too_long_are_wrong_and_not_missing():
    got = results(PROBLEMS[3:4] * 2)
    assert [got[name] for name in ("n", "correct", "pass@1", "mean@k", "maj@k", "pass@k")] == [2, 0, 0, 0, 0, 0]


def test_without_greedy_answers_the_samples_count():
    got = results([GradedProblem(None, p.right, p.vote_right, p.labelled, p.agreement, p.samples, 0) for p in PROBLEMS])
    assert got["correct"] == 4
    assert got["pass@1"] == got["mean@k"] == pytest.approx(EXPECTED["mean@k"])
    assert got["intervals"]["pass@1"] == got["intervals"]["mean@k"]


def test_reset_forgets():
    one = EvaluationSet(4)
    one.update(PROBLEMS)
    one.reset()
    one.update(PROBLEMS[:1])
    assert one.compute()["n"] == 1
