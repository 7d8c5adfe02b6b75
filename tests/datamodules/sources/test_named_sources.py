"""Sources by name: what they draw, derive and remember, worked out on paper."""

import math
from collections import Counter

import pytest

from lightning_serl.answers import MathGrader
from lightning_serl.datamodules.checks import check_source
from lightning_serl.datamodules.rounds.context import Context
from lightning_serl.datamodules.rounds.setup import RoundOptions
from lightning_serl.datamodules.sources import (
    CategoryBandit,
    EasierVariants,
    EvolvedPrompts,
    Proposer,
    WeakSpots,
    Writing,
)
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.engines.base import Sampling
from lightning_serl.errors import InputError
from lightning_serl.pool import InstructionPool
from lightning_serl.prompts import InstructionTemplate
from lightning_serl.types import Completion, Group, Instruction, Verdict

SUBJECTS = ["law"] * 4 + ["art"] * 2
SEEDS = [Instruction(f"Seed {i}?", f"seed-{i}", label=str(i), meta={"subject": s}) for i, s in enumerate(SUBJECTS)]


class Writer:
    """An engine that writes two problems after every prompt, the second one cut off, and keeps what it was asked."""

    samples_policy, version, counts_tokens, tokens_written, completions_written = False, -1, True, 0, 0

    def __init__(self, text=" Written {n}?\n{next}. Cut", finished=False):
        self.text, self.finished, self.asked = text, finished, []

    def generate(self, requests, who="policy"):
        for place, request in enumerate(requests):
            self.asked.append(request)
            text = self.text.format(n=len(self.asked), next=3)
            yield place, [Completion((1,), text, finished=self.finished) for _ in request.seeds]


def context(engine=None, number=0):
    return Context(engine or Writer(), None, Ranks(), 0, number, "instruction", Sampling(), {}, "math", MathGrader())


def begun(source, exemplars=1):
    writing = Writing(exemplars=exemplars, from_kept=0, template=InstructionTemplate(header="Plain."))
    source.begin(SEEDS, InstructionPool(SEEDS), writing)
    return source


def answered(problem, scores, weight=None, role="solve", confidence=1.0):
    completions = [Completion((1,), "") for _ in scores]
    return Group(problem, (1,), completions), Verdict(scores, weight=weight, confidence=confidence)


def same_state(make, source):
    """A new source that continues from the state of another."""
    other = begun(make())
    other.load_state_dict(source.state_dict())
    assert other.state_dict() == source.state_dict()
    return other


# -- SEC --------------------------------------------------------------------------------------------------------------


def test_the_bandit_moves_values_towards_the_mean_absolute_advantage():
    bandit = begun(CategoryBandit(rate=0.5))
    law, art = SEEDS[0], SEEDS[4]
    # scores 1 1 0 0: mean .5, unbiased deviation sqrt(1/3): all advantages are +-.5/(.5774 + 1e-4)
    size = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    pairs = [answered(law, [1, 1, 0, 0]), answered(law, [1, 1, 1, 1]), answered(art, [0, 0], [0, 0])]
    bandit.observe(*zip(*pairs, strict=True))
    assert bandit.values == {"art": 0.0, "law": pytest.approx(0.5 * size / 2)}
    bandit.observe(*zip(answered(law, [0.0, 0.0]), strict=True))
    assert bandit.values["law"] == pytest.approx(0.25 * size / 2)
    bandit.observe([], [])
    other = answered(Instruction("x", "y", role="propose", meta={"subject": "law"}), [0, 1])
    bandit.observe(*zip(other, strict=True))
    assert bandit.values["law"] == pytest.approx(0.25 * size / 2)


def test_the_bandit_draws_by_softmax_and_goes_through_each_category():
    bandit = begun(CategoryBandit(temperature=0.5))
    bandit.values = {"art": 0.0, "law": 0.5 * math.log(3)}  # exp(Q / tau) is 3 to 1
    drawn = bandit.propose(2000, context())
    shares = Counter(one.meta["subject"] for one in drawn)
    assert shares["law"] / 2000 == pytest.approx(0.75, abs=0.03)
    law = [one.prompt for one in drawn if one.meta["subject"] == "law"]
    assert all(sorted(law[i : i + 4]) == [f"Seed {k}?" for k in range(4)] for i in range(0, len(law) - 3, 4))
    assert {(one.label, one.meta["origin"]) for one in drawn if one.prompt == "Seed 4?"} == {("4", "seed")}
    other = same_state(CategoryBandit, bandit)
    other.temperature = 0.5
    assert other.propose(20, context()) == bandit.propose(20, context())
    bandit.values["law"] = 1e9  # no exponential overflows
    assert {one.meta["subject"] for one in bandit.propose(20, context())} == {"law"}


def test_seeds_without_categories_are_refused_with_what_to_do():
    for seeds, said in (
        ([], "data.source CategoryBandit starts from problems; set --data.seeds"),
        ([Instruction("a", "a"), Instruction("b", "b")], "without a subject; name their field with --data.fields.sub"),
        ([Instruction("a", "a", meta={"subject": "law"})] * 2, "all of one subject, 'law'"),
    ):
        with pytest.raises(InputError, match=said) as refused:
            CategoryBandit().check(seeds)
        assert len(str(refused.value)) <= 300
    CategoryBandit(by="level").check([Instruction("a", "a", meta={"level": n}) for n in (1, 2)])


# -- LADDER -----------------------------------------------------------------------------------------------------------


def test_problems_that_are_too_hard_get_easier_variants():
    ladder, engine = begun(EasierVariants(variants=1)), Writer()
    assert [one.meta["origin"] for one in ladder.propose(3, context(engine))] == ["seed"] * 3
    pairs = [answered(s, [1, 0], confidence=c) for s, c in zip(SEEDS, (0.5, 0.49, 0.0), strict=False)]
    pairs.append(answered(Instruction("x", "y", role="view"), [0, 0], confidence=0.0))
    variants = list(ladder.derive(*zip(*pairs, strict=True), context(engine)))
    assert sorted(one.link for one in variants) == [("easier", "seed-1", None), ("easier", "seed-2", None)]
    assert {(one.label, one.role, one.meta["subject"], one.meta["origin"]) for one in variants} == {
        (None, "solve", "law", "self")
    }
    assert all(one.prompt.startswith("Written") for one in variants)  # the one that was cut off is none
    # the temperature follows the sum of the uid's bytes, 511 and 512 here, on any number of processes
    assert sorted(r.sampling.temperature for r in engine.asked) == [0.8, 1.4]
    assert list(ladder.derive([], [], context(engine))) == []
    assert list(ladder.derive(*zip(*pairs[1:2], strict=True), context(Writer("")))) == []


# -- eva --------------------------------------------------------------------------------------------------------------


def test_prompts_evolve_from_those_with_the_largest_spread():
    evolve, engine = begun(EvolvedPrompts(share=0.5, variants=1)), Writer()
    assert {one.meta["origin"] for one in evolve.propose(4, context(engine))} == {"seed"}
    assert not engine.asked
    pairs = [answered(SEEDS[0], [1, 0, 0, 0]), answered(SEEDS[1], [1, 1, 1, 0]), answered(SEEDS[2], [1, 1])]
    pairs += [answered(SEEDS[3], [5, 0], [0, 1]), answered(SEEDS[4], [0, 0], [0, 0])]
    evolve.observe(*zip(*pairs, strict=True))
    assert [(one.prompt, info) for one, info in evolve.known] == [("Seed 0?", 0.75), ("Seed 1?", 0.25)]
    got = evolve.propose(400, context(engine))
    kinds = Counter(one.meta["origin"] for one in got)
    assert kinds == {"self": 200, "seed": 200}
    assert {one.meta["subject"] for one in got if one.meta["origin"] == "self"} == {"law"}
    other = same_state(lambda: EvolvedPrompts(share=0.5, variants=1), evolve)
    again = [other.propose(5, context()), evolve.propose(5, context())]
    assert again[0] == again[1]
    # what a problem showed last counts; without spread it is forgotten
    evolve.observe(*zip(answered(SEEDS[0], [1, 1]), strict=True))
    assert [one.prompt for one, _ in evolve.known] == ["Seed 1?"]
    evolve.remembered = 1
    evolve.observe(*zip(answered(SEEDS[5], [1, 0]), strict=True))
    assert [one.prompt for one, _ in evolve.known] == ["Seed 5?"]


# -- SwS --------------------------------------------------------------------------------------------------------------


def test_weak_spots_are_low_and_do_not_rise():
    spots, engine = begun(WeakSpots(share=1.0)), Writer()
    seen = {0: (0.4, 0.2), 1: (0.2, 0.4), 2: (0.0, 0.0), 3: (0.5, 0.1), 4: (0.1,), 5: (0.25, 0.5, 0.0)}
    for visit in range(3):
        for number, accuracies in seen.items():
            if visit < len(accuracies):
                seed = Instruction(f"Seed {number}?", f"r{visit}", meta={"origin": "seed"})
                p = accuracies[visit]
                spots.observe(*zip(answered(seed, [p, p, 9.0], [1, 1, 0]), strict=True))
    assert [one.prompt for one in spots.weak()] == ["Seed 0?", "Seed 2?"]  # .4 .2 falls, 0 0 stays
    written = spots.propose(3, context(engine))
    assert [(one.meta["origin"], one.meta["subject"]) for one in written] == [("self", "law")] * 3
    other = same_state(lambda: WeakSpots(share=1.0), spots)
    again = [other.propose(3, context()), spots.propose(3, context())]
    assert again[0] == again[1]
    spots.observe(*zip(answered(Instruction("Seed 0?", "w", meta={"origin": "self"}), [1.0, 1.0]), strict=True))
    assert len(spots.weak()) == 2  # only visits of seeds count
    assert {one.meta["origin"] for one in begun(WeakSpots()).propose(3, context())} == {"seed"}


# -- a trained proposer -----------------------------------------------------------------------------------------------


def test_a_proposal_is_one_problem_and_its_child_is_linked_to_it():
    proposer, engine = begun(Proposer(proposals=3, every=2)), Writer(" Written {n}?\nNo list", finished=True)
    groups = proposer.propose(2, context(engine))
    assert [(len(g), g.instruction.role, g.instruction.train) for g in groups] == [(3, "propose", True)] * 2
    assert "\n3." in engine.asked[0].sampling.stop
    assert groups[0].instruction.prompt.startswith("Plain.\n1. Seed")
    assert len({seed for request in engine.asked for seed in request.seeds}) == 6
    texts = [" Written?\n3. Another?", "", " Cut off in the middle"]
    flags = [True, True, False]
    made = Group(
        Instruction("Write.", "p", role="propose", meta={"first": 2, "subject": None}), (1,),
        [Completion((1,), t, finished=f) for t, f in zip(texts, flags, strict=True)],
    )  # fmt: skip
    solved = answered(SEEDS[0], [1, 0])
    (child,) = proposer.derive([made, solved[0]], [None, solved[1]], context(engine))
    assert (child.prompt, child.link, child.role) == ("Written?", ("problem", "p", 0), "solve")
    other = same_state(lambda: Proposer(proposals=3, every=2), proposer)
    later = [one.propose(1, context(Writer(), 1)) for one in (other, proposer)]
    assert later[0] == later[1]
    assert not later[0][0].instruction.train  # in every second round
    mixed = begun(Proposer(seeds_share=0.25))  # R-Few: a quarter of the roots are seeds, the rest is carried over
    assert [[count for _, count in mixed.lanes(3)] for _ in range(4)] == [[0, 3], [1, 2], [1, 2], [1, 2]]
    assert mixed.lanes(4)[0][0].propose(1, context())[0].meta["origin"] == "seed"
    same_state(lambda: Proposer(seeds_share=0.25), mixed)


def test_what_a_source_cannot_work_with_is_refused():
    enough = RoundOptions(max_waves=1, max_derived=4)
    check_source(Proposer(), SEEDS, enough, {"solve", "propose"})
    for source, seeds, options, roles, said in (
        (Proposer(), [], enough, (), "Proposer starts from problems; set --data.seeds"),
        (Proposer(), SEEDS, RoundOptions(), (), "data.round.max_waves is 0; set it to 1 or more, and data.round.max_d"),
        (Proposer(proposals=8), SEEDS, enough, (), "max_derived is 4 but data.source Proposer makes 8"),
        (Proposer(), SEEDS, enough, ("solve",), "no reward scores; set data.role_rewards.propose"),
    ):
        with pytest.raises(InputError, match=said) as refused:
            check_source(source, seeds, options, roles)
        assert len(str(refused.value)) <= 300
    for make, options in (
        (Proposer, {"proposals": 1}), (Proposer, {"every": 0}), (Proposer, {"seeds_share": 1.0}),
        (CategoryBandit, {"rate": 0.0}),
        (CategoryBandit, {"temperature": 0.0}), (EasierVariants, {"weak": 1.5}), (EasierVariants, {"variants": 0}),
        (EvolvedPrompts, {"share": 0.0}), (EvolvedPrompts, {"remembered": 0}), (WeakSpots, {"visits": 1}),
        (WeakSpots, {"below": 0.0}),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"data.source.{next(iter(options))}"):
            make(**options)
