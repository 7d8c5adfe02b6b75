"""Two ranks for tests: a pair of processes that runs job after job, and single scripts that may fail."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch
from helpers.command_line import environment


def run_script(*arguments, limit):
    """Run Python in a process group of its own; at the limit the group is killed, since DDP ignores SIGTERM.

    Returns:
        ``(exit status, stdout, stderr)``; status ``None`` if it was killed.
    """
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment(),
    )
    try:
        out, err = process.communicate(timeout=limit)
        status = process.returncode
    except subprocess.TimeoutExpired:
        status, out, err = None, "", ""
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if status is None:
        out, err = process.communicate()
    return status, out, err


def ranks_of(root):
    """What each of two ranks left in a folder."""
    return [torch.load(Path(root) / f"rank{r}.pt", weights_only=True) for r in (0, 1)]


class Pair:
    """Two processes with one process group, which run the jobs of ``helpers.rank_jobs`` in turn.

    Importing torch and Lightning costs seconds per process, so the pair starts once and stays. A job that fails or
    takes too long ends it, and the next job starts another pair. Jobs that are meant to break a process group start
    processes of their own with :func:`run_script`.

    Args:
        folder: Where the output of the processes goes.
    """

    def __init__(self, folder):
        self.folder, self.processes, self.replies = folder, [], []

    def start(self):
        """Start both ranks as an external launcher would: their numbers are in the environment."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in (0, 1):
            reading, writing = os.pipe()
            env = environment(LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            with open(self.folder / f"rank{rank}.log", "w") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "helpers.rank_jobs", "serve", str(writing)],
                    stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, pass_fds=[writing], env=env,
                )  # fmt: skip
            os.close(writing)
            self.processes.append(process)
            self.replies.append(os.fdopen(reading))

    def run(self, job, limit=120, **options):
        """Run a job on both ranks and return what each of them returned."""
        if not self.processes:
            self.start()
        order = json.dumps([job, options], default=str)
        for process in self.processes:
            process.stdin.write(order + "\n")
            process.stdin.flush()
        end, waiting, answers = time.monotonic() + limit, dict(enumerate(self.replies)), {}
        while waiting:
            ready, _, _ = select.select(list(waiting.values()), [], [], max(0.0, end - time.monotonic()))
            lines = {rank: reply.readline() for rank, reply in waiting.items() if reply in ready}
            for rank, line in lines.items():
                answers[rank] = json.loads(line) if line else {"error": "the process ended"}
                del waiting[rank]
            wrong = {rank: answer["error"] for rank, answer in answers.items() if "error" in answer}
            if wrong or not ready:
                raise AssertionError(f"{job}: {wrong or 'no reply within the limit'}\n" + "\n".join(self.ended()))
        return [answers[rank]["result"] for rank in (0, 1)]

    def ended(self):
        """End both ranks; returns the last lines each of them wrote."""
        for process in self.processes:
            process.kill()
        for process, reply in zip(self.processes, self.replies, strict=True):
            process.communicate()
            reply.close()
        said = [(self.folder / f"rank{rank}.log").read_text()[-2000:] for rank in range(len(self.processes))]
        self.processes, self.replies = [], []
        return said
