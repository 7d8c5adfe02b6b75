"""Classes of equal answers and their order."""

import itertools
import random

import pytest

from lightning_serl.answers import ChoiceGrader, MathGrader, cluster


def boxes(*answers):
    return [f"\\boxed{{{a}}}" for a in answers]


def test_classes_are_numbered_by_canonical_order():
    answers, classes = cluster(boxes("3", "2", "0.5", r"\frac{1}{2}", "2.0"), [True] * 5, MathGrader())
    assert answers == ["3", "2", "0.5", r"\frac{1}{2}", "2.0"]
    assert classes == [2, 1, 0, 0, 1]


def test_no_answer_is_class_minus_one():
    answers, classes = cluster(["<think>4", r"\boxed{4}", "so 4"], [True, True, False], MathGrader())
    assert answers == [None, "4", None]
    assert classes == [-1, 0, -1]


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_any_order_of_responses_gives_the_same_classes(mode):
    # 1/3 equals 0.333333, and so does 0.3333334, but the two differ exactly: equality is not transitive.
    texts = [*boxes("1/3", "0.333333", "0.3333334", "x=5", "5", "y=5", r"\text{no}", "1/2"), "nothing"]
    _, reference = cluster(texts, [True] * len(texts), MathGrader(mode))
    rng = random.Random(1)
    for _ in range(5):
        order = rng.sample(range(len(texts)), len(texts))
        _, classes = cluster([texts[i] for i in order], [True] * len(texts), MathGrader(mode))
        assert classes == [reference[i] for i in order]


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_the_shortest_answer_stands_for_its_class(mode):
    # Both equations equal the number, not each other; "(" sorts before "3", but that makes no better representative.
    grader = MathGrader(mode)
    assert not grader.same("(y)=3", "x=3")
    _, classes = cluster(boxes("(y)=3", "x=3", "3"), [True] * 3, grader)
    assert classes == [0, 0, 0]


def test_a_letter_beyond_the_choices_is_no_answer():
    answers, _ = cluster(["answer is (D).", "answer is (E)."], [True, True], ChoiceGrader(), ["w", "x", "y", "z"])
    assert answers == ["D", None]


def test_small_orders_exhaustively():
    texts = boxes("1", "1.0", "2")
    for order in itertools.permutations(range(3)):
        _, classes = cluster([texts[i] for i in order], [True] * 3, MathGrader())
        assert [classes[order.index(i)] for i in range(3)] == [0, 0, 1]
