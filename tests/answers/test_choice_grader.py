"""The choice grader."""

import json
import time
from pathlib import Path

import pytest

from lightning_serl.answers import ChoiceGrader, cluster


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (C).", "C"),
        ("the answer is: **B**", "B"),
        (r"\boxed{\text{(D)}}", "D"),
        (r"\boxed{b}", "B"),
        ("Answer: A. Paris", "A"),
        ("Because of it.\n\nJ", "J"),
        ("答案是 C。", "C"),
        ("答案：B", "B"),
        ("Therefore it must be (E).", "E"),
        ("The answer is a dog.", None),
        ("I think so", None),
        ("<think>The answer is (A).</think>", None),
        ("The answer is (A). Wait, the answer is (D).", "D"),
        ("The answer is A because it is.", "A"),
        ("La opción correcta es B.", "B"),
        ("La respuesta correcta es la C", "C"),
        ("La opción B es correcta.", "B"),
        ("Respuesta: B) hígado", "B"),
        ("La bonne réponse est la D.", "D"),
        ("La réponse correcte est B.", "B"),
        ("Die richtige Antwort ist B.", "B"),
        ("Die Antwort lautet: C", "C"),
        ("A alternativa correta é a letra B.", "B"),
        ("La risposta corretta è B.", "B"),
        ("选择B。", "B"),
        ("所以选 B", "B"),
        ("故选：C。", "C"),
        ("正确答案是D", "D"),
        ("因此应选A选项。所以答案为 D。", "D"),
        ("正确选项为（B）。", "B"),
        ("选项B正确。", "B"),
        ("الجواب: B", "B"),
        ("الإجابة الصحيحة هي C.", "C"),
        ("الخيار الصحيح هو B", "B"),
        ("不选B。", None),
        ("Option B is not right.", None),
        ("La respuesta es una célula.", None),
        ("", None),
    ],
)
def test_choice_extraction(text, letter):
    assert ChoiceGrader().extract(text) == letter


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{A, B, C, D}",
        r"\boxed{A,C}",
        r"\boxed{a, c}",
        r"\boxed{(A), (C)}",
        r"\boxed{A/B}",
        r"\boxed{A\ \text{or}\ B}",
        r"\boxed{\text{A and C}}",
        r"\boxed{\{A, C\}}",
        r"\boxed{A C}",
        r"\boxed{ABCD}",
        r"\boxed{A. iron, C. gold}",
        r"\boxed{(A) iron or (B) neon}",
        r"\boxed{A、C}",
        r"\boxed{A或C}",
        r"Either \boxed{A} or \boxed{B}",
        r"\boxed{A}, \boxed{C}",
        r"$\boxed{A}$ and $\boxed{\text{(C)}}$",
        r"\boxed{A} (iron) or perhaps \boxed{B}",
        r"\boxed{A}或\boxed{B}",
        r"\boxed{A} oder \boxed{B}",
        r"The answer is A. No: \boxed{A, C}",
        "The answer is A, C.",
        "The answer is (A) or (B).",
        "Answer: A, B, C, D",
        "答案：A、C",
        "So it is (A) or (C).",
    ],
)
def test_whoever_names_several_options_chooses_none(text):
    assert ChoiceGrader().extract(text) is None
    assert ChoiceGrader().extract_truncated(text) is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"\boxed{A. iron}", "A"),
        (r"\boxed{A: iron}", "A"),
        (r"\boxed{A) iron}", "A"),
        (r"\boxed{(A) iron}", "A"),
        (r"\boxed{\text{A}}", "A"),
        (r"\boxed{\textbf{(A)}\ 5}", "A"),
        (r"\boxed{A. vitamins A, B and C}", "A"),
        (r"\boxed{D. Both A and B}", "D"),
        (r"\boxed{D. A and B}", "D"),
        (r"\boxed{(D) both (A) and (B)}", "D"),
        (r"\boxed{A, a noble gas}", "A"),
        (r"\boxed{A, since B is wrong}", "A"),
        (r"\boxed{C. 3, 5}", "C"),
        (r"It is \boxed{A}. Wait, that is wrong: \boxed{B}", "B"),
        (r"It is not \boxed{A} but \boxed{B}", "B"),
        (r"\boxed{A}. So the answer is \boxed{A}", "A"),
        (r"\boxed{A} and \boxed{\text{A}}", "A"),
        ("The answer is (A), not (B).", "A"),
        ("The answer is B; A, C and D are wrong.", "B"),
        ("The answer is C. A and B are wrong.", "C"),
        ("The answer is A, B is wrong.", "A"),
    ],
)
def test_who_speaks_of_other_options_chooses_one(text, letter):
    assert ChoiceGrader().extract(text) == letter


def test_letters_texts_and_languages():
    rows = map(json.loads, (Path(__file__).parent / "choice_answers.jsonl").read_text("utf-8").splitlines())
    wrong = []
    for row in rows:
        found = cluster([row["text"]], [True], ChoiceGrader(), row.get("choices"))[0][0]
        if found != row["letter"]:
            wrong.append((row["kind"], row["text"], row["letter"], found))
    assert wrong == []


def test_a_label_of_several_letters_is_none():
    assert [ChoiceGrader().label(x) for x in ("A, C", "C. 42", "(b)", "A. vitamin B")] == [None, "C", "B", "A"]


@pytest.mark.parametrize("piece", ["A, ", "(A) ", " \n", "选", "answer is ", "\\boxed{A} or ", "\\boxed{"])
def test_a_hostile_choice_costs_little(piece):
    started = time.process_time()
    for text in (piece * 30_000, "answer is" + piece * 1000 + "x", f"\\boxed{{{piece * 200}x}}"):
        ChoiceGrader().extract(text)
    assert time.process_time() - started < 2
