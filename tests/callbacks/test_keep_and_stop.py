"""What is kept, when a run stops, and how it is rolled back, on the health probe of real runs."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.training import ledger, rows, selfplay, trainer_for, weights
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_serl.callbacks import Checkpoints, CollapseGuard, Export, KeepBest, RolloutHooks, StopEarly
from lightning_serl.callbacks.probe_signs import ProbeHistory, Reading, match_share, spread_signs
from lightning_serl.checkpoints.checks import check_overrides
from lightning_serl.datamodules.rounds.health_probe import Probe
from lightning_serl.errors import InputError
from lightning_serl.policy.lora import LoraOptions
from lightning_serl.rewards import MajorityVote
from lightning_serl.types import Probed


def probe(*answers, tokens=10):
    """A probe whose problem number i has the i-th tuple of answers."""
    return {f"p{i}": Probed(tuple(one), tokens * len(one), 0) for i, one in enumerate(answers)}


def same(a, b):
    return a == b


def test_signs_of_one_probe():
    assert match_share("a", ("a", "b", None, "a"), same) == 0.5
    signs = spread_signs(probe("aaaa", "abab", (None, None, None, None)))
    assert signs["agreement"] == pytest.approx(0.5)
    assert signs["no_answer"] == pytest.approx(1 / 3)
    assert signs["halves_agreement"] == pytest.approx(1 / 3)
    assert signs["vote_entropy"] == pytest.approx(0.25)
    assert signs["length"] == 10


def test_agreement_on_other_answers_is_a_fall_and_agreement_on_the_same_is_none():
    start = probe(*["aaab"] * 12, *["abcd"] * 4)  # the first halves agree on a, the second halves have no majority
    better, worse = probe(*["aaaa"] * 16), probe(*["bbbb"] * 16)
    history = ProbeHistory()
    reading = history.enter(start, same)
    assert (reading.change, reading.signs["score"]) == (0, 0.5)
    reading = history.enter(better, same)
    assert (reading.change, reading.signs["score"], reading.signs["agreement"]) == (0.5, 1.0, 1.0)
    # the four problems without a clear answer at the start have a reference now
    reading = history.enter(worse, same)
    assert reading.signs["agreement"] == 1
    assert reading.fell()
    assert (reading.change, reading.signs["score"]) == (-1.0, 0.0)
    again = ProbeHistory()
    again.load_state_dict(history.state_dict())
    assert again.enter(better, same) == history.enter(better, same)
    few = ProbeHistory()
    few.enter(probe(*["aaaa"] * 3), same)
    assert few.enter(probe(*["bbbb"] * 3), same).change is None


# -- real runs ---------------------------------------------------------------------------------------------------------


class Harm(RolloutHooks):
    """Adds noise to all weights after an optimizer step, so that the policy writes nonsense."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step and batch_idx % 2:
            torch.manual_seed(0)
            with torch.no_grad():
                for p in pl_module.policy.parameters():
                    if p.requires_grad:
                        p.add_(torch.randn_like(p) * 0.3)


class Strike(RolloutHooks):
    """Raises at the n-th call of one hook."""

    def __init__(self, hook, at):
        def strike(*args, **kwargs):
            self.seen += 1
            if self.seen == at:
                raise RuntimeError("stopped here")

        self.seen = 0
        setattr(self, hook, strike)


def fit(root, callbacks, ckpt=None, lora=None, rounds_per_epoch=4, **options):
    module, data = selfplay(
        probe=Probe(prompts=20, samples=4, every=1), max_tokens=28, rounds_per_epoch=rounds_per_epoch
    )
    module.lora = lora
    trainer = trainer_for(root, [*callbacks, Checkpoints(1)], accumulate_grad_batches=2, **options)
    trainer.fit(module, data, ckpt_path=ckpt)
    return module, trainer


def events(root):
    return [row for row in rows(root, "ledger") if row["event"] == "rolled_back"]


@pytest.fixture(scope="module")
def rolled_back(tmp_path_factory):
    root = tmp_path_factory.mktemp("rolled_back")
    best = ModelCheckpoint(root / "best", monitor="serl/probe/score", mode="max", every_n_train_steps=1)
    module, trainer = fit(root, [Harm(2), CollapseGuard(factor=0.5), best])
    return root, weights(module), trainer, best


def test_a_collapse_is_rolled_back_and_the_run_goes_on_at_a_lower_rate(rolled_back):
    root, _, trainer, best = rolled_back
    (row,) = events(root)
    assert (row["round"], row["step"], row["learning_rate"]) == (2, 2, 5e-4)
    assert row["to_step"] < 2
    assert row["change"] < -0.3
    assert [one["learning_rate"] for one in rows(root)] == [1e-3, 1e-3, 5e-4, 5e-4]
    assert [one["event"] for one in rows(root, "ledger")].count("trained") > 0
    # the probe of the restored weights is the one that counts
    scores = [one["serl/probe/score"] for one in rows(root)]
    assert min(scores) > scores[0] - 0.3
    assert best.best_model_score == pytest.approx(max(scores))
    assert f"step={1 + scores.index(max(scores))}" in best.best_model_path
    guard = next(c for c in trainer.callbacks if isinstance(c, CollapseGuard))
    assert guard.times == 1
    # an option that names the rate of the beginning does not contradict the checkpoint
    for rate, said in ((1e-3, None), (2e-3, "lr 0.002 but the checkpoint was made with 0.001")):
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=rate)
        with pytest.raises(InputError, match=said) if said else nullcontext():
            check_overrides(optimizer, root / "checkpoints" / "last.ckpt")
    # at most the kept one and those that the last two checkpoints need
    assert Path(guard.kept["path"]).exists()
    assert len(list((root / "checkpoints").glob("kept-step=*.ckpt"))) <= 3


def test_killed_after_a_rollback_and_resumed_is_the_same_run(tmp_path, rolled_back):
    origin, true_weights, trainer, _ = rolled_back
    with pytest.raises(RuntimeError, match="stopped here"):
        fit(tmp_path, [Strike("on_round_end", 3), Harm(2), CollapseGuard(factor=0.5)])
    module, resumed = fit(tmp_path, [Harm(2), CollapseGuard(factor=0.5)], ckpt=f"{tmp_path}/checkpoints/last.ckpt")
    assert rows(tmp_path) == rows(origin)
    assert ledger(tmp_path) == ledger(origin)
    for name, tensor in weights(module).items():
        assert torch.equal(tensor, true_weights[name]), name
    states = []
    for one in (resumed, trainer):
        state = next(c for c in one.callbacks if isinstance(c, CollapseGuard)).current_state()
        states.append(state | {"kept": state["kept"] | {"path": Path(state["kept"]["path"]).name}})
    assert states[0] == states[1]


def test_the_kept_weights_are_exported_where_lightning_stops_a_run(tmp_path):
    """Under LoRA, whose checkpoints hold the adapter alone; the weights are harmed before the last steps."""
    stop = EarlyStopping("serl/probe/score", mode="max", check_on_train_epoch_end=True, patience=1)
    callbacks = [Harm(2), KeepBest(export=True), Export(), stop]
    module, trainer = fit(tmp_path, callbacks, lora=LoraOptions(r=2), rounds_per_epoch=1, max_epochs=9)
    assert trainer.global_step < 9
    keep = next(c for c in trainer.callbacks if isinstance(c, KeepBest))
    assert keep.restored_step == keep.kept["step"] < 2
    saved = torch.load(keep.kept["path"], weights_only=True)["state_dict"]
    here = module.state_dict()
    assert saved
    assert all(torch.equal(tensor, here[name]) for name, tensor in saved.items())
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == trainer.global_step
    assert any(not torch.equal(tensor, saved[name]) for name, tensor in last["state_dict"].items())
    assert f"the weights are those of step {keep.restored_step}" in (tmp_path / "export" / "README.md").read_text()


def test_the_guard_gives_up(tmp_path):
    _, trainer = fit(tmp_path, [Harm(1), CollapseGuard(most=0), StopEarly()])
    assert (trainer.global_step, events(tmp_path)[0]["learning_rate"]) == (1, None)
    assert len(rows(tmp_path)) == 1


def test_a_run_with_nothing_left_to_train_on_ends_with_its_export(tmp_path):
    def once(groups, ctx):
        verdicts = MajorityVote()(groups, ctx)
        for verdict in verdicts if ctx.round else ():
            verdict.scores = torch.zeros_like(verdict.scores)
        return verdicts

    module, data = selfplay(reward=once, probe=Probe(prompts=8, samples=4))
    trainer = trainer_for(tmp_path, [KeepBest(export=True), Export()])
    with pytest.warns(UserWarning, match="the run ends here"):
        trainer.fit(module, data)
    assert trainer.global_step == 1
    assert (tmp_path / "export" / "model.safetensors").exists()


def test_when_a_run_stops():
    """Readings of (score, agreement, change) and the one after which the run ends."""
    cases = [
        ([(0.5, 0.5, 0.0), (0.5, 0.6, 0.0), (0.5, 0.6, 0.0), (0.5, 0.6, 0.0), (0.5, 0.6, 0.0)], 4),
        ([(0.5, 0.5, 0.0), (0.7, 0.6, 0.2), (0.5, 0.9, -0.2)], 2),
        ([(0.1 * i, 0.5, 0.1) for i in range(9)], None),
    ]
    for readings, end in cases:
        stop, trainer = StopEarly(), SimpleNamespace(callbacks=[], should_stop=False, global_step=0)
        stopped = None
        for number, (score, agreement, change) in enumerate(readings):
            stop.act(trainer, Reading({"score": score, "agreement": agreement}, change, 0.02))
            if trainer.should_stop and stopped is None:
                stopped = number
        assert stopped == end
    for wrong in ({"every": 0}, {"prompts": 4}, {"samples": 2}):
        _, data = selfplay(probe=Probe(**wrong))
        with pytest.raises(
            InputError, match=rf"KeepBest acts on the health probe, but data.probe.{next(iter(wrong))} is"
        ):
            data.check_trainer(trainer_for(".", [KeepBest()]), "fit")
    fits = Probe().fitted
    assert fits(20, 256, 64, acted_on=True) == Probe(32, 4, 2)
    assert fits(500, 256, 64, acted_on=True) == Probe(32, 4, 5)
    assert fits(float("inf"), 4096, 10, acted_on=True) == Probe(32, 4, 2)
    with pytest.raises(InputError, match=r"StopEarly.patience must be"):
        StopEarly(patience=0)
    with pytest.raises(InputError, match=r"CollapseGuard.factor must be"):
        CollapseGuard(factor=2)
