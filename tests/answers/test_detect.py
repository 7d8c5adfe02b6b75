"""What kind of answer a problem asks for, and what kind an answer is."""

import pytest

from lightning_serl.answers import expected_kind
from lightning_serl.answers.detect import is_value

PROBLEMS = {
    "math": (
        "What is 3+4?",
        "Find $x$ if $2x=6$.",
        "How many apples are left if Tom eats 3 of 10?",
        "Compute 5 times 6.",
        "小明有3个苹果，又买了5个，一共有多少个？",
        "Wie viele Beine hat eine Spinne?",
        "¿Cuántos días tiene una semana?",
        "Is 12 + 7 equal to 18 or 19?",
        "A coin is tossed 3 times. What is the probability of 2 heads or tails?",
    ),
    "text": (
        "Name the capital of France.",
        "A 45-year-old man presents with chest pain. What is the diagnosis?",
        "北京是哪个国家的首都？",
        "Which salt forms from NaOH and HCl?",
        "What does H2SO4 do to zinc?",
        "Is 95 an even or an odd number?",
        "There are 3 red and 4 blue balls. Is the sum a prime number?",
        "7 is greater than 3: true or false?",
    ),
    "choice": (
        "Which one?\n(A) this\n(B) that\n(C) other",
        "哪项正确?\nA.心肌梗死\nB.肺炎",
        "Which? A. one B. two",
        "¿Cuál?\na) uno\nb) dos",
    ),
}


@pytest.mark.parametrize("kind", PROBLEMS)
def test_what_a_problem_asks_for(kind):
    assert {prompt: expected_kind(prompt) for prompt in PROBLEMS[kind]} == dict.fromkeys(PROBLEMS[kind], kind)
    assert expected_kind("Which?", ["x", "y"]) == "choice"


VALUES = (
    *(
        "7",
        "$1,234",
        "12 cm",
        "50%",
        "-0.5",
        "1.5e3",
        r"\frac{1}{2}",
        "3x+2",
        "(1,2)",
        "x = 5",
        "E = mc^2",
        "½",
        "5 años",
    ),
    *("12 小时", "3.5 mol/L", "twelve", "two and a half hours", "about 12", "2:30 pm", "4 remainder 2", "3 to 5 days"),
    *("between 3 and 5", "14th", "US$27", r"\sqrt{2}", r"\pi", "5 or 6", "**12**", "x_{max}", "sin x", "[1, 2)"),
)
WORDS = (
    *("Paris", "NaCl", "ClNa", "H2O", "COVID-19", "type 2 diabetes", "Apollo 11", "World War 2", "14th century", "n/a"),
    *(
        "Seven Samurai",
        "due to heat",
        "Otto von Bismarck",
        r"\text{even}",
        r"\ce{H2O}",
        r"\text{C}_6\text{H}_{12}",
        "B12",
    ),
    *("July 4, 1776", "no", "all real numbers", "", "K2Cr2O7", "SARS-CoV-2", "2 NaCl", "x" * 6000),
)


def test_values_and_words():
    assert {answer: is_value(answer) for answer in VALUES} == dict.fromkeys(VALUES, True)
    assert {answer: is_value(answer) for answer in WORDS} == dict.fromkeys(WORDS, False)
