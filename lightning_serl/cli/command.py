"""Runs a command and turns its end into output and an exit status.

The statuses are 0; 2 for bad input, refused before work began; 1 for a failure during work; 130 and 143 for Ctrl-C and
SIGTERM. Torch and Lightning are imported when a command runs, so that importing this module is cheap.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lightning_serl.cli import conventions, run_folder
from lightning_serl.cli.overview import OVERVIEW
from lightning_serl.cli.own_code import find_modules_here
from lightning_serl.cli.parser_errors import ParserRefusal, refusal
from lightning_serl.cli.run_folder import CommandState
from lightning_serl.cli.signals import end_on_signals, stopped_by
from lightning_serl.errors import EngineFailure, InputError, SeRLError, own_place, said_by

_LONGEST_LINE = 300


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line with arguments, by default those of the process; returns the exit status, see above.

    The last line on stdout is ``run: PATH``; the last line on stderr of a failed command is ``error: ...``, below a
    traceback if ``LIGHTNING_SERL_DEBUG=1``.
    """
    _mute_other_libraries()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # lines reach a log file at once; file names may hold characters that the encoding of stdout lacks
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    state, status, message = CommandState(), 0, ""
    undo, formatting = end_on_signals(state), warnings.formatwarning
    try:
        warnings.formatwarning = _without_our_paths(warnings.formatwarning)
        _carry_out(sys.argv[1:] if args is None else args, state)
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        status, message = _outcome(error, state)
        if isinstance(error, Exception) and os.environ.get("LIGHTNING_SERL_DEBUG") == "1":
            traceback.print_exc()
    finally:
        warnings.formatwarning = formatting
        if state.lock is not None:
            os.close(state.lock)
        os.environ.pop(run_folder.VARIABLE, None)
        undo()
    sys.stdout.flush()
    if status in (1, 2) and not state.began:
        run_folder.restore(state.run_folder, state.written_config)
    if state.run_folder is not None and (status == 0 or state.began) and run_folder.is_first_process():
        print(f"run: {state.run_folder}", flush=True)
    # if all ranks end with one message, the first of them prints it
    if status and (run_folder.is_first_process() or not getattr(state.ended_by, "on_every_rank", False)):
        print(f"error: {' '.join(message.split()) or 'stopped'}"[:_LONGEST_LINE], file=sys.stderr, flush=True)
    return status


def _carry_out(arguments: Sequence[str], state: CommandState) -> None:
    """Make and run the command that the first argument names."""
    command, rest = (arguments[0] if arguments else ""), arguments[1:]
    if command in ("-h", "--help"):
        print(OVERVIEW, end="")
    elif not command:
        print(OVERVIEW, file=sys.stderr)
        raise ParserRefusal("no command was given; name one of the above, as in lightning-serl fit")
    elif command in ("plan", "probe"):
        _plan_or_probe(command, arguments, state)
    elif command == "compare":
        from lightning_serl.cli.compare import compare

        compare(rest, state)
    elif command == "report":
        from lightning_serl.cli.report import report

        report(rest)
    elif command == "merge":
        from lightning_serl.cli.merge import merge

        merge(rest, state)
    elif command == "push":
        from lightning_serl.cli.push import push

        push(rest, state)
    elif (said := conventions.command_refusal(arguments)) is not None:
        raise ParserRefusal(said)
    else:
        from lightning_serl.cli.lightning_cli import SelfPlayCLI

        SelfPlayCLI(arguments, state)


def _plan_or_probe(command: str, arguments: Sequence[str], state: CommandState) -> None:
    """Run ``plan`` or ``probe``, which take the options of ``fit``, or show their help."""
    if command == "plan":
        from lightning_serl.cli.plan import PlanCLI as Command
        from lightning_serl.cli.plan import show_help
    else:
        from lightning_serl.cli.probe import ProbeCLI as Command
        from lightning_serl.cli.probe import show_help
    if "--help" in arguments or "-h" in arguments:
        show_help()
    else:
        Command(arguments, state)


def _outcome(error: BaseException, state: CommandState) -> tuple[int, str]:
    """Exit status and message of the error that ended a command; Ctrl-C is noted in ``state.ended_by``."""
    if isinstance(error, ParserRefusal):
        return 2, str(error)
    if isinstance(error, KeyboardInterrupt):
        state.ended_by = state.ended_by or error
        return _interrupted(state)
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if type(state.ended_by) is SystemExit:  # exactly: SIGTERM raises a subclass
            closed = isinstance(error.__context__, BrokenPipeError)
            return status, "standard output was closed before the command ended" if closed else ""
        if state.ended_by is not None:
            return _interrupted(state)
        return status, error.code if isinstance(error.code, str) else ""
    # Lightning was reading a checkpoint: a foreign one raises an error of any kind, in any part
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    connector = any(name.endswith("checkpoint_connector.py") for name in frames)
    restoring = connector and not state.began and not isinstance(error, SeRLError)
    status = 1 if state.began or not (restoring or _is_input(error)) else 2
    message = _sentence(error)
    if restoring:
        message = (
            f"the checkpoint of --ckpt_path does not fit this run ({message[:150]}); give the options it had, "
            "or another checkpoint"
        )
    return status, message


def _interrupted(state: CommandState) -> tuple[int, str]:
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    terminated = isinstance(state.ended_by, SIGTERMException)
    how = stopped_by(state) if terminated else "interrupted"
    saved = state.run_folder is not None and (state.run_folder / "checkpoints" / "last.ckpt").exists()
    if state.command == "push":
        return (143 if terminated else 130), f"{how}; the same command pushes again"
    if state.command == "compare":
        return (143 if terminated else 130), f"{how}; the same command runs what is missing"
    advice = f"; continue with --ckpt_path last --trainer.default_root_dir {state.run_folder}" if saved else ""
    return (143 if terminated else 130), how + advice


def _is_input(error: BaseException) -> bool:
    """Whether an error before the first rollout is due to the user's input or an engine that cannot start."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    return isinstance(
        error, (InputError, EngineFailure, ValueError, TypeError, MisconfigurationException, OSError, ImportError)
    )


def _sentence(error: BaseException) -> str:
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    # the parser adds text around what a class raises in its __init__
    # what is to be done about it, by a callback: the error itself is of another library
    notes = [note for note in getattr(error, "__notes__", ()) if note.startswith("memory ran out")]
    if notes:
        return notes[0]
    text = refusal(str(error)) if "Union subtypes" in str(error) else " ".join(str(error).split())
    if "numpy accepts from" in text:
        text = f"seed_everything: {text}"
    if (said := _of_lightning(error, text)) is not None:
        return _cut(said, "")
    place = own_place(error)
    where = "" if place is None or place.split(":")[0] in text else f" in {place}"
    if isinstance(error, (SeRLError, ValueError, MisconfigurationException)) and text:
        return _cut(text, where)
    if isinstance(error, ModuleNotFoundError):
        return _cut(text, where or "; install the package that provides it")
    frames = traceback.extract_tb(error.__traceback__)
    if place is None and len(text.split()) < 3 and frames:  # too short without its place
        where = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}"
    return _cut(said_by(error), f"{where}; LIGHTNING_SERL_DEBUG=1 shows the traceback" if where else "")


def _of_lightning(error: BaseException, text: str) -> str | None:
    """A message that Lightning itself raised, with the option as it is typed; ``None`` for any other."""
    frames = traceback.extract_tb(error.__traceback__)
    by_lightning = bool(frames) and re.search(r"[/\\]lightning[/\\](pytorch|fabric)[/\\]", frames[-1].filename)
    return conventions.of_trainer(text) if by_lightning else None


def _cut(said: str, end: str) -> str:
    """A message with its end, which is kept where the whole is too long."""
    room = _LONGEST_LINE - len("error: ") - len(end)
    return (said if len(said) <= room or not end else f"{said[: room - 3]}...") + end


def _without_our_paths(former: Callable[..., str]) -> Callable[..., str]:
    """A ``warnings.formatwarning`` that puts no file and line before the warnings of this package."""
    package = str(Path(__file__).parents[1])

    def formatted(message: Any, category: Any, filename: str, lineno: int, line: str | None = None) -> str:
        if filename.startswith(package):
            return f"warning: {message}\n"
        return former(message, category, filename, lineno, line)

    return formatted


def _mute_other_libraries() -> None:
    """Drop log lines and warnings that a user can do nothing about."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(lambda record: not re.search("litlogger|litmodels", record.getMessage()))  # advertisements
    # bitsandbytes, which peft imports, offers to download a faster kernel for CPUs
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "kernels" not in record.getMessage())
    for pattern in (
        r".*LeafSpec.*is deprecated.*",  # Lightning uses a name of torch that is deprecated
        r".*does not have many workers.*",  # the stream generates in the main process on purpose
    ):
        warnings.filterwarnings("ignore", message=pattern)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def entry() -> NoReturn:
    """The console script."""
    find_modules_here()
    sys.exit(main())
