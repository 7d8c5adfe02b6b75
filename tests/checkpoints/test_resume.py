"""Killed and resumed equals undisturbed: same weights bit for bit, same ledger bytes, same metrics."""

import dataclasses
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

# Each round is 2 inner epochs x 2 minibatches x 2 micro-batches. Two rounds, in an epoch each or both in one.
STEPS = 8
EPOCHS, ONE_EPOCH = {"rounds_per_epoch": 1, "max_epochs": 2}, {"rounds_per_epoch": 2, "max_epochs": 1}


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
    texts = [("What is 3 + 4?", "7"), ("What is 2 + 2?", "4")]
    path.write_text("".join(json.dumps({"problem": p, "answer": a}) + "\n" for p, a in texts))
    return str(path)


def halve(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)


def fit(root, problems, callbacks=(), engine=None, ckpt=None, change=lambda module: None, every=5, keep=1,
        optimizer=torch.optim.AdamW, rounds_per_epoch=1, **options):  # fmt: skip
    module, data = selfplay(
        steps=(2, 2),
        engine=engine,
        optimizer=optimizer,
        scheduler=halve,
        evaluation=EvaluationOptions(sets={"small": problems}, samples=2),
        rounds_per_epoch=rounds_per_epoch,
    )
    change(module)
    machinery = [ReferenceSync("ema", every_n_steps=3, alpha=0.3), Checkpoints(every, keep)]
    options = {"max_epochs": 2, "accumulate_grad_batches": 2, "gradient_clip_val": 1.0} | options
    trainer = trainer_for(root, [*callbacks, *machinery], **options)
    trainer.fit(module, data, ckpt_path=ckpt)
    return module, data


@dataclasses.dataclass
class Whole:
    """A run that was not interrupted: its options, its folder, and its final weights."""

    options: dict
    root: Path
    weights: dict
    reference: dict

    @classmethod
    def of(cls, root, problems, every=1, keep=-1, **options):
        module, _ = fit(root, problems, every=every, keep=keep, **options)
        return cls(options, root, weights(module), module.policy.frozen["reference"].state_dict())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, problems):
    """Two epochs of a round."""
    whole = Whole.of(tmp_path_factory.mktemp("undisturbed"), problems, **EPOCHS)
    assert evaluations(whole.root) == [4, 8]
    return checked(whole)


@pytest.fixture(scope="module")
def in_one_epoch(tmp_path_factory, problems):
    """An epoch of two rounds."""
    whole = Whole.of(tmp_path_factory.mktemp("one-epoch"), problems, **ONE_EPOCH)
    assert evaluations(whole.root) == [8]
    return checked(whole)


def checked(whole):
    events = rows(whole.root, "ledger")
    assert sum(e["event"] == "trained" for e in events) >= 4
    assert len({e["round"] for e in events}) == 2
    assert sum("loss" in m for m in rows(whole.root)) == STEPS
    return whole


def evaluations(root):
    """The steps at which the set was evaluated."""
    return [m["step"] for m in rows(root) if "val/small/pass@1" in m]


def assert_equal_to(whole, root, module):
    assert ledger(root) == ledger(whole.root)
    assert rows(root) == rows(whole.root)
    assert rows(root, "samples") == rows(whole.root, "samples")
    for name, tensor in weights(module).items():
        assert torch.equal(tensor, whole.weights[name]), name
    for name, tensor in module.policy.frozen["reference"].state_dict().items():
        assert torch.equal(tensor, whole.reference[name]), name


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
        ("on_after_backward", 8, RuntimeError, 3),  # the last micro-batch of an epoch
        ("on_train_batch_end", 3, RuntimeError, 1),  # window open, nothing stepped
        ("on_train_batch_end", 4, RuntimeError, 2),  # stepped, but the ledger did not hear of it yet
        ("on_train_batch_end", 8, KeyboardInterrupt, 4),  # last step of an epoch
        ("on_train_epoch_end", 1, RuntimeError, 4),
        ("on_validation_batch_start", 1, RuntimeError, 4),
        ("on_validation_end", 1, RuntimeError, 4),
        ("on_train_epoch_start", 2, RuntimeError, 4),
        ("on_train_batch_start", 10, RuntimeError, 4),  # the first window of the second epoch
    ],
)
def test_interrupted_anywhere_then_resumed(tmp_path, problems, undisturbed, hook, at, error, step):
    interrupt_and_resume(tmp_path, problems, undisturbed, Stop(hook, at, error), error, step)


@pytest.mark.parametrize(
    ("hook", "at", "error", "step"),
    [
        ("on_after_backward", 8, RuntimeError, 3),  # in the closure of the last optimizer step of a round
        ("on_before_optimizer_step", 6, RuntimeError, 5),
        ("on_before_zero_grad", 6, RuntimeError, 5),
        ("on_train_batch_end", 8, RuntimeError, 4),  # last step of a round
        ("on_rollout_start", 2, RuntimeError, 4),  # between rounds
        ("on_round_end", 2, RuntimeError, 4),
    ],
)
def test_interrupted_between_the_rounds_of_an_epoch_then_resumed(
    tmp_path, problems, in_one_epoch, hook, at, error, step
):
    interrupt_and_resume(tmp_path, problems, in_one_epoch, Stop(hook, at, error), error, step)


def interrupt_and_resume(root, problems, whole, stop, error, step):
    kept = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit if error is KeyboardInterrupt else error):
            fit(root, problems, [stop], **whole.options)
    finally:
        signal.signal(signal.SIGINT, kept)  # Lightning ignores it after an interrupt
    path, state = last(root)
    assert state["global_step"] == step
    module, _ = fit(root, problems, ckpt=path, **whole.options)
    assert_equal_to(whole, root, module)


@pytest.mark.parametrize("call", [1, 2, 4, 5, 7, 8])
def test_interrupted_while_generating_then_resumed(tmp_path, problems, undisturbed, call):
    """In both rounds and the first evaluation, in whatever the call wrote: problems, answers, evaluation."""
    engine = FailingEngine(fail_at=call)
    with pytest.raises(RuntimeError, match="the engine is gone"):
        fit(tmp_path, problems, engine=engine)
    path, _ = last(tmp_path)
    module, _ = fit(tmp_path, problems, ckpt=path)
    assert_equal_to(undisturbed, tmp_path, module)


def test_interrupted_in_experience_then_resumed(tmp_path, problems, in_one_epoch):
    def fail_in_second(module):
        whole, calls = module.experience, []

        def experience(groups, verdicts):
            calls.append(whole(groups, verdicts))
            if len(calls) == 2:
                raise MemoryError("no room for log-probs")
            return calls[-1]

        module.experience = experience

    with pytest.raises(MemoryError):
        fit(tmp_path, problems, change=fail_in_second, **ONE_EPOCH)
    path, state = last(tmp_path)
    assert state["global_step"] == 4
    module, _ = fit(tmp_path, problems, ckpt=path, **ONE_EPOCH)
    assert_equal_to(in_one_epoch, tmp_path, module)


def test_ended_within_an_epoch_then_resumed(tmp_path, problems, in_one_epoch):
    """Lightning counts an epoch that ``max_steps`` ended as done."""
    fit(tmp_path, problems, **ONE_EPOCH, max_steps=4)  # the end of a round
    path, state = last(tmp_path)
    assert state["global_step"] == 4
    module, _ = fit(tmp_path, problems, ckpt=path, **ONE_EPOCH)
    assert ledger(tmp_path) == ledger(in_one_epoch.root)
    trained = [row for row in rows(tmp_path) if "loss" in row]
    assert trained == [row for row in rows(in_one_epoch.root) if "loss" in row]
    for name, tensor in weights(module).items():
        assert torch.equal(tensor, in_one_epoch.weights[name]), name


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


def test_interrupted_inside_the_update_keeps_the_checkpoint_before_it(tmp_path, problems, in_one_epoch):
    kept = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):
            fit(tmp_path, problems, every=1, optimizer=Torn, **ONE_EPOCH)
    finally:
        signal.signal(signal.SIGINT, kept)
    path, state = last(tmp_path)
    assert state["global_step"] == 5
    module, _ = fit(tmp_path, problems, ckpt=path, **ONE_EPOCH)
    assert_equal_to(in_one_epoch, tmp_path, module)


@pytest.mark.parametrize(
    ("hook", "at"),
    [("on_after_backward", 8), ("on_train_batch_end", 8), ("on_validation_start", 1), ("on_train_epoch_end", 1),
     ("on_train_epoch_start", 2), ("on_after_backward", 10)],
)  # fmt: skip
def test_interrupted_between_epochs_when_steps_are_counted(tmp_path, problems, undisturbed, hook, at):
    """With ``max_steps`` Lightning restarts differently: it believes an epoch is always under way."""
    options = {"max_steps": STEPS, "max_epochs": -1}
    with pytest.raises(RuntimeError):
        fit(tmp_path, problems, [Stop(hook, at)], **options)
    module, _ = fit(tmp_path, problems, ckpt=last(tmp_path)[0], **options)
    assert_equal_to(undisturbed, tmp_path, module)


@pytest.fixture(scope="module")
def often_evaluated(tmp_path_factory, problems):
    """An epoch of two rounds with an evaluation every second step."""
    whole = Whole.of(tmp_path_factory.mktemp("evaluated"), problems, **ONE_EPOCH, val_check_interval=4)
    assert evaluations(whole.root) == [2, 4, 6, 8]
    return whole


@pytest.mark.parametrize(
    ("hook", "at"), [("on_after_backward", 5), ("on_validation_start", 1), ("on_validation_end", 3)]
)
def test_interrupted_with_evaluations_inside_epochs(tmp_path, problems, often_evaluated, hook, at):
    options = often_evaluated.options
    with pytest.raises(RuntimeError):
        fit(tmp_path, problems, [Stop(hook, at)], **options)
    module, _ = fit(tmp_path, problems, ckpt=last(tmp_path)[0], **options)
    assert_equal_to(often_evaluated, tmp_path, module)


def test_interrupted_twice_then_resumed(tmp_path, problems, undisturbed):
    with pytest.raises(RuntimeError):
        fit(tmp_path, problems, [Stop("on_after_backward", 6)])
    with pytest.raises(RuntimeError):  # before anything was restored into a stream
        fit(tmp_path, problems, [Stop("on_train_start", 1)], ckpt=last(tmp_path)[0])
    with pytest.raises(RuntimeError):
        fit(tmp_path, problems, [Stop("on_after_backward", 7)], ckpt=last(tmp_path)[0])
    assert 4 < last(tmp_path)[1]["global_step"] < STEPS
    module, _ = fit(tmp_path, problems, ckpt=last(tmp_path)[0])
    assert_equal_to(undisturbed, tmp_path, module)


@pytest.mark.parametrize(
    ("layout", "step"),
    [("undisturbed", 1), ("undisturbed", 4), ("undisturbed", 5), ("undisturbed", 7), ("in_one_epoch", 4)],
)
def test_killed_outright_then_resumed_from_a_periodic_checkpoint(request, tmp_path, problems, layout, step):
    """After SIGKILL the files hold more than the checkpoint counts: those of the finished run stand for them."""
    whole = request.getfixturevalue(layout)
    for name in ("ledger", "metrics", "samples"):
        shutil.copy(whole.root / f"{name}.jsonl", tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')  # torn in the middle of a row
    checkpoint = whole.root / "checkpoints" / f"step={step}.ckpt"
    module, _ = fit(tmp_path, problems, ckpt=str(checkpoint), **whole.options)
    assert_equal_to(whole, tmp_path, module)


def test_every_checkpoint_loads_without_pickled_code(undisturbed):
    paths = sorted((undisturbed.root / "checkpoints").glob("*.ckpt"))
    assert len(paths) == STEPS + 1
    for path in paths:
        torch.load(path, weights_only=True)


def test_the_comparison_can_fail(tmp_path, problems, undisturbed):
    """Resuming from another step's weights must be noticed."""
    state = torch.load(undisturbed.root / "checkpoints" / "step=7.ckpt", weights_only=True)
    name = next(n for n in state["state_dict"] if n.endswith("norm.weight"))
    state["state_dict"][name][0] += 1e-3
    torch.save(state, tmp_path / "wrong.ckpt")
    for file in ("ledger", "metrics", "samples"):
        shutil.copy(undisturbed.root / f"{file}.jsonl", tmp_path)
    module, _ = fit(tmp_path, problems, ckpt=str(tmp_path / "wrong.ckpt"))
    with pytest.raises(AssertionError):
        assert_equal_to(undisturbed, tmp_path, module)


@pytest.mark.parametrize(
    "evaluating",
    [{"check_val_every_n_epoch": 2}, {"val_check_interval": 6}, {"limit_val_batches": 0}],
    ids=["every second epoch", "odd interval", "none"],
)
def test_resumed_between_epochs_that_owe_no_evaluation(tmp_path, problems, evaluating):
    options = {"every": 4, "keep": -1, **evaluating}
    whole = Whole.of(tmp_path / "origin", problems, **options)
    for step in (4, 8):
        root = tmp_path / str(step)
        shutil.copytree(whole.root, root)
        module, _ = fit(root, problems, ckpt=str(root / "checkpoints" / f"step={step}.ckpt"), **options)
        assert_equal_to(whole, root, module)


def test_windows_of_another_size_start_where_steps_do(tmp_path, problems, in_one_epoch):
    """From step 4, a round's end, with twice the micro-batches a step: the same tokens in every step."""
    root = tmp_path / "run"
    shutil.copytree(in_one_epoch.root, root)
    checkpoint = root / "checkpoints" / "step=4.ckpt"
    fit(root, problems, ckpt=str(checkpoint), **ONE_EPOCH, accumulate_grad_batches=4)
    here, there = ([m["num_tokens"] for m in rows(r) if "num_tokens" in m] for r in (root, in_one_epoch.root))
    assert len(here) == STEPS
    assert here == there


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
    said = r"came from FewShotSelfInstruction, this run's come from Mixture; set data\.source as in that run"
    with pytest.raises(InputError, match=said):
        trainer_for(tmp_path, [Checkpoints(1)], max_epochs=2).fit(module, data, ckpt_path=last(tmp_path)[0])


def test_other_seeds_than_the_checkpoints_are_named(tmp_path):
    module, data = selfplay()
    trainer_for(tmp_path, [Checkpoints(1)]).fit(module, data)
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"problem": f"What is {i} + 5?"}) + "\n" for i in range(9)))
    module, data = selfplay(seeds=str(other))
    said = r"the problems of data\.seeds are not those of the checkpoint's run; the run continues with the checkpoint's"
    with pytest.warns(UserWarning, match=said):
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
