"""The report's page: what it says of a run, what it leaves out, and that texts of a model stay texts."""

import base64
import gzip
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lightning_serl.errors import InputError
from lightning_serl.report import page, write_report
from lightning_serl.report.folder import run_folders
from lightning_serl.report.reasons import MEANINGS

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from report_pages import HOSTILE, write_run  # made-up run folders, which the check in a browser uses too


class Elements(HTMLParser):
    """The script elements of a page by id, and every attribute that could load something."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.loading, self.tags, self._open = {}, [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self._open = given.get("id", f"{tag}{len(self.tags)}") if tag in ("script", "style") else None
        if self._open:
            self.scripts[self._open] = ""
        self.loading += [
            v for k, v in given.items() if k in ("src", "href", "data", "action", "poster") or k[:2] == "on"
        ]

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open:
            self.scripts[self._open] += data


class Made:
    """A written page, read again."""

    def __init__(self, target, size):
        data = target.read_bytes()
        assert len(data) == size
        self.elements = Elements(data.decode("utf-8"))
        self.runs = json.loads(self.elements.scripts["data"])["runs"]

    def chunk(self, name):
        """What the page unpacks for the reader."""
        return json.loads(gzip.decompress(base64.b64decode(self.elements.scripts[name])))

    def problems(self, place=0):
        return [row for name in self.runs[place]["transcripts"]["problems"] for row in self.chunk(name)]

    def groups(self, place=0):
        places = self.runs[place]["transcripts"]["rounds"]
        return [group for number, name in places.items() for group in self.chunk(name)[number]]


def made(tmp_path, *folders, **options):
    target = tmp_path / "page.html"
    return Made(target, write_report(list(folders), target, **options))


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_hostile_texts_come_back_as_they_were_and_stay_data(tmp_path):
    write_run(tmp_path / "run", 6, HOSTILE)
    got = made(tmp_path, tmp_path / "run")
    # nothing but our own elements: no text of the run became one
    assert set(got.elements.tags) == {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "noscript",
        "p",
        "div",
        "script",
    }
    assert got.elements.loading == []
    assert "default-src 'none'" in (tmp_path / "page.html").read_text(encoding="utf-8")
    groups = got.groups()
    read = "".join(g["prompt"] + "".join(r["t"] or "" for r in g["r"]) + g["meta"]["passage"] for g in groups)
    for text in HOSTILE:
        assert text in read, text
    assert len(groups) == 6 * 16
    assert {row[3] for row in got.problems()} >= {"kept", "dropped", "rejected"}


def test_what_became_of_problems_is_counted_by_round_and_reason(tmp_path):
    root = tmp_path / "run"
    root.mkdir()
    events = [
        *(("a", "proposed", 0), ("b", "proposed", 0), ("c", "proposed", 0), ("d", "proposed", 1), ("e", "proposed", 1)),
        ("a", "rejected", 0, {"reason": "duplicate"}), ("b", "accepted", 0), ("c", "accepted", 0),
        ("b", "voted", 0, {"label": "4", "confidence": 0.75, "scores": [1.0, 1.0, 1.0, 0.0]}),
        ("b", "kept", 0), ("b", "trained", 0),
        ("c", "voted", 1, {"label": "9", "confidence": 1.0, "scores": [1.0] * 4}),
        ("c", "dropped", 1, {"reason": "too_easy"}), ("d", "accepted", 1),
    ]  # fmt: skip
    prompt = {"prompt": "How many?"}
    rows = [
        {"uid": uid, "event": event, "round": number, **(prompt if event == "proposed" else {}), **dict(*more)}
        for uid, event, number, *more in events
    ]
    jsonl(root / "ledger.jsonl", rows)
    with (root / "ledger.jsonl").open("a") as file:
        file.write('no json\n{"uid": "f", "event": "prop')  # a damaged line, and one that is being written
    got = made(tmp_path, root).runs[0]
    assert got["counts"] == {
        "proposed": 5, "rejected": 1, "dropped": 1, "waiting": 2, "answered": 0, "kept": 0, "trained": 1,
    }  # fmt: skip
    assert got["by_round"]["first"] == [0, 1]
    assert got["by_round"]["outcomes"]["trained"] == [1, 0]
    assert got["by_round"]["histogram"] == [[0] * 7 + [1, 0, 0], [0] * 9 + [1]]
    assert [(r["reason"], r["count"]) for r in got["reasons"]] == [("too_easy", 1), ("duplicate", 1)]
    assert got["reasons"][1]["examples"][0]["prompt"] == "How many?"
    assert got["unreadable"] == {"ledger.jsonl": 1}
    assert got["state"] == "not finished"


def test_curves_keep_their_intervals_and_leave_out_what_is_no_number(tmp_path):
    root = tmp_path / "run"
    root.mkdir()
    first = {"n": 10, "k": 4, "labelled": 10, "pass@1": 0.2, "pass@1_low": 0.1, "pass@1_high": 0.4, "mean@k": 0.3}
    last = {**first, "pass@1": 0.8, "pass@1_low": 0.6, "pass@1_high": 0.9, "mean@k": 0.5, "pass@2": 0.6, "pass@k": 0.9}
    rows = [{"step": step, **{f"val/a/b/{k}": v for k, v in one.items()}} for step, one in ((0, first), (3, last))]
    rows += [{"step": step, "kl": value} for step, value in ((1, 0.1), (2, float("nan")), (3, 0.2))]
    rows += [{"step": step, "reward": 0.5} for step in range(1, 2001)]
    jsonl(root / "metrics.jsonl", rows)
    got = made(tmp_path, root).runs[0]
    (one,) = got["sets"]
    assert one["name"] == "a/b"
    assert one["figures"]["pass@1"] == {"x": [0, 3], "y": [0.2, 0.8], "lo": [0.1, 0.6], "hi": [0.4, 0.9]}
    assert one["pass_at"][1] == {"step": 3, "x": [1, 2, 4], "y": [0.5, 0.6, 0.9]}
    assert got["curves"]["kl"] == {"x": [1, 3], "y": [0.1, 0.2]}
    assert len(got["curves"]["reward"]["x"]) == 400


def test_health_warns_where_the_run_did(tmp_path):
    root = tmp_path / "run"
    root.mkdir()
    slopes = [0.001, 0.002, 0.3, 0.4, 0.001]
    jsonl(root / "metrics.jsonl", [{"step": n, "serl/health/kl_slope": v} for n, v in enumerate(slopes, 4)])
    (sign,) = made(tmp_path, root).runs[0]["health"]
    assert [(w["step"], w["text"]) for w in sign["warnings"]] == [(6, "kl_slope is 0.3, above 0.2")]
    assert sign["outside"]  # until it was inside for some values
    assert sign["high"] == 0.2


def test_a_page_has_a_bound_and_says_what_it_left_out(tmp_path, monkeypatch):
    write_run(tmp_path / "run", 12, ["How many apples are in the basket"], groups=8)
    whole = made(tmp_path, tmp_path / "run").runs[0]["transcripts"]
    assert not whole["left_out"]
    assert whole["shown"] == whole["recorded"] == 12 * 8 * 8
    monkeypatch.setattr(page, "PAGE_BYTES", 300_000)
    got = made(tmp_path, tmp_path / "run")
    assert (tmp_path / "page.html").stat().st_size <= 300_000
    told = got.runs[0]["transcripts"]
    assert len(told["rounds"]) == 12
    assert 0 < told["shown"] < told["recorded"]
    assert (
        f"the texts of {told['recorded'] - told['shown']} of {told['recorded']} recorded responses"
        in told["left_out"][0]
    )
    # the first responses keep their texts; the answers of the others are there
    for group in got.groups():
        known = [r["t"] is not None for r in group["r"]]
        assert known == sorted(known, reverse=True)
        assert len(group["r"]) == 8
        assert all("a" in r for r in group["r"])


def test_several_runs_are_told_apart_from_controls(tmp_path):
    for name, reward in (("vote", "MajorityVote"), ("chance", "lightning_serl.rewards.RandomReward")):
        write_run(tmp_path / name, 2, ["What is it"])
        (tmp_path / name / "config.yaml").write_text(f"data: {{reward: {reward}}}\nseed_everything: 3\n")
    got = made(tmp_path, tmp_path / "vote", tmp_path / "chance", states={tmp_path / "vote": "running"})
    told = [(r["name"], r["method"], r["seed"], r["control"], r["state"]) for r in got.runs]
    assert told == [
        ("vote", "MajorityVote", 3, False, "running"),
        ("chance", "RandomReward", 3, True, "finished"),
    ]
    assert got.groups(0)
    assert got.groups(1)


def test_folders_that_are_no_runs(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "ledger.jsonl").touch()
    (tmp_path / "compared" / "arms" / "vote-0").mkdir(parents=True)
    (tmp_path / "compared" / "arms" / "vote-0" / "metrics.jsonl").touch()
    assert run_folders(str(tmp_path / "compared")) == [tmp_path / "compared" / "arms" / "vote-0"]
    for name, said in (
        ("none", "there is no folder"),
        ("runs", "did you mean"),
        ("runs/first/ledger.jsonl", "is a file"),
    ):
        with pytest.raises(InputError, match=said):
            run_folders(str(tmp_path / name))
    with pytest.raises(InputError, match="is no run folder: it has no"):
        write_report([tmp_path / "other"], tmp_path / "page.html")
    write_report([tmp_path / "runs" / "first"], tmp_path / "page.html")  # a run that has just begun
    assert not Made(tmp_path / "page.html", (tmp_path / "page.html").stat().st_size).runs[0]["reasons"]


def test_every_reason_has_a_meaning_and_the_report_needs_no_torch():
    from typing import get_args

    from lightning_serl.types import Reason

    assert MEANINGS.keys() >= set(get_args(Reason))
    program = (
        "import sys, lightning_serl.report, lightning_serl.cli.report; print({'torch', 'lightning'} & {*sys.modules})"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "set()"
