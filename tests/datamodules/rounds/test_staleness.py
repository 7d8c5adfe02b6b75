"""Groups that wait a round, and rounds written while another one trains: bounded, corrected, resumed exactly."""

import copy
import signal
import threading
import time

import lightning.pytorch as pl
import pytest
import torch
from helpers.command_line import cli, small
from helpers.training import ledger, rows, selfplay, trainer_for, weights

from lightning_serl.callbacks import Checkpoints, RolloutHooks
from lightning_serl.datamodules import RoundOptions
from lightning_serl.engines import TransformersEngine
from lightning_serl.engines.base import Receipt
from lightning_serl.errors import InputError
from lightning_serl.policy import Policy

STEPS = (2, 1)  # of a round
ROUNDS = 4


class Beside(TransformersEngine):
    """A real engine that works beside the trainer: a copy of the policy of its own, which takes pushes.

    Args:
        fail_at: The call of ``generate`` in the thread that fails half-way through.
        gate: Set to let the thread write at all.
    """

    concurrent = True

    def __init__(self, fail_at=None, gate=None):
        super().__init__()
        self.fail_at, self.gate = fail_at, gate
        self.calls, self.held, self.log = 0, -1, []

    @property
    def version(self):
        return self.held

    def start(self, policy, ranks=None):
        twin = Policy(copy.deepcopy(policy.model), policy.tokenizer, policy.temperature).eval()
        super().start(twin.requires_grad_(False), ranks)
        self.held, self.proven = -1, False

    def push(self, update):
        assert not any(t.name.startswith("prefetch") and t.is_alive() for t in threading.enumerate()), (
            "versions would mix"
        )
        named = dict(update.tensors())
        self.policy.causal_lm.load_state_dict(named)
        self.held = update.version
        self.policy.version = update.version  # which completions are stamped with
        return Receipt(update.version, frozenset(named), sum(t.numel() * t.element_size() for t in named.values()))

    def generate(self, requests, who="policy"):
        name = threading.current_thread().name
        self.calls += name.startswith("prefetch")
        while self.gate is not None and name.startswith("prefetch") and not self.gate.is_set():
            self.poll()
            time.sleep(0.01)
        self.log.append((name, self.held, len(requests)))
        with torch.no_grad():
            for done, one in enumerate(super().generate(requests, who)):
                if self.calls == self.fail_at and done >= len(requests) // 2:
                    raise RuntimeError("the engine is gone")
                yield one


def prefetch_threads():
    return [t for t in threading.enumerate() if t.name.startswith("prefetch")]


class Watch(RolloutHooks):
    """The versions that wrote each round's groups."""

    def __init__(self):
        self.rounds = []

    def on_round_end(self, trainer, pl_module, played):
        self.rounds.append({c.version for g in played.groups for c in g.completions})


def fit(root, engine=None, callbacks=(), ckpt=None, every=1, staleness=1, rounds=ROUNDS, **options):
    wide = RoundOptions(prompts_per_round=3, samples_per_prompt=4, max_attempts=6)
    module, data = selfplay(
        steps=STEPS, engine=engine or Beside(), rounds_per_epoch=rounds, max_staleness=staleness, round=wide
    )
    trainer = trainer_for(root, [*callbacks, Checkpoints(every, -1)], gradient_clip_val=1.0, **options)
    trainer.fit(module, data, ckpt_path=ckpt)
    assert not prefetch_threads()
    return module, data


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed")
    engine, watch = Beside(), Watch()
    module, _ = fit(root, engine, [watch])
    return root, weights(module), engine, watch


@pytest.fixture(scope="module")
def carrying(tmp_path_factory):
    """A run whose engine is the policy: nothing is written ahead."""
    root = tmp_path_factory.mktemp("carrying")
    watch = Watch()
    module, _ = fit(root, TransformersEngine(), [watch])
    return root, weights(module), watch


def without_pushes(root):
    """What a resumed run measures too; it pushes once more, to an engine that was just started."""
    return [{k: v for k, v in row.items() if not k.startswith("serl/sync/")} for row in rows(root)]


def lags(root):
    return [m["serl/rollout/policy_version_lag"] for m in rows(root) if "serl/rollout/policy_version_lag" in m]


def test_each_round_but_the_first_is_written_while_the_one_before_it_trains(undisturbed):
    root, _, engine, watch = undisturbed
    assert {n for n, _, _ in engine.log if n.startswith("prefetch")} == {
        f"prefetch of round {r + 1}" for r in range(1, ROUNDS)
    }
    for name, version, _ in engine.log:
        # the weights that the round before started from, one version for all of it; the health probe is round 0's
        number = int(name.split()[-1]) - 1 if name.startswith("prefetch") else 0
        assert version == max(0, number - 1) * STEPS[0]
    for number, versions in enumerate(watch.rounds):
        assert versions == {max(0, number - 1) * STEPS[0]}
        assert lags(root)[number] == number * STEPS[0] - min(versions) <= STEPS[0]
    events = rows(root, "ledger")
    assert any(e["event"] == "dropped" and e["reason"] == "stale" for e in events)
    assert all(e["round"] == 0 for e in events if e["event"] == "carried"), "it would be two rounds old"


def test_every_carried_group_comes_next_or_is_dropped_as_stale(carrying):
    root, _, watch = carrying
    events = rows(root, "ledger")
    carried = [e for e in events if e["event"] == "carried"]
    assert [e for e in carried if e["round"] < ROUNDS - 1], "some groups are meant to be carried here"
    for event in carried:
        later = [e for e in events if e["uid"] == event["uid"] and e["round"] > event["round"]]
        if event["round"] < ROUNDS - 1:
            assert {e["round"] for e in later} == {event["round"] + 1}
            assert [(e["event"], e.get("reason")) for e in later] in (
                [("kept", None), ("trained", None)], [("dropped", "stale")],
            )  # fmt: skip
    trained = [e["uid"] for e in events if e["event"] == "trained"]
    assert len(trained) == len(set(trained))
    for number, versions in enumerate(watch.rounds):
        assert versions <= {number * STEPS[0], max(0, number - 1) * STEPS[0]}
        assert lags(root)[number] == number * STEPS[0] - min(versions)


def resume(origin, tmp_path, step, engine):
    """As after SIGKILL: from a periodic checkpoint, with files that hold more than it counts."""
    for name in ("ledger", "metrics", "samples"):
        (tmp_path / f"{name}.jsonl").write_bytes((origin[0] / f"{name}.jsonl").read_bytes())
    path = origin[0] / "checkpoints" / f"step={step}.ckpt"
    state = torch.load(path, weights_only=True)["SelfPlayDataModule"]
    module, _ = fit(tmp_path, engine, ckpt=str(path))
    assert ledger(tmp_path) == ledger(origin[0])
    assert without_pushes(tmp_path) == without_pushes(origin[0])
    for name, tensor in weights(module).items():
        assert torch.equal(tensor, origin[1][name]), name
    return state


@pytest.mark.parametrize("step", [1, 4])
def test_killed_while_a_round_is_written_ahead_then_resumed(tmp_path, undisturbed, step):
    """The odd step is in mid-round, the even one between rounds."""
    state = resume(undisturbed, tmp_path, step, Beside())
    assert state["ahead"]["written"], "the next round was written when this was saved"


def test_killed_while_groups_wait_then_resumed(tmp_path, carrying):
    first = next(e["round"] for e in rows(carrying[0], "ledger") if e["event"] == "carried")
    state = resume(carrying, tmp_path, first * STEPS[0] + 1, TransformersEngine())
    assert state["carried"]


class Stop(pl.Callback):
    def __init__(self, step, error, engine=None):
        self.step, self.error, self.engine = step, error, engine

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            assert prefetch_threads() or self.engine is None, "the next round is meant to be under way"
            raise self.error("stopped here")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupt_ends_the_thread_and_the_round_is_written_again(tmp_path, error, undisturbed):
    """The engine hangs in the round ahead, so nothing of it is saved; the run goes on with the same problems."""
    kept = signal.getsignal(signal.SIGINT)
    engine = Beside(gate=threading.Event())
    try:
        with pytest.raises(SystemExit if error is KeyboardInterrupt else error):
            fit(tmp_path, engine, [Stop(1, error, engine)], every=100, rounds=2)
    finally:
        signal.signal(signal.SIGINT, kept)
    assert not prefetch_threads()
    path = tmp_path / "checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    assert state["global_step"] == 1
    assert state["SelfPlayDataModule"]["ahead"]["written"] == []
    fit(tmp_path, ckpt=str(path), every=100, rounds=2)
    proposed = [
        [e["uid"] for e in rows(root, "ledger") if e["event"] == "proposed"] for root in (tmp_path, undisturbed[0])
    ]
    assert len(proposed[0]) == len(set(proposed[0]))
    first = [{e["uid"] for e in rows(root, "ledger") if e["round"] == 0} for root in (tmp_path, undisturbed[0])]
    assert first[0] == first[1]


def test_an_error_in_the_thread_is_raised_by_the_run(tmp_path):
    engine = Beside(fail_at=2)
    with pytest.raises(RuntimeError, match="the engine is gone"):
        fit(tmp_path, engine, every=100, rounds=2)
    assert engine.log[-1][0].startswith("prefetch")
    assert not prefetch_threads()
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["SelfPlayDataModule"]["ahead"]["written"], "what was written before is kept"
    fit(tmp_path, ckpt=str(tmp_path / "checkpoints" / "last.ckpt"), every=100, rounds=2)


def test_staleness_without_correction_is_refused_before_work(tmp_path):
    ended = cli("fit", *small(tmp_path / "run"), "--data.max_staleness", 1, "--model.objective.correction", "none")
    assert ended.status == 2
    assert "data.max_staleness is 1 but model.objective.correction is none" in ended.error
    assert not (tmp_path / "run" / "ledger.jsonl").exists()
    with pytest.raises(InputError, match="must be 0 or 1"):
        selfplay(max_staleness=2)
    module, data = selfplay(max_staleness=1, round=RoundOptions(style="serl"))
    with pytest.raises(InputError, match="carries nothing"):
        trainer_for(tmp_path / "serl").fit(module, data)
