"""Broken checkpoints: refused before a model loads where that can be told, and never at the cost of the run folder."""

import io
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from helpers.command_line import cli, problems, small, write_rows
from helpers.counts import MALFORMED as COUNTS
from helpers.malformed import one_sentence

from lightning_serl.checkpoints.checks import check_checkpoint
from lightning_serl.errors import InputError

ENTRY = "checkpoints"
STREAM = "SelfPlayDataModule"
CALLBACKS = ("Summary", "Ledger", "Checkpoints")


class Run:
    """A finished run of two rounds, its checkpoint and a place that code in a checkpoint would touch."""

    def __init__(self, root, marker):
        self.root, self.marker = root, marker
        self.data = (root / "checkpoints" / "last.ckpt").read_bytes()

    def state(self):
        return torch.load(io.BytesIO(self.data), weights_only=True)

    def changed(self, change):
        """The checkpoint after a change of its state; the change may return another object to save."""
        state = self.state()
        other = change(state)
        return saved(state if other is None else other)


class Code:
    """Would touch a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (type(self.path).touch, (self.path,))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    ended = cli("fit", *small(folder / "run", rounds=2))
    assert ended.status == 0, ended.err
    return Run(folder / "run", folder / "ran")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    root = tmp_path_factory.mktemp("adapter") / "run"
    ended = cli("fit", *small(root, rounds=1), "--model.lora.r", 2)
    assert ended.status == 0, ended.err
    return (root / "checkpoints" / "last.ckpt").read_bytes()


def saved(value):
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def zipped(**entries):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, content in entries.items():
            file.writestr(f"archive/{name.replace('_', '.')}", content)
    return out.getvalue()


def inner(state, path):
    """What holds the last name of a path, and that name; a name may be the start of a callback's."""
    for name in path[:-1]:
        state = state[next(key for key in state if key == name or (name in CALLBACKS and key.startswith(name)))]
    last = path[-1]
    return state, next((key for key in state if last in CALLBACKS and key.startswith(last)), last)


def put(value, *path):
    def change(state):
        holder, name = inner(state, path)
        holder[name] = value

    return lambda run: run.changed(change)


def lose(*path):
    def change(state):
        holder, name = inner(state, path)
        del holder[name]

    return lambda run: run.changed(change)


def first_weight(change):
    def changed(state):
        weights = state["state_dict"]
        name = next(iter(weights))
        change(weights, name)

    return lambda run: run.changed(changed)


#: (family, what, how the file is made from a sound run, words of the sentence).
PARTS = ("state_dict", "loops", "callbacks", "optimizer_states", "lr_schedulers")
DAMAGED = [
    ("cut off", "empty", lambda run: b"", "damaged"),
    ("cut off", "a hundred bytes", lambda run: run.data[:100], "damaged"),
    ("cut off", "half", lambda run: run.data[: len(run.data) // 2], "damaged"),
    ("cut off", "the last byte", lambda run: run.data[:-1], "damaged"),
    ("cut off", "the beginning", lambda run: run.data[1000:], "damaged"),
    ("cut off", "a hole in the list of entries", lambda run: run.data[:-300] + bytes(200) + run.data[-100:], "damaged"),
    ("not a checkpoint", "text", lambda run: b"epoch: 3\n", "no checkpoint"),
    ("not a checkpoint", "blanks", lambda run: b" " * 100_000, "no checkpoint"),
    ("not a checkpoint", "an empty archive", lambda run: zipped(), "damaged"),
    ("not a checkpoint", "an archive of other things", lambda run: zipped(version="3"), "damaged"),
    (
        "not a checkpoint",
        "an archive with nonsense",
        lambda run: zipped(data_pkl=b"\x80\x02no", version="3"),
        "damaged",
    ),
    ("not a checkpoint", "a list", lambda run: saved([1, 2]), "list"),
    ("not a checkpoint", "a tensor", lambda run: saved(torch.zeros(3)), "Tensor"),
    ("not a checkpoint", "nothing", lambda run: saved({}), "lacks"),
    ("not a checkpoint", "bare weights", lambda run: saved(run.state()["state_dict"]), "lacks"),
    ("code", "a pickle", lambda run: pickle.dumps({"state_dict": Code(run.marker)}), "no checkpoint"),
    (
        "code",
        "in an archive",
        lambda run: zipped(data_pkl=pickle.dumps(Code(run.marker), 2), version="3", byteorder="little"),
        "plain values",
    ),
    ("code", "beside the weights", lambda run: run.changed(lambda s: s.update(extra=Code(run.marker))), "plain values"),
    ("code", "in the rounds", put(Code, STREAM, "source"), "plain values"),
    *(
        ("missing keys", name, lose(name), f"lacks '{name}'")
        for name in (
            "pytorch-lightning_version",
            "state_dict",
            "loops",
            "callbacks",
            "optimizer_states",
            "lr_schedulers",
        )
    ),
    ("missing keys", STREAM, lose(STREAM), "which rounds were played"),
    *(("wrong types", name, put("text", name), f"damaged part '{name}'") for name in PARTS),
    *(
        ("state of the rounds, missing keys", name, lose(STREAM, name), f"lacks '{name}'")
        for name in (
            "seed",
            "rounds",
            "steps_per_round",
            "first_step",
            "first_round",
            "pool",
            "source",
            "queue",
            "pending",
        )
    ),
    *(
        ("state of the rounds, wrong types", f"{name} {value!r:.30}", put(value, STREAM, name), f"damaged '{name}'")
        for name, value in [
            ("seed", "0"),
            ("rounds", -5),
            ("rounds", 1.5),
            ("steps_per_round", None),
            ("first_step", "x"),
            ("first_round", True),
            ("pool", "text"),
            ("pool", {"prompts": ["a"]}),
            ("pool", {"prompts": ["a"], "uids": [], "roles": [], "metas": [], "statuses": []}),
            ("pool", {"prompts": [1], "uids": ["u"], "roles": ["solve"], "metas": [{}], "statuses": ["kept"]}),
            ("pool", {"prompts": ["a"], "uids": ["u"], "roles": ["solve"], "metas": [{}], "statuses": ["lost"]}),
            ("source", [1]),
            ("queue", [{"prompt": "x"}]),
            ("queue", ["x"]),
            ("queue", [{"prompt": "x", "uid": "u", "of_a_later_version": 1}]),
            ("pending", [[{"input_ids": 3}]]),
            ("pending", [[{"of_a_later_version": 1}]]),
            ("pending", 7),
        ]
    ),
    ("state of the rounds, wrong types", "a list", put([1], STREAM), "list"),
    ("other model", "a weight less", first_weight(lambda w, name: w.pop(name)), "another model"),
    ("other model", "a weight more", put(torch.zeros(2), "state_dict", "policy.new"), "another model"),
    ("other model", "another size", first_weight(lambda w, name: w.update({name: w[name][:2]})), "does not fit"),
    ("other model", "no tensor", first_weight(lambda w, name: w.update({name: "text"})), "does not fit"),
    ("wrong types", "the version", put("of a friend", "pytorch-lightning_version"), "does not fit"),
    ("wrong types", "the policy", put("text", "serl_policy"), "does not fit"),
    ("wrong types", "the policy's version", put("x", "serl_policy", "version"), "does not fit"),
    *(("wrong types", name, put("text", "callbacks", name), "does not fit") for name in CALLBACKS),
    ("wrong types", "the ledger's offsets", put({"offsets": 3}, "callbacks", "Ledger"), "does not fit"),
]


def files(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def resume(root, *options):
    return cli("fit", *small(root, rounds=2), "--trainer.max_epochs", 2, "--ckpt_path", "last", *options)


#: These meet the check that comes before anything loads; the others are noticed when the run is restored.
CHECKED = [case for case in DAMAGED if case[3] not in ("another model", "does not fit")]
#: One of each family and what only a restore can notice: through the command line.
RESUMED = [c for n, c in enumerate(DAMAGED) if c not in CHECKED or c[0] not in [d[0] for d in DAMAGED[:n]]]


def named(cases):
    return [f"{family}: {what}" for family, what, _, _ in cases]


@pytest.mark.parametrize(("family", "what", "make", "words"), CHECKED, ids=named(CHECKED))
def test_a_broken_checkpoint_is_refused_where_it_is_checked(tmp_path, monkeypatch, run, family, what, make, words):
    monkeypatch.chdir(tmp_path)  # the length of a message may not depend on that of the temporary folder
    path = Path("last.ckpt")
    path.write_bytes(make(run))
    before = files(tmp_path)
    with pytest.raises(InputError) as caught:
        check_checkpoint(path, "fit")
    assert files(tmp_path) == before
    one_sentence(caught.value, "--ckpt_path", words)
    assert not run.marker.exists(), "code in a checkpoint was run"
    COUNTS[ENTRY, family] += 1


@pytest.mark.parametrize(("family", "what", "make", "words"), RESUMED, ids=named(RESUMED))
def test_a_broken_checkpoint_is_refused_and_nothing_is_lost(tmp_path, run, family, what, make, words):
    root = tmp_path / "run"
    shutil.copytree(run.root, root)
    (root / "checkpoints" / "last.ckpt").write_bytes(make(run))
    before = files(root)
    ended = resume(root)
    assert ended.status == 2, (ended.status, ended.err)
    one_sentence(ended.error, "checkpoint", words)
    assert files(root) == before
    assert not run.marker.exists(), "code in a checkpoint was run"
    COUNTS[ENTRY, family] += (family, what, make, words) not in CHECKED  # those are counted above


def test_the_code_would_have_run(run):
    """What the cases above rule out does happen where a pickle is trusted."""
    pickle.loads(pickle.dumps(Code(run.marker)))
    assert run.marker.exists()
    run.marker.unlink()


QUERIES = ("--model.lora.r", 2, "--model.lora.target_modules", ".*q_proj")
OPTIONS = [
    ("an adapter where there is none", True, (), "--model.lora"),
    ("an adapter of another rank", True, ("--model.lora.r", 4), "does not fit"),
    ("an adapter of other layers", True, QUERIES, "another model"),
    ("weights where an adapter is wanted", False, ("--model.lora.r", 2), "no --model.lora"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "of_adapter", "options", "words"), OPTIONS, ids=[o[0] for o in OPTIONS])
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_other_adapter_options(tmp_path, run, adapter, command, what, of_adapter, options, words):
    (tmp_path / "a.ckpt").write_bytes(adapter if of_adapter else run.data)
    held_out = write_rows(tmp_path / "held_out.jsonl", problems(3))
    ended = cli(command, *small(tmp_path / "run", held_out), *options, "--ckpt_path", tmp_path / "a.ckpt")
    assert ended.status == 2, ended.err
    one_sentence(ended.error, "checkpoint", words)
    assert not (tmp_path / "run" / "ledger.jsonl").exists()
    COUNTS[ENTRY, "other adapter options"] += 1


@pytest.mark.parametrize("command", ["fit", "validate", "predict"])
@pytest.mark.parametrize("what", ["an empty directory", "a directory with a file"])
def test_a_directory_without_a_checkpoint(tmp_path, command, what):
    folder = tmp_path / "folder"
    folder.mkdir()
    if what != "an empty directory":
        (folder / "last.ckpt").write_bytes(b"")
    held_out = write_rows(tmp_path / "held_out.jsonl", problems(3))
    ended = cli(command, *small(tmp_path / "run", held_out), "--ckpt_path", folder)
    assert ended.status == 2, ended.err
    one_sentence(ended.error, "folder is a directory")
    COUNTS[ENTRY, "a directory"] += 1


EXTRA = [("future",), (STREAM, "future"), ("serl_policy", "future"), ("callbacks", "Ledger", "future")]


@pytest.mark.parametrize("path", [EXTRA, *([one] for one in EXTRA)], ids=["all", *(".".join(p) for p in EXTRA)])
def test_what_a_later_version_added_is_no_reason_to_refuse(tmp_path, run, path):
    root = tmp_path / "run"
    shutil.copytree(run.root, root)

    def change(state):
        for one in path:
            holder, name = inner(state, one)
            holder[name] = {"of": ["a", "later", "version"]}

    (root / "checkpoints" / "last.ckpt").write_bytes(run.changed(change))
    ended = resume(root, "--trainer.max_steps", 3)
    assert ended.status == 0, ended.err
    COUNTS[ENTRY, "keys of a later version"] += 1
