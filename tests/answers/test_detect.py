"""The grader chosen from problems, labels and options."""

import json

import pytest

from lightning_serl.answers import detect_grader

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
