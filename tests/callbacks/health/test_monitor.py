"""The health callback on streams of votes, in real runs, and in resumed runs."""

import random
import warnings

import pytest
import torch
from helpers.engines import FailingEngine
from helpers.training import ledger, rows, selfplay, trainer_for, weights

from lightning_serl.callbacks import Checkpoints, Health, Ledger, RolloutHooks
from lightning_serl.callbacks.health import slope
from lightning_serl.datamodules.rounds.health_probe import Probe
from lightning_serl.datamodules.rounds.setup import RoundOptions
from lightning_serl.engines import ReplayEngine
from lightning_serl.rewards import MajorityVote
from lightning_serl.types import Completion, Group, Instruction, Round

SIGNS = {
    "vote_entropy",
    "unanimous_share",
    "no_answer_share",
    "truncated_share",
    "repeated_4gram_share",
    "length_ratio",
    "entropy_ratio",
    "same_vote_share",
    "probe_fall",
}
PROBED = {"same_vote_share", "probe_fall"}  # fmt: skip

# -- streams of votes --------------------------------------------------------------------------------------------------


def answered(number, respond, prompts=16, samples=8):
    """A round whose responses are made by ``respond(rng, prompt)`` and voted on."""
    rng = random.Random(number)
    groups = []
    for prompt in range(prompts):
        responses = [respond(rng, 100 * number + prompt) for _ in range(samples)]
        written = [Completion((), text, None, done) for text, done in responses]
        groups.append(Group(Instruction(f"{number} {prompt}", f"{number}-{prompt}"), (), written))
    verdicts = MajorityVote("math")(groups, None)
    return Round(number, answered=list(zip(groups, verdicts, strict=True)), stats={"reward": 0.0})


def steps_to(answer, rng):
    return " ".join(str(rng.randrange(1000)) for _ in range(30)) + f" \\boxed{{{answer}}}"


def stream(respond, rounds=40):
    """The callback's warnings as pairs of round and sign, the signs it logs, and the warnings at the end."""
    health, trainer, entered = Health(), trainer_for("."), []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        said = []
        for number in range(rounds):
            played = answered(number, lambda rng, prompt, at=number / rounds: respond(rng, prompt, at))
            health.on_round_end(trainer, None, played)
            entered.append({k.removeprefix("serl/health/"): v for k, v in played.stats.items() if k != "reward"})
            said += [(number, w) for w in caught[len(said) :]]
    return [(number, str(w.message).split(": ")[1].split(" is ")[0]) for number, w in said], entered, health.outside


def test_a_healthy_stream_is_silent():
    def respond(rng, prompt, at):
        """Answers that agree more and more, are sometimes missing or cut off, and grow longer."""
        if rng.random() < 0.05:
            return "no idea", False
        right = rng.random() < 0.4 + 0.45 * at
        return steps_to(prompt if right else rng.randrange(1000), rng) + " ok" * int(10 * at), True

    said, entered, outside = stream(respond)
    assert said == outside == []
    assert entered[0]["vote_entropy"] > 0.6 > 0.4 > entered[-1]["vote_entropy"]
    assert entered[0]["length_ratio"] == 1
    assert entered[0].keys() | {*PROBED, "entropy_ratio"} == SIGNS | {"top_answer_share"}


def test_one_answer_to_everything_is_noticed_before_it_is_everywhere():
    def respond(rng, prompt, at):
        template = random.Random(prompt).random() < at  # a growing share of problems gets 42
        return steps_to(42 if template and rng.random() < 0.9 else prompt if rng.random() < 0.6 else 7, rng), True

    said, entered, _ = stream(respond)
    number, sign = said[0]
    assert sign == "top_answer_share"
    assert entered[number]["top_answer_share"] < 0.75
    assert [s for _, s in said].count("top_answer_share") == 1


def test_slow_lock_in_is_noticed_once():
    def respond(rng, prompt, at):
        return steps_to(prompt if rng.random() < 0.5 + at else rng.randrange(1000), rng), True

    said, entered, outside = stream(respond)
    assert [sign for _, sign in said] == ["unanimous_share"]
    assert [sentence.partition(" is ")[0] for sentence in outside] == ["unanimous_share"]
    assert all(e["top_answer_share"] < 0.2 for e in entered)


def test_endless_repetition_is_noticed():
    def respond(rng, prompt, at):
        if rng.random() < 2 * at - 0.5:
            return "and so " * 200, False
        return steps_to(prompt if rng.random() < 0.6 else rng.randrange(1000), rng), True

    said, _, _ = stream(respond)
    assert {sign for _, sign in said} >= {"repeated_4gram_share", "truncated_share", "no_answer_share", "length_ratio"}


# -- real runs ---------------------------------------------------------------------------------------------------------


def fit(root, callbacks=(), engine=None, ckpt=None, every=1, **options):
    probe = Probe(prompts=24, samples=4, every=every)
    module, data = selfplay(engine=engine, probe=probe, max_tokens=32, rounds_per_epoch=4)
    trainer = trainer_for(root, [*callbacks, Checkpoints(100)], accumulate_grad_batches=2, **options)
    trainer.fit(module, data, ckpt_path=ckpt)
    return module, trainer


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed")
    module, trainer = fit(root)
    return root, weights(module), trainer


def signs(root):
    return [{k.removeprefix("serl/health/"): v for k, v in row.items() if "/health/" in k} for row in rows(root)]


def test_every_step_has_its_signs_without_a_label(undisturbed):
    found = signs(undisturbed[0])
    assert len(found) == 4
    assert all(row.keys() - {"top_answer_share", "kl_slope"} == SIGNS for row in found)
    assert ["kl_slope" in row for row in found] == [False, False, False, True]
    assert found[3]["kl_slope"] == slope([row["kl"] for row in rows(undisturbed[0])])
    assert all(0 <= row[name] <= 1 for row in found for name in SIGNS - {"length_ratio", "entropy_ratio"})
    assert found[0]["same_vote_share"] == found[0]["length_ratio"] == found[0]["entropy_ratio"] == 1
    assert len({tuple(sorted(row.items())) for row in found}) == 4


def test_the_probe_comes_when_it_is_due_and_moves_nothing_else(tmp_path, undisturbed):
    origin, true_weights, _ = undisturbed
    module, _ = fit(tmp_path, every=3)
    assert ["same_vote_share" in row for row in signs(tmp_path)] == [True, False, False, True]
    assert signs(tmp_path)[3]["same_vote_share"] == signs(origin)[3]["same_vote_share"]
    assert ledger(tmp_path) == ledger(origin)
    for name, tensor in weights(module).items():
        assert torch.equal(tensor, true_weights[name]), name


def test_the_ledger_writes_the_signs_wherever_the_user_lists_it(tmp_path, undisturbed):
    _, trainer = fit(tmp_path, [Ledger()], every=0, max_steps=1)
    assert signs(tmp_path)[0] == {k: v for k, v in signs(undisturbed[0])[0].items() if k not in PROBED}
    places = [next(i for i, c in enumerate(trainer.callbacks) if isinstance(c, kind)) for kind in (Health, Ledger)]
    assert places == sorted(places)


def test_recordings_have_no_probe_and_rewards_that_read_no_answer_have_votes(tmp_path):
    texts = [f"It is \\boxed{{{n}}}." for n in (1, 1, 2, 3)]
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text("".join(f'{{"problem": "What is {i} + 1?"}}\n' for i in range(9)))
    recorded = ReplayEngine({f"What is {i} + 1?": texts for i in range(9)})
    options = {"source": "seeds", "reward": "RandomReward", "round": RoundOptions(9, 4, 1), "rounds_per_epoch": 1}
    module, data = selfplay(engine=recorded, seeds=str(seeds), probe=Probe(every=1), **options)
    trainer_for(tmp_path, enable_checkpointing=False).fit(module, data)
    found = signs(tmp_path)[0]
    assert found.keys() == (SIGNS | {"top_answer_share"}) - PROBED
    assert found["vote_entropy"] == pytest.approx(0.75)  # log 2 / 2 + 2 * log 4 / 4 over log 4
    assert found["top_answer_share"] == 1


class Strike(RolloutHooks):
    """Raises at the n-th call of one hook."""

    def __init__(self, hook, at):
        def strike(*args, **kwargs):
            self.seen += 1
            if self.seen == at:
                raise RuntimeError("stopped here")

        self.seen = 0
        setattr(self, hook, strike)


@pytest.mark.parametrize(
    "stop",
    [
        lambda: {"callbacks": [Strike("on_train_batch_end", 4)]},  # stepped, but nobody heard of it
        lambda: {"callbacks": [Strike("on_after_backward", 5)]},  # inside a window
        lambda: {"callbacks": [Ledger(), Strike("on_round_end", 2)]},  # after both did their work
        lambda: {"engine": FailingEngine(fail_at=1)},  # in the first probe
    ],
)
def test_killed_and_resumed_has_the_same_signs(tmp_path, undisturbed, stop):
    origin, true_weights, trainer = undisturbed
    with pytest.raises(RuntimeError, match=r"stopped here|engine is gone"):
        fit(tmp_path, **stop())
    module, resumed = fit(tmp_path, ckpt=f"{tmp_path}/checkpoints/last.ckpt")
    assert rows(tmp_path) == rows(origin)
    assert ledger(tmp_path) == ledger(origin)
    for name, tensor in weights(module).items():
        assert torch.equal(tensor, true_weights[name]), name
    state, true_state = (next(c for c in t.callbacks if isinstance(c, Health)).state_dict() for t in (resumed, trainer))
    assert state == true_state
    assert len(state["start"]) == 24


def test_a_probe_that_cannot_be_is_refused():
    for wrong in ({"every": -1}, {"prompts": 0}, {"samples": 1}):
        with pytest.raises(ValueError, match=f"probe.{next(iter(wrong))} must be"):
            Probe(**wrong)
