"""Ctrl-C, SIGTERM and SIGKILL: how a run ends, and that what follows is the run it would have been."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers.command_line import cli, environment, finish, fork, problems, rows, small, start, write_rows

ROUNDS, LIMIT = 6, 240


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("sets") / "held_out.jsonl", problems(3))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, held_out):
    root = tmp_path_factory.mktemp("undisturbed") / "run"
    ended = cli("fit", *small(root, held_out, rounds=ROUNDS))
    assert ended.status == 0, ended.err
    return root


class Running:
    """A command in another process, its output in files that can be looked at while it runs."""

    def __init__(self, *arguments):
        self.process = fork(*arguments)

    def wait_for(self, what):
        """Until ``what()`` is true of the running process."""
        end = time.monotonic() + LIMIT
        while not what():
            assert self.process.poll() is None, f"ended early: {self.process.err}"
            assert time.monotonic() < end, self.process.out
            time.sleep(0.01)

    def first_round(self):
        self.wait_for(lambda: any(line.startswith("round ") for line in self.process.out.splitlines()))

    def stop(self, number):
        self.process.send_signal(number)
        return finish(self.process, LIMIT)


def assert_equal_runs(root, other):
    assert (root / "ledger.jsonl").read_bytes() == (other / "ledger.jsonl").read_bytes()
    for name in ("model.safetensors", "config.json"):
        assert (root / "export" / name).read_bytes() == (other / "export" / name).read_bytes()
    clockless = [
        [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows(r / "metrics.jsonl")]
        for r in (root, other)
    ]
    assert clockless[0] == clockless[1]
    tables = [
        json.loads((r / "summary.json").read_text()) | {"seconds": 0, "times": 0, "memory": 0} for r in (root, other)
    ]
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("number", "status", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "stopped by SIGTERM")]
)
def test_stopped_and_continued(tmp_path, held_out, undisturbed, number, status, said):
    root = tmp_path / "run"
    options = small(root, held_out, rounds=ROUNDS)
    running = Running("fit", *options)
    running.first_round()
    ended = running.stop(number)
    assert ended.status == status, ended.err
    assert ended.error.startswith(said)
    assert f"--ckpt_path last --trainer.default_root_dir {root}" in ended.error
    assert ended.run == root
    state = torch.load(root / "checkpoints" / "last.ckpt", weights_only=True)
    assert 1 <= state["global_step"] < ROUNDS
    assert not (root / "export").exists()
    continued = cli("fit", *options, "--ckpt_path", "last")
    assert continued.status == 0, continued.err
    lines = [line for line in continued.out.splitlines() if line.startswith("round ")]
    assert 1 <= len(lines) <= ROUNDS - state["global_step"]
    assert_equal_runs(root, undisturbed)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGHUP, 143)])
def test_stopped_in_the_first_evaluation(tmp_path, number, status):
    """Before training: nothing to continue from, and nothing that stands in the way of the same command."""
    root = tmp_path / "run"
    held_out = write_rows(tmp_path / "long.jsonl", problems(200))
    options = small(root, held_out, samples=16)
    running = Running("fit", *options)
    running.wait_for((root / "config.yaml").exists)  # written when the Trainer starts
    time.sleep(0.3)
    ended = running.stop(number)
    assert ended.status == status, ended.err
    assert ended.error == ("interrupted" if number == signal.SIGINT else "stopped by SIGHUP (its terminal was closed)")
    assert not (root / "ledger.jsonl").exists()
    assert not (root / "checkpoints" / "last.ckpt").exists()
    again = cli("fit", *small(root, write_rows(tmp_path / "short.jsonl", problems(2)), rounds=1))
    assert again.status == 0, again.err


def test_killed_before_its_first_checkpoint_a_run_begins_again(tmp_path, held_out, undisturbed):
    root = tmp_path / "run"
    options = small(root, held_out, rounds=ROUNDS)
    running = Running("fit", *options)
    running.first_round()
    ended = running.stop(signal.SIGKILL)
    assert ended.status == -signal.SIGKILL
    assert (root / "ledger.jsonl").stat().st_size
    assert not (root / "checkpoints" / "last.ckpt").exists()
    # without --ckpt_path the folder is taken
    assert cli("fit", *options).status == 2
    # what is refused on the way costs none of its books
    books = (root / "ledger.jsonl").read_bytes()
    assert cli("fit", *options, "--ckpt_path", "last", "--data.seeds", "nowhere.jsonl").status == 2
    assert (root / "ledger.jsonl").read_bytes() == books
    again = cli("fit", *options, "--ckpt_path", "last")
    assert again.status == 0, again.err
    assert "begins again" in again.err
    assert (root / "ledger.1.jsonl").read_bytes() == books
    assert_equal_runs(root, undisturbed)


def test_a_folder_takes_one_fit_at_a_time(tmp_path, held_out):
    root = tmp_path / "run"
    options = small(root, held_out, rounds=ROUNDS)
    running = Running("fit", *options)
    running.first_round()
    second = cli("fit", *options, "--ckpt_path", "last")
    assert second.status == 2
    assert f"another fit is running in {root}" in second.error
    assert running.stop(signal.SIGINT).status == 130
    again = cli("fit", *options, "--ckpt_path", "last")
    assert again.status == 0, again.err


def test_killed_after_a_checkpoint_a_run_continues_from_it(tmp_path, held_out, undisturbed):
    """SIGKILL leaves rows behind that no checkpoint knows; they are written once."""
    root = tmp_path / "run"
    every = json.dumps(
        [{"class_path": "lightning_serl.callbacks.Checkpoints", "init_args": {"every_n_train_steps": 2}}]
    )
    options = [*small(root, held_out, rounds=ROUNDS), "--trainer.callbacks", every]
    running = Running("fit", *options)
    running.wait_for(lambda: "round 3/" in running.process.out)
    running.stop(signal.SIGKILL)
    state = torch.load(root / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] in (2, 4)
    continued = cli("fit", *options, "--ckpt_path", "last")
    assert continued.status == 0, continued.err
    assert_equal_runs(root, undisturbed)


def test_a_closed_terminal_does_not_hide_the_error(tmp_path):
    """What is read by ``head`` ends early; the run folder and the status stay true."""
    options = small(tmp_path / "run", rounds=1)
    process = subprocess.Popen(
        [sys.executable, "-m", "lightning_serl", "fit", *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    process.stdout.close()
    err = process.stderr.read()
    status = process.wait(LIMIT)
    process.stderr.close()
    assert status == 1, (status, err)
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "error: standard output was closed before the command ended"
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_ctrl_c_during_an_import_ends_the_command_at_once(tmp_path):
    """A library that catches every exception while it is imported cannot swallow it."""
    (tmp_path / "swallows.py").write_text(
        "import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept BaseException:\n    print('went on')\n"
    )
    program = (
        "import sys; sys.path.insert(0, '.')\n"
        "from lightning_serl.cli.run_folder import CommandState\n"
        "from lightning_serl.cli.signals import end_on_signals\n"
        "end_on_signals(CommandState()); import swallows"
    )
    ended = finish(start(program=("-c", program), cwd=tmp_path))
    assert (ended.status, ended.out, ended.err) == (130, "", "error: interrupted\n")
