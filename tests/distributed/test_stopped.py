"""Two ranks of the command line, stopped from outside: SIGTERM while they write, SIGKILL of one of them."""

import contextlib
import os
import signal
import time

import pytest
import torch
from helpers.command_line import finish, fork, small

DDP = ["--trainer.devices", 2, "--trainer.strategy", "ddp"]


def running(tmp_path, *options):
    """A run that has come to its second round: its process, and the ids of its ranks."""
    root, marker = tmp_path / "run", tmp_path / "marker"
    marker.mkdir()
    process = fork(
        "fit", *small(root), *options, "--data.engine", "helpers.engines.SlowEngine", "--data.engine.marker", marker,
    )  # fmt: skip
    wanted, end = 2 if options else 1, time.monotonic() + 200
    while len(list(marker.iterdir())) < wanted:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    names = sorted(p.name.split("-") for p in marker.iterdir())
    return process, root, [int(pid) for _, _, pid in names]


@pytest.mark.parametrize("options", [[], DDP], ids=["one rank", "two ranks"])
def test_sigterm_while_writing(tmp_path, options):
    process, root, _ = running(tmp_path, *options)
    process.send_signal(signal.SIGTERM)
    ended = finish(process)  # the engine would have gone on for longer
    assert ended.status == 143, ended.err
    assert ended.error.startswith("stopped by SIGTERM; continue with --ckpt_path last")
    assert ended.run == root
    state = torch.load(root / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 1
    assert state["SelfPlayDataModule"]["rounds"] == 1


def test_one_rank_is_killed(tmp_path):
    """The other one notices within seconds, saves what stands, and ends."""
    process, root, ranks = running(tmp_path, *DDP)
    os.kill(ranks[1], signal.SIGKILL)
    try:
        ended = finish(process, limit=20)  # less than the half minute after which a silent rank counts as lost
        assert ended.status == 1, ended.err
        assert "error: rank 1 is gone (killed by SIGKILL)" in ended.err
        state = torch.load(root / "checkpoints" / "last.ckpt", weights_only=True)
        assert state["global_step"] == 1
    finally:
        for pid in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_stopped_while_a_node_waits_for_its_peers(tmp_path):
    """Torch's rendezvous waits in C, where no signal handler of Python's is called."""
    numbers = {signal.SIGTERM: (143, "stopped by SIGTERM"), signal.SIGINT: (130, "interrupted")}
    nodes = ["--trainer.num_nodes", 2, "--trainer.devices", 1]
    waiting = {number: fork("fit", *small(tmp_path / number.name), *nodes) for number in numbers}
    for process in waiting.values():
        while "Initializing distributed" not in process.err:
            assert process.poll() is None, process.err
            time.sleep(0.05)
    time.sleep(0.5)
    for number, process in waiting.items():
        process.send_signal(number)
        ended = finish(process, limit=20)
        assert (ended.status, ended.error) == numbers[number]
