"""The command line: ``lightning-serl fit | validate | test | predict``.

LightningCLI in direct mode, with packaged presets (``-c preset:NAME``), a run folder, one-sentence errors and exit
statuses: 2 for bad input before work began, 1 for a failure during it, 130 and 143 for Ctrl-C and SIGTERM.
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

from lightning_serl.cli.exit_status import _interrupted, _is_input, _Refused, _sentence, _Watch, _while_restoring
from lightning_serl.cli.lightning_cli import _build
from lightning_serl.cli.run_folder import _RUN_VARIABLE, _leads, _leave_no_trace

_MOST = 300


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
