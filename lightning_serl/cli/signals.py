"""Ends a command on SIGTERM and Ctrl-C wherever it is, also while its main thread waits inside a C function.

Python calls its signal handlers in the main thread only, between two instructions. A node that waits for its peers, in
torch's rendezvous, executes none for up to half an hour, and a scheduler kills what does not end.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from lightning_serl.cli.run_folder import CommandState

# Seconds that Python's handler may take to be called before the watching thread ends the process.
_PATIENCE = 1.0


def end_on_signals(state: CommandState) -> Callable[[], None]:
    """End with a sentence and status 143 or 130 where no Trainer listens; returns what undoes it.

    Outside a Trainer's work there is nothing to save, and an exception raised by a handler could be swallowed by an
    import. A closed terminal (SIGHUP) ends a run as SIGTERM does, with a checkpoint.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    called = threading.Event()

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        called.set()
        if signal.getsignal(signal.SIGTERM) is on_sigterm:  # else Lightning ends the run after the current batch
            _end(state, number)

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        called.set()
        # only where it was loaded: commands such as report need neither torch nor Lightning
        table = sys.modules.get("lightning_serl.callbacks.run_folder.live_table")
        if table is not None:
            table.stop_live_tables()  # Lightning writes its message before it calls a callback
        if signal.getsignal(signal.SIGTERM) is on_sigterm and _imports(frame):
            _end(state, number)
        signal.default_int_handler(number, frame)

    def on_hangup(number: int, frame: FrameType | None) -> None:
        state.hung_up = True
        signal.raise_signal(signal.SIGTERM)

    former = {signal.SIGTERM: signal.signal(signal.SIGTERM, on_sigterm)}
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup ignores it
        former[signal.SIGHUP] = signal.signal(signal.SIGHUP, on_hangup)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        former[signal.SIGINT] = signal.signal(signal.SIGINT, on_interrupt)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    descriptor = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def watch() -> None:
        with os.fdopen(reading, "rb", buffering=0) as signals:
            while received := signals.read(1):
                number = received[0]
                if number not in former:
                    continue
                state.hung_up = state.hung_up or number == signal.SIGHUP
                if not called.wait(_PATIENCE) and signal.getsignal(signal.SIGTERM) is on_sigterm:
                    _end(state, number)
                called.clear()

    threading.Thread(target=watch, daemon=True, name="signals").start()

    def undo() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(descriptor)
        os.close(writing)

    return undo


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported: libraries catch any exception there, and fail later for want of a part."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def stopped_by(state: CommandState) -> str:
    """How a command says which signal stopped it."""
    return "stopped by SIGHUP (its terminal was closed)" if state.hung_up else "stopped by SIGTERM"


def _end(state: CommandState, number: int) -> None:
    """End this process, and first those of further ranks that it started; SIGHUP ends as SIGTERM does."""
    number = signal.SIGTERM if number == signal.SIGHUP else number
    for child in state.children():
        child.send_signal(number)
    if state.began:
        os.write(1, f"run: {state.run_folder}\n".encode())
    if os.environ.get("LOCAL_RANK", "0") == "0":
        how = stopped_by(state) if number == signal.SIGTERM else "interrupted"
        os.write(2, f"error: {how}\n".encode())
    os._exit(128 + number)
