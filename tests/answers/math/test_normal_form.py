"""Normal forms and exact numbers."""

from lightning_serl.answers.math.normal_form import normal_form, number


def test_normal_form_keeps_commands_apart_from_letters():
    assert normal_form(r"2 \pi r") == r"2\pi r"
    assert number("1/0") is None
    assert number("1" * 200) is None
