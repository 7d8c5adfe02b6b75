"""What proposals earn by the answers to their problems, worked out on paper."""

import math
from types import SimpleNamespace

import pytest

from lightning_serl.errors import InputError
from lightning_serl.rewards import ChildReward
from lightning_serl.rewards.repetition import repetition_shares
from lightning_serl.types import Completion, Group, Instruction, Link, Verdict


def proposals(children, texts=None, grades=None):
    """A group with one proposal for each list of child scores (``None``: no problem), and the context of its reward."""
    group = Group(Instruction("Write.", "p", role="propose"), (1,), [Completion((2,), "text") for _ in children])
    verdicts = {}
    for place, scores in enumerate(children):
        if scores is None:
            continue
        problem = Instruction((texts or {}).get(place, f"w{place}a w{place}b"), f"c{place}", link=Link("x", "p", place))
        group.links["x", place] = [Group(problem, (), [])]
        weight = [0.0 if s is None else 1.0 for s in scores]
        verdicts[problem.uid] = Verdict([s or 0.0 for s in scores], weight=weight)
    judged = [Group(Instruction("", ""), (), [Completion((), grade)]) for grade in grades or ()]
    return group, SimpleNamespace(verdicts=verdicts, generate=lambda *_, **__: judged)


def paid(form, children, texts=None, **options):
    group, ctx = proposals(children, texts)
    (verdict,) = ChildReward(form, **options)([group], ctx)
    return verdict.scores.tolist(), verdict.weight.tolist()


ALL, NONE, HALF, ONE, MOST = [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]
G = math.exp(-((0.25) ** 2) / (2 * (0.5 / 3) ** 2))  # p = .25 and .75 in SPELL
CHILDREN = [ALL, NONE, HALF, ONE, MOST, None]
CASES = {  # form: scores of the six proposals above, and the weight of the one without a problem
    "sqlm": ([0, 0, 1, 0, 1, 0], 0),  # one agreeing answer of four is 1/m, not above it
    "r-zero": ([0 - 1 / 6, 0 - 1 / 6, 0.5 - 1 / 6, 0.25 - 1 / 6, 0.25 - 1 / 6, -1], 1),
    "spell": ([0, math.exp(-4.5), 1, G, G, -1], 1),
    "lsp": ([-1, 0, -0.5, -0.25, -0.75, 0], 0),
    "azr": ([0, 0, 0.5, 0.75, 0.25, -1], 1),
}
# p = .5 of two responses that count: 1/m is not exceeded; in R-Zero half of the proposals are like this one
HALF_OF_TWO = {"sqlm": 0.0, "r-zero": 0.5 - 0.5, "spell": 1.0, "lsp": -0.5, "azr": 0.5}


def test_every_published_form_by_hand():
    for form, (scores, weight) in CASES.items():
        got, weights = paid(form, CHILDREN)
        assert got == pytest.approx(scores, abs=1e-6), form
        assert weights == [1.0] * 5 + [weight], form
        # a response of weight 0 does not count, a problem on which the vote abstains is left out
        got, weights = paid(form, [[1, 0, None, None], [None, None]])
        assert got[0] == pytest.approx(HALF_OF_TWO[form])
        assert (got[1], weights) == (0.0, [1.0, 0.0]), form
        invalid = paid(form, [None, None])
        assert invalid == ([-1.0 * weight] * 2, [float(weight)] * 2), form
    group, ctx = proposals([[1.5, -2.0], None])  # scores of a reward that is no vote are clamped
    (verdict,) = ChildReward("azr")([group], ctx)
    assert (verdict.scores.tolist(), verdict.confidence, verdict.info["problems"]) == ([0.5, -1.0], 0.5, 1)


def test_problems_that_repeat_each_other_share_what_they_earn():
    # words in common: 1 and 2 are equal; 3 shares 2 of 4 words with them, ROUGE-L .5, distance .5: not below it
    texts = {0: "a b c d", 1: "a b c d", 2: "a b x y", 3: "q r s t"}
    assert repetition_shares([[texts[i]] for i in range(4)]) == [0.5, 0.5, 0.25, 0.25]
    # b c of four: 1-2 .25 apart, 1-3 .25, 2-3 .5; 1 and 2 join first, 3 is .375 from them on average: one cluster
    assert repetition_shares([["a b c d"], ["a b c e"], ["f b c d"], []]) == [0.75, 0.75, 0.75, 0.0]
    assert repetition_shares([]) == []
    assert repetition_shares([[], []]) == [0.0, 0.0]
    assert repetition_shares([["!"], ["?"]]) == [0.5, 0.5]  # no words: nothing is known to be alike
    got, _ = paid("r-zero", [HALF, HALF, HALF, NONE], texts)
    assert got == pytest.approx([0.0, 0.0, 0.25, -0.25])


def test_quality_is_what_a_judge_reads_of_each_proposal():
    group, ctx = proposals([HALF, ONE, ALL, None], grades=["fine\nScore: 10", "Score: 5", "no grade", "Score: 10"])
    reward = ChildReward("lsp", quality=2.0)
    assert (reward.needs, ChildReward().needs) == ({"reference"}, frozenset())
    (verdict,) = reward([group], ctx)
    assert verdict.scores.tolist() == pytest.approx([-0.5 + 2, -0.25 + 1, -1.0, 0.0])
    assert verdict.weight.tolist() == [1.0, 1.0, 1.0, 0.0]
    # MAE: grade 1 and p .5; grade .5 is below .7, so that difficulty earns nothing; no grade; no problem, no format
    (verdict,) = ChildReward("mae")([group], ctx)
    assert verdict.scores.tolist() == pytest.approx([(1 + 0.5 + 1) / 3, (0.5 + 1) / 3, 1 / 3, 0.0])
    assert verdict.weight.tolist() == [1.0] * 4
    group, ctx = proposals([HALF], grades=["Score: 7"])
    assert ChildReward("mae")([group], ctx)[0].scores.tolist() == pytest.approx([(0.7 + 0.5 + 1) / 3])


def test_child_reward_refuses():
    for options, said in (({"form": "rzero"}, "form of ChildReward"), ({"quality": -1.0}, "quality of ChildReward")):
        with pytest.raises(InputError, match=said):
            ChildReward(**options)
    with pytest.raises(InputError, match="needs a run"):
        ChildReward()([], None)
