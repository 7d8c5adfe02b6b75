"""The training stream: sized, lazy, never stale, at home with any module that has ``policy`` and ``experience``."""

import json
from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch
from helpers.engines import FailingEngine
from helpers.training import rows, selfplay, trainer_for, weights
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from lightning_serl import SeRLModule
from lightning_serl.callbacks import Checkpoints, RolloutHooks
from lightning_serl.callbacks.run_folder import Ledger
from lightning_serl.datamodules import EvaluationOptions
from lightning_serl.errors import EmptyRound, InputError
from lightning_serl.objectives import policy_loss
from lightning_serl.rewards import MajorityVote


class Watch(RolloutHooks):
    """Remembers every round with the policy version it was played at, and the step it was asked for."""

    def __init__(self):
        self.rounds, self.uids, self.batches, self.started = [], [], 0, False

    def on_train_start(self, trainer, pl_module):
        self.started = True

    def on_rollout_start(self, trainer, pl_module, engine):
        assert self.started or not trainer.training, "generated before training began"
        self.version, self.step = pl_module.policy.version, trainer.global_step

    def on_round_end(self, trainer, pl_module, played):
        versions = {c.version for g in played.groups for c in g.completions}
        self.rounds.append({"number": played.number, "versions": versions, "now": self.version, "step": self.step})

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches += 1
        self.uids.append(batch.uids)


def uids_of(root):
    return [e["uid"] for e in rows(root, "ledger") if e["event"] == "proposed"]


def test_no_completion_is_older_than_the_step_before_it(tmp_path):
    module, data = selfplay(steps=(2, 2), rounds_per_epoch=2)
    watch = Watch()
    trainer = trainer_for(tmp_path, [watch], accumulate_grad_batches=2, max_epochs=2, enable_checkpointing=False)
    trainer.fit(module, data)
    assert [r["number"] for r in watch.rounds] == [0, 1, 2, 3]
    assert [r["step"] for r in watch.rounds] == [0, 4, 8, 12]
    assert [r["versions"] for r in watch.rounds] == [{0}, {4}, {8}, {12}]
    assert all(r["versions"] == {r["now"]} for r in watch.rounds)
    assert watch.batches == 2 * 2 * 4 * 2
    assert module.policy.version == 16


@pytest.mark.parametrize(("steps", "accumulate", "rounds"), [((1, 1), 1, 3), ((2, 3), 4, 2)])
def test_length_is_rounds_times_steps_times_accumulation(tmp_path, steps, accumulate, rounds):
    module, data = selfplay(steps=steps, rounds_per_epoch=rounds)
    trainer = trainer_for(tmp_path, accumulate_grad_batches=accumulate, enable_checkpointing=False)
    seen = []

    class Look(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append((trainer.num_training_batches, trainer.estimated_stepping_batches, data.engine.calls))
            raise StopIteration

    trainer.callbacks.append(Look())
    data.engine = FailingEngine()
    with pytest.raises(StopIteration):
        trainer.fit(module, data)
    length = rounds * steps[0] * steps[1] * accumulate
    assert seen == [(length, rounds * steps[0] * steps[1], 0)], "sized, and nothing was generated to learn it"


def test_iter_does_nothing_and_next_plays(tmp_path):
    module, data = selfplay(engine=FailingEngine())
    trainer = trainer_for(tmp_path, enable_checkpointing=False)
    module._trainer = data.trainer = trainer
    trainer.strategy._lightning_module = module
    data.setup("fit")
    stream = data.train_dataloader()
    waiting = iter(stream)
    assert data.engine.calls == 0
    assert "policy" not in module._modules, "not even the policy is loaded"
    next(waiting)
    assert data.engine.calls > 0


def test_a_second_fit_goes_on_after_the_rounds_played(tmp_path):
    module, data = selfplay(rounds_per_epoch=2)
    for _ in range(2):
        watch = Watch()
        trainer_for(tmp_path, [watch], enable_checkpointing=False).fit(module, data)
    assert [r["number"] for r in watch.rounds] == [2, 3]
    assert sorted({e["round"] for e in rows(tmp_path, "ledger")}) == [0, 1, 2, 3]
    assert len(uids_of(tmp_path)) == len(set(uids_of(tmp_path)))
    trained = [(e["uid"], e["round"]) for e in rows(tmp_path, "ledger") if e["event"] == "trained"]
    assert len(trained) == len(set(trained))


def test_the_same_trainer_can_fit_on(tmp_path):
    module, data = selfplay(rounds_per_epoch=1)
    trainer = trainer_for(tmp_path, watch := [Watch()], enable_checkpointing=False)
    trainer.fit(module, data)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, data)
    assert [r["number"] for r in watch[0].rounds] == [0, 1, 2]
    assert [r["step"] for r in watch[0].rounds] == [0, 1, 2]


@pytest.mark.parametrize("call", [2, 4])
def test_a_fit_after_one_that_failed_in_mid_round(tmp_path, call):
    module, data = selfplay(engine=FailingEngine(fail_at=call), rounds_per_epoch=2)
    with pytest.raises(RuntimeError, match="the engine is gone"):
        trainer_for(tmp_path, enable_checkpointing=False).fit(module, data)
    first = data.rounds
    watch = Watch()
    trainer_for(tmp_path / "second", [watch], enable_checkpointing=False).fit(module, data)
    assert [r["number"] for r in watch.rounds] == [first, first + 1]
    assert len(uids_of(tmp_path / "second")) == len(set(uids_of(tmp_path / "second")))


def test_validate_before_fit(tmp_path):
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(json.dumps({"problem": "What is 3 + 4?", "answer": "7"}) + "\n")
    sets = EvaluationOptions(sets={"small": str(held_out)}, samples=2)
    module, data = selfplay(evaluation=sets, rounds_per_epoch=1)
    trainer = trainer_for(tmp_path / "both", enable_checkpointing=False)
    trainer.validate(module, data, verbose=False)
    assert module.last_results["small"]["n"] == 1
    trainer.fit(module, data)
    fresh, other = selfplay(evaluation=sets, rounds_per_epoch=1)
    trainer_for(tmp_path / "fit", enable_checkpointing=False).fit(fresh, other)
    assert rows(tmp_path / "both", "ledger") == rows(tmp_path / "fit", "ledger")
    assert [m["step"] for m in rows(tmp_path / "both")] == [0, 1, 1]
    assert rows(tmp_path / "both")[1:] == rows(tmp_path / "fit")
    for name, tensor in weights(fresh).items():
        assert torch.equal(weights(module)[name], tensor), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"limit_train_batches": 3},
            r"limit_train_batches \(3\) must be a multiple of trainer.accumulate_grad_batches \(2\)",
        ),
        ({"limit_train_batches": 0.25}, r"limit_train_batches \(0.25, which is 1 micro-batches\)"),
        ({"callbacks": [GradientAccumulationScheduler({0: 2})]}, "GradientAccumulationScheduler cannot be used"),
    ],
)
def test_a_cut_optimizer_step_is_refused_before_anything_loads(tmp_path, options, message):
    module, data = selfplay(rounds_per_epoch=2)
    options = {"accumulate_grad_batches": 2} | options if "callbacks" not in options else options
    with pytest.raises(InputError, match=message):
        trainer_for(tmp_path, enable_checkpointing=False, **options).fit(module, data)
    assert "policy" not in module._modules


def test_a_limit_that_cuts_rounds_apart_changes_nothing_but_the_epochs(tmp_path):
    """Three steps per epoch, two per round: rounds straddle epochs and every step is made once."""
    watch = Watch()
    module, data = selfplay(steps=(1, 2), rounds_per_epoch=2)
    trainer = trainer_for(tmp_path / "cut", [watch], limit_train_batches=3, max_epochs=4, enable_checkpointing=False)
    trainer.fit(module, data)
    assert trainer.global_step == 12
    assert [r["step"] for r in watch.rounds] == [0, 2, 4, 6, 8, 10]
    whole, other = selfplay(steps=(1, 2), rounds_per_epoch=6)
    trainer_for(tmp_path / "whole", enable_checkpointing=False).fit(whole, other)
    assert rows(tmp_path / "cut", "ledger") == rows(tmp_path / "whole", "ledger")
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(module)[name], tensor), name


def test_resume_with_other_micro_batches_skips_the_rest_of_the_round(tmp_path):
    class Stop(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 3:
                raise RuntimeError("stopped")

    module, data = selfplay(steps=(1, 2), rounds_per_epoch=3)
    with pytest.raises(RuntimeError, match="stopped"):
        trainer_for(tmp_path, [Checkpoints(), Stop()], accumulate_grad_batches=2).fit(module, data)
    watch = Watch()
    module, data = selfplay(steps=(1, 2), rounds_per_epoch=3)
    # a multiple would divide the micro-batches of the checkpoint further
    trainer = trainer_for(tmp_path, [watch, Checkpoints()], accumulate_grad_batches=3, max_steps=7, max_epochs=-1)
    with pytest.warns(UserWarning, match="the rest of that round is skipped"):
        trainer.fit(module, data, ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"))
    assert [(r["number"], r["step"]) for r in watch.rounds] == [(2, 3), (3, 5)]
    assert len(uids_of(tmp_path)) == len(set(uids_of(tmp_path)))


def test_a_round_without_a_survivor_ends_the_run_with_its_events_on_disk(tmp_path):
    """A reward without spread: every group is dropped."""
    import lightning_serl

    def same(groups, ctx):
        return [lightning_serl.types.Verdict(torch.ones(len(g))) for g in groups]

    module, data = selfplay(reward=same)
    with pytest.raises(EmptyRound, match=r"none of .* groups survived"):
        trainer_for(tmp_path, [Checkpoints()]).fit(module, data)
    assert {e["event"] for e in rows(tmp_path, "ledger")} >= {"proposed", "voted", "dropped"}
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["callbacks"]["Ledger"]["offsets"]["ledger"] == 0
    assert state["callbacks"]["Ledger"]["counts"] == {}


def test_a_round_in_which_all_agree_ends_training_well(tmp_path):
    """After the first round every response gets the majority's answer: nothing failed, and nothing is left to learn."""
    vote = MajorityVote()
    trained = []

    def lately_agreed(groups, ctx):
        verdicts = vote(groups, ctx)
        if not trained:
            trained.append(True)
            return verdicts
        return [replace(v, scores=torch.ones_like(v.scores), label=v.label or "1") for v in verdicts]

    module, data = selfplay(reward=lately_agreed, rounds_per_epoch=4)
    trainer = trainer_for(tmp_path, [Checkpoints()], max_epochs=3)
    with pytest.warns(UserWarning, match="nothing is left to learn from them and training ends here"):
        trainer.fit(module, data)
    assert trainer.state.finished
    assert 0 < trainer.global_step < 4
    again, rest = selfplay(reward=lately_agreed, rounds_per_epoch=4)
    resumed = trainer_for(tmp_path, [Checkpoints()], max_epochs=3)
    with pytest.warns(UserWarning, match="nothing is left to learn"):
        resumed.fit(again, rest, ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"))
    assert resumed.global_step == trainer.global_step


class Own(pl.LightningModule):
    """Another module: it offers ``policy`` and ``experience``, and nothing else the stream could lean on."""

    def __init__(self):
        super().__init__()
        self.policy = SeRLModule("tiny:base").policy
        self.lengths = []

    def experience(self, groups, verdicts):
        from lightning_serl.types import pad_rows

        batches = []
        for group, verdict in zip(groups, verdicts, strict=True):
            rows = [group.prompt_ids + c.token_ids for c in group.completions]
            batch = pad_rows(rows, [len(group.prompt_ids)] * len(rows), self.policy.pad_id)
            batch.advantages = (verdict.scores - verdict.scores.mean())[:, None].expand(batch.mask.shape).clone()
            batches.append(batch)
        return batches[:1]

    def training_step(self, batch, batch_idx):
        logp = self.policy(batch).logp
        return policy_loss(logp, logp.detach(), batch.advantages, batch.mask)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2)


def test_the_stream_feeds_another_module(tmp_path):
    module, (_, data) = Own(), selfplay(rounds_per_epoch=3)
    before = weights(module)
    watch = Watch()
    trainer_for(tmp_path, [watch, Ledger(), Checkpoints(1)]).fit(module, data)
    assert [r["number"] for r in watch.rounds] == [0, 1, 2]
    assert any(not torch.equal(before[n], w) for n, w in weights(module).items())
    assert sum(e["event"] == "trained" for e in rows(tmp_path, "ledger")) >= 3
    # its checkpoints resume as well
    module, (_, data) = Own(), selfplay(rounds_per_epoch=3)
    watch = Watch()
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    trainer_for(tmp_path, [watch, Ledger(), Checkpoints(1)], max_epochs=2).fit(module, data, ckpt_path=last)
    assert [r["number"] for r in watch.rounds] == [3, 4, 5]
