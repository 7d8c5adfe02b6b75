"""Label-free rewards on groups small enough to work out on paper."""

import math

import pytest
import torch

from lightning_serl.errors import InputError
from lightning_serl.rewards import (
    MajorityVote,
    Mix,
    NegativeEntropy,
    NoveltyVote,
    RestrainVote,
    SelectiveVote,
    SelfAligned,
    SelfCertainty,
    TeacherVote,
)
from lightning_serl.types import Completion, Group, Verdict


def group(answers, entropies=None, certainties=None):
    """A group whose responses are boxed answers, ``None`` without a box, and one statistic per token."""
    texts = ["no box" if answer is None else rf"\boxed{{{answer}}}" for answer in answers]
    made = Group.from_texts("a problem", texts)
    for name, values in (("entropy", entropies), ("certainty", certainties)):
        if values is not None:
            made.stats[name] = [torch.tensor(tokens) for tokens in values]
    return made


def scores(reward, *groups):
    return [verdict.scores.tolist() for verdict in reward(list(groups), None)]


# -- SCRL: the top class is paid from a share of .5 and a lead above .15; rare uncertain classes cost -----------------

CALM, NERVOUS = [0.1, 0.1], [0.9, 0.9]


def test_selective_vote_pays_a_clear_majority_and_punishes_a_rare_uncertain_answer():
    # ten responses: 6 x "1" (share .6), 2 x "2" (.2), 1 x "3" uncertain (.1), 1 x "4" certain (.1); mean entropy .18
    answers = ["1"] * 6 + ["2", "2", "3", "4"]
    made = group(answers, [CALM] * 8 + [NERVOUS, CALM])
    (verdict,) = SelectiveVote()([made], None)
    assert verdict.scores.tolist() == [1.0] * 6 + [0.0, 0.0, -1.0, 0.0]
    assert (verdict.label, verdict.confidence, verdict.info["punished"]) == ("1", 0.6, 1)


@pytest.mark.parametrize(
    ("answers", "paid"),
    [
        (["1"] * 5 + ["2"] * 5, 0.0),  # a tie has no lead
        (["1"] * 10 + ["2"] * 7 + ["3"] * 3, 0.0),  # .50 - .35 is exactly .15, not above it
        (["1"] * 10 + ["2"] * 6 + ["3"] * 4, 1.0),  # .50 - .30
        (["1"] * 9 + ["2"] * 5 + ["3"] * 6, 0.0),  # .45 is below a half
        (["1"] * 4, 1.0),
        (["1", "1", None, None], 1.0),  # shares are of all responses
        (["1", None, None, None], 0.0),
    ],
)
def test_selective_vote_at_its_thresholds(answers, paid):
    (verdict,) = SelectiveVote()([group(answers, [CALM] * len(answers))], None)
    assert verdict.scores.tolist() == [paid * (answer == "1") for answer in answers]
    assert verdict.label == ("1" if paid else None)


def test_selective_vote_compares_entropy_by_tokens():
    # the rare class: 2 tokens of .5; the group: 6 tokens of mean (2*.5 + 4*.5)/6 = .5, and "at least" counts
    made = group(["1"] * 8 + ["2"], [[0.5]] * 8 + [[0.5, 0.5]])
    assert scores(SelectiveVote(), made) == [[1.0] * 8 + [-1.0]]
    made = group(["1"] * 8 + ["2"], [[0.5]] * 7 + [[0.6], [0.5, 0.5]])
    assert scores(SelectiveVote(), made) == [[1.0] * 8 + [0.0]]
    with pytest.raises(InputError, match="entropy"):
        SelectiveVote()([group(["1"])], None)
    with pytest.raises(InputError, match="min_lead"):
        SelectiveVote(min_lead=1.2)


# -- EVOL-RL: bands by side, place in the band by novelty -------------------------------------------------------------


def test_novelty_vote_orders_each_side_by_how_new_the_text_is():
    same, other = r"one two three four so \boxed{1}", r"five six seven eight so \boxed{1}"
    made = Group.from_texts("p", [same, same, other, r"one two three four so \boxed{2}", "no box"])
    # 4-grams of `same`: 3; twice the same text: similarity 1. `other` shares no 4-gram with it. The response of the
    # minority shares 2 of 4 grams with `same`; it is alone on its side, so the lower end of its band is its score.
    (verdict,) = NoveltyVote()([made], None)
    assert verdict.scores.tolist() == [0.5, 0.5, 1.0, -1.0, -1.0]
    assert (verdict.label, verdict.confidence) == ("1", 0.6)


def test_novelty_vote_with_vectors_of_ones_own():
    # cosines: 0-1: 1, 0-2: 0, 1-2: 0; mean similarity (.5, .5, 0), largest (1, 1, 0); novelty (.25, .25, 1) at alpha .5
    vectors = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    made = group(["1", "1", "1", "2"])
    # with response 3: its cosines .6, .6, .8 count in the largest similarity: (1, 1, .8), novelty (.25, .25, .6)
    (verdict,) = NoveltyVote(embed=lambda texts: vectors[: len(texts)])([made], None)
    assert verdict.scores.tolist() == pytest.approx([0.5, 0.5, 1.0, -1.0])
    assert scores(NoveltyVote(), group([None, None])) == [[-1.0, -1.0]]
    assert scores(NoveltyVote(), group(["3", "3"])) == [[0.5, 0.5]]


# -- RESTRAIN: every class is a label, weighted by its share ----------------------------------------------------------


def test_restrain_vote_by_hand():
    # shares .75 and .25; weights exp(-.0625/.5) and exp(-.5625/.5), so that w1 = 1/(1 + e^-1) = .7311
    w1 = 1 / (1 + math.exp(-1))
    root = math.sqrt(0.75 * 0.25)
    one = w1 * 0.25 / root + (1 - w1) * -0.25 / root
    two = w1 * -0.75 / root + (1 - w1) * 0.75 / root
    (verdict,) = RestrainVote()([group(["1", "1", "1", "2"])], None)
    assert verdict.scores.tolist() == pytest.approx([one, one, one, two], abs=1e-6)
    assert verdict.centred
    assert verdict.scores.sum().item() == pytest.approx(0.0, abs=1e-6)
    assert scores(RestrainVote(), group(["1", "1"])) == [[0.0, 0.0]]
    # ten answers that all differ: every term is (.9 or -.1)/.3 with weight .1, in sum 0; then the penalty
    assert scores(RestrainVote(), group([str(i) for i in range(10)]))[0] == pytest.approx([-0.5] * 10, abs=1e-6)
    # a response without an answer disagrees with every class
    assert scores(RestrainVote(), group(["1", None]))[0] == pytest.approx([1.0, -1.0])
    (none,) = RestrainVote()([group([None, None])], None)
    assert none.weight.tolist() == [0.0, 0.0]


# -- confidence -------------------------------------------------------------------------------------------------------


def test_confidence_rewards_are_means_over_tokens():
    made = group(["1", None, "2"], [[1.0, 3.0], [0.5], []], [[2.0, 4.0], [1.0], []])
    assert scores(SelfCertainty(), made) == [[3.0, 1.0, 0.0]]
    assert scores(NegativeEntropy(), made) == [[-2.0, -0.5, 0.0]]
    assert scores(NegativeEntropy(no_answer=-7.0), made) == [[-2.0, -7.0, 0.0]]
    with pytest.raises(InputError, match="certainty"):
        SelfCertainty()([group(["1"])], None)


# -- other text, other weights ----------------------------------------------------------------------------------------


class Scorer:
    """A context whose log-probs are -1 a token alone and ``after`` a token behind a question."""

    grader = None

    def __init__(self, after):
        self.after = after

    def score(self, prefixes, texts, who="policy"):
        values = [self.after if prefix else -1.0 for prefix in prefixes]
        return [torch.full((len(text.split()),), value) for text, value in zip(texts, values, strict=True)]


@pytest.mark.parametrize(
    ("after", "expected"),
    [(-1.0, 0.0), (-0.5, 1 - math.exp(-0.5)), (-1.5, 1 - math.exp(0.5)), (-5.0, -1.0), (-900.0, -1.0)],
)
def test_self_aligned_is_the_relative_fall_of_perplexity(after, expected):
    made = Group.from_texts("what?", ["two words", "", "three more words"])
    (verdict,) = SelfAligned()([made], Scorer(after))
    assert verdict.scores.tolist() == pytest.approx([expected, 0.0, expected])


class School:
    """A context whose teacher gives these answers to every problem."""

    grader = None

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def generate(self, instructions, n, who):
        self.asked.append((len(instructions), n, who))
        texts = [rf"\boxed{{{answer}}}" for answer in self.answers]
        return [Group(i, (), [Completion((), t, None, True) for t in texts]) for i in instructions]


def test_teacher_vote_pays_agreement_with_the_teacher():
    made, school = group(["1", "2.0", None, "2"]), School(["2", "2", "1"])
    (verdict,) = TeacherVote(votes=3)([made], school)
    assert verdict.scores.tolist() == [0.0, 1.0, 0.0, 1.0]
    assert (verdict.label, verdict.confidence) == ("2", pytest.approx(2 / 3))
    assert school.asked == [(1, 3, "teacher")]
    assert made.links["teacher", None][0].answers == ["2", "2", "1"]
    with pytest.raises(InputError, match="run"):
        TeacherVote()([made], None)


# -- mixes ------------------------------------------------------------------------------------------------------------


class Length:
    """A reward of one's own."""

    def __call__(self, groups, ctx):
        return [Verdict([float(len(text)) for text in g.texts], weight=[1.0] * (len(g) - 1) + [0.0]) for g in groups]


def test_a_mix_adds_weighted_scores():
    made = group(["1", "1", "22"], certainties=[[2.0], [4.0], [0.0]])
    mix = Mix({"MajorityVote": 1.0, "SelfCertainty": 0.5, Length(): -0.1})
    (verdict,) = mix([made], None)
    assert verdict.scores.tolist() == pytest.approx([1 + 1.0 - 0.9, 1 + 2.0 - 0.9, 0 + 0.0 - 1.0])
    assert verdict.weight.tolist() == [1.0, 1.0, 0.0]
    assert (verdict.label, verdict.confidence) == ("1", pytest.approx(2 / 3))
    assert verdict.info["SelfCertainty"] == 2.0
    assert mix.needs == {"certainty"}
    for wrong, said in (
        ({}, "at least|needs rewards"),
        ({"MajortyVote": 1.0}, "MajortyVote"),
        ({"Mix": "1"}, "weight"),
    ):
        with pytest.raises(InputError, match=said):
            Mix(wrong)
    with pytest.raises(InputError, match="RestrainVote"):
        Mix({"MajorityVote": 1.0, "RestrainVote": 1.0})([made], None)


def test_the_plain_vote_is_what_a_mix_of_it_alone_gives():
    made = group(["1", "2", "1", None])
    assert scores(Mix({"MajorityVote": 1.0}), made) == scores(MajorityVote(), made)
