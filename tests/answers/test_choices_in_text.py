"""Options split off the text of a problem."""

import pytest

from lightning_serl.answers import split_choices


@pytest.mark.parametrize(
    ("text", "problem", "choices"),
    [
        ("Which?\nA. iron\nB. neon\n", "Which?", ["iron", "neon"]),
        ("Which?\n(A) iron\n(B) neon\n(C) gold", "Which?", ["iron", "neon", "gold"]),
        ("Which?\nA) iron and\n  more\nB: neon", "Which?", ["iron and\n  more", "neon"]),
        ("Which? (A) iron (B) neon gas (C) gold", "Which?", ["iron", "neon gas", "gold"]),
        ("哪个?\nA、铁\nB、氖", "哪个?", ["铁", "氖"]),
        ("Which?\nA. iron\nB. neon\nAnswer: B", "Which?", ["iron", "neon\nAnswer: B"]),
        ("A. B. Smith owns\nA. one\nB. two", "A. B. Smith owns", ["one", "two"]),
        ("Which?\nA. iron\nC. neon", "Which?\nA. iron\nC. neon", None),
        ("Which?\nA. iron", "Which?\nA. iron", None),
        ("A cat met Mr. B. Fox. ", "A cat met Mr. B. Fox.", None),
        ("Which?\nA. iron\nB. ", "Which?\nA. iron\nB.", None),
        ("哪项正确?\nA.心肌梗死\nB.肺炎", "哪项正确?", ["心肌梗死", "肺炎"]),
        ("哪项正确？（A）心肌梗死（B）肺炎", "哪项正确？", ["心肌梗死", "肺炎"]),
        ("下列正确的是（  ）。A.铁 B.氖", "下列正确的是（  ）。", ["铁", "氖"]),
        ("多少?\nA.5\nB.$6$", "多少?", ["5", "$6$"]),
        ("¿Cuál?\na) uno\nb) dos", "¿Cuál?", ["uno", "dos"]),
        ("Which?\n(a) one\n(b) two", "Which?", ["one", "two"]),
        ("The gas is ___.\na. neon\nb. iron", "The gas is ___.", ["neon", "iron"]),
        ("Which? A. one B. two C. three", "Which?", ["one", "two", "three"]),
        ("Choose one: A. iron B. neon C. gold", "Choose one:", ["iron", "neon", "gold"]),
        ("Which?\na) one\nc) two", "Which?\na) one\nc) two", None),
        ("", "", None),
    ],
)
def test_split_choices(text: str, problem: str, choices: list[str] | None) -> None:
    assert split_choices(text) == (problem, choices)


@pytest.mark.parametrize(
    "text",
    [
        "Let $f(x) = x^2$.\n(a) Find $f(2)$.\n(b) Find $f(3)$.",
        "Solve the equations:\na) $x + 1 = 2$\nb) $x + 2 = 5$",
        "A car drives 60 km. How far is that?\na) Calculate the time.\nb) What is the speed?",
        "¿Cuánto cuesta?\na) Halla el precio.\nb) Calcula el total.",
        "Which? (a) find x, (b) find y",
        "Which is bigger? a) one b) two",
        "Who was right? A. Jones or B. Smith?",
        "The book by A. Jones and B. Smith has 300 pages.",
        "Two authors: A. Jones and B. Smith",
        "A:B=2:3\nB:C=4:5",
    ],
)
def test_parts_and_names_are_no_options(text: str) -> None:
    assert split_choices(text) == (text, None)


def test_ten_letters() -> None:
    text = "Which?\n" + "\n".join(f"{c}. option {c}" for c in "ABCDEFGHIJ")
    assert split_choices(text) == ("Which?", [f"option {c}" for c in "ABCDEFGHIJ"])
