"""The text grader."""

import pytest

from lightning_serl.answers import TextGrader


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It is in Europe.\nAnswer: **Paris**.", "paris"),
        (r"\boxed{\text{Acute  Appendicitis}}", "acute appendicitis"),
        ("因此，答案是：北京。", "北京"),
        ("La respuesta es: Sí.", "sí"),
        ("ответ: Москва!", "москва"),
        ("Explanation.\nＮａＣｌ", "nacl"),
        (r"\boxed{\ce{H2O}}", "h2o"),
        ("x" * 5000, None),
        ("...", None),
        ("", None),
    ],
)
def test_text_extraction(text, answer):
    assert TextGrader().extract(text) == answer


def test_text_keeps_the_order_of_letters():
    grader = TextGrader()
    assert not grader.same(grader.extract("NaCl"), grader.extract("ClNa"))
