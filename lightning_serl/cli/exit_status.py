"""Turns the error that ended a command into an exit status and one sentence."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path

from lightning_serl.cli.parser_errors import ParserRefusal, refusal
from lightning_serl.errors import EngineFailure, InputError, SeRLError


@dataclass
class CommandState:
    """How far a command came, and what it left behind.

    Attributes:
        began: Whether work began: the first rollout of any stage.
        ended_by: The exception that ended the Trainer's work.
        run_folder: The run folder, once it is chosen.
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        lock: Descriptor that locks the run folder; the operating system releases it when the process ends.
        written_config: The ``config.yaml`` that this command wrote, and the bytes that it replaced.
    """

    began: bool = False
    ended_by: BaseException | None = None
    run_folder: Path | None = None
    command: str = ""
    lock: int | None = None
    written_config: tuple[Path, bytes | None] | None = None


def outcome(error: BaseException, state: CommandState) -> tuple[int, str]:
    """Exit status and message of the error that ended a command; Ctrl-C is noted in ``state.ended_by``."""
    if isinstance(error, ParserRefusal):
        return 2, str(error)
    if isinstance(error, KeyboardInterrupt):
        state.ended_by = state.ended_by or error
        return _interrupted(state)
    if isinstance(error, SystemExit):
        return _exited(error, state)
    restoring = not state.began and _while_restoring(error)
    status = 1 if state.began or not (restoring or _is_input(error)) else 2
    message = _sentence(error)
    if restoring:
        message = (
            f"the checkpoint of --ckpt_path does not fit this run ({message[:150]}); give the options it had, "
            "or another checkpoint"
        )
    return status, message


def _exited(error: SystemExit, state: CommandState) -> tuple[int, str]:
    status = error.code if isinstance(error.code, int) else int(error.code is not None)
    if type(state.ended_by) is SystemExit:  # exactly: SIGTERM raises a subclass
        closed = isinstance(error.__context__, BrokenPipeError)
        return status, "standard output was closed before the command ended" if closed else ""
    if state.ended_by is not None:
        return _interrupted(state)
    return status, error.code if isinstance(error.code, str) else ""


def _interrupted(state: CommandState) -> tuple[int, str]:
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    terminated = isinstance(state.ended_by, SIGTERMException)
    how = "stopped by SIGTERM" if terminated else "interrupted"
    saved = state.run_folder is not None and (state.run_folder / "checkpoints" / "last.ckpt").exists()
    advice = f"; continue with --ckpt_path last --trainer.default_root_dir {state.run_folder}" if saved else ""
    return (143 if terminated else 130), how + advice


def _is_input(error: BaseException) -> bool:
    """Whether an error before the first rollout is due to the user's input or an engine that cannot start."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    return isinstance(
        error, (InputError, EngineFailure, ValueError, TypeError, MisconfigurationException, OSError, ImportError)
    )


def _while_restoring(error: BaseException) -> bool:
    """Whether Lightning was reading a checkpoint: a foreign one raises an error of any kind, in any part."""
    frames = traceback.extract_tb(error.__traceback__)
    return not isinstance(error, SeRLError) and any(f.filename.endswith("checkpoint_connector.py") for f in frames)


def _sentence(error: BaseException) -> str:
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    # the parser puts words of its own around what a class raises in its __init__
    text = refusal(str(error)) if "Union subtypes" in str(error) else " ".join(str(error).split())
    if "numpy accepts from" in text:
        text = f"seed_everything: {text}"
    if isinstance(error, (SeRLError, ValueError, MisconfigurationException)) and text:
        return text
    if isinstance(error, ModuleNotFoundError):
        return f"{text}; install the package that provides it"
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    if len(text.split()) < 3 and frames:  # too short without its place, which may be in the user's own code
        where = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}"
        said = f"{said} in {where}; LIGHTNING_SERL_DEBUG=1 shows the traceback"
    return said
