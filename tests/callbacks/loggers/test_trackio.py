"""The logger for Trackio, on a stand-in for the package; benchmarks/trackers.py runs it on Trackio itself."""

import sys
from argparse import Namespace
from types import SimpleNamespace

import pytest

from lightning_serl.callbacks.loggers import TrackioLogger, trackio
from lightning_serl.errors import InputError


class Package:
    """As much of ``trackio`` as the logger calls: keeps what it is told."""

    def __init__(self):
        self.calls = []
        self.Table = lambda **facts: ("table", facts)
        self.Image = lambda path: ("image", path)

    def init(self, project, **options):
        self.calls.append(("init", project, options))
        record = lambda name: lambda *given, **named: self.calls.append((name, given, named))  # noqa: E731
        facts = {name: record(name) for name in ("log", "alert", "log_artifact")}
        return SimpleNamespace(name=options["name"] or "made-up-0", **facts)

    def finish(self):
        self.calls.append(("finish",))


def test_a_run_is_continued_after_each_call_of_the_trainer(monkeypatch):
    package = Package()
    monkeypatch.setattr(trackio, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "trackio", package)
    logger = TrackioLogger("mine", webhook_url="http://127.0.0.1:9")
    assert (logger.name, logger.version, package.calls) == ("mine", None, [])
    logger.finalize("success")  # nothing was logged
    logger.log_hyperparams(Namespace(model={"lr": 1e-4, "lora": {"r": 2}}, names=["a"]))
    logger.log_metrics({"loss": 0.5}, step=3)
    logger.log_table("completions", ["a"], [("x",)], step=4)
    logger.log_image("curves", ["c.png"], step=5)
    logger.alert("kl_slope", "too fast")
    logger.finalize("success")
    logger.finalize("success")
    logger.log_metrics({"loss": 0.4})
    begun, *logged, finished, again, last = package.calls
    assert begun[:2] == ("init", "mine")
    assert begun[2]["config"] == {"model.lr": 1e-4, "model.lora.r": 2, "names": "['a']"}
    assert (begun[2]["name"], begun[2]["resume"], begun[2]["webhook_url"]) == (None, "never", "http://127.0.0.1:9")
    assert logged == [
        ("log", ({"loss": 0.5},), {"step": 3}),
        (
            "log",
            ({"completions": ("table", {"columns": ["a"], "data": [["x"]], "allow_mixed_types": True})},),
            {"step": 4},
        ),
        ("log", ({"curves": ("image", "c.png")},), {"step": 5}),
        ("alert", (), {"title": "kl_slope", "text": "too fast"}),
    ]
    assert finished == ("finish",)
    assert (again[2]["name"], again[2]["resume"], logger.version) == ("made-up-0", "allow", "made-up-0")
    assert last == ("log", ({"loss": 0.4},), {"step": None})


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(trackio, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"TrackioLogger needs the package trackio; pip install 'lightning-serl\[trackio\]'"
    ):
        TrackioLogger()
