"""The last formula or number of a response."""

import pytest

from lightning_serl.answers.reading.last_formula import last_formula


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Hence $x = \\frac{1}{2}$ follows", "x = \\frac{1}{2}"),
        ("Then $a=2$ and $b=3$ hold", "a=2,b=3"),
        (r"Then \(P(2) = 3 + 4 = 7\) as said", "P(2) = 3 + 4 = 7"),
        ("It is $12-2=10$.\nThat is all.", "12-2=10"),
        ("Half of it is 50 percent.", r"50\%"),
        ("So it is 25%.", r"25\%"),
        ("It is 20 - 5 * 3", "20 - 5 * 3"),
        ("as 105 * 42 / ", "42"),
        ("He paid $77.00.", "77.00"),
        ("The total is 1,234 apples", "1234"),
        ("It weighs 3,5 kg", "3.5"),
        ("Here $x=3$, so $y = 4 + ", "4"),
        ("Here $x=3$, so\n\\[y = x + ", "x=3"),
        ("Hence\n\\[x^2 = 4\\]\nas was to be shown.", "x^2 = 4"),
        ("So the answer to this is that they found 7 shells. I counted 9.", "7"),
        ("The answer is 80 + 150 = 230 miles", "230"),
        ("Answer: they found 7.\nNo other answer is 8.", "7"),
        ("week 1: 1-2-3-4-5", "1-2-3-4-5"),
        ("costs $5. 1/4", "1/4"),
        (r"that is \frac{5}{8", None),
        (r"that is \frac{5}{8} =", r"\frac{5}{8}"),
        (r"The final answer is: $\boxed{___}$", ""),
        ("Nothing to see here.", None),
        ("", None),
    ],
)
def test_what_a_response_without_a_mark_comes_down_to(text, answer):
    assert last_formula(text) == answer


@pytest.mark.parametrize("piece", ["\\[", "$", "$$", "\\(", "answer", "1 ", "1,111 ", "(1+", "answer = 1 ", "\n$x$,"])
def test_long_texts_are_read_at_their_end(piece):
    # Longer texts are cut to their end; what is read there must not depend on where they began.
    short, long = (piece * (n // len(piece)) for n in (20_000, 200_000))
    assert last_formula(short) == last_formula(long)
