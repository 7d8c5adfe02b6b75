"""Killed and resumed equals undisturbed: same weights bit for bit, same ledger bytes, same metrics."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from helpers.engines import FailingEngine
from helpers.training import ledger, rows, selfplay, trainer_for, weights
from lightning.pytorch.loggers import CSVLogger

from lightning_serl.callbacks import Checkpoints, ReferenceSync, RolloutHooks
from lightning_serl.datamodules import EvaluationOptions
from lightning_serl.datamodules.sources import InstructionSource
from lightning_serl.errors import InputError
from lightning_serl.types import Instruction

# 2 epochs of 2 rounds; each round is 2 inner epochs x 2 minibatches x 2 micro-batches.
BATCHES_PER_ROUND, STEPS = 8, 16


class Stop(RolloutHooks):
    """Raises at the n-th call of one hook."""

    def __init__(self, hook, at, error=RuntimeError):
        def strike(*args, **kwargs):
            self.seen += 1
            if self.seen == at:
                raise error("stopped here")

        self.seen = 0
        setattr(self, hook, strike)


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    path = tmp_path_factory.mktemp("sets") / "held_out.jsonl"
    texts = [("What is 3 + 4?", "7"), ("What is 9 - 2?", "7"), ("What is 2 + 2?", "4")]
    path.write_text("".join(json.dumps({"problem": p, "answer": a}) + "\n" for p, a in texts))
    return str(path)


def halve(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)


def fit(root, problems, callbacks=(), engine=None, ckpt=None, change=lambda module: None, every=5, keep=1,
        optimizer=torch.optim.AdamW, **options):  # fmt: skip
    module, data = selfplay(
        steps=(2, 2),
        engine=engine,
        optimizer=optimizer,
        scheduler=halve,
        evaluation=EvaluationOptions(sets={"small": problems}, samples=2),
    )
    change(module)
    machinery = [ReferenceSync("ema", every_n_steps=3, alpha=0.3), Checkpoints(every, keep)]
    options = {"max_epochs": 2, "accumulate_grad_batches": 2, "gradient_clip_val": 1.0} | options
    trainer = trainer_for(root, [*callbacks, *machinery], **options)
    trainer.fit(module, data, ckpt_path=ckpt)
    return module, data


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, problems):
    root = tmp_path_factory.mktemp("undisturbed")
    module, _ = fit(root, problems, every=1, keep=-1)
    events = rows(root, "ledger")
    assert sum(e["event"] == "trained" for e in events) >= 8
    assert len({e["round"] for e in events}) == 4
    metrics = rows(root)
    assert sum("loss" in m for m in metrics) == STEPS
    assert sum("val/small/pass@1" in m for m in metrics) == 2
    return root, weights(module), module.policy.frozen["reference"].state_dict()


def assert_equal_to(undisturbed, root, module):
    origin, true_weights, reference = undisturbed
    assert ledger(root) == ledger(origin)
    assert rows(root) == rows(origin)
    assert rows(root, "samples") == rows(origin, "samples")
    for name, tensor in weights(module).items():
        assert torch.equal(tensor, true_weights[name]), name
    for name, tensor in module.policy.frozen["reference"].state_dict().items():
        assert torch.equal(tensor, reference[name]), name


def last(root):
    path = Path(root) / "checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    return str(path), state


@pytest.mark.parametrize(
    ("hook", "at", "error", "step"),
    [
        ("on_train_batch_start", 1, RuntimeError, 0),  # before the very first step, the round already played
        ("on_train_batch_start", 2, RuntimeError, 0),  # inside the first accumulation window
        ("on_train_batch_start", 6, KeyboardInterrupt, 2),  # mid-round, second micro-batch of a window
        ("on_after_backward", 7, RuntimeError, 3),  # mid-round, first micro-batch
        ("on_after_backward", 8, RuntimeError, 3),  # in the closure of the optimizer step
        ("on_after_backward", 16, RuntimeError, 7),  # the last micro-batch of an epoch
        ("on_before_optimizer_step", 6, RuntimeError, 5),
        ("on_before_zero_grad", 6, RuntimeError, 5),
        ("on_train_batch_end", 3, RuntimeError, 1),  # window open, nothing stepped
        ("on_train_batch_end", 4, RuntimeError, 2),  # stepped, but the ledger did not hear of it yet
        ("on_train_batch_end", 8, RuntimeError, 4),  # last step of a round
        ("on_train_batch_end", 16, KeyboardInterrupt, 8),  # last step of an epoch
        ("on_rollout_start", 2, RuntimeError, 4),  # between rounds
        ("on_round_end", 2, RuntimeError, 4),
        ("on_train_epoch_end", 1, RuntimeError, 8),
        ("on_validation_batch_start", 1, RuntimeError, 8),
        ("on_validation_end", 1, RuntimeError, 8),
        ("on_train_epoch_start", 2, RuntimeError, 8),
        ("on_train_batch_start", 18, RuntimeError, 8),  # the first window of the second epoch
    ],
)
def test_interrupted_anywhere_then_resumed(tmp_path, problems, undisturbed, hook, at, error, step):
    kept = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit if error is KeyboardInterrupt else error):
            fit(tmp_path, problems, [Stop(hook, at, error)])
    finally:
        signal.signal(signal.SIGINT, kept)  # Lightning ignores it after an interrupt
    path, state = last(tmp_path)
    assert state["global_step"] == step
    module, _ = fit(tmp_path, problems, ckpt=path)
    assert_equal_to(undisturbed, tmp_path, module)


@pytest.mark.parametrize("call", [1, 2, 4, 5, 7, 8])
def test_interrupted_while_generating_then_resumed(tmp_path, problems, undisturbed, call):
    """In the first rounds and the first evaluation, in whatever the call wrote: problems, answers, evaluation."""
    engine = FailingEngine(fail_at=call)
    with pytest.raises(RuntimeError, match="the engine is gone"):
        fit(tmp_path, problems, engine=engine)
    path, _ = last(tmp_path)
    module, _ = fit(tmp_path, problems, ckpt=path)
    assert_equal_to(undisturbed, tmp_path, module)


def test_interrupted_in_experience_then_resumed(tmp_path, problems, undisturbed):
    def fail_in_second(module):
        whole, calls = module.experience, []

        def experience(groups, verdicts):
            calls.append(whole(groups, verdicts))
            if len(calls) == 2:
                raise MemoryError("no room for log-probs")
            return calls[-1]

        module.experience = experience

    with pytest.raises(MemoryError):
        fit(tmp_path, problems, change=fail_in_second)
    path, state = last(tmp_path)
    assert state["global_step"] == 4
    module, _ = fit(tmp_path, problems, ckpt=path)
    assert_equal_to(undisturbed, tmp_path, module)


class Torn(torch.optim.AdamW):
    """Is interrupted in its sixth update, with half of the weights changed."""

    updates = 0

    def step(self, closure=None):
        loss = closure()
        self.updates += 1
        if self.updates == 6:
            with torch.no_grad():
                for p in self.param_groups[0]["params"][::2]:
                    p.mul_(1.1)
            raise KeyboardInterrupt
        super().step()
        return loss


def test_interrupted_inside_the_update_keeps_the_checkpoint_before_it(tmp_path, problems, undisturbed):
    kept = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):
            fit(tmp_path, problems, every=1, optimizer=Torn)
    finally:
        signal.signal(signal.SIGINT, kept)
    path, state = last(tmp_path)
    assert state["global_step"] == 5
    module, _ = fit(tmp_path, problems, ckpt=path)
    assert_equal_to(undisturbed, tmp_path, module)


@pytest.mark.parametrize(
    ("hook", "at"),
    [("on_after_backward", 16), ("on_train_batch_end", 16), ("on_validation_start", 1), ("on_train_epoch_end", 1),
     ("on_train_epoch_start", 2), ("on_after_backward", 18)],
)  # fmt: skip
def test_interrupted_between_epochs_when_steps_are_counted(tmp_path, problems, undisturbed, hook, at):
    """With ``max_steps`` Lightning restarts differently: it believes an epoch is always under way."""
    options = {"max_steps": STEPS, "max_epochs": -1}
    with pytest.raises(RuntimeError):
        fit(tmp_path, problems, [Stop(hook, at)], **options)
    module, _ = fit(tmp_path, problems, ckpt=last(tmp_path)[0], **options)
    assert_equal_to(undisturbed, tmp_path, module)


@pytest.mark.parametrize(
    ("hook", "at"), [("on_after_backward", 5), ("on_validation_start", 1), ("on_validation_end", 3)]
)
def test_interrupted_with_evaluations_inside_epochs(tmp_path, problems, hook, at):
    options = {"val_check_interval": 4, "max_epochs": 1}
    whole, _ = fit(tmp_path / "whole", problems, **options)
    assert [m["step"] for m in rows(tmp_path / "whole") if "val/small/pass@1" in m] == [2, 4, 6, 8]
    with pytest.raises(RuntimeError):
        fit(tmp_path / "cut", problems, [Stop(hook, at)], **options)
    module, _ = fit(tmp_path / "cut", problems, ckpt=last(tmp_path / "cut")[0], **options)
    reference = whole.policy.frozen["reference"].state_dict()
    assert_equal_to((tmp_path / "whole", weights(whole), reference), tmp_path / "cut", module)


def test_interrupted_twice_then_resumed(tmp_path, problems, undisturbed):
    with pytest.raises(RuntimeError):
        fit(tmp_path, problems, [Stop("on_after_backward", 12)])
    with pytest.raises(RuntimeError):  # before anything was restored into a stream
        fit(tmp_path, problems, [Stop("on_train_start", 1)], ckpt=last(tmp_path)[0])
    with pytest.raises(RuntimeError):
        fit(tmp_path, problems, [Stop("on_after_backward", 6)], ckpt=last(tmp_path)[0])
    module, _ = fit(tmp_path, problems, ckpt=last(tmp_path)[0])
    assert_equal_to(undisturbed, tmp_path, module)


@pytest.mark.parametrize("step", [1, 4, 8, 9, 14])
def test_killed_outright_then_resumed_from_a_periodic_checkpoint(tmp_path, problems, undisturbed, step):
    """After SIGKILL the files hold more than the checkpoint counts: those of the finished run stand for them."""
    origin = undisturbed[0]
    for name in ("ledger", "metrics", "samples"):
        shutil.copy(origin / f"{name}.jsonl", tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 17, "lo')  # torn in the middle of a row
    module, _ = fit(tmp_path, problems, ckpt=str(origin / "checkpoints" / f"step={step}.ckpt"))
    assert_equal_to(undisturbed, tmp_path, module)


def test_every_checkpoint_loads_without_pickled_code(undisturbed):
    paths = sorted((undisturbed[0] / "checkpoints").glob("*.ckpt"))
    assert len(paths) == STEPS + 1
    for path in paths:
        torch.load(path, weights_only=True)


def test_the_comparison_can_fail(tmp_path, problems, undisturbed):
    """Resuming from another step's weights must be noticed."""
    state = torch.load(undisturbed[0] / "checkpoints" / "step=15.ckpt", weights_only=True)
    name = next(n for n in state["state_dict"] if n.endswith("norm.weight"))
    state["state_dict"][name][0] += 1e-3
    torch.save(state, tmp_path / "wrong.ckpt")
    for file in ("ledger", "metrics", "samples"):
        shutil.copy(undisturbed[0] / f"{file}.jsonl", tmp_path)
    module, _ = fit(tmp_path, problems, ckpt=str(tmp_path / "wrong.ckpt"))
    with pytest.raises(AssertionError):
        assert_equal_to(undisturbed, tmp_path, module)


@pytest.mark.parametrize(
    "evaluating",
    [{"check_val_every_n_epoch": 2}, {"val_check_interval": 6}, {"limit_val_batches": 0}],
    ids=["every second epoch", "odd interval", "none"],
)
def test_resumed_between_epochs_that_owe_no_evaluation(tmp_path, problems, evaluating):
    origin = tmp_path / "origin"
    options = {"every": 8, "keep": -1, **evaluating}
    module, _ = fit(origin, problems, **options)
    reference = module.policy.frozen["reference"].state_dict()
    for step in (8, 16):
        root = tmp_path / str(step)
        shutil.copytree(origin, root)
        resumed, _ = fit(root, problems, ckpt=str(root / "checkpoints" / f"step={step}.ckpt"), **options)
        assert_equal_to((origin, weights(module), reference), root, resumed)


def test_windows_of_another_size_start_where_steps_do(tmp_path, problems, undisturbed):
    """From step 4, a round's end, with twice the micro-batches a step: the same tokens in every step."""
    root = tmp_path / "run"
    shutil.copytree(undisturbed[0], root)
    fit(root, problems, ckpt=str(root / "checkpoints" / "step=4.ckpt"), accumulate_grad_batches=4)
    here, there = ([m["num_tokens"] for m in rows(r) if "num_tokens" in m] for r in (root, undisturbed[0]))
    assert len(here) == len(there) == STEPS
    assert here[:8] == there[:8]


class Refusing(InstructionSource):
    """A user's source that cannot go on."""

    broken, filtered = False, False

    def propose(self, k, ctx):
        return [Instruction(f"What is {i} + 3?", "") for i in range(k)]

    def load_state_dict(self, state):
        if self.broken:
            raise KeyError("made")


def test_a_restore_that_fails_leaves_the_checkpoint_as_it_was(tmp_path):
    def run(source, ckpt=None, epochs=1):
        module, data = selfplay(source=source, seeds=None)
        trainer = trainer_for(tmp_path, [Checkpoints(1)], max_epochs=epochs)
        trainer.fit(module, data, ckpt_path=ckpt)

    run(Refusing())
    path, before = last(tmp_path)
    broken = Refusing()
    broken.broken = True
    with pytest.raises(KeyError, match="made"):
        run(broken, path, 2)
    after = last(tmp_path)[1]
    assert after["global_step"] == before["global_step"]
    assert after["SelfPlayDataModule"] == before["SelfPlayDataModule"]
    run(Refusing(), path, 2)


def test_another_kind_of_source_is_refused(tmp_path):
    module, data = selfplay()
    trainer_for(tmp_path, [Checkpoints(1)]).fit(module, data)
    module, data = selfplay(source="mix:0.5")
    said = r"came from FewShotSelfInstruction, this run's come from Mixture; give the data\.source"
    with pytest.raises(InputError, match=said):
        trainer_for(tmp_path, [Checkpoints(1)], max_epochs=2).fit(module, data, ckpt_path=last(tmp_path)[0])


def test_other_seeds_than_the_checkpoints_are_named(tmp_path):
    module, data = selfplay()
    trainer_for(tmp_path, [Checkpoints(1)]).fit(module, data)
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"problem": f"What is {i} + 5?"}) + "\n" for i in range(9)))
    module, data = selfplay(seeds=str(other))
    with pytest.warns(UserWarning, match=r"data\.seeds holds other problems .* goes on with those of the checkpoint"):
        trainer_for(tmp_path, [Checkpoints(1)], max_epochs=2).fit(module, data, ckpt_path=last(tmp_path)[0])


def test_last_is_found_beside_a_users_logger(tmp_path):
    def run(epochs, ckpt=None):
        module, data = selfplay(rounds_per_epoch=1)
        options = {"logger": CSVLogger(str(tmp_path)), "max_epochs": epochs}
        trainer = trainer_for(tmp_path, [Checkpoints(1)], **options)
        trainer.fit(module, data, ckpt_path=ckpt)
        return trainer.global_step

    assert run(1) == 1
    assert run(2, "last") == 2
    assert [m["step"] for m in rows(tmp_path)] == [1, 2]
