"""The command line: ``lightning-serl fit | validate | test | predict``.

LightningCLI in direct mode, with packaged presets (``-c preset:NAME``), a run folder, one-sentence errors and exit
statuses: 2 for bad input before work began, 1 for a failure during it, 130 and 143 for Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import difflib
import io
import logging
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lightning_serl.errors import EngineFailure, InputError, SeRLError
from lightning_serl.refusals import option_names, refusal

if TYPE_CHECKING:
    import lightning.pytorch as pl
    import torch
    import yaml
    from lightning.pytorch.cli import LightningCLI

_RUN_VARIABLE = "LIGHTNING_SERL_RUN"
_MOST = 300


class _Refused(Exception):
    """The command line or a configuration file was refused; the message is the parser's."""


class _Watch:
    """What the exit status depends on: whether work began, and what ended it."""

    def __init__(self) -> None:
        self.began = False
        self.ended_by: BaseException | None = None
        self.root: Path | None = None
        self.command = ""
        self.taken: int | None = None  # the run folder, kept from other fits
        self.config: tuple[Path, bytes | None] | None = None  # the file written for this run, and what it replaced


def presets() -> list[str]:
    """Names of the packaged presets."""
    names = (p.name for p in (files("lightning_serl") / "configs").iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def _preset_path(name: str) -> str:
    if name not in presets():
        near = [p for p in presets() if name and p.startswith(name)] or difflib.get_close_matches(name, presets(), n=3)
        known = f"did you mean {' or '.join(near)}?" if near else "`lightning-serl fit --help` lists them at --config"
        raise _Refused(f"there is no preset {name[:60]!r}; {known}")
    return str(files("lightning_serl") / "configs" / f"{name}.yaml")


def _check_keys(name: str, node: yaml.Node | None) -> None:
    """No mapping of a configuration file may hold a key twice: YAML keeps the last one and says nothing."""
    import yaml

    waiting, looked_at = [node], set()
    while waiting:
        node = waiting.pop()
        if id(node) in looked_at:  # an alias
            continue
        looked_at.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += reversed(node.value)
        if not isinstance(node, yaml.MappingNode):
            continue
        first: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            line = key.start_mark.line + 1
            if key.value in first:
                raise _Refused(
                    f"{name[-120:]}:{line} holds {key.value[:60]!r} a second time, which would undo line "
                    f"{first[key.value]}; put both under one {key.value[:60]!r}"
                )
            first[key.value] = line
        waiting += [value for _, value in reversed(node.value)]


def _split_extends(name: str) -> tuple[list[str], str | None]:
    """The files that a configuration file extends, and its text without that entry; ``None`` where it extends none.

    ``extends`` is a list of ``preset:NAME`` and of files, which are looked up from the folder of the file.
    """
    import yaml

    path = Path(name)
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return [], None  # whatever is wrong with it is told where it is read as a configuration
    _check_keys(name, node)
    entries = node.value if isinstance(node, yaml.MappingNode) else []
    for entry in entries:
        key, value = entry
        if key.value == "extends":
            items = value.value if isinstance(value, yaml.SequenceNode) else []
            if not items or any(item.tag != "tag:yaml.org,2002:str" for item in items):
                raise _Refused("extends must be a list of preset:NAME and file names, as in extends: [preset:serl]")
            found = [item.value for item in items]
            entries.remove(entry)
            rest = yaml.serialize(node) if entries else ""
            return [one if one.startswith("preset:") else os.path.normpath(path.parent / one) for one in found], rest
    return [], None


def _build(args: Sequence[str] | None, watch: _Watch) -> LightningCLI:
    """Parse, instantiate and run. Heavy imports happen here, so that ``import lightning_serl.cli`` is cheap."""
    from jsonargparse import ActionConfigFile, Namespace
    from jsonargparse._actions import _ActionConfigLoad
    from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

    from lightning_serl import callbacks as parts
    from lightning_serl.callbacks.hooks import RolloutHooks
    from lightning_serl.checkpoint_files import check_checkpoint
    from lightning_serl.datamodules import preflight
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
            self.datamodule.check_files("fit")
            self.datamodule.trainer = self.trainer
            self.trainer.strategy.connect(self.model)
            preflight.check_trainer(self.trainer, len(self.datamodule.train_dataloader()))
            self.datamodule.check_staleness()
            optimizer = self.model.check_optimizer()
            _check_overrides(optimizer, self.config_init.fit.ckpt_path)
            self.model.foresee(self.trainer, self.datamodule)

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


def _without_key(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "this is not UTF-8 text; give a configuration in YAML"
    return re.sub(r'^[Pp]arser key "c?(onfig)?":\s*', "", str(error))


def _run_folder(given: Any) -> Path:
    """The run folder: what the user named, else a new one under ``runs/``; equal on all processes of a run."""
    if given is not None:
        return Path(str(given)).expanduser().absolute()
    shared = os.environ.get(_RUN_VARIABLE)
    if shared:
        return Path(shared)
    name = datetime.now().strftime("%Y%m%d-%H%M%S")
    root = Path("runs") / name
    number = 1
    while root.exists():
        number += 1
        root = Path("runs") / f"{name}-{number}"
    os.environ[_RUN_VARIABLE] = str(root.absolute())
    return root.absolute()


def _leads() -> bool:
    """Whether this is the first process of the run, as torchrun, SLURM or Lightning number them."""
    names = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    return not any(int(os.environ.get(name, "0")) for name in names)


def _check_run_folder(root: Path, command: str, ckpt_path: Any) -> None:
    if not _leads():
        return  # the first process has looked, and may be writing by now
    if command == "fit" and ckpt_path is None and (root / "ledger.jsonl").exists():
        raise InputError(
            f"{root} holds a run already; continue it with --ckpt_path last, or name another --trainer.default_root_dir"
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"the run folder {root} cannot be written: {why}; name another one") from error


def _take(root: Path) -> int | None:
    """Keep every other fit out of a folder until the returned descriptor is closed, or this process ends in any way."""
    try:
        import fcntl
    except ImportError:
        return None  # Windows
    folder = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(folder)
        if isinstance(error, BlockingIOError):
            raise InputError(
                f"another fit is at work in {root}; wait until it has ended, or name another --trainer.default_root_dir"
            ) from error
        return None  # a file system without locks
    return folder


def _last_checkpoint(root: Path, command: str) -> str | None:
    """The checkpoint that ``last`` means; ``None`` for a run that ended before its first one, so it begins again."""
    last = root / "checkpoints" / "last.ckpt"
    if last.exists():
        return str(last)
    # a run killed after its first checkpoint was written and before it was written a second time as the last one
    steps = sorted(last.parent.glob("step=*.ckpt"), key=lambda p: p.stat().st_mtime_ns)
    others = sorted(p.name for p in last.parent.glob("*.ckpt"))
    if steps and len(steps) == len(others):
        print(f"there is no {last.name} in {last.parent}; continuing from {steps[-1].name}", file=sys.stderr)
        return str(steps[-1])
    if others:
        raise InputError(
            f"--ckpt_path last: there is no {last}, but there is {', '.join(others)}; name the file to use"
        )
    finished = (root / "summary.json").exists() or (root / "export").exists()
    if command != "fit" or finished or not (root / "config.yaml").exists():
        raise InputError(f"--ckpt_path last: there is no {last}; check --trainer.default_root_dir")
    print(f"{root} holds a run that ended before its first checkpoint; it begins again", file=sys.stderr)
    return None  # its ledger, metrics and samples are set aside when training begins


def _check_overrides(optimizer: torch.optim.Optimizer, ckpt_path: Any) -> None:
    """Refuse optimizer options that the ones stored in the checkpoint would silently replace."""
    import torch

    if ckpt_path is None or not Path(ckpt_path).is_file():
        return
    try:
        checkpoint = torch.load(ckpt_path, map_location="cpu", mmap=True, weights_only=True)
        stored = checkpoint["optimizer_states"][0]["param_groups"][0]
    except Exception:  # what is wrong with it is told where it is restored
        return
    scheduled = {"betas", "momentum"} if "initial_lr" in optimizer.param_groups[0] else set()
    for name in sorted(set(optimizer.defaults) - scheduled):
        # what a scheduler made of it at its start, if there is one
        here = optimizer.param_groups[0].get(f"initial_{name}", optimizer.param_groups[0][name])
        there = stored.get(f"initial_{name}", stored.get(name))
        there = tuple(there) if isinstance(there, list) else there
        if isinstance(here, (int, float, tuple)) and there is not None and here != there:
            raise InputError(
                f"model.optimizer has {name} {here} but the checkpoint was made with {there}, which would win; "
                "give that value, or begin a new run"
            )


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments without the program's name; those of the process if absent.

    Returns:
        The exit status; see the module's docstring. The last line on stdout is ``run: PATH``, the last line on stderr
        of a failed command is ``error: ...``. With ``LIGHTNING_SERL_DEBUG=1`` the traceback stands above it.
    """
    _quiet()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a log file shows each round as it ends; names of files may hold what no encoding can
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    watch = _Watch()
    status, message = 0, ""
    former = _heed_sigterm(watch)
    try:
        _build(args, watch)
    except _Refused as error:
        status, message = 2, str(error)
        _debug()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if type(watch.ended_by) is SystemExit:  # SIGTERM comes as one of its kinds
            message = "nobody reads the output any more" if isinstance(error.__context__, BrokenPipeError) else ""
        elif watch.ended_by is not None:
            status, message = _interrupted(watch)
        elif isinstance(error.code, str):
            message = error.code
    except KeyboardInterrupt as error:
        watch.ended_by = watch.ended_by or error
        status, message = _interrupted(watch)
    except Exception as error:
        restoring = not watch.began and _while_restoring(error)
        status = 1 if watch.began or not (restoring or _is_input(error)) else 2
        message = _sentence(error)
        if restoring:
            message = (
                f"the checkpoint of --ckpt_path does not fit this run ({message[:150]}); give the options it had, "
                "or another checkpoint"
            )
        _debug()
    finally:
        if watch.taken is not None:
            os.close(watch.taken)
        os.environ.pop(_RUN_VARIABLE, None)
        if former is not None:
            signal.signal(signal.SIGTERM, former)
    sys.stdout.flush()
    if status in (1, 2) and not watch.began:
        _leave_no_trace(watch)
    if watch.root is not None and (status == 0 or watch.began) and _leads():
        print(f"run: {watch.root}", flush=True)
    # where all ranks end with one message, one of them tells it
    if status and (_leads() or not getattr(watch.ended_by, "on_every_rank", False)):
        print(f"error: {' '.join(message.split()) or 'stopped'}"[:_MOST], file=sys.stderr, flush=True)
    return status


def _heed_sigterm(watch: _Watch) -> Any:
    """End with a sentence and status 143 also where Lightning does not listen yet; returns the former handler."""
    if threading.current_thread() is not threading.main_thread():
        return None

    def handler(number: int, frame: Any) -> None:
        if signal.getsignal(signal.SIGTERM) is not handler:
            return  # Lightning listens too by now, and ends the run after the batch at hand
        # outside a Trainer there is nothing to save; an exception raised here could be swallowed by an import
        if watch.began:
            os.write(1, f"run: {watch.root}\n".encode())
        os.write(2, b"error: stopped by SIGTERM\n")
        os._exit(143)

    former = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, handler)
    return former


def _leave_no_trace(watch: _Watch) -> None:
    """A command that was refused leaves the run folder as it was; ours may be the folder of an earlier run."""
    if watch.config is not None:
        target, former = watch.config
        if former is None:
            target.unlink(missing_ok=True)
        else:
            target.write_bytes(former)
    if watch.root is not None and watch.root.is_dir() and not any(watch.root.iterdir()):
        watch.root.rmdir()


def _interrupted(watch: _Watch) -> tuple[int, str]:
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    terminated = isinstance(watch.ended_by, SIGTERMException)
    how = "stopped by SIGTERM" if terminated else "interrupted"
    saved = watch.root is not None and (watch.root / "checkpoints" / "last.ckpt").exists()
    advice = f"; continue with --ckpt_path last --trainer.default_root_dir {watch.root}" if saved else ""
    return (143 if terminated else 130), how + advice


def _is_input(error: BaseException) -> bool:
    """Whether an error before the first rollout is the user's input, as an engine that cannot start; a bug is not."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    return isinstance(
        error, (InputError, EngineFailure, ValueError, TypeError, MisconfigurationException, OSError, ImportError)
    )


def _while_restoring(error: BaseException) -> bool:
    """Whether Lightning was reading a checkpoint; what is wrong with it raises whatever the part at hand raises."""
    frames = traceback.extract_tb(error.__traceback__)
    return not isinstance(error, SeRLError) and any(f.filename.endswith("checkpoint_connector.py") for f in frames)


def _sentence(error: BaseException) -> str:
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    # what a class refuses in its __init__ comes back from the parser with its own words around it
    text = refusal(str(error)) if "Union subtypes" in str(error) else " ".join(str(error).split())
    if "numpy accepts from" in text:
        text = f"--seed_everything: {text}"
    if isinstance(error, (SeRLError, ValueError, MisconfigurationException)) and text:
        return text
    if isinstance(error, ModuleNotFoundError):
        return f"{text}; install the package that provides it"
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    if len(text.split()) < 3 and frames:  # says nothing without its place, which may be in a part of the user's own
        where = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}"
        said = f"{said} in {where}; LIGHTNING_SERL_DEBUG=1 shows the traceback"
    return said


def _debug() -> None:
    if os.environ.get("LIGHTNING_SERL_DEBUG") == "1":
        traceback.print_exc()


def _quiet() -> None:
    """Mute what a user can do nothing about."""
    # advertisements
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(lambda record: "litlogger" not in record.getMessage())
    logger.addFilter(lambda record: "litmodels" not in record.getMessage())
    # bitsandbytes, which peft imports, on a faster kernel for CPUs that it would download
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "kernels" not in record.getMessage())
    # Lightning looks into its own tree specs by a name that torch has deprecated
    warnings.filterwarnings("ignore", message=r".*LeafSpec.*is deprecated.*")
    # the stream generates in the main process on purpose
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
    # a run without evaluation sets is a choice
    warnings.filterwarnings("ignore", message=r".*Total length of `list` across ranks is zero.*")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def entry() -> NoReturn:
    """The console script."""
    sys.exit(main())
