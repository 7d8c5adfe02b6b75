"""Runs a command and turns its end into output and an exit status.

The statuses are 0; 2 for bad input, refused before work began; 1 for a failure during work; 130 and 143 for Ctrl-C and
SIGTERM. ``lightning_cli``, which imports torch and Lightning, is imported when a command runs, so that importing this
module is cheap.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from lightning_serl.cli.exit_status import CommandState, outcome
from lightning_serl.cli.run_folder import RUN_VARIABLE, is_first_process, restore_run_folder

_LONGEST_LINE = 300


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments without the program's name; those of the process if absent.

    Returns:
        The exit status, see above. The last line on stdout is ``run: PATH``; the last line on stderr of a failed
        command is ``error: ...``, below a traceback if ``LIGHTNING_SERL_DEBUG=1``.
    """
    _mute_other_libraries()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # lines reach a log file at once; file names may hold characters that the encoding of stdout lacks
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    state = CommandState()
    status, message = 0, ""
    former = _handle_sigterm(state)
    try:
        from lightning_serl.cli.lightning_cli import run_command

        run_command(args, state)
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        status, message = outcome(error, state)
        if isinstance(error, Exception) and os.environ.get("LIGHTNING_SERL_DEBUG") == "1":
            traceback.print_exc()
    finally:
        if state.lock is not None:
            os.close(state.lock)
        os.environ.pop(RUN_VARIABLE, None)
        if former is not None:
            signal.signal(signal.SIGTERM, former)
    sys.stdout.flush()
    if status in (1, 2) and not state.began:
        restore_run_folder(state.run_folder, state.written_config)
    if state.run_folder is not None and (status == 0 or state.began) and is_first_process():
        print(f"run: {state.run_folder}", flush=True)
    # if all ranks end with one message, the first of them prints it
    if status and (is_first_process() or not getattr(state.ended_by, "on_every_rank", False)):
        print(f"error: {' '.join(message.split()) or 'stopped'}"[:_LONGEST_LINE], file=sys.stderr, flush=True)
    return status


def _handle_sigterm(state: CommandState) -> Any:
    """End with a sentence and status 143 where Lightning does not listen for SIGTERM; returns the former handler."""
    if threading.current_thread() is not threading.main_thread():
        return None

    def handler(number: int, frame: Any) -> None:
        if signal.getsignal(signal.SIGTERM) is not handler:
            return  # Lightning listens too, and ends the run after the current batch
        # outside a Trainer there is nothing to save; an exception raised here could be swallowed by an import
        if state.began:
            os.write(1, f"run: {state.run_folder}\n".encode())
        os.write(2, b"error: stopped by SIGTERM\n")
        os._exit(143)

    former = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, handler)
    return former


def _mute_other_libraries() -> None:
    """Drop log lines and warnings that a user can do nothing about."""
    # advertisements
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(lambda record: "litlogger" not in record.getMessage())
    logger.addFilter(lambda record: "litmodels" not in record.getMessage())
    # bitsandbytes, which peft imports, offers to download a faster kernel for CPUs
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "kernels" not in record.getMessage())
    # Lightning uses a name of torch that is deprecated
    warnings.filterwarnings("ignore", message=r".*LeafSpec.*is deprecated.*")
    # the stream generates in the main process on purpose
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
    # a run without evaluation sets is a choice
    warnings.filterwarnings("ignore", message=r".*Total length of `list` across ranks is zero.*")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def entry() -> NoReturn:
    """The console script."""
    sys.exit(main())
