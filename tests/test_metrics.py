"""Evaluation metrics against numbers made by hand."""

import pytest
import torch

from lightning_serl.metrics import EvaluationSet, GradedProblem

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


def results(*batches, k=4):
    one = EvaluationSet(k)
    for batch in batches:
        one.update(batch)
    return one.compute()


def test_by_hand():
    got = results(PROBLEMS)
    assert list(got) == list(EXPECTED)
    assert got == pytest.approx(EXPECTED)
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


def test_every_state_is_summed_over_ranks():
    one = EvaluationSet(4)
    assert set(one._reductions) == set(EvaluationSet._SUMS)
    assert all(reduce is one._reductions["problems"] for reduce in one._reductions.values())
    assert one._reductions["problems"](torch.tensor([1.0, 2.0])) == 3


def test_nothing_measured_is_none():
    empty = results([])
    assert (empty["n"], empty["correct"]) == (0, 0)
    assert {v for k, v in empty.items() if k not in ("n", "labelled", "k", "correct")} == {None}
    unlabelled = results(PROBLEMS[4:])
    assert (unlabelled["n"], unlabelled["agreement"], unlabelled["pass@1"], unlabelled["maj@k"]) == (1, 1.0, None, None)
    greedy_only = results([GradedProblem(True, (), None, True, 0.0, 0, 0)], k=0)
    assert (greedy_only["pass@1"], greedy_only["correct"], greedy_only["mean@k"]) == (1.0, 1, None)
    assert greedy_only["agreement"] is None


def test_prompts_that_are_all_too_long_are_wrong_and_not_missing():
    got = results(PROBLEMS[3:4] * 2)
    assert [got[name] for name in ("n", "correct", "pass@1", "mean@k", "maj@k", "pass@k")] == [2, 0, 0, 0, 0, 0]


def test_without_greedy_answers_the_samples_count():
    got = results([GradedProblem(None, p.right, p.vote_right, p.labelled, p.agreement, p.samples, 0) for p in PROBLEMS])
    assert got["correct"] == 4
    assert got["pass@1"] == got["mean@k"] == pytest.approx(EXPECTED["mean@k"])


def test_reset_forgets():
    one = EvaluationSet(4)
    one.update(PROBLEMS)
    one.reset()
    one.update(PROBLEMS[:1])
    assert one.compute()["n"] == 1
