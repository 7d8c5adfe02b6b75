"""The memory plan of a run: how it divides the work, what it refuses, and what it says after a failure."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers.command_line import cli, small
from helpers.training import ledger, selfplay, trainer_for, weights
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from transformers import LlamaConfig, Qwen2Config

from lightning_serl import SelfPlayDataModule, SeRLModule, tiny
from lightning_serl.callbacks import Checkpoints, MemoryPlan, foresight, memory_plan
from lightning_serl.callbacks.foresight import REMEDIES, state_per_weight
from lightning_serl.cli.command import _sentence
from lightning_serl.cli.config_files import preset_path
from lightning_serl.datamodules import EvaluationOptions, RoundOptions
from lightning_serl.engines import TransformersEngine
from lightning_serl.errors import EngineFailure, InputError
from lightning_serl.objectives import Objective
from lightning_serl.policy.lora import LoraOptions
from lightning_serl.policy.memory_plan import Plan
from lightning_serl.protocols import LoadsPolicy, SelfPlay

MIB, GIB = 2**20, 2**30


@pytest.fixture
def logged(monkeypatch):
    """What is logged, counted at its source: in a process with other tests a line can reach several handlers."""
    lines = []

    def inform(line):
        lines.append(line)
        rank_zero_info(line)

    monkeypatch.setattr(memory_plan, "rank_zero_info", inform)
    return lines


@pytest.fixture
def room(monkeypatch):
    """Sets how many bytes are free."""

    def set_free(free, total=None):
        monkeypatch.setattr(foresight, "free_memory", lambda device, processes=1: (free, total or free))

    return set_free


@pytest.fixture
def cheap(monkeypatch):
    """Plans in proportion to rows and tokens: tracing the model takes longer than all that is tested with it."""

    def plan(config, dtype, work, lora=None, quantized=False):
        weights = 4 * MIB
        a_row = work.length * 2000 // (4 if work.checkpointing else 1)
        return Plan(
            weights=weights,
            gradients=weights // 10 if lora else weights,
            optimizer=int(weights // 4 * work.state) // (10 if lora else 1),
            frozen=weights if work.reference else 0,
            activations=work.rows * a_row * dtype.itemsize // 4 + 10_000,
            engine=0 if work.engine is None else work.engine,
            scoring=work.scored * a_row // 8,
            separate=work.engine is not None,
        )

    monkeypatch.setattr(foresight, "plan", plan)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Directories with a configuration, a tokenizer and a file of weights that holds none."""
    sizes = {
        "small": LlamaConfig(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                             num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192),
        "7b": Qwen2Config(vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
                          num_attention_heads=28, num_key_value_heads=4, max_position_embeddings=32768),
    }  # fmt: skip
    root = tmp_path_factory.mktemp("large")
    for name, config in sizes.items():
        config.save_pretrained(root / name)
        (root / name / "model.safetensors").touch()
        shutil.copy(tiny.path("base") / "tokenizer.json", root / name)
    return root


def parts(model="tiny:base", prompts=16, samples=16, max_tokens=56, beta=0.01, trainer=None, evaluation=None, **module):
    made = SeRLModule(
        str(model), objective=Objective(beta=beta), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-4), **module
    )
    size = RoundOptions(prompts_per_round=prompts, samples_per_prompt=samples)
    data = SelfPlayDataModule(
        "tiny:seeds", round=size, max_tokens=max_tokens, evaluation=evaluation or EvaluationOptions()
    )
    return trainer_for(".", **trainer or {}), made, data


def test_optimizer_state_is_that_of_the_optimizer():
    def state(optimizer):
        return state_per_weight(SeRLModule("tiny:base", optimizer=optimizer).check_optimizer())

    assert state(lambda p: torch.optim.SGD(p, lr=1)) == 0
    assert state(lambda p: torch.optim.SGD(p, lr=1, momentum=0.9)) == 4
    assert state(lambda p: torch.optim.AdamW(p)) == pytest.approx(8, abs=0.01)


# (free MiB, what else): from far too much to hardly anything
ROOMS = [
    (10_000, {}), (2_000, {}), (800, {}), (600, {}), (400, {}), (200, {}), (100, {}), (70, {}), (40, {}),
    (200, {"samples": 5, "prompts": 7}), (60, {"samples": 5, "prompts": 7}), (100, {"minibatches": 4}),
    (100, {"gradient_checkpointing": True}), (100, {"beta": 0.0}), (100, {"max_tokens": 200}),
    (100, {"lora": LoraOptions(r=4)}), (100, {"trainer": {"precision": "bf16-true"}}), (300, {"micro_batch": "auto"}),
]  # fmt: skip


@pytest.mark.parametrize(("free", "changes"), ROOMS)
def test_the_fewest_micro_batches_and_most_rows_that_fit(room, cheap, free, changes):
    room(free * MIB)
    trainer, module, data = parts(**changes)
    plan = MemoryPlan()
    assert plan.plan(trainer, module, data)
    seen, count = plan._foresight, trainer.accumulate_grad_batches
    chosen = seen.plan_of(seen.rows_of(count), data.engine.max_rows, plan._scored)
    assert chosen.peak <= 0.85 * free * MIB
    fewer = next((n for n in range(count - 1, 0, -1) if seen.rows_of(n) > seen.rows_of(count)), None)
    if fewer is not None:
        assert seen.plan_of(seen.rows_of(fewer), 1, 1).training > 0.85 * free * MIB
    if data.engine.max_rows < 256:
        assert seen.plan_of(1, data.engine.max_rows + 1, 1).peak > 0.85 * free * MIB
    if free > 5_000:
        assert (count, data.engine.max_rows, plan._scored) == (1, 256, 64)


def test_numbers_in_steps_are_converted(room, cheap):
    room(100 * MIB)
    trainer, module, data = parts(trainer={"limit_train_batches": 3, "val_check_interval": 2})
    MemoryPlan().plan(trainer, module, data)
    count = trainer.accumulate_grad_batches
    assert count > 1
    assert (trainer.limit_train_batches, trainer.val_check_interval) == (3 * count, 2 * count)
    trainer, module, data = parts(trainer={"limit_train_batches": 0.5})
    MemoryPlan().plan(trainer, module, data)
    assert (trainer.limit_train_batches, trainer.val_check_interval) == (0.5, 1.0)


def test_what_cannot_fit_is_refused_with_what_would(large, room):
    room(22 * GIB)
    trainer, module, data = parts(large / "7b", max_tokens=1024)
    with pytest.raises(InputError) as caught:
        MemoryPlan().plan(trainer, module, data)
    said = f"error: {caught.value}"
    assert len(said) <= 300
    assert "needs at least 146.0 GiB on cpu, where 22.0 of 22.0 are free" in said
    assert "-c preset:lora-24gb would take 18.6 and -c preset:qlora-24gb would take 8.45" in said
    assert "--trainer.callbacks.refuse false" in said
    assert "policy" not in module._modules


# the same by plans that are cheap to compute: (free MiB, what else)
SMALL = [
    (20, {}), (10, {}), (1, {}), (20, {"micro_batch": 2}), (20, {"trainer": {"accumulate_grad_batches": 8}}),
    (5, {"lora": LoraOptions(r=4)}), (20, {"minibatches": 4}), (16, {"beta": 0.0}),
]  # fmt: skip


@pytest.mark.parametrize(("free", "changes"), SMALL)
def test_a_refusal_can_be_switched_off(room, cheap, free, changes):
    room(free * MIB)
    trainer, module, data = parts(max_tokens=4000, **changes)
    with pytest.raises(InputError, match=r"needs at least 0\.\d+ GiB .* --trainer\.callbacks\.refuse false"):
        MemoryPlan().plan(trainer, module, data)
    with pytest.warns(UserWarning, match="needs at least"):
        assert MemoryPlan(refuse=False).plan(*parts(max_tokens=4000, **changes))


def test_the_readmes_command_fits_24_gb(large, room, logged):
    room(int(22.2 * GIB))
    trainer, module, data = parts(large / "small", max_tokens=None, beta=0.001)
    assert MemoryPlan().plan(trainer, module, data)
    assert trainer.accumulate_grad_batches == 32
    assert any("divided into 32 micro-batches of 8 of its 256 responses" in line for line in logged)


def test_remedies_are_those_of_the_presets():
    for remedy in REMEDIES[1:]:
        name = remedy.options.removeprefix("-c preset:")
        found = yaml.safe_load(Path(preset_path(name)).read_text())
        if name == "qlora-24gb":
            assert found["model"]["quantize"] == "nf4"
            assert "8bit" in found["model"]["optimizer"]["class_path"]
        else:
            assert found["model"]["dtype"] == "bfloat16"
            assert found["model"]["gradient_checkpointing"]
            assert found["data"]["engine"]["init_args"]["max_rows"] == remedy.rows
        assert found["model"]["lora"]["r"] == remedy.lora
        assert found["trainer"]["accumulate_grad_batches"] == remedy.micro_batches


def test_numbers_that_were_given_stay_and_a_warning_names_better_ones(room, cheap):
    room(60 * MIB)
    trainer, module, data = parts(trainer={"accumulate_grad_batches": 2})
    with pytest.warns(UserWarning, match=r"trainer\.accumulate_grad_batches \d+ would take 0\.\d+"):
        MemoryPlan().plan(trainer, module, data)
    assert trainer.accumulate_grad_batches == 2
    trainer, module, data = parts(micro_batch=100)
    with pytest.warns(UserWarning, match="would take"):
        MemoryPlan().plan(trainer, module, data)
    assert trainer.accumulate_grad_batches == 3
    data.engine = TransformersEngine(max_rows=200)
    trainer, module, _ = parts()
    MemoryPlan().plan(trainer, module, data)
    assert data.engine.max_rows == 200


def test_micro_batches_are_given_once(cheap):
    trainer, module, data = parts(micro_batch=4, trainer={"accumulate_grad_batches": 2})
    with pytest.raises(InputError, match=r"model\.micro_batch is 4 and trainer\.accumulate_grad_batches 2; give one"):
        MemoryPlan().plan(trainer, module, data)
    trainer, module, _ = parts(micro_batch=4)
    with pytest.raises(InputError, match="only with SelfPlayDataModule"):
        MemoryPlan().plan(trainer, module, LightningDataModule())
    with pytest.raises(InputError, match=r"model\.micro_batch must be at least 1, got 0"):
        SeRLModule("tiny:base", micro_batch=0)


def test_an_evaluation_alone_writes_as_many_rows_as_fit(large, room, cheap):
    many = EvaluationOptions(sets={"a": "tiny:held_out"})
    for free, expected in ((300, 256), (8, range(8, 200))):
        room(int(free * GIB))
        trainer, module, data = parts(large / "small", max_tokens=1024, evaluation=many)
        assert MemoryPlan().plan(trainer, module, data, trains=False)
        assert data.engine.max_rows == expected or data.engine.max_rows in expected
        assert trainer.accumulate_grad_batches == 1


def test_there_is_no_plan_of_foreign_parts(tmp_path, logged):
    trainer = trainer_for(tmp_path)
    module, data = selfplay()
    assert isinstance(module, LoadsPolicy)
    assert isinstance(data, SelfPlay)
    assert not MemoryPlan().plan(trainer, LightningModule(), data)
    assert not MemoryPlan().plan(trainer, module, LightningDataModule())
    assert not MemoryPlan().plan(trainer, SeRLModule(), data)
    assert logged == []


def test_a_model_that_cannot_be_traced_is_trained_all_the_same(tmp_path, monkeypatch, logged):
    def fail(*arguments):
        raise RuntimeError("no such layer\nmore")

    monkeypatch.setattr(foresight, "plan", fail)
    assert not MemoryPlan().plan(trainer_for(tmp_path), *selfplay())
    assert logged == ["memory: no plan for this model (no such layer)"]


# -- whole runs --------------------------------------------------------------------------------------------------------


def test_a_divided_run_is_that_of_the_same_number_given(tmp_path, room, logged):
    options = ["--trainer.accumulate_grad_batches", 1, "--trainer.limit_train_batches", 1]
    room(30 * MIB)
    ended = cli("fit", *small(tmp_path / "auto", rounds=2), *options)
    assert ended.status == 0, ended.err
    found = [line for line in logged if "micro-batches" in line]
    assert len(found) == 1
    count = int(found[0].split("divided into ")[1].split()[0])
    assert count > 1
    room(GIB)
    options = ["--trainer.accumulate_grad_batches", count, "--trainer.limit_train_batches", count]
    ended = cli("fit", *small(tmp_path / "given", rounds=2), *options)
    assert ended.status == 0, ended.err
    assert ledger(tmp_path / "auto") == ledger(tmp_path / "given")
    names = [tmp_path / name / "export" / "model.safetensors" for name in ("auto", "given")]
    assert names[0].read_bytes() == names[1].read_bytes()
    saved = torch.load(tmp_path / "auto" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["callbacks"]["MemoryPlan"] == {"micro_batches": count}


def test_a_refused_run_leaves_nothing(tmp_path, room):
    room(10_000)
    ended = cli("fit", *small(tmp_path / "run", rounds=1), "--trainer.accumulate_grad_batches", 1)
    assert ended.status == 2
    assert "needs at least 0.0" in ended.error
    assert not (tmp_path / "run").exists()


class RunsOut(Callback):
    """Memory runs out in one backward pass."""

    def __init__(self, error, step=1):
        self.error, self.step = error, step

    def on_before_backward(self, trainer, pl_module, loss):
        if trainer.global_step == self.step:
            raise self.error


def test_a_step_that_runs_out_of_memory_says_how_to_go_on_and_loses_nothing(tmp_path, logged):
    def fit(root, *callbacks, ckpt_path=None, **options):
        module, data = selfplay(rounds_per_epoch=1, steps=(1, 2))
        trainer = trainer_for(root, [*callbacks, Checkpoints(1)], **options)
        trainer.fit(module, data, ckpt_path=ckpt_path)
        return module, trainer

    undisturbed, _ = fit(tmp_path / "a")
    full = RunsOut(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore"))
    with pytest.raises(torch.OutOfMemoryError) as caught:
        fit(tmp_path / "b", full)
    assert _sentence(caught.value) == (
        "memory ran out with 1 micro-batches of 6 responses in an optimizer step; go on with --ckpt_path last, "
        "which makes them 2"
    )
    resumed, trainer = fit(tmp_path / "b", ckpt_path=str(tmp_path / "b" / "checkpoints" / "last.ckpt"))
    assert trainer.accumulate_grad_batches == 2
    assert ledger(tmp_path / "a") == ledger(tmp_path / "b")
    ours, theirs = weights(undisturbed), weights(resumed)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-4, rtol=1e-3)


# (error, number given by the user, stage, what is said)
FAILURES = [
    (torch.OutOfMemoryError("CUDA out of memory."), 1, "fit", "which makes them 2"),
    (MemoryError(), 1, "fit", "which makes them 2"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), 1, "fit", "them 2"),
    (RuntimeError("MPS backend out of memory (MPS allocated: 3 GB)"), 1, "fit", "them 2"),
    (RuntimeError("HIP out of memory"), 4, "fit", "last and --trainer.accumulate_grad_batches 8"),
    (torch.OutOfMemoryError("x"), 4, "fit", "with 4 micro-batches of 3 responses in an optimizer step; go on with"),
    (torch.OutOfMemoryError("x"), 12, "fit", "memory ran out; try --model.gradient_checkpointing true"),
    (torch.OutOfMemoryError("x"), 1, "validate", "memory ran out; try --model.gradient_checkpointing true"),
    (torch.OutOfMemoryError("x"), 1, "predict", "a smaller data.max_tokens"),
    (RuntimeError("something else"), 1, "fit", None),
    (EngineFailure("the engine is out of memory; lower data.engine.memory_share"), 1, "fit", None),
    (KeyboardInterrupt(), 1, "fit", None),
]


@pytest.mark.parametrize(("error", "given", "stage", "says"), FAILURES)
def test_what_to_try_next(tmp_path, cheap, error, given, stage, says):
    trainer, plan = trainer_for(tmp_path, accumulate_grad_batches=given), MemoryPlan()
    module, data = selfplay()
    trainer.strategy.connect(module)
    plan.plan(trainer, module, data)
    trainer.state.fn = stage
    plan.on_exception(trainer, module, error)
    assert bool(getattr(error, "__notes__", [])) == (says is not None)
    if says is not None:
        assert says in _sentence(error)


def test_writing_that_runs_out_of_memory_is_done_with_fewer_rows(tmp_path, room):
    module, data = selfplay(engine=TransformersEngine())
    trainer = trainer_for(tmp_path, [Checkpoints(1)])

    def fail(*arguments, **given):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_serl.engines.transformers.choose_tokens", fail)
        with pytest.raises(torch.OutOfMemoryError) as caught:
            trainer.fit(module, data)
    assert "while 256 completions were written at one time" in _sentence(caught.value)
    assert "--data.engine.max_rows 128" in _sentence(caught.value)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["callbacks"]["MemoryPlan"] == {"rows": 128}
    module, data = selfplay(engine=TransformersEngine())
    trainer_for(tmp_path, max_epochs=0).fit(module, data, ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"))
    assert data.engine.max_rows == 128
