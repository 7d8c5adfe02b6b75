"""Pools of earlier runs, read off their ledgers."""

import json

import pytest

from lightning_serl.datamodules.problems.files import read_pool
from lightning_serl.errors import InputError

EVENTS = [
    {"uid": "a", "event": "proposed", "prompt": "A?"},
    {"uid": "a", "event": "accepted"},
    {"uid": "b", "event": "proposed", "prompt": "B?", "choices": ["x", "y"]},
    {"uid": "b", "event": "accepted"},
    {"uid": "c", "event": "proposed", "prompt": "C?"},
    {"uid": "c", "event": "rejected", "reason": "empty"},
    {"uid": "d", "event": "proposed", "prompt": "Judge this.", "role": "judge"},
    {"uid": "d", "event": "accepted"},
    {"uid": "b", "event": "kept"},
    {"uid": "d", "event": "kept"},
]


def ledger(folder, text):
    (folder / "ledger.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_what_was_accepted_and_kept(tmp_path):
    text = "".join(json.dumps(e) + "\n" for e in EVENTS)
    whole, torn = ledger(tmp_path, text), text + '{"uid": "e", "eve'
    for name in (str(whole), str(whole / "ledger.jsonl")):
        found = [(i.prompt, i.uid, i.meta.get("choices"), status) for i, status in read_pool(name)]
        assert found == [("A?", "a", None, "spent"), ("B?", "b", ["x", "y"], "kept")]
    assert len(read_pool(str(ledger(tmp_path, torn)))) == 2, "a killed run leaves half a row"


@pytest.mark.parametrize(
    ("text", "said"), [("nonsense\n{}\n", "line 1"), ('{"uid": 1}\n\n', "line 1"), ('[]\n{"event": 2}\n', "line 1")]
)
def test_other_files(tmp_path, text, said):
    with pytest.raises(InputError, match=said) as caught:
        read_pool(str(ledger(tmp_path, text)))
    assert len(str(caught.value)) < 300
    with pytest.raises(InputError, match="give the folder of an earlier run"):
        read_pool(str(tmp_path / "nothing"))
