"""Private names of Lightning, jsonargparse and torch that the package leans on: one test per name.

Each test uses the name as the package does, on real objects. When an upgrade changes a name or what it does, the test
of that name fails; the place to mend is ``distributed/lightning_internals.py``, ``cli/parser_internals.py``,
``distributed/ranks.py`` or ``engines/vllm/isolation.py``.
"""

import os
import signal
import subprocess
import sys

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from helpers.private_names import WRAPPERS, private_uses
from helpers.training import QUIET
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch.distributed import distributed_c10d as c10d
from torch.utils.data import DataLoader

from lightning_serl.cli.parser_internals import StrictCLI, option_groups, option_names
from lightning_serl.cli.preset_cli import Parser
from lightning_serl.distributed import lightning_internals as internals
from lightning_serl.distributed.strategies import ShardedStrategy


class Line(pl.LightningModule):
    """One weight, plain SGD."""

    def __init__(self, rate: float = 0.1):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.rate = rate

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.9)


class At(pl.Callback):
    """Calls a function at the end of every micro-batch."""

    def __init__(self, act):
        self.act = act

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.act(trainer, batch_idx)


def batches(count=4):
    return DataLoader([torch.ones(1, 1) for _ in range(count)], batch_size=None)  # a list would be several loaders


def fit(folder, *callbacks, module=None, val=None, ckpt_path=None, **options):
    options = {"max_epochs": 1, "enable_checkpointing": False, **QUIET, **options}
    trainer = pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **options)
    trainer.fit(module or Line(), batches(), val, ckpt_path=ckpt_path)
    return trainer


def test_the_wrappers_use_the_names_that_are_tested_here():
    found = {use.split()[1] for wrapper in WRAPPERS for use in private_uses(wrapper)}
    assert found == {
        "_ActionConfigLoad", "_MultiProcessingLauncher", "_SubprocessScriptLauncher", "_actions",
        "_checkpoint_connector", "_data_fetcher", "_data_parallel_size", "_find_last_checkpoints",
        "_generate_state_key", "_last_checkpoint_saved", "_last_global_step_saved", "_parse_ckpt_path", "_parser",
        "_run_subcommand", "_save_checkpoint", "_save_distributed_checkpoint", "_should_check_val_fx",
        "_signal_connector", "_sigterm_notifier_fn", "_tensor_parallel_size", "_trainer",
    }  # fmt: skip


def test_private_uses_are_found(tmp_path, monkeypatch):
    """The scanner sees an import, an attribute of another object, and a method and an attribute of a base class."""
    source = (
        "import lightning.pytorch as pl\n"
        "from lightning.pytorch.callbacks import ModelCheckpoint\n"
        "from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher\n"
        "class Mine(ModelCheckpoint):\n"
        "    def _save_checkpoint(self, trainer, filepath):\n"
        "        self._own = trainer._checkpoint_connector\n"
        "        self._last_checkpoint_saved = self._own\n"
    )
    (tmp_path / "scanned_module.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    assert private_uses("scanned_module") == [
        "scanned_module:3 _MultiProcessingLauncher",
        "scanned_module:5 _save_checkpoint",
        "scanned_module:6 _checkpoint_connector",
        "scanned_module:7 _last_checkpoint_saved",
    ]


# -- LightningModule and Trainer ------------------------------------------------------------------------------------


def test_module_trainer(tmp_path):
    module, seen = Line(), []
    assert internals.attached_trainer(module) is None
    trainer = fit(tmp_path, At(lambda trainer, _: seen.append(internals.attached_trainer(module))), module=module)
    assert seen == [trainer] * 4


def test_checkpoint_connector(tmp_path):
    whole, weights = [], []

    def dump(trainer, batch_idx):
        whole.append(internals.dump_checkpoint(trainer))
        weights.append(internals.dump_checkpoint(trainer, weights_only=True))

    fit(tmp_path, At(dump))
    assert whole[-1]["global_step"] == 4
    assert whole[-1]["optimizer_states"][0]["param_groups"][0]["lr"] == 0.1
    assert {"loops", "callbacks", "lr_schedulers", "state_dict", "pytorch-lightning_version"} <= set(whole[-1])
    assert "optimizer_states" not in weights[-1]
    assert weights[-1]["state_dict"].keys() == {"layer.weight", "layer.bias"}


def test_generate_state_key():
    class Named(pl.Callback):
        low, style = 0.2, "default"

    key = internals.callback_state_key(Named(), "low", "style")
    assert key == "test_generate_state_key.<locals>.Named{'low': 0.2, 'style': 'default'}"


# -- ModelCheckpoint -------------------------------------------------------------------------------------------------


class Recorded(internals.CheckpointHooks):
    """Records what Lightning asks of it."""

    def __init__(self, **options):
        super().__init__(save_top_k=-1, monitor=None, **options)
        self.asked = []

    def choose_folder(self, trainer):
        self.asked.append("folder")
        self.dirpath = trainer.default_root_dir
        return self.dirpath

    def write(self, trainer, path):
        self.asked.append((trainer.global_step, path.name))
        trainer.strategy.save_checkpoint(internals.dump_checkpoint(trainer), path)
        self.note_saved(trainer, path)


def recorded_fit(folder, saved, **options):
    fit(folder, saved, enable_checkpointing=True, **options)
    return saved.asked


def test_save_checkpoint(tmp_path):
    saved = Recorded(every_n_train_steps=2, filename="{step}", dirpath=tmp_path)
    assert recorded_fit(tmp_path, saved) == [(2, "step=2.ckpt"), (4, "step=4.ckpt")]
    assert (tmp_path / "step=4.ckpt").exists()


def test_last_global_step_saved(tmp_path):
    """A step is saved once, though two micro-batches end with it."""

    class Forgetful(Recorded):
        def note_saved(self, trainer, path):
            super().note_saved(trainer, path)
            self._last_global_step_saved = -1

    options = {"every_n_train_steps": 1, "filename": "{step}", "dirpath": tmp_path, "enable_version_counter": False}
    steps = [
        [step for step, _ in recorded_fit(tmp_path, kind(**options), accumulate_grad_batches=2)]
        for kind in (Recorded, Forgetful)
    ]
    assert steps == [[1, 2], [1, 1, 2]]


def test_last_checkpoint_saved(tmp_path):
    """``save_last`` needs it: without a last checkpoint none is copied."""
    saved = Recorded(every_n_train_steps=2, save_last=True, filename="{step}", dirpath=tmp_path)
    assert (4, "last.ckpt") in recorded_fit(tmp_path, saved)
    assert saved._last_checkpoint_saved == str(tmp_path / "last.ckpt")


def test_find_last_checkpoints(tmp_path):
    """A fit that continues from ``last`` asks for the folder before ``setup`` has set it."""
    recorded_fit(tmp_path, Recorded(every_n_train_steps=2, save_last=True, dirpath=tmp_path))
    saved, steps = Recorded(every_n_train_steps=2), []
    fit(tmp_path, saved, At(lambda trainer, _: steps.append(trainer.global_step)), enable_checkpointing=True,
        ckpt_path="last", max_epochs=2)  # fmt: skip
    assert saved.asked[0] == "folder"
    assert steps == [5, 6, 7, 8]


# -- the fit loop's state --------------------------------------------------------------------------------------------


def states(folder, **options):
    """The saved state of the fit loop after every micro-batch."""
    found = []
    fit(folder, At(lambda trainer, _: found.append(internals.dump_checkpoint(trainer)["loops"]["fit_loop"])), **options)
    return found


def test_epoch_progress(tmp_path):
    counters = internals.FitCounters.of(states(tmp_path, max_epochs=2)[5]).epochs
    assert counters["total"] == {"ready": 2, "started": 2, "processed": 1, "completed": 1}
    assert counters["current"].keys() == counters["total"].keys()


def test_batch_progress(tmp_path):
    found = [internals.FitCounters.of(state).batches for state in states(tmp_path)]
    # a callback runs before its batch counts as completed
    assert found[2]["current"] == {"ready": 3, "started": 3, "processed": 3, "completed": 2}
    assert [one["is_last_batch"] for one in found] == [False, False, False, True]


def test_optim_progress(tmp_path):
    found = [internals.FitCounters.of(s).optimizer_steps for s in states(tmp_path, accumulate_grad_batches=2)]
    assert [one["current"]["completed"] for one in found] == [0, 1, 1, 2]
    assert found[0]["total"].keys() == {"ready", "completed"}


def test_val_loop_batch_progress(tmp_path):
    counters = internals.FitCounters.of(states(tmp_path, val=batches(3), val_check_interval=2)[2]).evaluation
    assert counters["total"]["completed"] == 3
    assert counters["current"].keys() == {"ready", "started", "processed", "completed"}


def test_batches_that_stepped(tmp_path):
    """The step that loggers see after a resume."""
    path, seen = tmp_path / "changed.ckpt", []

    def save(trainer, batch_idx):
        if batch_idx == 1:
            checkpoint = internals.dump_checkpoint(trainer)
            counters = internals.FitCounters.of(checkpoint["loops"]["fit_loop"])
            assert counters.loop["_batches_that_stepped"] in (1, 2)
            counters.set_logged_steps(70)
            torch.save(checkpoint, path)

    fit(tmp_path, At(save))
    fit(tmp_path, At(lambda trainer, _: seen.append(trainer.fit_loop.epoch_loop._batches_that_stepped)), ckpt_path=path)
    assert seen[0] in (70, 71)


def test_data_fetcher(tmp_path):
    """There is one inside an epoch, none outside."""
    seen = []
    trainer = fit(tmp_path, At(lambda trainer, _: seen.append(trainer.fit_loop._data_fetcher is not None)))
    assert seen == [True] * 4
    assert trainer.fit_loop._data_fetcher is None
    assert internals.validation_is_due(trainer) is False


def test_should_check_val_fx(tmp_path):
    due = []
    fit(tmp_path, At(lambda trainer, _: due.append(internals.validation_is_due(trainer))), val=batches(1),
        val_check_interval=2)  # fmt: skip
    assert due == [False, True, False, True]


# -- processes and signals -------------------------------------------------------------------------------------------


def test_sigterm_notifier_fn(tmp_path):
    """Our handler is called, and Lightning's is not."""
    heard, received = [], []

    class Listens(pl.Callback):
        def setup(self, trainer, pl_module, stage):
            internals.replace_sigterm_handler(trainer, lambda number, frame: heard.append(number))

    def stop(trainer, batch_idx):
        os.kill(os.getpid(), signal.SIGTERM)
        received.append(trainer.received_sigterm)

    former = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        fit(tmp_path, Listens(), At(stop))
    finally:
        signal.signal(signal.SIGTERM, former)
    assert heard == [signal.SIGTERM] * 4
    assert received == [False] * 4


def test_signal_connector(tmp_path):
    """Without our handler Lightning notes the signal, and raises at the next batch."""
    received = []

    def stop(trainer, batch_idx):
        os.kill(os.getpid(), signal.SIGTERM)
        received.append(trainer.received_sigterm)

    former = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(pl.utilities.exceptions.SIGTERMException):
            fit(tmp_path, At(stop))
    finally:
        signal.signal(signal.SIGTERM, former)
    assert received == [True]


def test_subprocess_script_launcher():
    """Its list of processes is the one that its watching thread looks at: emptied, nothing is killed."""
    trainer = pl.Trainer(**QUIET, strategy="ddp", devices=2)
    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    child.wait()
    trainer.strategy.launcher.procs.append(child)
    observer = _ChildProcessObserver(main_pid=-1, child_processes=trainer.strategy.launcher.procs)
    started = internals.started_processes(trainer)
    assert started == [child]
    started.clear()
    assert observer._run() is True
    assert internals.started_processes(pl.Trainer(**QUIET)) == []


@pytest.mark.parametrize("name", [n for n in StrategyRegistry.available_strategies() if n.startswith("ddp")])
def test_multi_processing_launcher(name):
    strategy = pl.Trainer(**QUIET, strategy=name, devices=2).strategy
    assert internals.spawns_workers(strategy) == any(word in name for word in ("spawn", "fork", "notebook"))


def test_multi_processing_launcher_is_the_only_one_that_spawns_here():
    assert not internals.spawns_workers(pl.Trainer(**QUIET).strategy)
    assert not internals.spawns_workers(pl.Trainer(**QUIET, strategy="sharded", devices=2).strategy)


# -- ModelParallelStrategy -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, "auto"])
def test_data_parallel_size(size):
    assert internals.mesh_sizes(ModelParallelStrategy(size, 3))[0] == size
    strategy = ShardedStrategy()
    internals.set_data_parallel_size(strategy, 5)
    assert internals.mesh_sizes(strategy) == (5, 1)


@pytest.mark.parametrize("size", [2, "auto"])
def test_tensor_parallel_size(size):
    assert internals.mesh_sizes(ModelParallelStrategy(3, size))[1] == size


@pytest.mark.parametrize("sharded", [True, False])
def test_save_distributed_checkpoint(sharded):
    assert internals.saves_shards(ModelParallelStrategy(save_distributed_checkpoint=sharded)) is sharded
    assert not internals.saves_shards(ShardedStrategy())


# -- LightningCLI and jsonargparse -----------------------------------------------------------------------------------


class Parsed(Exception):
    """Ends a command after its options were parsed."""


def parsed(kind, *arguments):
    """The options of a LightningCLI after it has looked into the checkpoint, without running anything."""
    found = []

    class Stopped(kind):
        def before_instantiate_classes(self):
            found.append(self)
            raise Parsed

    with pytest.raises(Parsed):
        Stopped(Line, args=["fit", *map(str, arguments)], parser_class=Parser)
    return found[0]


def test_parse_ckpt_path(tmp_path):
    """Options stored in a checkpoint win over the command line in LightningCLI, and not in ours."""
    path = tmp_path / "with_options.ckpt"
    torch.save({"hyper_parameters": {"rate": 0.5}}, path)
    arguments = ["--model.rate", 0.25, "--ckpt_path", path]
    assert parsed(LightningCLI, *arguments).config.fit.model.rate == 0.5
    assert parsed(StrictCLI, *arguments).config.fit.model.rate == 0.25


def test_subcommand_parser(tmp_path):
    cli = parsed(StrictCLI)
    assert cli.command_parser is not cli.parser
    assert "--model.rate" in option_names(cli.command_parser)
    assert "--model.rate" in option_names(cli.parser)


def test_run_subcommand():
    """Everything is made when a subcommand is carried out, and nothing was done with it yet."""
    carried = []

    class Notes(StrictCLI):
        def run(self, subcommand):
            carried.append((subcommand, self.trainer.state.status, type(self.model)))

    Notes(Line, args=["fit", "--trainer.logger=false", "--trainer.accelerator=cpu"], parser_class=Parser)
    assert carried == [("fit", "initializing", Line)]


def test_action_config_load():
    assert {"model", "trainer"} <= set(option_groups(parsed(StrictCLI).command_parser))
    assert "model.rate" not in option_groups(parsed(StrictCLI).command_parser)


# -- torch.distributed -----------------------------------------------------------------------------------------------


@pytest.fixture
def group():
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def test_get_default_store(group):
    store = dist.PrefixStore("mine", c10d._get_default_store())
    assert store.add("count", 2) == 2
    assert store.add("count", 0) == 2
    assert id(c10d._get_default_store()) == id(c10d._get_default_store())


def test_world(group):
    """All of torch's process-group state lies in one object that can be exchanged."""
    outside = c10d._world
    c10d._world = c10d._World()
    try:
        assert c10d._world.default_pg is None
        assert not dist.is_initialized()
    finally:
        c10d._world = outside
    assert dist.is_initialized()


@pytest.mark.parametrize(
    "name", ["pg_map", "pg_names", "pg_group_ranks", "pg_backend_config", "tags_to_pg", "pg_to_tag", "group_count"]
)
def test_world_property(name):
    """These are shared by all worlds unless a subclass overrides them."""
    assert isinstance(getattr(c10d._World, name), property)


def test_default_pg_init_method():
    assert hasattr(c10d, "_default_pg_init_method")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    dist.destroy_process_group()
    assert c10d._default_pg_init_method is None


def test_unregister_all_process_groups(group, monkeypatch):
    """Destroying the default group calls it by this name."""
    called = []
    monkeypatch.setattr(c10d, "_unregister_all_process_groups", lambda: called.append(True))
    name = c10d._world.pg_names[dist.group.WORLD]
    dist.destroy_process_group()
    assert called == [True]
    c10d._unregister_process_group(name)


def test_unregister_process_group(group, monkeypatch):
    """A name can be used again once it is unregistered."""
    name = c10d._world.pg_names[dist.group.WORLD]
    assert c10d._resolve_process_group(name) is not None
    c10d._unregister_process_group(name)
    with pytest.raises((RuntimeError, LookupError, ValueError)):
        c10d._resolve_process_group(name)
    monkeypatch.setattr(c10d, "_unregister_all_process_groups", lambda: None)
    monkeypatch.setattr(c10d, "_unregister_process_group", lambda name: None)
