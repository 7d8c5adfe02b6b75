"""The command ``report``: its arguments, and what it says."""

import pytest
from helpers.command_line import cli

from lightning_serl.report.folder import labels_of


@pytest.fixture
def run(tmp_path):
    root = tmp_path / "run"
    root.mkdir()
    (root / "metrics.jsonl").write_text('{"step": 1, "kl": 0.1}\n')
    return root


def test_one_run_and_several(run, tmp_path, monkeypatch):
    ended = cli("report", run)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith(f"report: {run / 'report.html'} (0.")
    assert cli("report", run).status == 0  # a report is replaced
    second = tmp_path / "second"
    second.mkdir()
    (second / "ledger.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    assert cli("report", run, "second").out.startswith("report: report.html")
    assert (tmp_path / "report.html").exists()
    assert labels_of([run, tmp_path / "second"]) == [f"{tmp_path.name}/run", "second"]
    assert labels_of([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a", "b"]
    assert labels_of([tmp_path / "a" / "x" / "run", tmp_path / "b" / "run"]) == ["a/x", "b"]
    assert f"<title>{tmp_path.name}/run - report</title>" in (run / "report.html").read_text()
    assert "usage: lightning-serl report RUN" in cli("report", "--help").out


def test_bad_arguments_are_refused_in_one_sentence(run, tmp_path):
    (tmp_path / "notes.html").write_text("<p>mine</p>")
    for arguments, said in (
        ((), "name a run folder"),
        ((run, "--ouy", "x"), "did you mean --out?"),
        ((run, "--out"), "--out needs a file"),
        ((run, "--out", tmp_path), "is a folder"),
        ((run, "--out", tmp_path / "none" / "x.html"), "does not exist"),
        ((run, "--out", tmp_path / "notes.html"), "is a file of another kind"),
        ((run, "--out=a.html", "--out=b.html"), "given twice"),
        ((tmp_path / "none",), "there is no folder"),
        ((tmp_path,), f"did you mean '{run}'?"),
        ((tmp_path.parent,), f"'{run}'"),
    ):
        ended = cli("report", *arguments)
        assert ended.status == 2, arguments
        assert said in ended.error
    assert (tmp_path / "notes.html").read_text() == "<p>mine</p>"
