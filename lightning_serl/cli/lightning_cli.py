"""LightningCLI with presets, a run folder and evaluations around the fit."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lightning_serl.cli.parser_errors import option_names, refusal
from lightning_serl.errors import InputError

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.pytorch.cli import LightningCLI
from lightning_serl.checkpoints.checks import check_overrides
from lightning_serl.cli.config_files import _preset_path, _split_extends, presets
from lightning_serl.cli.exit_status import _Refused, _Watch, _without_key
from lightning_serl.cli.run_folder import _check_run_folder, _last_checkpoint, _leads, _run_folder, _take


def _build(args: Sequence[str] | None, watch: _Watch) -> LightningCLI:
    """Parse, instantiate and run. Heavy imports happen here, so that ``import lightning_serl.cli.command`` is cheap."""
    from jsonargparse import ActionConfigFile, Namespace
    from jsonargparse._actions import _ActionConfigLoad
    from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

    from lightning_serl import callbacks as parts
    from lightning_serl.callbacks.memory_plan import report_memory_plan
    from lightning_serl.callbacks.rollout_hooks import RolloutHooks
    from lightning_serl.checkpoints.checks import check_checkpoint
    from lightning_serl.datamodules import checks
    from lightning_serl.datamodules.self_play import SelfPlayDataModule
    from lightning_serl.module import SeRLModule

    class PresetConfig(ActionConfigFile):
        """A configuration file, or ``preset:NAME`` for a packaged one."""

        def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
            self._apply(parser, cfg, str(values), ())

        def _apply(self, parser: Any, cfg: Any, values: str, above: tuple[str, ...]) -> None:
            """Merge one file, after the ones it extends."""
            named = os.path.normpath(values)
            if named in above:
                raise _Refused(f"{named} extends itself ({' extends '.join((*above, named))}); remove one extends")
            if values.startswith("preset:"):
                values = _preset_path(values.removeprefix("preset:"))
            try:
                extended, rest = _split_extends(values)
                for other in extended:
                    self._apply(parser, cfg, other, (*above, named))
                if rest != "":
                    super().__call__(parser, cfg, values if rest is None else rest)
            except (_Refused, TypeError, ValueError, OSError) as error:
                said = str(error) if isinstance(error, _Refused) else refusal(_without_key(error), option_names(parser))
                raise _Refused(said if values in said or above else f"{values[-120:]}: {said}") from error

    class Parser(LightningArgumentParser):
        """Raises what it would print, so that there is one place where errors are told."""

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise _Refused(refusal(message, option_names(self))) from ex

    class SaveConfig(SaveConfigCallback):
        """``config.yaml`` of a fit in its run folder, whatever logger is used."""

        def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
            if watch.command != "fit":
                return  # the folder may hold a run, whose options these are not
            target = Path(trainer.default_root_dir) / "config.yaml"
            target.parent.mkdir(parents=True, exist_ok=True)
            watch.config = target, target.read_bytes() if target.exists() else None
            self.parser.save(self.config, target, skip_none=False, overwrite=True, multifile=False)

    class Watcher(RolloutHooks):
        """Tells the command line how far the run came."""

        def on_rollout_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, engine: Any) -> None:
            watch.began = True

        def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
            watch.ended_by = exception

    class CLI(LightningCLI):
        """LightningCLI with presets, a run folder and evaluations around the fit."""

        def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
            parser = Parser(**kwargs)
            parser.add_argument(
                "-c",
                "--config",
                action=PresetConfig,
                help=f"Configuration file, or preset:NAME (there are: {', '.join(presets())}); may be given again.",
            )
            return parser

        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            # a parser takes half a second to make: only the one that was asked for, if one was
            every = LightningCLI.subcommands()
            named = (sys.argv[1:] if args is None else list(args))[:1]
            return {n: every[n] for n in named if n in every} or every

        def _parse_ckpt_path(self) -> None:
            # LightningCLI would merge options stored in the checkpoint over the command line without a word. Ours
            # stores none, and the command line always means what it says.
            return

        def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
            trainer = super().instantiate_trainer(**kwargs)
            options = self.config_init[self.subcommand].trainer
            if options.precision in ("16-mixed", "16", 16) and trainer.precision_plugin.precision != "16-mixed":
                raise InputError("trainer.precision 16-mixed needs a GPU; use bf16-mixed or 32-true here")
            listed = options.callbacks if isinstance(options.callbacks, list) else [options.callbacks]
            if options.enable_checkpointing is None and not any(isinstance(c, Checkpoint) for c in listed):
                # Lightning's own would write a second series of checkpoints beside ours
                trainer.callbacks = [c for c in trainer.callbacks if type(c) is not ModelCheckpoint]
            present = {type(c) for c in trainer.callbacks}
            wanted = [parts.Summary, parts.Export]
            if options.enable_checkpointing is not False:
                wanted.append(parts.Checkpoints)
            for kind in wanted:
                if kind not in present:
                    trainer.callbacks.append(kind())
            trainer.callbacks.append(Watcher())
            return trainer

        def before_instantiate_classes(self) -> None:
            options = self.config[self.subcommand]
            for group in [a.dest for a in self._parser(self.subcommand)._actions if isinstance(a, _ActionConfigLoad)]:
                if (value := options.get(group)) is None:
                    raise InputError(f"{group} is empty in a configuration; give options by name or remove the line")
                if not isinstance(value, Namespace):
                    raise InputError(f"{group} must hold options by name, but got {str(value)[:100]}")
            root = options.trainer.default_root_dir
            watch.root, watch.command = _run_folder(root), self.subcommand
            options.trainer.default_root_dir = str(watch.root)
            _check_run_folder(watch.root, self.subcommand, options.ckpt_path)
            if self.subcommand == "fit" and _leads():
                watch.taken = _take(watch.root)
            if options.ckpt_path == "last":
                options.ckpt_path = _last_checkpoint(watch.root, self.subcommand)
            named = str(options.ckpt_path or "")
            if options.ckpt_path == "":
                raise InputError("--ckpt_path is empty; give a file, or last")
            if named and named not in ("best", "hpc") and not named.startswith("registry:"):
                check_checkpoint(Path(options.ckpt_path), self.subcommand)
            options.weights_only = True

        def before_fit(self) -> None:
            self._check_fit()
            self._part(parts.Summary).deferred = True
            begins = self.config_init.fit.ckpt_path is None and not self.trainer.fast_dev_run
            if begins and self.datamodule.evaluation.sets:
                report_memory_plan(self.trainer, self.model, self.datamodule)
                self.trainer.validate(self.model, self.datamodule, verbose=False)

        def after_fit(self) -> None:
            trainer, model = self.trainer, self.model
            stale = model.evaluated_at != trainer.global_step and not trainer.fast_dev_run
            if stale and self.datamodule.evaluation.sets:
                # the run ended inside an epoch (max_steps, max_time): its last weights were never measured
                trainer.validate(model, self.datamodule, verbose=False)
                self._part(parts.Ledger).enter_evaluation(trainer.global_step, model)
            self._part(parts.Summary).finish(trainer)

        def _part(self, kind: type[Any]) -> Any:
            return next(c for c in self.trainer.callbacks if isinstance(c, kind))

        def _check_fit(self) -> None:
            """Refuse what a fit would refuse only after its first evaluation."""
            checks.check_fit(self.trainer, self.model, self.datamodule)
            check_overrides(self.model.check_optimizer(), self.config_init.fit.ckpt_path)

        def before_validate(self) -> None:
            self.config_init.validate.verbose = False

        def before_test(self) -> None:
            self.config_init.test.verbose = False

    return CLI(
        SeRLModule,
        SelfPlayDataModule,
        save_config_callback=SaveConfig,
        save_config_kwargs={"overwrite": True, "save_to_log_dir": False},
        seed_everything_default=0,
        auto_configure_optimizers=False,
        trainer_defaults={
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "max_epochs": 10,
            "gradient_clip_val": 1.0,
            "log_every_n_steps": 1,
            # its tensors could not enter a later backward pass
            "inference_mode": False,
        },
        parser_kwargs={
            "prog": "lightning-serl",
            "description": "Self-play reinforcement learning of language models without labels.",
        },
        args=None if args is None or list(args) == sys.argv[1:] else list(args),
    )
