"""Disks that are full, folders that cannot be written, files that were changed: said in time, nothing good is lost."""

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from helpers.command_line import cli, finish, fork, rows, small
from helpers.training import ledger, selfplay, trainer_for

from lightning_serl.callbacks import Checkpoints
from lightning_serl.callbacks.run_folder.jsonl_file import RunFile
from lightning_serl.checkpoints.atomic_write import forget_unfinished, write_whole
from lightning_serl.checkpoints.checks import check_sums
from lightning_serl.errors import InputError, StorageFailure

ONE_BLOCK = json.dumps(
    [{"class_path": "lightning_serl.callbacks.Checkpoints", "init_args": {"every_n_train_steps": 1, "keep": 1}}]
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of three rounds with a checkpoint after each."""
    root = tmp_path_factory.mktemp("durability") / "run"
    ended = cli("fit", *small(root, rounds=3), "--trainer.callbacks", ONE_BLOCK)
    assert ended.status == 0, ended.err
    return root


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


def middle_of_weights(path):
    """A place inside the largest entry of a checkpoint."""
    with zipfile.ZipFile(path) as file:
        entry = max(file.infolist(), key=lambda i: i.file_size)
    return entry.header_offset + 128 + entry.file_size // 2


def test_a_flipped_byte_inside_the_weights(tmp_path, run):
    """torch reads it without a word; here it is refused, and the whole checkpoint beside it is named."""
    root = tmp_path / "run"
    shutil.copytree(run, root)
    last = root / "checkpoints" / "last.ckpt"
    flip(last, middle_of_weights(last))
    torch.load(last, weights_only=True)
    ended = cli("fit", *small(root, rounds=3), "--trainer.max_epochs", 2, "--ckpt_path", "last")
    assert ended.status == 2, ended.err
    assert "is damaged" in ended.error
    assert "step=3.ckpt in the same folder is undamaged" in ended.error
    # from Python too
    module, data = selfplay()
    with pytest.raises(InputError, match="is damaged"):
        trainer_for(tmp_path / "other").fit(module, data, ckpt_path=str(last))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_flipped_byte_anywhere_in_the_entries(tmp_path, run, share):
    path = tmp_path / "last.ckpt"
    shutil.copy(run / "checkpoints" / "last.ckpt", path)
    check_sums(path, "it")
    with zipfile.ZipFile(path) as file:
        size = sum(i.file_size for i in file.infolist())
        left = int(size * share)
        for entry in file.infolist():  # a byte of content: what lies between entries means nothing
            if left < entry.file_size:
                break
            left -= entry.file_size
    data = path.read_bytes()
    begins = (
        entry.header_offset + 30 + sum(int.from_bytes(data[entry.header_offset + k :][:2], "little") for k in (26, 28))
    )
    flip(path, begins + left)
    with pytest.raises(InputError, match="it is damaged"):
        check_sums(path, "it")


def test_code_in_a_checkpoint_is_never_run(tmp_path, run):
    """Nor from Python, where Lightning by itself would trust the file."""

    class Code:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save(state | {"extra": Code()}, tmp_path / "bad.ckpt")
    module, data = selfplay()
    with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights.only"):
        trainer_for(tmp_path / "run").fit(module, data, ckpt_path=str(tmp_path / "bad.ckpt"), weights_only=False)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "bad.ckpt", weights_only=False)
    assert (tmp_path / "ran").exists(), "the payload does nothing"


# -- a disk without room -------------------------------------------------------------------------------------


LIMITED = """
import resource, signal, sys
from lightning_serl.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails with an error, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""


def test_a_disk_that_fills_up(tmp_path, run):
    """Too little for a checkpoint: the run says so, and goes on from the last good one when there is room."""
    root = tmp_path / "run"
    options = [*small(root, rounds=3), "--trainer.callbacks", ONE_BLOCK]
    assert cli("fit", *options, "--trainer.max_steps", 1).status == 0
    size = (root / "checkpoints" / "last.ckpt").stat().st_size
    shutil.rmtree(root / "export")
    script = tmp_path / "limited.py"
    script.write_text(LIMITED)
    ended = finish(fork(script, size // 2, "fit", *options, "--ckpt_path", "last"))
    assert ended.status == 1, ended.err
    assert "cannot be written" in ended.error
    assert "checkpoints" in ended.error
    assert sorted(p.name for p in (root / "checkpoints").iterdir()) == ["last.ckpt", "step=1.ckpt"]
    check_sums(root / "checkpoints" / "last.ckpt", "it")
    ended = cli("fit", *options, "--ckpt_path", "last")
    assert ended.status == 0, ended.err
    assert ledger(root) == ledger(run)


def test_a_ledger_that_cannot_grow(tmp_path):
    (tmp_path / "ledger.jsonl").symlink_to("/dev/full")
    with pytest.raises(StorageFailure, match=r"ledger.jsonl cannot be written \(No space left on device\); free space"):
        RunFile(tmp_path / "ledger.jsonl").append([{"uid": "a"}])


def test_rows_of_another_run_are_set_aside(tmp_path):
    path = tmp_path / "ledger.jsonl"
    mine = RunFile(path)
    mine.append([{"uid": "a"}, {"uid": "b"}])
    offset, checksum = mine.offset, mine.checksum
    mine.append([{"uid": "later"}])
    again = RunFile(path)
    again.truncate(offset, checksum)
    again.append([{"uid": "c"}])
    assert [json.loads(line)["uid"] for line in path.read_text().splitlines()] == ["a", "b", "c"]
    assert RunFile(path).checksum == again.checksum
    path.unlink()
    theirs = RunFile(path)
    theirs.append([{"uid": "x" * 40}])
    content = path.read_bytes()
    with pytest.warns(UserWarning, match="ledger.jsonl in .* was written by another run than the checkpoint"):
        theirs.truncate(offset, checksum)
    assert not path.exists()
    assert (tmp_path / "ledger.1.jsonl").read_bytes() == content


def test_a_file_that_lost_its_end_goes_on_with_a_whole_row(tmp_path):
    path = tmp_path / "ledger.jsonl"
    whole = RunFile(path)
    whole.append([{"uid": "a"}, {"uid": "b"}])
    offset, checksum = whole.offset, whole.checksum
    path.write_bytes(path.read_bytes()[:-5])
    cut = RunFile(path)
    with pytest.warns(UserWarning, match="the rows in between are lost"):
        cut.truncate(offset, checksum)
    cut.append([{"uid": "c"}])
    assert [json.loads(line)["uid"] for line in path.read_text().splitlines()] == ["a", "c"]


def test_a_file_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "file"
    write_whole(path, lambda file: file.write(b"first"))

    def broken(file):
        file.write(b"second")
        raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        write_whole(path, broken)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / ".file.17.unfinished").touch()  # of a process that was killed
    forget_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    path.unlink()
    path.mkdir()
    with pytest.raises(StorageFailure, match="cannot be written"):
        write_whole(path, lambda file: file.write(b"third"))


def test_a_folder_that_cannot_be_written(tmp_path):
    """Before anything is loaded."""
    root = tmp_path / "file" / "run"
    (tmp_path / "file").touch()
    ended = cli("fit", *small(root, rounds=1))
    assert ended.status == 2
    assert "cannot be written" in ended.error


# -- what stays on disk --------------------------------------------------------------------------------------


def test_retention_is_bounded_over_kills(tmp_path):
    """What killed runs left behind goes with the next checkpoint."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step in range(5):
        (folder / f"step={90 + step}.ckpt").touch()
        os.utime(folder / f"step={90 + step}.ckpt", (step, step))
    (folder / ".last.ckpt.99.unfinished").touch()
    module, data = selfplay()
    trainer_for(tmp_path, [Checkpoints(1, keep=2)]).fit(module, data)
    assert sorted(p.name for p in folder.iterdir()) == ["last.ckpt", "step=1.ckpt", "step=2.ckpt"]


def test_a_run_that_lost_its_ledger_says_so(tmp_path, run):
    root = tmp_path / "run"
    shutil.copytree(run, root)
    (root / "ledger.jsonl").write_text("")
    with pytest.warns(UserWarning, match="ledger.jsonl has 0 bytes but had [1-9][0-9]* at the checkpoint"):
        ended = cli("fit", *small(root, rounds=3), "--trainer.max_epochs", 2, "--ckpt_path", "last")
    assert ended.status == 0, ended.err


def test_killed_between_the_first_checkpoint_and_its_second_name(tmp_path, run):
    root = tmp_path / "run"
    shutil.copytree(run, root)
    (root / "checkpoints" / "last.ckpt").unlink()
    ended = cli(
        "fit", *small(root, rounds=3), "--trainer.max_steps", 4, "--trainer.max_epochs", 2, "--ckpt_path", "last"
    )
    assert ended.status == 0, ended.err
    assert "continuing from step=3.ckpt" in ended.err
    assert ledger(root).startswith(ledger(run))


# -- another number of ranks, another engine ------------------------------------------------------------------


def test_what_a_changed_run_can_no_longer_promise(tmp_path, run):
    root = tmp_path / "run"
    shutil.copytree(run, root)
    state = torch.load(root / "checkpoints" / "last.ckpt", weights_only=True)
    state["SelfPlayDataModule"] |= {"ranks": 2, "engine": "VLLMEngine"}
    torch.save(state, root / "checkpoints" / "last.ckpt")
    with pytest.warns(UserWarning, match="in the checkpoint's run") as said:
        ended = cli("fit", *small(root, rounds=3), "--trainer.max_epochs", 2, "--ckpt_path", "last")
    assert ended.status == 0, ended.err
    sentences = " ".join(str(one.message) for one in said)
    assert "ranks: 1 here, 2 in the checkpoint's run" in sentences
    assert "engine: TransformersEngine here, VLLMEngine in" in sentences
    assert len(rows(root / "metrics.jsonl")) > len(rows(run / "metrics.jsonl"))
