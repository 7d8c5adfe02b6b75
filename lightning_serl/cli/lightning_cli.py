"""LightningCLI with presets, a run folder, and evaluations before and after the fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_serl.callbacks import (
    Export,
    Ledger,
    MemoryPlan,
    PushToHub,
    ReportPage,
    RolloutHooks,
    Summary,
    TrackerTables,
    default_callbacks,
)
from lightning_serl.callbacks.preemption import Preemption
from lightning_serl.checkpoints.checks import check_checkpoint, check_overrides
from lightning_serl.cli import run_folder
from lightning_serl.cli.conventions import reads_environment, unused_variables
from lightning_serl.cli.exported import exported_options, said_of_export
from lightning_serl.cli.parser_errors import construction_refusal
from lightning_serl.cli.parser_internals import option_groups, option_names
from lightning_serl.cli.preset_cli import PresetCLI
from lightning_serl.cli.run_folder import CommandState
from lightning_serl.datamodules import checks
from lightning_serl.datamodules.self_play import SelfPlayDataModule
from lightning_serl.distributed.strategies import check_strategy, check_strategy_name
from lightning_serl.errors import InputError, own_place
from lightning_serl.module import SeRLModule

_TRAINER_DEFAULTS = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "max_epochs": 10,
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 1,
    # tensors made in inference mode could not take part in a later backward pass
    "inference_mode": False,
}


class SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` of a fit into its run folder, whatever logger is used."""

    def __init__(self, *args: Any, state: CommandState, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.state = state

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the file; other commands may use the folder of a run that had other options."""
        if self.state.command != "fit":
            return
        target = Path(trainer.default_root_dir) / "config.yaml"
        target.parent.mkdir(parents=True, exist_ok=True)
        self.state.written_config = target, target.read_bytes() if target.exists() else None
        self.parser.save(self.config, target, skip_none=False, overwrite=True, multifile=False)


class StateObserver(RolloutHooks):
    """Records in the command's state that work began, and what ended it."""

    def __init__(self, state: CommandState) -> None:
        super().__init__()
        self.state = state

    def on_rollout_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, engine: Any) -> None:
        """Work begins with the first rollout."""
        self.state.began = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The fit has something left to do."""
        self.state.trained = True

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Keep the exception."""
        self.state.ended_by = exception


class SelfPlayCLI(PresetCLI):
    """Parses the arguments, makes module, datamodule and Trainer, and runs the subcommand; fills in ``state``."""

    #: Class of the datamodule; a subclass takes the same options.
    datamodule_kind: type[SelfPlayDataModule] = SelfPlayDataModule

    def __init__(self, args: Sequence[str], state: CommandState) -> None:
        self.state = state
        super().__init__(
            SeRLModule,
            self.datamodule_kind,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True, "save_to_log_dir": False, "state": state},
            seed_everything_default=0,
            trainer_defaults=_TRAINER_DEFAULTS,
            parser_kwargs={
                "prog": "lightning-serl",
                "default_env": reads_environment(),  # the help names a variable for each option otherwise
            },
            args=args,
        )

    def subcommands(self) -> dict[str, set[str]]:
        """The subcommand that was asked for alone, since each parser takes half a second to make."""
        asked = self.arguments[0]
        return {asked: LightningCLI.subcommands()[asked]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of publishing, which Lightning turns into a callback."""
        parser.add_lightning_class_args(PushToHub, "push")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; a model that is an export of ours brings the options that it was asked with as defaults."""
        self.parse_checked(parser)
        self.exported = exported_options(self.config)
        if self.exported is not None:  # first in the line, so that every other option wins
            place = self.arguments.index(self.config.subcommand) + 1
            self.arguments[place:place] = ["-c", str(self.exported)]
            self.parse_checked(parser)
        for said in unused_variables(self.config.subcommand, option_names(parser)):
            rank_zero_warn(said)

    def before_instantiate_classes(self) -> None:
        """Check the options that concern no single class, and settle run folder and checkpoint."""
        options = self.config[self.subcommand]
        if self.exported is not None:
            rank_zero_info(said_of_export(self.exported, options))
        for group in option_groups(self.command_parser):
            if (value := options.get(group)) is None:
                raise InputError(f"{group} is empty in a configuration; give options by name or remove the line")
            if not isinstance(value, Namespace):
                raise InputError(f"{group} must hold options by name, but got {str(value)[:100]}")
        if isinstance(options.trainer.strategy, str):
            check_strategy_name(options.trainer.strategy)
        self.settle_run_folder(options)

    def settle_run_folder(self, options: Namespace) -> None:
        """Choose, check and lock the run folder, and find the checkpoint to continue from."""
        root = run_folder.choose(options.trainer.default_root_dir)
        self.state.run_folder, self.state.command = root, self.subcommand
        options.trainer.default_root_dir = str(root)
        run_folder.check(root, self.subcommand, options.ckpt_path)
        if self.subcommand == "fit" and run_folder.is_first_process():
            self.state.lock = run_folder.lock(root)
        options.weights_only = True
        if options.ckpt_path == "last":
            options.ckpt_path = run_folder.last_checkpoint(root, self.subcommand)
        named = str(options.ckpt_path or "")
        if options.ckpt_path == "":
            raise InputError("--ckpt_path is empty; give a file, or last")
        if named and named not in ("best", "hpc") and not named.startswith("registry:"):
            check_checkpoint(Path(options.ckpt_path), self.subcommand)

    def instantiate_classes(self) -> None:
        """Construct module, datamodule and Trainer; an error in a class names the option that it was given to."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            said = construction_refusal(str(error), self.config[self.subcommand])
            if said is None:
                raise
            place = own_place(error)
            raise InputError(said if place is None else f"{said} in {place}") from error

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Construct the Trainer and add the callbacks of a run of the command line."""
        options = self.config_init[self.subcommand].trainer
        # a copy, since the Trainer adds its own callbacks to this very list
        listed = list(options.callbacks) if isinstance(options.callbacks, list) else [options.callbacks]
        trainer = super().instantiate_trainer(**kwargs)
        self.state.children = lambda: Preemption.children(trainer)
        if options.precision in ("16-mixed", "16", 16) and trainer.precision_plugin.precision != "16-mixed":
            raise InputError("trainer.precision 16-mixed needs a GPU; use bf16-mixed or 32-true here")
        check_strategy(trainer)
        if options.enable_checkpointing is None and not any(isinstance(c, Checkpoint) for c in listed):
            # the Trainer's own would write a second series of checkpoints
            trainer.callbacks = [c for c in trainer.callbacks if type(c) is not ModelCheckpoint]
        present = {type(c) for c in trainer.callbacks}
        # the plan is also what the evaluation before the first step reports
        added = [MemoryPlan(), *default_callbacks(checkpoints=options.enable_checkpointing is not False)]
        trainer.callbacks += [callback for callback in added if type(callback) not in present]
        trainer.callbacks.append(StateObserver(self.state))
        return trainer

    def before_fit(self) -> None:
        """Check everything that a fit checks, then evaluate the weights that it begins with."""
        ckpt_path = self.config_init.fit.ckpt_path
        checks.check_fit(self.trainer, self.model, self.datamodule)
        check_overrides(self.model.check_optimizer(), ckpt_path)
        self._callback(Summary).deferred = self._callback(ReportPage).deferred = True
        if not self.trainer.fast_dev_run:
            for push in self._all(PushToHub):  # before the first evaluation, which takes time
                push.deferred = True
                if run_folder.is_first_process():
                    push.open("fit")
        if ckpt_path is None and not self.trainer.fast_dev_run and self.datamodule.evaluation.sets:
            self._callback(MemoryPlan).fit_follows = True
            self.trainer.validate(self.model, self.datamodule, verbose=False)

    def after_fit(self) -> None:
        """Evaluate the last weights, if the fit did not, and print the summary."""
        trainer, model = self.trainer, self.model
        if not self.state.trained:
            rank_zero_info(self._nothing_left())
        stale = model.evaluated_at != trainer.global_step and not trainer.fast_dev_run
        if stale and self.datamodule.evaluation.sets:
            # max_steps or max_time ended the run inside an epoch
            trainer.validate(model, self.datamodule, verbose=False)
            self._callback(Ledger).enter_evaluation(trainer.global_step, model)
        self._callback(Summary).finish(trainer)
        self._callback(Export).complete(trainer)
        self._callback(ReportPage).write(trainer)
        for tables in self._all(TrackerTables):
            tables.finish(trainer, close=True)
        for push in self._all(PushToHub):
            push.finish(trainer)

    def _nothing_left(self) -> str:
        """Why a fit took no step, and which option lets it go on."""
        trainer = self.trainer
        for option, done in (("max_steps", trainer.global_step), ("max_epochs", trainer.current_epoch)):
            if 0 <= (most := getattr(trainer, option)) <= done:
                said = f"no step was left to take, because the run has reached trainer.{option} {most}"
                return f"{said}; a higher --trainer.{option} trains it further"
        return "the run ended before its first step"

    def _all(self, kind: type[Any]) -> list[Any]:
        return [c for c in self.trainer.callbacks if isinstance(c, kind)]

    def _callback(self, kind: type[Any]) -> Any:
        return next(c for c in self.trainer.callbacks if isinstance(c, kind))

    def before_validate(self) -> None:
        """Results are printed by a callback."""
        self.config_init.validate.verbose = False

    def before_test(self) -> None:
        """Results are printed by a callback."""
        self.config_init.test.verbose = False
