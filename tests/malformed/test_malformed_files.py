"""Broken evaluation sets in the hub's layout, recordings, ledgers of earlier runs and model directories."""

import gzip
import json
import os
import random
import shutil

import pytest
from helpers.command_line import cli, problems, small, write_rows
from helpers.counts import MALFORMED as COUNTS
from helpers.malformed import one_sentence

from lightning_serl import tiny
from lightning_serl.datamodules.problems.files import read_pool
from lightning_serl.datamodules.problems.hub import read_set
from lightning_serl.datamodules.problems.rows import Fields
from lightning_serl.engines import ReplayEngine
from lightning_serl.errors import InputError
from lightning_serl.policy.loading import check_model_path, load_policy

NOISE = random.Random("malformed files").randbytes(3000)
ROW = b'{"question": "What is 2 + 3?", "answer": "So.\\n#### 5"}\n'
ASDIV = {"body": "B.", "question": "Q?", "answer": "1; 2", "solution_type": "x"}
ABSENT = "---\nconfigs:\n- config_name: a\n  data_files: a/*.jsonl\n---\n"
CARD = "---\nconfigs:\n- config_name: a\n  data_files: a/*.jsonl\n- config_name: b\n  data_files: b/*.jsonl\n---\n"


def fill(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def rows(*values):
    return {"test.jsonl": "".join(json.dumps(value) + "\n" for value in values)}


HALF = {"test.jsonl": '{"question": "\\ud800?", "answer": "1"}\n'}
ENDLESS = {"test.jsonl": '{"question": "What?", "answer": 1e999}\n'}
TWO = {"README.md": CARD, "a/test.jsonl": ROW, "b/test.jsonl": ROW}
NO_YAML = {"README.md": "---\nconfigs: [a: {\n---\n", "test.jsonl": ROW}

# -- evaluation sets in the hub's layout -------------------------------------------------------------------------

SETS = [
    ("nothing in it", "no file", {}, "", "data files"),
    ("nothing in it", "a README alone", {"README.md": "# A set"}, "", "data files"),
    ("nothing in it", "an empty file", {"test.jsonl": ""}, "", "cannot be read"),
    ("nothing in it", "blank lines", {"test.jsonl": "\n\n"}, "", "no data"),
    ("nothing in it", "an empty parquet file", {"test.parquet": b""}, "", "0 bytes"),
    ("nothing in it", "problems with several answers", rows(ASDIV), "", "single answer"),
    ("bytes", "no UTF-8", {"test.jsonl": ROW + b'{"question": "\xff\xfe"}\n'}, "", "utf-8"),
    ("bytes", "noise as parquet", {"test.parquet": NOISE}, "", "arquet"),
    ("bytes", "the ends of a parquet file", {"test.parquet": b"PAR1" + bytes(100) + b"PAR1"}, "", "cannot be read"),
    ("bytes", "a picture as csv", {"test.csv": b"\x89PNG\r\n\x1a\n" + NOISE}, "", "cannot be read"),
    ("bytes", "noise in an archive", {"test.zip": b"PK\x03\x04" + NOISE}, "", "zip"),
    ("cut off", "a compressed file", {"test.jsonl.gz": gzip.compress(ROW, mtime=0)[:30]}, "", "ended"),
    ("cut off", "a row", {"test.jsonl": ROW + ROW[:20]}, "", "JSON"),
    ("JSON syntax", "a broken row", {"test.jsonl": ROW + b'{"question": \n'}, "", "JSON"),
    ("JSON syntax", "a scalar", {"test.json": "3"}, "", "cannot be read"),
    ("JSON syntax", "half of a pair", HALF, "", "cannot be read"),
    ("JSON syntax", "beyond all numbers", ENDLESS, "", "cannot be read"),
    ("depth", "brackets", {"test.jsonl": "[" * 100_000}, "", "cannot be read"),
    ("types", "mixed", rows({"question": "What?", "answer": "1"}, {"question": 5, "answer": [1]}), "", "row 2"),
    ("types", "null", rows({"question": None, "answer": "1"}), "", "null"),
    ("types", "a number", rows({"question": 3, "answer": "1"}), "", "a number"),
    ("types", "blanks", rows({"question": " ", "answer": "1"}), "", "is empty"),
    ("types", "an object", rows({"question": {"text": "What?"}, "answer": "1"}), "", "an object"),
    ("types", "a list of numbers", {"test.jsonl": "[1, 2, 3]\n"}, "", "no field"),
    ("fields", "others", rows({"q": "What?", "a": "1"}), "", "no field"),
    ("fields", "a text file", {"notes.txt": "What is it?"}, "", "no field"),
    ("choices", "a single option", rows({"question": "Q?", "options": ["a", "N/A"], "answer": "A"}), "", "options"),
    ("choices", "a letter too far", rows({"question": "Q?", "options": ["a", "b"], "answer": "F"}), "", "'F'"),
    ("layout", "a split that is not there", {"test.jsonl": ROW}, "@tset", "tset"),
    ("layout", "two splits and no test", {"train.jsonl": ROW, "validation.jsonl": ROW}, "", "@SPLIT"),
    ("layout", "two configurations", TWO, "", "configuration"),
    ("layout", "a card that is no YAML", NO_YAML, "", "cannot be read"),
    ("layout", "a card of another type", {"README.md": "---\nconfigs: 3\n---\n", "test.jsonl": ROW}, "", "configs"),
    ("layout", "a card of absent files", {"README.md": ABSENT, "test.jsonl": ROW}, "", "cannot be read"),
    ("code", "a loading script", {"set.py": "open('ran', 'w')\nraise SystemExit(9)\n"}, "", "cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "what", "content", "suffix", "words"), SETS, ids=[f"{s[0]}: {s[1]}" for s in SETS])
def test_evaluation_sets_in_the_hubs_layout(tmp_path, monkeypatch, family, what, content, suffix, words):
    monkeypatch.chdir(tmp_path)
    folder = fill(tmp_path / "set", content)
    folder.mkdir(exist_ok=True)
    for start in ("", "hub:"):
        with pytest.raises(InputError) as caught:
            read_set(f"{start}set{suffix}", Fields(), "h")
        one_sentence(caught.value, "set", words)
    assert not (tmp_path / "ran").exists()
    COUNTS["evaluation sets", family] += 1


NAMES = ["hub:", "hub:gsm9k", "hub:a/b/c/d", "hub:/nowhere", "hub:./x", "hub:a//b", "hub:@test", "hub:math_500"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_evaluation_sets(name):
    with pytest.raises(InputError) as caught:
        read_set(name, Fields(), "h")
    one_sentence(caught.value, name.removeprefix("hub:").removesuffix("@test"))
    COUNTS["evaluation sets", "names"] += 1


# -- recordings --------------------------------------------------------------------------------------------------

RECORDINGS = [
    ("nothing in it", b"", "holds no recorded responses"),
    ("nothing in it", b"\xef\xbb\xbf\n \n", "holds no recorded responses"),
    ("nothing in it", b'{"problem": null, "responses": []}\n', "holds no recorded responses"),
    ("bytes", b'{"problem": "a", "responses": ["\xe9"]}\n', "r.jsonl:1 is not UTF-8"),
    ("bytes", b'\n{"problem": "a", "responses": ["x"]}\n'.decode().encode("utf-16"), "UTF-8"),
    ("bytes", gzip.compress(b"{}", mtime=0), "UTF-8"),
    ("bytes", b'{"problem": "a\x00", "responses": ["x"]}\n', "r.jsonl:1 is not JSON"),
    ("JSON syntax", b'{"problem": "a", "responses": ["x"]}\nno\n', "r.jsonl:2 is not JSON"),
    ("JSON syntax", b'[{"problem": "a", "responses": ["x"]}]\n', "r.jsonl:1 has no list"),
    ("JSON syntax", b'{"problem": "a", "responses": ["\\udfff"]}\n', "half of a surrogate pair"),
    ("cut off", b'{"problem": "a", "responses": ["x"', "r.jsonl:1 is not JSON"),
    ("types", b'{"problem": "a", "responses": {"text": "x"}}\n', "has no list"),
    ("types", b'{"problem": "a", "responses": "x"}\n', "has no list"),
    ("types", b'{"problem": "a", "responses": [null]}\n', "must be a string"),
    ("types", b'{"problem": "a", "responses": [["x"]]}\n', "must be a string"),
    ("types", b'{"problem": "a", "responses": [{"text": 3}]}\n', "must be a string"),
    ("types", b'{"problem": ["a"], "responses": ["x"]}\n', "the prompt must be a string, got list"),
    ("fields", b'{"problem": "a", "outputs": ["x"]}\n', "responses_field"),
    ("depth", b'{"problem": "a", "responses": ' + b"[" * 100_000, "is not JSON"),
    ("size", b'{"problem": "a", "responses": [' + b"9" * 5000 + b"]}", "is not JSON that can be read"),
]


@pytest.mark.parametrize(("family", "content", "words"), RECORDINGS)
def test_recordings(tmp_path, monkeypatch, family, content, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.jsonl").write_bytes(content)
    with pytest.raises(InputError) as caught:
        ReplayEngine("r.jsonl")
    one_sentence(caught.value, "r.jsonl", words)
    COUNTS["recordings", family] += 1


@pytest.mark.parametrize("name", ["", "none.jsonl", ".", "a\0b", "x" * 300, "r.jsonl/x"])
def test_recordings_that_cannot_be_opened(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.jsonl").write_text("")
    with pytest.raises(InputError) as caught:
        ReplayEngine(name)
    assert "cannot be read" in str(caught.value)
    COUNTS["recordings", "paths"] += 1


# -- ledgers of earlier runs -------------------------------------------------------------------------------------

PROPOSED, ACCEPTED = b'{"uid": "a", "event": "proposed", "prompt": "A?"}\n', b'{"uid": "a", "event": "accepted"}\n'
LEDGERS = [
    ("nothing in it", b"", "no accepted problem"),
    ("nothing in it", b"\n\n", "no accepted problem"),
    ("nothing in it", PROPOSED, "no accepted problem"),
    ("nothing in it", ACCEPTED, "no accepted problem"),
    ("bytes", b"\xff\xfe" + PROPOSED, "ledger.jsonl:1 is not UTF-8 text"),
    ("bytes", gzip.compress(PROPOSED, mtime=0), "ledger.jsonl:1 is not UTF-8 text"),
    ("JSON syntax", b"no\n" + PROPOSED + ACCEPTED, "line 1"),
    ("JSON syntax", PROPOSED + b"no\n" + ACCEPTED, "line 2"),
    ("JSON syntax", b"nothing of a run", "no accepted problem"),
    ("types", b"[]\n" + PROPOSED, "line 1"),
    ("types", b"3\n" + PROPOSED, "line 1"),
    ("types", b"null\n" + PROPOSED, "line 1"),
    ("fields", b'{"step": 1, "loss": 0.5}\n' * 3, "line 1"),
    ("fields", b'{"uid": "a", "event": "proposed"}\n' + ACCEPTED, "line 1"),
    ("fields", b'{"event": "accepted"}\n' + ACCEPTED, "line 1"),
    ("depth", b"[" * 100_000 + b"\n" + PROPOSED, "line 1"),
]


@pytest.mark.parametrize(("family", "content", "words"), LEDGERS)
def test_ledgers_of_earlier_runs(tmp_path, family, content, words):
    (tmp_path / "ledger.jsonl").write_bytes(content)
    for name in (tmp_path, tmp_path / "ledger.jsonl"):
        with pytest.raises(InputError) as caught:
            read_pool(str(name))
        one_sentence(caught.value, "data.pool_from", words, "give")
    COUNTS["ledgers", family] += 1


@pytest.mark.parametrize("name", ["none", "file/x", "x" * 300, "empty"])
def test_ledgers_that_are_not_there(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        read_pool(name)
    assert "cannot be read" in str(caught.value)
    COUNTS["ledgers", "paths"] += 1


# -- model directories -------------------------------------------------------------------------------------------


def replaced(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def removed(name):
    return lambda folder: (folder / name).unlink()


def edited(name, **facts):
    def edit(folder):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | facts))

    return edit


def cut(name, share):
    def shorten(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return shorten


THEIRS = {"AutoConfig": "ran.C", "AutoModelForCausalLM": "ran.M"}
WEIGHTS = "model.safetensors"
MODELS = [
    ("missing files", removed("config.json"), "config.json"),
    ("missing files", removed(WEIGHTS), "weights"),
    ("missing files", lambda f: [p.unlink() for p in f.glob("tokenizer*")], "tokenizer"),
    ("cut off", cut("config.json", 0.5), "cannot be loaded"),
    ("cut off", cut(WEIGHTS, 0.5), "cannot be loaded"),
    ("cut off", cut(WEIGHTS, 0), "cannot be loaded"),
    ("cut off", cut("tokenizer.json", 0.5), "cannot be loaded"),
    ("bytes", replaced("config.json", NOISE), "cannot be loaded"),
    ("bytes", replaced(WEIGHTS, NOISE), "cannot be loaded"),
    ("bytes", replaced("tokenizer.json", NOISE), "cannot be loaded"),
    ("JSON syntax", replaced("config.json", b"{'model_type': 'llama'}"), "cannot be loaded"),
    ("JSON syntax", replaced("tokenizer.json", b"[]"), "cannot be loaded"),
    ("types", replaced("config.json", b"[]"), "cannot be loaded"),
    ("types", replaced("config.json", b"{}"), "cannot be loaded"),
    ("types", edited("config.json", model_type="no_such_model"), "cannot be loaded"),
    ("types", edited("config.json", hidden_size="wide"), "cannot be loaded"),
    ("other model", edited("config.json", num_hidden_layers=7), "lack"),
    ("code", edited("config.json", model_type="mine", auto_map=THEIRS), "never run"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "change", "words"), MODELS, ids=[f"{m[0]}-{i}" for i, m in enumerate(MODELS)])
def test_model_directories(tmp_path, monkeypatch, family, change, words):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny.path("base"), "model")
    change(tmp_path / "model")
    (tmp_path / "model" / "ran.py").write_text("open('ran', 'w')\n")
    with pytest.raises(InputError) as caught:
        load_policy("model")
    one_sentence(caught.value, "model", words)
    assert not (tmp_path / "ran").exists()
    COUNTS["model directories", family] += 1


# -- through the command line ------------------------------------------------------------------------------------


def test_the_command_line_tells_them_alike(tmp_path):
    """One of each sort, so that what was told above is what a user reads, with status 2 and no run folder."""
    recording = fill(tmp_path, {"r.jsonl": b"no\n"}) / "r.jsonl"
    engine = json.dumps({"class_path": "ReplayEngine", "init_args": {"recordings": str(recording)}})
    data = write_rows(tmp_path / "held_out.jsonl", problems(3))
    ledger = fill(tmp_path / "earlier", {"ledger.jsonl": b"no\n\n"})
    shown = fill(tmp_path / "set", {"test.jsonl": ROW + b"{"})
    broken = [
        (["--data.evaluation.sets", json.dumps({"h": f"hub:{shown}"})], "cannot be read as a dataset"),
        (["--data.engine", engine], "r.jsonl:1 is not JSON"),
        (["--data.pool_from", ledger], "line 1 of ledger.jsonl"),
    ]
    for options, words in broken:
        ended = cli("fit", *small(tmp_path / "run", data), *options)
        assert ended.status == 2, ended.err
        one_sentence(ended.error, words)
        assert not (tmp_path / "run").exists()


def test_the_sound_ones_are_read(tmp_path, monkeypatch):
    """What the cases are broken from."""
    monkeypatch.chdir(tmp_path)
    assert [p.label for p in read_set(str(fill(tmp_path / "set", {"test.jsonl": ROW})), Fields(), "h")] == ["5"]
    fill(tmp_path, {"r.jsonl": b'{"problem": "a", "responses": ["x"]}\n', "ledger.jsonl": PROPOSED + ACCEPTED})
    ReplayEngine("r.jsonl")
    assert [i.prompt for i, _ in read_pool("ledger.jsonl")] == ["A?"]
    shutil.copytree(tiny.path("base"), "model")
    assert os.path.isdir(check_model_path("model"))
