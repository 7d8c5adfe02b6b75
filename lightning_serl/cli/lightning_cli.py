"""LightningCLI with presets, a run folder, and evaluations before and after the fit."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
from jsonargparse import ActionConfigFile, Namespace
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from lightning_serl.callbacks import Checkpoints, Export, Ledger, MemoryPlan, RolloutHooks, Summary
from lightning_serl.checkpoints.checks import check_checkpoint, check_overrides
from lightning_serl.cli import run_folder
from lightning_serl.cli.config_files import preset_path, presets, read_config, with_current_paths
from lightning_serl.cli.parser_errors import ParserRefusal, construction_refusal, refusal
from lightning_serl.cli.parser_internals import StrictCLI, option_groups, option_names
from lightning_serl.cli.run_folder import CommandState
from lightning_serl.datamodules import checks
from lightning_serl.datamodules.self_play import SelfPlayDataModule
from lightning_serl.distributed.strategies import check_strategy, check_strategy_name
from lightning_serl.errors import InputError
from lightning_serl.module import SeRLModule

_DESCRIPTION = "Self-play reinforcement learning of language models without labels."
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


class ConfigFile(ActionConfigFile):
    """The option ``--config``: a configuration file, or ``preset:NAME`` for a packaged one."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Merge a file into the configuration."""
        self._merge(parser, cfg, str(values), ())

    def _merge(self, parser: Any, cfg: Any, values: str, above: tuple[str, ...]) -> None:
        """Merge one file, after the ones that it extends; ``above`` are the files that extend it."""
        named = os.path.normpath(values)
        if named in above:
            raise ParserRefusal(f"{named} extends itself ({' extends '.join((*above, named))}); remove one extends")
        if values.startswith("preset:"):
            values = preset_path(values.removeprefix("preset:"))
        try:
            extended, rest = read_config(values)
            for other in extended:
                self._merge(parser, cfg, other, (*above, named))
            if rest != "":
                super().__call__(parser, cfg, values if rest is None else rest)
        except (ParserRefusal, TypeError, ValueError, OSError) as error:
            said = str(error) if isinstance(error, ParserRefusal) else refusal(_bare(error), option_names(parser))
            raise ParserRefusal(said if values in said or above else f"{values[-120:]}: {said}") from error


def _bare(error: Exception) -> str:
    """The parser's message about a configuration file, without the name of the option ``--config``."""
    if isinstance(error, UnicodeDecodeError):
        return "this is not UTF-8 text; give a configuration in YAML"
    return re.sub(r'^[Pp]arser key "c?(onfig)?":\s*', "", str(error))


class Parser(LightningArgumentParser):
    """Raises its error messages as one sentence in place of printing them."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a ParserRefusal; the parser of a class inside an option leaves that to the one around it."""
        said = refusal(message, option_names(self))
        if not self.exit_on_error:
            super().error(said, ex)
        raise ParserRefusal(said) from ex


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

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Keep the exception."""
        self.state.ended_by = exception


class SelfPlayCLI(StrictCLI):
    """Parses the arguments, makes module, datamodule and Trainer, and runs the subcommand; fills in ``state``."""

    def __init__(self, args: Sequence[str], state: CommandState) -> None:
        self.state, self.arguments = state, [with_current_paths(argument) for argument in args]
        super().__init__(
            SeRLModule,
            SelfPlayDataModule,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True, "save_to_log_dir": False, "state": state},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            trainer_defaults=_TRAINER_DEFAULTS,
            parser_kwargs={"prog": "lightning-serl", "description": _DESCRIPTION},
            args=self.arguments,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose option ``--config`` takes presets."""
        parser = Parser(**kwargs)
        parser.add_argument(
            "-c",
            "--config",
            action=ConfigFile,
            help=f"Configuration file, or preset:NAME (there are: {', '.join(presets())}); may be given again.",
        )
        return parser

    def subcommands(self) -> dict[str, set[str]]:
        """The subcommand that was asked for, since each parser takes half a second to make; all if none was."""
        known = LightningCLI.subcommands()
        return {name: known[name] for name in self.arguments[:1] if name in known} or known

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; LightningCLI would warn where arguments are given besides those of the process."""
        self.config = parser.parse_args(args)

    def before_instantiate_classes(self) -> None:
        """Check the options that concern no single class, and settle run folder and checkpoint."""
        options = self.config[self.subcommand]
        for group in option_groups(self.command_parser):
            if (value := options.get(group)) is None:
                raise InputError(f"{group} is empty in a configuration; give options by name or remove the line")
            if not isinstance(value, Namespace):
                raise InputError(f"{group} must hold options by name, but got {str(value)[:100]}")
        if isinstance(options.trainer.strategy, str):
            check_strategy_name(options.trainer.strategy)
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
            raise InputError(said) from error

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Construct the Trainer and add the callbacks of a run of the command line."""
        trainer = super().instantiate_trainer(**kwargs)
        options = self.config_init[self.subcommand].trainer
        if options.precision in ("16-mixed", "16", 16) and trainer.precision_plugin.precision != "16-mixed":
            raise InputError("trainer.precision 16-mixed needs a GPU; use bf16-mixed or 32-true here")
        check_strategy(trainer)
        listed = options.callbacks if isinstance(options.callbacks, list) else [options.callbacks]
        if options.enable_checkpointing is None and not any(isinstance(c, Checkpoint) for c in listed):
            # the Trainer's own would write a second series of checkpoints
            trainer.callbacks = [c for c in trainer.callbacks if type(c) is not ModelCheckpoint]
        wanted = [MemoryPlan, Summary, Export, *([] if options.enable_checkpointing is False else [Checkpoints])]
        present = {type(c) for c in trainer.callbacks}
        trainer.callbacks += [kind() for kind in wanted if kind not in present]
        trainer.callbacks.append(StateObserver(self.state))
        return trainer

    def before_fit(self) -> None:
        """Check everything that a fit checks, then evaluate the weights that it begins with."""
        ckpt_path = self.config_init.fit.ckpt_path
        checks.check_fit(self.trainer, self.model, self.datamodule)
        check_overrides(self.model.check_optimizer(), ckpt_path)
        self._callback(Summary).deferred = True
        if ckpt_path is None and not self.trainer.fast_dev_run and self.datamodule.evaluation.sets:
            self._callback(MemoryPlan).fit_follows = True
            self.trainer.validate(self.model, self.datamodule, verbose=False)

    def after_fit(self) -> None:
        """Evaluate the last weights, if the fit did not, and print the summary."""
        trainer, model = self.trainer, self.model
        stale = model.evaluated_at != trainer.global_step and not trainer.fast_dev_run
        if stale and self.datamodule.evaluation.sets:
            # max_steps or max_time ended the run inside an epoch
            trainer.validate(model, self.datamodule, verbose=False)
            self._callback(Ledger).enter_evaluation(trainer.global_step, model)
        self._callback(Summary).finish(trainer)

    def _callback(self, kind: type[Any]) -> Any:
        return next(c for c in self.trainer.callbacks if isinstance(c, kind))

    def before_validate(self) -> None:
        """Results are printed by a callback."""
        self.config_init.validate.verbose = False

    def before_test(self) -> None:
        """Results are printed by a callback."""
        self.config_init.test.verbose = False
