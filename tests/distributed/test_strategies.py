"""Strategies and precisions that would only half work are refused in one sentence, before a model is loaded."""

import lightning.pytorch as pl
import pytest
import torch
from helpers.command_line import cli, problems, small, write_rows
from helpers.training import QUIET, selfplay, sharded
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy, SingleDeviceStrategy

from lightning_serl import SeRLModule
from lightning_serl.distributed.strategies import check_learning_rate, check_strategy
from lightning_serl.errors import InputError
from lightning_serl.policy.loading import LoraOptions, loaded_dtype


def trainer(strategy="auto", **options):
    return pl.Trainer(**QUIET | options, strategy=strategy)


@pytest.mark.parametrize(
    ("strategy", "options", "words"),
    [
        (ModelParallelStrategy(1, 1), {}, "save_distributed_checkpoint=False"),
        (ModelParallelStrategy(1, 2, save_distributed_checkpoint=False), {"devices": 2}, "data_parallel_size=2"),
        (ModelParallelStrategy(save_distributed_checkpoint=False), {"devices": 2}, "tensor_parallel_size=1"),
        ("ddp_spawn", {"devices": 2}, "use ddp"),
        ("ddp_fork", {"devices": 2}, "use ddp"),
        ("auto", {"precision": "16-true"}, "use bf16-mixed"),
    ],
)
def test_a_strategy_that_cannot_work(strategy, options, words):
    with pytest.raises(InputError, match=words) as caught:
        check_strategy(trainer(strategy, **options))
    assert len(str(caught.value)) < 300


def test_a_strategy_of_another_kind():
    class Other(SingleDeviceStrategy):
        pass

    check_strategy(trainer(Other()))  # a kind of one that works
    alien = trainer()
    alien._accelerator_connector.strategy = DeepSpeedStrategy.__new__(DeepSpeedStrategy)
    with pytest.raises(InputError, match="DeepSpeedStrategy is not supported; use one device, ddp"):
        check_strategy(alien)


@pytest.mark.parametrize("strategy", ["auto", "ddp", sharded()])
def test_a_strategy_that_works(strategy):
    check_strategy(trainer(strategy, devices=1 if strategy == "auto" else 2))


@pytest.mark.parametrize(
    ("precision", "dtype", "lora", "lr", "refused"),
    [
        ("bf16-true", "float32", False, 1e-6, True),
        ("bf16-true", "float32", True, 9e-6, True),
        ("bf16-true", "float32", True, 1e-5, False),
        ("bf16-mixed", "bfloat16", False, 1e-6, True),
        ("bf16-mixed", "bfloat16", True, 1e-6, False),
        ("bf16-mixed", "float32", False, 1e-6, False),
        ("32-true", "float16", True, 1e-6, False),
        ("bf16-true", "float16", False, 1e-4, False),  # converted to bfloat16
        ("64-true", "bfloat16", False, 1e-6, False),
    ],
)
def test_weights_in_16_bits_at_small_learning_rates(precision, dtype, lora, lr, refused):
    runner = trainer(precision=precision)
    if not refused:
        check_learning_rate(runner, lr, dtype, lora)
        return
    with pytest.raises(InputError, match=f"does not train at learning rate {lr:g}.*bf16-mixed"):
        check_learning_rate(runner, lr, dtype, lora)


def test_float16_weights_are_not_trained(tmp_path):
    """As ``16-true`` is refused, whatever the learning rate; named by the option, or by the model's own dtype."""
    config = tmp_path / "model" / "config.json"
    config.parent.mkdir()
    for key in ("dtype", "torch_dtype"):
        config.write_text(f'{{"{key}": "float16"}}')
        assert loaded_dtype(str(config.parent), "auto") == "float16"
    for given, said in {"float16": "float16", "auto": r"auto \(float16 in its config.json\)"}.items():
        for precision in ("32-true", "bf16-mixed"):
            with pytest.raises(InputError, match=f"^model.dtype {said} cannot be trained.*float32") as caught:
                check_learning_rate(trainer(precision=precision), 1e-3, "float16", False, given)
            assert len(str(caught.value)) < 290
    for stored in ("{}", "[]", "{", '{"dtype": null}'):
        config.write_text(stored)
        assert loaded_dtype(str(config.parent), "auto") == "auto"
    assert loaded_dtype("org/name", "auto") == "auto"


def test_refused_before_anything_is_loaded(tmp_path):
    """The module asks by itself; this model would take long to fail."""
    module = SeRLModule(
        "org/model-that-does-not-exist", lora=LoraOptions(), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-6)
    )
    _, data = selfplay()
    with pytest.raises(InputError, match="bf16-true does not train"):
        trainer(precision="bf16-true", default_root_dir=tmp_path).fit(module, data)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--trainer.precision", "bf16-true", "--model.optimizer.init_args.lr", "1e-6"], "bf16-true does not train"),
        (["--trainer.precision", "16-mixed"], "16-mixed"),
        (["--trainer.strategy", "fsdp"], "fsdp"),
        (["--trainer.strategy", "deepspeed"], "deepspeed"),
        (["--trainer.strategy", "shard"], "there is no 'shard'; did you mean sharded?"),
    ],
)
def test_refused_by_the_command_line(tmp_path, options, words):
    ended = cli("fit", *small(tmp_path / "run"), *options)
    assert ended.status == 2, ended.err
    assert words in ended.error.lower()
    assert not (tmp_path / "run" / "ledger.jsonl").exists()


@pytest.mark.parametrize("command", ["fit", "validate"])
@pytest.mark.parametrize("name", ["ddp_spawn", "ddp_fork", "ddp_notebook", "ddp_spawn_find_unused_parameters_true"])
@pytest.mark.parametrize("devices", [1, 2])
def test_strategies_that_spawn_are_refused_by_the_command_line(tmp_path, monkeypatch, command, name, devices):
    """Before a worker is started: neither spawning nor forking happens."""
    started = []
    monkeypatch.setattr("torch.multiprocessing.start_processes", lambda *args, **options: started.append(args))
    held_out = write_rows(tmp_path / "held_out.jsonl", problems(2))
    options = ["--trainer.strategy", name, "--trainer.devices", devices]
    ended = cli(command, *small(tmp_path / "run", held_out), *options)
    assert ended.status == 2, ended.err
    assert ended.error.startswith("trainer.strategy: strategies that spawn or fork workers")
    assert ended.error.endswith("use ddp")
    assert not started
