"""The profile of a round: seconds of its parts, and what is said about them."""

import pytest
from helpers.training import selfplay, trainer_for

from lightning_serl.callbacks.run_folder import profile
from lightning_serl.callbacks.run_folder.profile import RoundProfile, shares, shares_sentence
from lightning_serl.callbacks.time_advice import Situation, advice, situation_of


class Clock:
    """Takes the place of the clock and of the seconds that ranks have waited."""

    def __init__(self, monkeypatch):
        self.now = self.waited = 0.0
        monkeypatch.setattr(profile.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(profile, "seconds_waited", lambda: self.waited)

    def work(self, seconds, waiting=0.0):
        self.now += seconds + waiting
        self.waited += waiting

    def fail(self, seconds):
        self.work(seconds)
        return KeyError()


def test_parts_add_up_to_the_whole(monkeypatch):
    clock = Clock(monkeypatch)
    found = RoundProfile()
    found.on_fit_start(None, None)
    found.on_train_start(None, None)
    clock.work(0.5)
    with found.span("other"):
        with found.phase("writing problems", 4):
            clock.work(2)
            with found.span("pushing"):
                clock.work(1)
            with found.phase("filtering", 3):
                clock.work(0.25)
        with found.phase("answering", 4):
            clock.work(8, waiting=3)
        with pytest.raises(KeyError), found.phase("voting", 4), found.span("pushing"):
            raise clock.fail(0.125)
    found.on_train_batch_start(None, None, None, 0)
    clock.work(4)
    rounds = {"writing": 2.0, "sync": 1.125, "filtering": 0.25, "answering": 8.0, "waiting": 3.0}
    assert found.row() == {f"time/{k}": v for k, v in rounds.items()} | {"time/training": 4.0, "time/other": 0.5}
    found.on_validation_start(None, None)
    clock.work(5)
    with found.phase("evaluating", 1):
        clock.work(1)
    found.on_validation_end(None, None)
    clock.work(0.00001)
    assert found.row() == {"time/evaluating": 6.0}
    found.on_train_end(None, None)
    clock.work(2)
    found.row()
    assert sum(found.totals.values()) == pytest.approx(clock.now)
    assert found.totals["other"] == 2.5


def test_shares_are_sorted_and_named():
    seconds = {"training": 3.0, "answering": 6.0, "logprobs": 0.9, "sync": 0.05, "starting": 0.05}
    assert list(shares(seconds)) == ["answering", "training", "logprobs", "starting", "sync"]
    assert shares_sentence(seconds) == "answering 60 %, training 30 %, log-probs 9 %"
    assert shares_sentence({}) == ""


# (part, what the run is like, options that its advice names, options that would be wrong)
ADVICE = [
    ("answering", Situation(most_rows=8, answers=256), ["data.engine.max_rows (now 8)", "data.max_tokens"], []),
    ("answering", Situation(most_rows=256, answers=256), ["data.max_tokens"], ["max_rows"]),
    ("answering", Situation(gpu=True, most_rows=256, answers=256), ["data.engine VLLMEngine"], ["max_rows"]),
    ("writing", Situation(gpu=True, engine="vllm"), ["data.writing.sampling.max_tokens", "VLLMServerEngine"], []),
    ("answering", Situation(gpu=True, engine="server"), ["data.engine.urls", "data.max_staleness 1"], []),
    ("waiting", Situation(engine="server", ahead=True), ["data.engine.urls"], ["max_staleness"]),
    ("waiting", Situation(gpu=True), ["data.max_tokens"], ["urls"]),
    ("training", Situation(gpu=True), ["bf16-mixed", "model.lora.r", "trainer.devices"], ["checkpointing"]),
    ("training", Situation(lora=True, checkpointing=True), ["gradient_checkpointing false"], ["model.lora"]),
    ("logprobs", Situation(reference=True), ["model.objective.beta 0"], ["inner_epochs"]),
    ("logprobs", Situation(old=True), ["model.inner_epochs 1"], ["beta"]),
    ("evaluating", Situation(), ["data.evaluation.samples"], []),
    ("grading", Situation(), ["data.reward"], []),
    ("sync", Situation(), ["model.lora.r"], []),
    ("probing", Situation(), ["data.probe.every"], []),
]  # fmt: skip


def test_advice_names_options_that_the_run_can_change():
    for part, run, named, wrong in ADVICE:
        said = advice(part, run)
        assert all(option in said for option in named), (part, run, said)
        assert not any(option in said for option in wrong), (part, run, said)
    assert advice("sync", Situation(lora=True)) == advice("other", Situation()) == ""


def test_the_situation_is_read_from_the_run():
    module, data = selfplay(steps=(2, 1))
    trainer = trainer_for(".")
    trainer.strategy.connect(module)
    trainer._data_connector.attach_data(module, datamodule=data)
    assert situation_of(trainer) == Situation(most_rows=256, answers=12, reference=True, old=True)
