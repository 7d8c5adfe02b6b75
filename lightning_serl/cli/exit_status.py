"""Turns how a command ended into an exit status and one sentence."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

from lightning_serl.cli.parser_errors import refusal
from lightning_serl.errors import EngineFailure, InputError, SeRLError


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


def _without_key(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "this is not UTF-8 text; give a configuration in YAML"
    return re.sub(r'^[Pp]arser key "c?(onfig)?":\s*', "", str(error))


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
