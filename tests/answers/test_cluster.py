"""Classes of answers, their order, and the choice of a grader."""

import itertools
import json
import random

import pytest

from lightning_serl.answers import ChoiceGrader, MathGrader, TextGrader, cluster, detect_grader, resolve_grader
from lightning_serl.errors import InputError


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


def test_a_users_grader_needs_two_methods():
    class FirstWord:
        def extract(self, text):
            return text.split()[0] if text.split() else None

        def same(self, a, b):
            return a.lower() == b.lower()

    grader = resolve_grader(FirstWord())
    answers, classes = cluster(["Yes it is", "yes", "No", "", "cut"], [True, True, True, True, False], grader)
    assert answers == ["Yes", "yes", "No", None, None]
    assert classes == [1, 1, 0, -1, -1]


@pytest.mark.parametrize(
    ("grader", "words"), [("maths", "math, choice, text"), (3, "extract"), (MathGrader, r"MathGrader\(\)")]
)
def test_bad_graders_are_named(grader, words):
    with pytest.raises(InputError, match=words):
        resolve_grader(grader)


def test_names_and_modes():
    assert resolve_grader("math", "exact").mode == "exact"
    assert isinstance(resolve_grader("text"), TextGrader)
    with pytest.raises(InputError, match="fast, exact"):
        resolve_grader("choice", "slow")


MATH = ["What is 3+4?", "Find $x$ if $2x=6$.", "How many apples are left if Tom eats 3 of 10?", "Compute 5 times 6."]
TEXT = ["Name the capital of France.", "A 45-year-old man presents with chest pain. What is the diagnosis?"]
CHEMISTRY = [
    "Which salt forms from NaOH and HCl?",
    "Give the formula of table salt.",
    "What does H2SO4 do to 2 mol of Zn?",
]
LISTED = ["Which one?\n(A) this\n(B) that\n(C) other", "Pick:\nA. one\nB. two"]


@pytest.mark.parametrize(
    ("prompts", "labels", "choices", "name"),
    [
        (MATH, ["7", "3", "7", "30"], (), "math"),
        (MATH, [r"\frac{1}{2}", "3x+2", "(1,2)", r"\text{even}"], (), "math"),
        (MATH, ["$1,234", "12 cm", "50%", "-0.5"], (), "math"),
        (MATH, [None] * 4, (), "math"),
        (TEXT, (), (), "text"),
        (TEXT, ["Paris", "Myocardial infarction"], (), "text"),
        (CHEMISTRY, ["NaCl", "NaCl", "ZnSO4"], (), "text"),
        (CHEMISTRY, ["NaCl", r"\ce{NaCl}", "H2O"], (), "text"),
        (CHEMISTRY, (), (), "text"),
        (["北京是哪个国家的首都？"], (), (), "text"),
        (["小明有3个苹果，又买了5个，一共有多少个？"], (), (), "math"),
        (LISTED, (), (), "choice"),
        (LISTED, ["A", "B"], (), "choice"),
        (["哪项正确?\nA.心肌梗死\nB.肺炎", "Which? A. one B. two", "¿Cuál?\na) uno\nb) dos"], (), (), "choice"),
        (MATH, ["3.5 mol/L", "12 m/s", "-40 kJ/mol", "5 m/s^2", "2.0e-3 mol/L"], (), "math"),
        (MATH, ["5 mg/kg", "50 €", "12 小时", "5 años", "½"], (), "math"),
        (TEXT, ["5万", "3 of them", "2 NaCl", "type 2 diabetes"], (), "text"),
        (TEXT, (), [["a", "b"], ["c", "d"]], "choice"),
        ([], (), (), "text"),
    ],
)
def test_detection(prompts, labels, choices, name):
    found, sentence = detect_grader(prompts, labels, choices)
    assert found == name, sentence
    assert sentence.startswith(f"grader: {name} (")
    assert sentence.endswith("; set --data.grader to change it")


@pytest.mark.golden
def test_detection_on_recorded_sets(golden_dir):
    rows = [json.loads(line) for line in (golden_dir / "serl_seed_500.jsonl").read_text("utf-8").splitlines()]
    assert detect_grader([r["problem"] for r in rows], [r["answer"] for r in rows])[0] == "math"
    assert detect_grader([r["problem"] for r in rows])[0] == "math"
    rows = [json.loads(line) for line in (golden_dir / "eval_gsm8k.jsonl").read_text("utf-8").splitlines()]
    assert detect_grader([r.get("problem") or r["question"] for r in rows], [r["answer"] for r in rows])[0] == "math"


def test_small_orders_exhaustively():
    texts = boxes("1", "1.0", "2")
    for order in itertools.permutations(range(3)):
        _, classes = cluster([texts[i] for i in order], [True] * 3, MathGrader())
        assert [classes[order.index(i)] for i in range(3)] == [0, 0, 1]
