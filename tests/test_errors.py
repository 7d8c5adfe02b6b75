"""The checks of option values that the whole package shares."""

import math
import os

import pytest

from lightning_serl.errors import InputError, check_choice, check_range, check_target, did_you_mean


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "said"),
    [
        ({"at_least": 1}, [1, 2.5], [0, -3, math.nan], "must be at least 1, got"),
        ({"above": 0}, [1e-9, math.inf], [0, math.nan], "must be above 0, got"),
        ({"above": 0, "at_most": 1}, [0.5, 1], [0, 1.01], "must be above 0 and at most 1, got"),
        ({"at_least": 0, "below": 1}, [0, 0.99], [-0.1, 1.0], "must be at least 0 and below 1, got"),
    ],
)
def test_a_number_outside_its_range_is_refused_with_its_option(bounds, inside, outside, said):
    for value in inside:
        check_range("data.x", value, **bounds)
    for value in outside:
        with pytest.raises(InputError) as caught:
            check_range("data.x", value, **bounds)
        assert str(caught.value) == f"data.x {said} {value}"


def test_a_hint_follows_the_value():
    with pytest.raises(InputError, match=r"^data\.x must be at least 2, got 1; one answer is no vote$"):
        check_range("data.x", 1, at_least=2, hint="one answer is no vote")


def test_a_choice_that_is_none_is_refused_with_all_there_are():
    check_choice("data.style", "serl", ("default", "serl"))
    with pytest.raises(InputError, match=r"^data\.level must be 0 or 1, got 2$"):
        check_choice("data.level", 2, (0, 1))
    with pytest.raises(InputError, match=r"^data\.style must be default, serl or none, got 'fast'$"):
        check_choice("data.style", "fast", ("default", "serl", "none"))


def test_a_file_that_could_not_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    check_target("--out", tmp_path / "new.json")
    with pytest.raises(InputError, match="is a folder"):
        check_target("--out", tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        check_target("--out", tmp_path / "none" / "new.json")
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(InputError, match=r"cannot be written \(no permission\)"):
        check_target("--out", tmp_path / "new.json")


def test_the_name_that_was_meant():
    known = ["MajorityVote", "CSVLogger", "WandbLogger"]
    assert did_you_mean("majortyvote", known) == "; did you mean MajorityVote?"
    assert did_you_mean("csv", known) == "; did you mean CSVLogger?"
    assert did_you_mean("cs", known) == did_you_mean("Other", known) == ""
