"""Rules of a round: whose turn it is to bring problems, and what rewards may not say."""

from dataclasses import replace

import pytest
import torch

from lightning_serl.answers import MathGrader
from lightning_serl.datamodules.rounds.play import play_round
from lightning_serl.datamodules.rounds.setup import RoundOptions, RoundSetup, RoundState
from lightning_serl.datamodules.sources import InstructionSource, Mixture, PromptSet
from lightning_serl.engines import ReplayEngine, Sampling
from lightning_serl.errors import EmptyRound
from lightning_serl.rewards import MajorityVote
from lightning_serl.types import Group, Instruction, Link, Verdict

ANSWERS = ["\\boxed{1}", "\\boxed{1}", "\\boxed{2}", "\\boxed{3}"]


class Generous(InstructionSource):
    """Brings far more than it is asked for, as a model does that writes ten problems at a time."""

    def __init__(self):
        self.made = 0

    def propose(self, k, ctx):
        out = [Instruction(f"What is number {self.made + i} of many?", "", meta={"origin": "self"}) for i in range(30)]
        self.made += 30
        return out


class Everything(dict):
    """A recording that answers any prompt."""

    def get(self, prompt, default=None):
        return [(text, True) for text in ANSWERS]


class Rounds:
    """A setup whose fields a test may change between rounds, and the state of the rounds."""

    def __init__(self, setup):
        self.setup, self.state = setup, RoundState()

    def change(self, **fields):
        self.setup = replace(self.setup, **fields)

    def play(self, number):
        return play_round(self.setup, self.state, number)


def rounds(source, reward=None, **options):
    engine = ReplayEngine({"any": ANSWERS})
    engine._texts = Everything()
    grader = MathGrader()
    vote = MajorityVote(grader)
    size = RoundOptions(samples_per_prompt=4, max_attempts=1, **options)
    return Rounds(
        RoundSetup(size, source, engine, None, {"solve": reward or vote}, vote, grader, "math", {}, Sampling())
    )


def test_a_mixture_keeps_its_ratio_however_much_one_source_brings():
    seeds = [Instruction(f"Seed problem {i}.", f"seed-{i}") for i in range(10)]
    mixed = rounds(Mixture(Generous(), PromptSet(seeds), 0.3), prompts_per_round=8)
    counts = []
    for number in range(10):
        played = mixed.play(number)
        counts.append(sum(g.instruction.prompt.startswith("Seed") for g in played.groups))
        assert len(played.groups) == 8
    assert sum(counts) == 24
    assert set(counts) == {2, 3}


class Rolled(InstructionSource):
    """Returns three groups and four instructions at once."""

    def propose(self, k, ctx):
        fresh = [Instruction(f"p{i}", f"u{ctx.round}-{i}") for i in range(4)]
        groups = [Group.from_texts(f"g{i}", ANSWERS) for i in range(3)]
        for i, group in enumerate(groups):
            group.instruction = Instruction(f"g{i}", f"g{ctx.round}-{i}")
        return [*groups, *fresh]


def test_more_groups_than_asked_for_do_not_answer_the_queue_twice():
    rolled = rounds(Rolled(), prompts_per_round=2)
    voted = [e["uid"] for number in range(4) for e in rolled.play(number).events if e["event"] == "voted"]
    assert len(voted) == len(set(voted))


def test_a_score_that_is_no_number_ends_the_round():
    for bad, said in (
        (float("inf"), "not a finite number"),
        (float("nan"), "not a finite number"),
        (1e300, "not a finite number"),
        (-1e20, "of 1e+20, to problem"),
    ):
        reward = lambda groups, ctx, bad=bad: [Verdict([1.0, bad, 0, 0]) for _ in groups]  # noqa: E731
        try:
            rounds(Generous(), reward, prompts_per_round=2).play(0)
        except ValueError as error:
            assert said in str(error)  # noqa: PT017
        else:
            raise AssertionError("a score that is no number went through")


def test_a_score_that_is_no_number_may_stand_where_it_has_no_weight():
    def reward(groups, ctx):
        return [Verdict(torch.tensor([1.0, float("nan"), 0, 0]), weight=torch.tensor([1.0, 0, 1, 1])) for _ in groups]

    assert len(rounds(Generous(), reward, prompts_per_round=2).play(0).groups) == 2


class Noted(MathGrader):
    """Tells when it reads."""

    def __init__(self, log):
        super().__init__()
        self.log = log

    def extract(self, text):
        self.log.append("read")
        return super().extract(text)


class Elsewhere(ReplayEngine):
    """Its completions come one group at a time, as from a server."""

    def __init__(self, log, overlaps):
        super().__init__({"any": ANSWERS})
        self._texts, self.log, self.overlaps = Everything(), log, overlaps

    def generate(self, requests, who="policy"):
        for index, completions in reversed(list(super().generate(requests, who))):
            self.log.append("wrote")
            yield index, completions


def test_answers_are_read_while_an_engine_elsewhere_writes_the_next():
    played, logs = [], []
    for overlaps in (True, False):
        log = []
        at = rounds(Generous(), prompts_per_round=3)
        grader = Noted(log)
        at.change(engine=Elsewhere(log, overlaps), grader=grader, rewards={"solve": MajorityVote(grader)})
        played.append(at.play(0))
        logs.append([event for event, before in zip(log, ["", *log], strict=False) if event != before])
    assert logs[0] == ["wrote", "read"] * 3
    assert logs[1] == ["wrote", "read"]
    assert played[0].events == played[1].events
    assert [g.cluster for g in played[0].groups] == [g.cluster for g in played[1].groups]


def test_an_empty_round_says_why_and_keeps_its_events():
    def unanimous(groups, ctx):
        return [Verdict(torch.ones(4)) for _ in groups]

    from lightning_serl.callbacks import ZeroSpread

    barren = rounds(Generous(), unanimous, prompts_per_round=2)
    barren.change(group_filters=[ZeroSpread()])
    try:
        barren.play(5)
    except EmptyRound as error:
        assert "round 6: none of 2 groups survived 1 attempts (dropped or rejected: no_spread 2)" in str(error)  # noqa: PT017
        assert {e["event"] for e in error.played.events} >= {"proposed", "accepted", "voted", "dropped"}  # noqa: PT017
    else:
        raise AssertionError("a round without a group was taken for one")


class Barren(InstructionSource):
    """Proposes nothing."""

    def propose(self, k, ctx):
        return []


def why_empty(barren, number=0):
    with pytest.raises(EmptyRound) as caught:
        barren.play(number)
    assert len(str(caught.value)) <= 280
    return str(caught.value)


def test_an_empty_round_advises_about_what_emptied_it():
    from lightning_serl.callbacks import DifficultyFilter, NoveltyFilter, QualityFilter, ZeroSpread

    def mute(groups, ctx):
        return [Verdict(torch.zeros(4), info={"no_answer": 4}) for _ in groups]

    def hopeless(groups, ctx):
        return [Verdict(torch.zeros(4)) for _ in groups]

    unread = rounds(Generous(), mute, prompts_per_round=2)
    unread.change(group_filters=[DifficultyFilter()])
    said = why_empty(unread)
    assert (
        "no_answer 2); look at samples.jsonl, then check data.grader (math), the answer format that data.solve" in said
    )
    assert said.endswith("and data.max_tokens")
    hard = rounds(Generous(), hopeless, prompts_per_round=2)
    hard.change(group_filters=[DifficultyFilter()])
    assert "then widen the DifficultyFilter or raise data.round.max_attempts" in why_empty(hard)
    hard.change(instruction_filters=[QualityFilter(), NoveltyFilter(1.0)])
    assert "DifficultyFilter (list QualityFilter and NoveltyFilter too, to keep them) or" in why_empty(hard, 1)
    alike = rounds(Generous(), hopeless, prompts_per_round=2)
    alike.change(group_filters=[ZeroSpread()], instruction_filters=[QualityFilter(), NoveltyFilter(1.0)])
    said = why_empty(alike)
    assert "DifficultyFilter" not in said  # which is off
    assert "all responses to a problem got the same score" in said


class Roles(InstructionSource):
    """Brings an instruction, a group that it rolled out itself, and both of another role."""

    filtered = False

    def propose(self, k, ctx):
        rolled = [Group.from_texts(f"g{i}", ANSWERS) for i in range(2)]
        for i, (group, role) in enumerate(zip(rolled, ("solve", "judge"), strict=True)):
            group.instruction = Instruction(f"g{i}", f"g{ctx.round}-{i}", role=role)
        return [*rolled, Instruction("p0", "p0"), Instruction("p1", "p1", role="judge")]

    def derive(self, groups, verdicts, ctx):
        return [Instruction("again", "", link=Link("again", g.instruction.uid), role="judge") for g in groups[:1]]


def test_every_reward_finds_the_answers_of_the_run_s_grader():
    seen = {}

    def look(groups, ctx):
        seen.update({g.instruction.uid: (g.answers, g.cluster) for g in groups})
        assert all([ctx.extract(text, g.instruction) for text in g.texts] == g.answers for g in groups)
        return [Verdict(torch.tensor([1.0, 0, 0, 1])) for _ in groups]

    played = rounds(Roles(), look, prompts_per_round=4, max_waves=1)
    played.change(rewards={"solve": look, "judge": look})
    played.play(0)
    assert len(seen) == 5
    assert all(found == (["1", "1", "2", "3"], [0, 0, 1, 2]) for found in seen.values())


def test_a_round_without_proposals_says_what_would_bring_some():
    barren = rounds(Barren(), prompts_per_round=2)
    said = why_empty(barren)
    assert "the recording holds no unused proposals (rows without a problem)" in said
    assert said.endswith("set data.source to seeds")
    barren.setup.engine.samples_policy = True
    assert "no problem was proposed, not even one to reject; raise data.writing.sampling.max_tokens" in why_empty(
        barren
    )


# -- the published loop -----------------------------------------------------------------------------------------------


def mixed(groups, ctx):
    """Every other group is in the band: half of its responses agree, of the others all."""
    return [Verdict(torch.tensor([1.0, 1, 0, 0] if int(g.instruction.uid[-1]) % 2 else [1.0, 1, 1, 1])) for g in groups]


def published(**options):
    from lightning_serl.callbacks import DifficultyFilter

    made = rounds(Generous(), mixed, prompts_per_round=4, style="serl", **options)
    made.change(group_filters=[DifficultyFilter(style="serl")])
    made.change(
        options=RoundOptions(samples_per_prompt=4, max_attempts=4, prompts_per_round=4, style="serl", **options)
    )
    return made


def test_every_published_attempt_is_whole_and_hands_on_what_it_dropped():
    made = published()
    played = made.play(0)
    voted = [e["uid"] for e in played.events if e["event"] == "voted"]
    assert len(voted) == 8, "two attempts of four, though the second lacked two groups only"
    assert len(played.groups) == 4
    assert [v.attempt for v in played.verdicts] == [1, 1, 2, 2]
    assert not any(v.dropped for v in played.verdicts)
    assert [(v.dropped, v.attempt) for _, v in played.dropped] == [(True, 1)] * 2 + [(True, 2)] * 2
    assert all(v.weight.tolist() == [1.0] * 4 for _, v in played.dropped)


def test_the_default_hands_on_the_survivors_alone():
    from lightning_serl.callbacks import DifficultyFilter

    made = rounds(Generous(), mixed, prompts_per_round=4)
    made.change(options=RoundOptions(samples_per_prompt=4, max_attempts=4, prompts_per_round=4))
    made.change(group_filters=[DifficultyFilter()])
    played = made.play(0)
    assert played.dropped == []
    assert {v.attempt for v in played.verdicts} == {0}


def test_the_published_loop_forgets_what_was_not_answered_and_the_default_carries_it():
    made = published()
    first = made.play(0)
    assert made.state.queue == []
    dropped = [e for e in first.events if e["event"] == "dropped" and e["reason"] == "no_room"]
    assert len(dropped) == 22, "30 written, 8 answered"
    assert "accepted" not in made.state.pool.statuses
    carries = rounds(Generous(), prompts_per_round=4)
    carries.play(0)
    assert len(carries.state.queue) == 26
    assert carries.state.pool.statuses.count("accepted") == 26


def test_the_published_loop_shows_surplus_groups_as_exemplars():
    def in_band(groups, ctx):
        return [Verdict(torch.tensor([1.0, 1, 0, 0])) for _ in groups]

    made = published()
    made.change(
        rewards={
            "solve": lambda groups, ctx: mixed(groups, ctx) if made.state.pool.kept == [] else in_band(groups, ctx)
        }
    )
    played = made.play(0)
    assert len(played.groups) == 4
    assert len(made.state.pool.kept) == 6, "two of the second attempt's four had no room"
    assert sum(e["event"] == "kept" for e in played.events) == 4


# -- over-long responses ----------------------------------------------------------------------------------------------


class Cut(Everything):
    """Four responses, the third cut off by length."""

    def get(self, prompt, default=None):
        return [(text, i != 2) for i, text in enumerate(ANSWERS)]


def test_truncated_responses_can_be_kept_out():
    for mask in (False, True):
        made = rounds(Generous(), prompts_per_round=2, mask_truncated=mask)
        made.setup.engine._texts = Cut()
        played = made.play(0)
        assert [v.weight.tolist() for v in played.verdicts] == [[1, 1, 0 if mask else 1, 1]] * 2


def test_long_responses_can_cost_score_but_not_their_place():
    from lightning_serl.callbacks import DifficultyFilter
    from lightning_serl.engines.base import RolloutEngine
    from lightning_serl.types import Completion

    class Lengths(ReplayEngine):
        def generate(self, requests, who="policy"):
            for i, _ in enumerate(requests):
                lengths = [10, 70, 90, 100]
                yield i, [Completion(tuple(range(n)), t) for n, t in zip(lengths, ANSWERS, strict=True)]

    assert issubclass(Lengths, RolloutEngine)
    made = rounds(Generous(), prompts_per_round=2, overlong_buffer=40)
    made.change(engine=Lengths({"any": ANSWERS}), sampling=Sampling(max_tokens=100))
    made.change(group_filters=[DifficultyFilter(0.5, 0.5)])
    played = made.play(0)
    assert [[round(s, 6) for s in v.scores.tolist()] for v in played.verdicts] == [[1.0, 0.75, -0.75, -1.0]] * 2
    assert [e["scores"] for e in played.events if e["event"] == "voted"] == [[1.0, 1.0, 0.0, 0.0]] * 2
