"""The last box."""

import pytest

from lightning_serl.answers.reading.boxed import last_boxed


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"\boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"$x=\boxed{1}$ or $x=\boxed{2}$", "1,2"),
        (r"\boxed{1} \quad \text{and} \quad \boxed{2}", "1,2"),
        (r"\boxed{3} = \boxed{3.0}", "3.0"),
        (r"\boxed{1}, cut off: \boxed{2", "1"),
        (r"\boxed{}", None),
        (r"\boxed{5} and \boxed{ }", "5"),
        (r"\fbox{7}", "7"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"$\\boxed{35 cm} ++ \\boxed{4}$", "35 cm,4"),
        (r"\\boxed{1}, \\boxed{\frac{1}{2}}", r"1,\frac{1}{2}"),
        ("no box", None),
        ("\\boxed{" + "{" * 10**6, None),
        ("\\boxed{" * 10**5, None),
    ],
)
def test_last_box(text, box):
    assert last_boxed(text) == box
