"""The results of an evaluation, as they are collected, reported and logged."""

import torch

from lightning_serl.distributed.ranks import Ranks
from lightning_serl.evaluation.metrics import GradedProblem
from lightning_serl.evaluation.results import EvaluationBatch, EvaluationResults, figures, logged


def problem(index, right):
    return GradedProblem(right[0], right, right[0], True, 0.5, len(right), 0, index=index, strata=(index % 2,))


def results():
    found = EvaluationResults()
    for name, items in (
        ("b", [problem(2, (True, True)), problem(0, (False, True))]),
        ("a", []),
        ("b", [problem(1, (True, False))]),
    ):
        found.add(EvaluationBatch(name, 2, items, {"by_level": ["easy", "hard"]}), torch.device("cpu"))
    return found


def test_batches_of_a_set_are_one_result():
    report = results().report()
    assert list(report) == ["a", "b"]
    assert (report["b"]["n"], report["b"]["correct"], report["b"]["mean@k"]) == (3, 2, 4 / 6)
    assert report["b"]["by_level"]["hard"]["n"] == 1
    assert report["a"]["pass@1"] is None


def test_items_are_in_the_order_of_their_set():
    items = results().gathered_items(Ranks())
    assert list(items) == ["a", "b"]
    assert [item.index for item in items["b"]] == [0, 1, 2]


def test_what_is_logged():
    report = results().report()
    assert not any(isinstance(value, dict) for value in figures(report["b"]).values())
    written = logged(report["b"], "val/b")
    low, high = report["b"]["intervals"]["mean@k"]
    assert (written["val/b/mean@k_low"], written["val/b/mean@k_high"]) == (low, high)
    assert written["val/b/n"] == 3.0
    assert "val/b/pass@1_low" in written
    assert "val/b/pass@4" not in written, "pass@k is there under its name"
    assert "val/a/pass@1" not in logged(report["a"], "val/a"), "nothing was measured"
