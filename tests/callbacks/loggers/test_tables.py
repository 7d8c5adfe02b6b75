"""What arrives in the Trainer's loggers besides numbers."""

import csv
from unittest import mock

import pytest
from helpers.training import rows, selfplay, trainer_for
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_serl.callbacks import Health, Summary, TrackerTables
from lightning_serl.callbacks.loggers.sinks import send_alert, send_file, send_picture, send_table
from lightning_serl.callbacks.loggers.tables import COLUMNS
from lightning_serl.errors import InputError

WARNING = "vote_entropy is 0.97, above 0.95: use easier problems"


class Tables(DummyLogger):
    """A logger of the user's own, shaped as those of Weights & Biases and Trackio."""

    def __init__(self, fails=False):
        super().__init__()
        self.got, self.fails = [], fails
        self.log_table = self.log_image = self.log_file = self.alert = self.take

    def take(self, **facts):
        if self.fails:
            raise ConnectionError("the tracker\nis gone")
        self.got.append(facts)


def test_a_run_sends_tables_alerts_and_the_picture(tmp_path):
    """Metrics of rounds and steps can be monitored; a tracker that fails does not end the run."""
    own, gone, folder = Tables(), Tables(fails=True), CSVLogger(tmp_path, name="log", version="one")
    module, data = selfplay()
    batches = []
    experience = module.experience

    def kept(groups, verdicts):
        batches.append(experience(groups, verdicts))
        return batches[-1]

    module.experience = kept
    best = ModelCheckpoint(
        monitor="serl/vote/agreement_mean", mode="max", every_n_train_steps=1, dirpath=tmp_path / "c"
    )
    stop = EarlyStopping("reward", mode="max", patience=9, check_on_train_epoch_end=True)
    with (
        mock.patch.object(Health, "outside", [WARNING]),
        pytest.warns(UserWarning, match="Tables gets no more tables and reports: ConnectionError: the tracker is gone"),
    ):
        trainer_for(
            tmp_path / "run", [Summary(), TrackerTables(responses=3), best, stop], logger=[own, gone, folder]
        ).fit(module, data)
    assert best.best_model_score is not None
    assert stop.best_score > -1

    tables = [one for one in own.got if one.get("key") == "completions"]
    assert [one["step"] for one in tables] == [0, 1]
    assert all(one["columns"] == list(COLUMNS) for one in tables)
    shown = [dict(zip(COLUMNS, row, strict=True)) for one in tables for row in one["data"]]
    samples = [(s, r) for s in rows(tmp_path / "run", "samples") for r in s["responses"][:3]]
    facts = [(s["round"], s["prompt"], r["text"], r["answer"], s["label"], r["score"]) for s, r in samples]
    assert {tuple(row[name] for name in COLUMNS[1:7]) for row in shown} <= set(facts)
    assert all(len({row[2] for row in one["data"]}) >= 3 for one in tables)
    for row in shown:
        assert row["trained"] == (row["advantage"] is not None)
    trained = {row["advantage"] for row in shown if row["trained"]}
    used = {
        round(float(a[m].mean()), 6)
        for one in batches
        for b in one
        for a, m in zip(b.advantages, b.mask, strict=True)
        if m.any()
    }
    assert trained
    assert trained <= used

    assert [one for one in own.got if "title" in one] == [{"title": "vote_entropy", "text": WARNING}]
    assert own.got[-1] == {"key": "curves", "images": [str(tmp_path / "run" / "curves.png")], "step": 2}
    left = tmp_path / "log" / "one"
    assert (left / "curves.png").read_bytes() == (tmp_path / "run" / "curves.png").read_bytes()
    with (left / "completions.csv").open(encoding="utf-8", newline="") as file:
        assert [row["response"] for row in csv.DictReader(file)] == [row["response"] for row in shown]
    assert (left / "alerts.csv").read_text().splitlines()[1].startswith("1,vote_entropy,")


class Recorder:
    """Any object of a tracker's client: keeps every call."""

    def __init__(self):
        self.calls, self.id = [], "run1"

    def __getattr__(self, name):
        return lambda *given, **named: self.calls.append((name, given, named))


def stub(kind, **members):
    """A logger of that class without its package."""
    properties = {name: property(lambda self, v=value: v) for name, value in members.items()}
    return type(kind.__name__, (kind,), properties | {"__init__": lambda self: None})()


def test_each_logger_gets_the_form_of_its_tracker(tmp_path):
    """The text of a model stays text; benchmarks/trackers.py shows the same with the trackers themselves."""
    hostile = "a | b\n<script>alert(1)</script> `x` \ud800"
    picture, report = tmp_path / "curves.png", tmp_path / "report.html"
    from matplotlib import image

    image.imsave(picture, [[0.0, 1.0], [1.0, 0.0]])
    report.write_text("<p>")
    found = {}
    for kind in (TensorBoardLogger, MLFlowLogger, WandbLogger):
        recorder = Recorder()
        logger = stub(kind, experiment=recorder, run_id="run1")
        if kind is WandbLogger:
            logger.log_table = recorder.log_table
            logger.log_image = recorder.log_image
        send_table(logger, "completions", ["step", "response"], [[1, hostile], [1, None]], 1)
        send_alert(logger, "kl_slope", "too <fast>", 2)
        send_picture(logger, "curves", picture, 3)
        send_file(logger, report, "report")
        found[kind] = recorder.calls
    (table, alert, drawn) = found[TensorBoardLogger]
    text = table[1][1]
    assert table[:1] + table[1][:1] == ("add_text", "completions")
    assert text.splitlines()[:2] == ["| step | response |", "|---|---|"]
    assert len(text.splitlines()) == 4
    assert "<script>" not in text
    assert r"a \| b<br>&lt;script&gt;" in text
    assert alert == ("add_text", ("alerts", "**kl_slope**: too &lt;fast&gt;", 2), {})
    assert drawn[0] == "add_image"
    assert drawn[1][1].shape == (2, 2, 3)
    assert found[MLFlowLogger] == [
        ("log_table", ("run1",), {"data": {"step": [1, 1], "response": [hostile, None]},
                                  "artifact_file": "completions/step_000001.json"}),
        ("log_text", ("run1", "kl_slope: too <fast>\n", "alerts/step_000002_kl_slope.txt"), {}),
        ("log_artifact", ("run1", str(picture)), {}),
        ("log_artifact", ("run1", str(report)), {}),
    ]  # fmt: skip
    assert found[WandbLogger] == [
        ("log_table", (), {"key": "completions", "columns": ["step", "response"],
                           "data": [[1, hostile], [1, None]], "step": 1}),
        ("alert", (), {"title": "kl_slope", "text": "too <fast>"}),
        ("log_image", (), {"key": "curves", "images": [str(picture)], "step": 3}),
        ("log_artifact", (str(report),), {"name": "report-run1", "type": "report"}),
    ]  # fmt: skip
    nobody = DummyLogger()  # no place for any of them
    nobody.log_table = nobody.alert = nobody.log_image = nobody.log_file = None
    send_table(nobody, "completions", ["a"], [[1]], 0)
    send_alert(nobody, "a", "b", 0)


def test_options_out_of_range():
    for options in ({"every": -1}, {"responses": 0}):
        with pytest.raises(InputError, match="TrackerTables"):
            TrackerTables(**options)
