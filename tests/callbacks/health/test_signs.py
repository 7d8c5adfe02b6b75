"""Signs of health against numbers worked out by hand, and warnings on streams of values."""

import math

import pytest

from lightning_serl.callbacks.health import (
    repeated_ngrams,
    round_signs,
    same_share,
    slope,
    unanimous,
    vote_entropy,
)
from lightning_serl.report.signs import BANDS, Sign
from lightning_serl.types import Completion, Group, Instruction


def group(answers, classes=None, tokens=((1, 2, 3),), finished=True):
    names = sorted({a for a in answers if a is not None})
    classes = [-1 if a is None else names.index(a) for a in answers] if classes is None else classes
    written = [Completion(tuple(tokens[i % len(tokens)]), "", None, finished) for i in range(len(answers))]
    return Group(Instruction("?", "u"), (), written, list(answers), classes)


@pytest.mark.parametrize(
    ("classes", "entropy"),
    [
        ([0, 0, 0, 0], 0.0),
        ([0, 1, 2, 3], 1.0),
        ([0, 0, 1, 1], 0.5),  # log 2 / log 4
        ([0, 0, 0, 1], (0.75 * math.log(4 / 3) + 0.25 * math.log(4)) / math.log(4)),
        ([0, 1, -1, -1], 0.5),  # two votes that differ, of four responses
        ([-1, -1], None),
        ([0], None),
    ],
)
def test_vote_entropy(classes, entropy):
    assert vote_entropy(classes) == (None if entropy is None else pytest.approx(entropy))


def test_unanimous_means_that_every_response_votes_alike():
    assert unanimous([2, 2, 2])
    assert not unanimous([0, 0, 1])
    assert not unanimous([0, 0, -1])
    assert not unanimous([-1, -1])


def test_repeated_ngrams():
    assert repeated_ngrams("abcdabcd") == (1, 5)  # abcd bcda cdab dabc abcd
    assert repeated_ngrams("aaaaaa") == (2, 3)
    assert repeated_ngrams("abc") == (0, 0)


def test_slope_is_the_median_of_all_pairs_and_bears_an_outlier():
    assert slope([0.0, 0.1, 0.2, 0.3, 0.4]) == pytest.approx(0.1)
    # pairs 1, 1, 1, 1, 1, 1 of the first four; 97, 49, 33, 25 with the last: the fifth and sixth of ten are 1
    assert slope([0, 1, 2, 3, 100]) == pytest.approx(1)
    assert slope([0.2, 0.2, 0.2]) == 0


def test_the_signs_of_a_round():
    groups = [group(["1", "1", "1", "1"], tokens=[[5] * 6])] * 2  # 2 of 3 four-grams repeat
    groups += [group(["1", "1", "2", None], tokens=[[1, 2]], finished=False)] * 2
    groups += [group(["3", "3", "4", "4"], tokens=[[1, 2, 3, 4]])] * 4
    third = (2 / 3 * math.log(3 / 2) + 1 / 3 * math.log(3)) / math.log(4)
    assert round_signs(groups) == pytest.approx(
        {
            "vote_entropy": (2 * third + 4 * 0.5) / 8,
            "unanimous_share": 0.25,
            "no_answer_share": 2 / 32,
            "top_answer_share": 0.5,  # "1" and "3" win four each
            "truncated_share": 8 / 32,
            "repeated_4gram_share": (8 * 2) / (8 * 3 + 16 * 1),
            "length": (8 * 6 + 8 * 2 + 16 * 4) / 32,
        }
    )


def test_few_prompts_have_no_most_common_answer_and_unread_ones_no_votes():
    assert "top_answer_share" not in round_signs([group(["1", "1"])] * 7)
    recorded = Group.from_texts("?", ["one two two two two two", "one"])
    assert round_signs([recorded]) == pytest.approx(
        {"truncated_share": 0, "repeated_4gram_share": 1 / 3, "length": 3.5}
    )
    assert round_signs([]) == {}


def test_same_share_counts_the_problems_that_had_a_clear_vote():
    start = {str(i): ("1/2", 0.5) for i in range(8)} | {"tie": (None, 0.5), "unclear": ("9", 0.4)}
    now = dict(start) | {"0": ("0.5", 0.3), "1": ("3", 1.0), "2": (None, 0.5), "tie": ("7", 1.0), "unclear": ("7", 1.0)}
    assert same_share(start, now, lambda a, b: {a, b} == {"1/2", "0.5"}) == pytest.approx(6 / 8)
    assert same_share(start, {uid: start[uid] for uid in "0123456"}, lambda a, b: a == b) is None


# -- warnings ----------------------------------------------------------------------------------------------------------


def run(name, values, weight=32):
    """Numbers of the values at which the sign warns, and the sign."""
    sign = Sign(name)
    return [i for i, v in enumerate(values) if sign.enter(v, weight)], sign


def test_a_sign_is_judged_by_the_mean_of_enough_rounds_and_of_enough_groups():
    assert run("unanimous_share", [1.0, 1.0, 1.0])[0] == [2]
    assert run("unanimous_share", [1.0] * 12, weight=4)[0] == [7]  # 8 rounds of 4 groups
    assert run("unanimous_share", [0.5, 0.5, 0.95, 0.95, 0.95])[0] == [4]
    assert run("unanimous_share", [0.85, 0.92] * 10)[0] == []


def test_one_warning_per_excursion_with_number_bound_and_remedy():
    inside, outside = [0.5] * 10, [1.0] * 6
    warned, sign = run("unanimous_share", outside + inside + outside)
    assert warned == [2, 18]
    assert sign.outside.startswith("unanimous_share is 1, above 0.9: nearly all votes")
    # a short return is no return
    assert run("unanimous_share", [*outside, 0.5, *outside, 0.5, *outside])[0] == [2]
    assert run("unanimous_share", outside + inside)[1].outside is None


def test_bounds_that_move_with_the_start():
    assert run("no_answer_share", [0.0] * 3 + [0.29] * 9)[0] == []
    assert run("no_answer_share", [0.0] * 3 + [0.4] * 9)[0] == [5]  # mean of three above 0.3
    assert run("no_answer_share", [0.7] * 3 + [0.85] * 9)[0] == []  # began so
    assert run("no_answer_share", [0.7] * 3 + [0.95] * 9)[0] == [5]


def test_a_sign_goes_on_where_it_was_saved():
    values = [0.2, 0.6, 0.9, 0.99, 1.0, 1.0, 1.0, 0.3, 1.0, 1.0, 1.0, *[0.1] * 9, 1.0, 1.0, 1.0, 1.0]
    whole, _ = run("unanimous_share", values)
    assert len(whole) == 2
    for cut in range(len(values)):
        first, second = Sign("unanimous_share"), Sign("unanimous_share")
        warned = [i for i, v in enumerate(values[:cut]) if first.enter(v, 32)]
        second.load_state_dict(first.state_dict())
        warned += [i for i, v in enumerate(values[cut:], cut) if second.enter(v, 32)]
        assert warned == whole


def test_every_band_has_its_place_in_the_docs(repository):
    text = (repository / "docs" / "health.md").read_text(encoding="utf-8")
    for name, band in BANDS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        for bound in (band.low, band.high, band.rise):
            assert bound is None or f"{bound:g}" in row, (name, bound)


@pytest.fixture
def repository(request):
    return request.config.rootpath
