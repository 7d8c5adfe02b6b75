"""The default grader, and groups of responses in the styles of several model families."""

import json
import random
import time
from pathlib import Path

import pytest

from lightning_serl.answers import AutoGrader, MathGrader, cluster, resolve_grader
from lightning_serl.rewards import LabelElseVote, MajorityVote, VerifiableReward
from lightning_serl.types import Group

STYLES = [json.loads(line) for line in (Path(__file__).parent / "styles.jsonl").read_text("utf-8").splitlines()]
TWELVE = ["12", "12 apples", "The answer is 12.", "$12$", "twelve", "**12**", "So there are 12 left.", r"\boxed{12.0}"]


def classes(texts, problem="", choices=None, grader=None):
    return cluster(texts, [True] * len(texts), grader or AutoGrader(), choices, problem)[1]


def misplaced(group, grader):
    """The responses that are not in the class that most of their expected class are in."""
    texts, expected = [r["text"] for r in group["responses"]], [r["class"] for r in group["responses"]]
    found = classes(texts, group["problem"], group.get("choices"), grader)
    taken, place = {-1: -1}, set()
    for wanted in sorted({*expected} - {-1}, key=lambda k: (-expected.count(k), k)):
        free = [c for c, w in zip(found, expected, strict=True) if w == wanted and c >= 0 and c not in place]
        taken[wanted] = max(sorted(set(free)), key=free.count, default=None)
        place.add(taken[wanted])
    return [t for t, c, w in zip(texts, found, expected, strict=True) if c != taken[w]]


@pytest.mark.parametrize("chosen", ["auto", "by kind"])
def test_classes_in_the_styles_of_five_model_families(chosen):
    wrong, total = [], 0
    for group in STYLES:
        name = {"number": "math"}.get(group["kind"], group["kind"]) if chosen == "by kind" else "auto"
        wrong += misplaced(group, resolve_grader(name))
        total += len(group["responses"])
    assert total >= 200
    assert len(wrong) <= 0.03 * total, wrong


@pytest.mark.parametrize("problem", ["", "How many are left?", "Who is it?", "What does he have now?"])
def test_one_number_is_one_class_whatever_the_problem_looks_like(problem):
    assert len(set(classes(TWELVE[:-2] + TWELVE[-1:], problem))) == 1
    assert len(set(classes(TWELVE, "How many are left?"))) == 1


def test_words_with_digits_are_no_numbers():
    assert len(set(classes(["NaCl", "ClNa", "Na2Cl", r"\boxed{\text{NaCl}}"], "Which salt?"))) == 3
    assert len(set(classes(["H2O", "HO2", "H₂O", r"\boxed{\mathrm{H_2O}}"], "What is water?"))) == 2
    assert classes(["Apollo 11", "The first mission was Apollo 11.", "Apollo 12"], "Which mission?") == [0, 0, 1]
    assert len(set(classes(["A - 1", "1", "A-1"], "Find $A - 1$."))) == 2


def test_the_order_of_the_responses_is_of_no_account():
    rng = random.Random(3)
    for group in STYLES[::3]:
        texts, choices = [r["text"] for r in group["responses"]], group.get("choices")
        reference = classes(texts, group["problem"], choices)
        order = rng.sample(range(len(texts)), len(texts))
        shuffled = classes([texts[i] for i in order], group["problem"], choices)
        assert shuffled == [reference[i] for i in order]


def test_labels_of_every_kind_are_compared():
    grader = AutoGrader()
    for problem, label, texts, scores, choices in (
        ("How many?", "Adding gives\n#### 12", [*TWELVE, "13"], [1] * len(TWELVE) + [0], None),
        ("Which?", "B", ["iron", "zinc", "(B)", "A or B"], [0, 1, 1, 0], ["iron", "zinc"]),
        ("Which?\nA. iron\nB. zinc", "zinc", ["It's B.", "iron"], [1, 0], None),
        (
            "Who?",
            "Ada Lovelace",
            ["It was Ada Lovelace in 1843.", "Not Ada Lovelace.", "ADA LOVELACE"],
            [1, 0, 1],
            None,
        ),
    ):
        group = Group.from_texts(problem, texts, label, choices=choices)
        assert VerifiableReward(grader)([group], None)[0].scores.tolist() == scores, label
    vote = LabelElseVote(grader)([Group.from_texts("Who?", ["Ada", "It is Ada.", "Bob"])], None)[0]
    assert (vote.label, vote.scores.tolist()) == ("Ada", [1, 1, 0])


def test_what_was_cut_off_has_the_answer_of_its_last_box():
    texts = [r"so \boxed{\text{Paris}} or", r"\boxed{12} and", "The answer is Paris"]
    assert cluster(texts, [False] * 3, AutoGrader(), None, "Which?")[0] == ["Paris", "12", None]


@pytest.mark.golden
def test_recorded_groups_are_read_as_by_the_math_grader_or_better(golden_dir):
    right, changed, total = [0, 0], 0, 0
    for name in ("math500_rho_4x", "gsm8k_10x"):
        for line in (golden_dir / f"responses_{name}.jsonl").read_text("utf-8").splitlines()[::10]:
            row, found = json.loads(line), []
            for place, grader in enumerate((MathGrader(), AutoGrader())):
                group = Group.from_texts(row["problem"], [r["text"] for r in row["responses"]], str(row["gold"]))
                MajorityVote(grader)([group], None)
                found.append(group.cluster)
                right[place] += int(VerifiableReward(grader)([group], None)[0].scores.sum())
            changed += found[0] != found[1]
            total += 1
    assert right[1] >= right[0]
    assert changed <= 0.04 * total


@pytest.mark.parametrize(
    "piece", ["A, ", "12 apples ", "**", "answer is ", "twelve ", "“", "x is y. ", "\\boxed{", "东京是"]
)
def test_a_megabyte_costs_little(piece):
    text = piece * (1_000_000 // len(piece))
    grader, started = AutoGrader(), time.process_time()
    for prompt, choices in (("Who?", None), ("How many?", None), ("Which?", ["x", "12 apples"])):
        cluster([text, "The answer is " + text[:1500], "Paris"], [True] * 3, grader, choices, prompt)
    assert time.process_time() - started < 3
