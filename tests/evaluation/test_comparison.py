"""Statistics and tables of a comparison, against figures worked out by hand and against slow references."""

import json
import random
from statistics import mean, stdev

import numpy as np
import pytest

from lightning_serl.evaluation.comparison import Arm, compare, interval, read_graded, share_interval
from lightning_serl.evaluation.comparison_tables import markdown
from lightning_serl.evaluation.metrics import wilson


def graded(greedy, right=None, vote=None, distinct=None, name="held_out"):
    """Rows of ``evaluation_items.jsonl``; two samples a problem, right as the greedy answer unless told otherwise."""
    right = right or [[g, g] for g in greedy]
    rows = [
        {"set": name, "uid": str(i), "label": "1", "answers": ["1", "2"], "right": r, "vote_right": v, "distinct": d,
         "greedy_right": g}
        for i, (g, r, v, d) in enumerate(
            zip(greedy, right, vote or greedy, distinct or [1] * len(greedy), strict=True)
        )
    ]  # fmt: skip
    return read_graded([*rows, {**rows[0], "label": None}])


def arm(method, before, after, seed=0, **more):
    return Arm(method, seed, before=graded(before), after=graded(after), **more)


NO, YES = False, True
BASE = [YES, NO, NO, NO]


def rows_of(*arms):
    return {row["method"]: row for row in compare(arms)["sets"]["held_out"]["rows"]}


def test_figures_of_a_set():
    one = graded([YES, NO], [[YES, NO], [NO, NO]], [None, NO], [2, 1])["held_out"]
    assert (one.n, one.k) == (2, 2)
    assert {name: list(values) for name, values in one.figures.items()} == {
        "pass@1": [1, 0], "mean@k": [0.5, 0], "maj@k": [0, 0], "pass@k": [1, 0], "distinct": [2, 1],
    }  # fmt: skip
    greedy_alone = read_graded([{"set": "a", "label": "1", "answers": [], "right": [], "greedy_right": YES}])["a"]
    assert set(greedy_alone.figures) == {"pass@1"}
    recorded = {"set": "a", "label": "1", "answers": ["1"] * 4, "right": [YES, NO, NO, NO], "distinct": 2}
    assert list(read_graded([{**recorded, "vote_right": YES}])["a"].figures["pass@1"]) == [0.25]
    assert read_graded([{"set": "a", "label": None}]) == {}


def test_rows_by_hand():
    found = rows_of(
        arm("vote", BASE, [YES, YES, YES, NO], tokens=100, seconds=2.0),
        arm("worse", BASE, [NO, NO, NO, NO], tokens=300, seconds=4.0, health=["length"]),
        Arm("broken", 0, state="failed", reason="the judge is gone", before=graded(BASE), rounds=3),
        Arm("left", 0, state="failed", reason="no spread", before=graded(BASE), after=graded(BASE)),
        Arm("next", 0, state="waiting"),
        arm("gold", BASE, [YES, YES, YES, YES], control=True),
        arm("random", BASE, BASE, control=True, tokens=100),
    )
    vote = found["vote"]
    one = vote["figures"]["pass@1"]
    assert (one["before"]["value"], one["after"]["value"], one["change"]["value"]) == (0.25, 0.75, 0.5)
    assert one["after"]["interval"] == wilson(3, 4)
    assert vote["share_of_gold"]["value"] == pytest.approx(2 / 3)
    assert vote["against"]["gold"]["value"] == -0.25
    assert vote["against"]["worse"]["value"] == 0.75
    assert (vote["tokens"], vote["seconds"], vote["done"]) == (100, 2, [0])
    assert found["worse"]["figures"]["pass@1"]["change"]["value"] == -0.25
    assert found["broken"]["figures"] == {}
    assert found["broken"]["failed"] == {"0": {"reason": "the judge is gone", "rounds": 3}}
    assert found["left"]["figures"]["pass@1"]["change"] == {"value": 0.0, "interval": [0.0, 0.0]}
    assert (found["next"]["open"], found["next"]["figures"]) == ([0], {})
    assert found["random"]["share_of_gold"]["value"] == 0


def test_gold_that_does_not_lift_has_no_shares():
    found = rows_of(arm("vote", BASE, [YES] * 4), arm("gold", BASE, [YES, YES, NO, NO], control=True))
    assert found["gold"]["figures"]["pass@1"]["change"]["interval"][0] <= 0
    assert found["vote"]["share_of_gold"] is None


def test_only_common_run_seeds_are_paired():
    found = rows_of(
        arm("a", BASE, [YES] * 4, seed=0), arm("a", BASE, [NO] * 4, seed=1), arm("b", BASE, [YES] * 4, seed=1),
    )  # fmt: skip
    assert found["a"]["figures"]["pass@1"]["after"]["value"] == 0.5
    assert found["b"]["against"]["a"] == {"value": 1.0, "interval": [1.0, 1.0]}
    assert found["a"]["by_seed"] == {"0": {"before": 0.25, "after": 1.0}, "1": {"before": 0.25, "after": 0.0}}


def test_intervals_against_references():
    draw = np.random.default_rng(3)
    one = draw.normal(0.2, 1, size=(1, 400))
    half = 1.96 * stdev(one[0]) / 20
    assert interval(one) == pytest.approx([one.mean() - half, one.mean() + half], abs=0.1 * half)
    # the pigeonhole bootstrap, drawn one by one
    table = draw.normal(size=(3, 20)) + np.array([[-1], [0], [1.5]])
    chance, means = random.Random(1), []
    for _ in range(4000):
        problems, runs = chance.choices(range(20), k=20), chance.choices(range(3), k=3)
        means.append(mean(table[r, p] for r in runs for p in problems))
    assert interval(table) == pytest.approx(list(np.quantile(means, [0.025, 0.975])), abs=0.12)
    # what all problems share and the runs do not
    assert interval(np.repeat([[0.0], [1.0]], 50, axis=1)) == [0.0, 1.0]
    assert share_interval(np.ones((3, 50))) == wilson(50, 50)
    assert interval(table) == interval(table)


def test_the_table_in_markdown():
    arms = [
        arm("a|b", BASE, [YES] * 4, seed, tokens=1500, seconds=90, health=["length"], learning_rate=5e-7)
        for seed in (0, 1)
    ]
    arms.append(Arm("c", 1, state="failed", reason="all is lost", rounds=1))
    arms.append(arm("random", BASE, BASE, tokens=1000, learning_rate=1e-4))
    result = {"about": "four methods", **compare(arms)}
    assert json.loads(json.dumps(result)) == result
    text = markdown(result)
    line = next(line for line in text.splitlines() if line.startswith("| a\\|b | 2 | 25.0 ["))
    for cell in (
        "| +75.0 [",
        "| 1.0 → 1.0 |",
        "1,500",
        "| 90 |",
        "health: length",
        "writes 1.5 times the tokens of random",
        "trained at learning rate 5e-07, random at 0.0001",
    ):
        assert cell in line, cell
    assert "seed 1 failed after 1 round: all is lost" in text
    assert "## held_out: 4 held-out problems" in text
    assert "| a\\|b | 25.0 → 100.0 | 25.0 → 100.0 |" in text
    assert "| c | 0 | – |" in markdown({"about": "", **compare([Arm("c", 0, state="waiting")])})
