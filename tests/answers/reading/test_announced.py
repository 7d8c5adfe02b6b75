"""Announced answers and closing numbers."""

import pytest

from lightning_serl.answers.reading.announced import announced_answer, closing_number, undisputed_number


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("3 * 6 = <<3*6=18>>18\nA: 18", "18"),
        ("She sold 9 * 2 = 18 eggs.", "18"),
        ("He paid $77.00.", "77.00"),
        ("The total is 1,234 apples", "1,234"),
        ("Hence $x = \\frac{1}{2}$.", None),
        ("Half of it is 50 percent.", None),
        ("So it is 25%.", None),
        ("It is 20 - 5 * 3", None),
        ("Here $x=3$, so $y = 4 + ", None),
        ("Hence\n\\[x^2 = 4\\]\nas was to be shown.", None),
        ("The area is $33\\pi.$", None),
        ("It cannot be 3 but $4$.\nAnswer: none", None),
        ("The answer could be $3$.", None),
        ("Nothing to see here.", None),
        ("It is $\\oint x$.", None),
        ("Now $$x = 3", None),
        ("", None),
    ],
)
def test_what_closes_a_response(text, answer):
    assert closing_number(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 18.", "18"),
        ("**Answer:** $\\frac{1}{2}$", "\\frac{1}{2}"),
        ("the answer is $1,234 dollars", "1,234"),
        ("The answer is 4+3\\sqrt{2}.", "4+3\\sqrt{2}"),
        ("The answer is 5. No, the answer is \\(x=6\\).", "x=6"),
        ("The answer is $3$ or $-3$.", "3,-3"),
        ("The answer is $3$ or $-3$ or so.", None),
        ("The answer is the sum of both.", None),
        ("Nothing here", None),
        ("答案：42", "42"),
        ("答案为42", "42"),
        ("答案是42千克。", "42千克"),
        ("**答案：** $\\frac{1}{2}$。", "\\frac{1}{2}"),
        ("答案是1，2", "1,2"),
        ("答案是42，因为6×7=42。", "42"),
        ("答案是５。", "5"),
        ("答案是无法确定。", None),
        ("答案是5或6。", None),
        ("La respuesta es 42 porque 6 * 7 = 42 y no 43.", "42"),
        ("La respuesta es una suma de 3.", None),
        ("Die Antwort: 12 km. Das sind 12000 m.", "12 km"),
        ("الجواب: ٤٢", "42"),
        ("Answer：42", "42"),
        ("答案：41\n最终答案：42", "42"),
    ],
)
def test_announced_answer(text, answer):
    assert announced_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 18.", "18"),
        ("A: 18", "18"),
        ("#### -1,234", "-1,234"),
        ("The final answer is $47$. I hope it is correct.", "47"),
        ("The answer is 18 as 3 * 6 = 18.", None),
        ("Answer: 3. But the answer is 4.", None),
        ("The answer is 18 percent.", None),
        ("The answer is $x$.", None),
        ("So it is 25%.", None),
        (r"It is 4. \boxed{", None),
    ],
)
def test_what_exact_mode_reads_without_help(text, answer):
    assert undisputed_number(text) == answer
