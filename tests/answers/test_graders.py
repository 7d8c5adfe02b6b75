"""The choice of a grader by name, a user's own, and what all graders do with labels."""

import pytest

from lightning_serl.answers import ChoiceGrader, MathGrader, TextGrader, cluster, resolve_grader
from lightning_serl.errors import InputError


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
    ("grader", "words"),
    [("maths", "mean math"), ("xyz", "math, choice, text"), (3, "extract"), (MathGrader, r"MathGrader\(\)")],
)
def test_bad_graders_are_named(grader, words):
    with pytest.raises(InputError, match=words):
        resolve_grader(grader)


def test_names_and_modes():
    assert resolve_grader("math", "exact").mode == "exact"
    assert isinstance(resolve_grader("text"), TextGrader)
    with pytest.raises(InputError, match="fast or exact"):
        resolve_grader("choice", "slow")


@pytest.mark.parametrize("grader", [MathGrader(), ChoiceGrader(), TextGrader()], ids=lambda g: g.name)
@pytest.mark.parametrize("label", ["C", "(C)", "$C$", r"\boxed{C}"])
def test_labels_bare_and_boxed(grader, label):
    read = grader.label(label)
    assert read is not None
    if grader.name == "choice" or "(" not in label:
        assert grader.same(grader.extract(r"\boxed{C}"), read)
