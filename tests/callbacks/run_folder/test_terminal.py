"""Progress bars, the line of each round, and the estimate of the time left."""

import io
import re

import lightning.pytorch as pl
import pytest
from helpers.training import selfplay, trainer_for
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console

from lightning_serl.callbacks import Phases, RoundProgress
from lightning_serl.callbacks.defaults import missing_callbacks
from lightning_serl.callbacks.run_folder import terminal
from lightning_serl.datamodules import EvaluationOptions


def fit(root, callbacks=(), sets=None, **options):
    module, data = selfplay(evaluation=EvaluationOptions(sets=sets or {}, samples=2))
    trainer_for(root, callbacks, **options).fit(module, data)


def test_one_line_per_round_in_a_log_file(tmp_path, capsys):
    fit(tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("round ")]
    assert [line.split()[1] for line in lines] == ["1", "2"]
    for said in ("wrote", "trained on", "agreement", "no answer", "length", "kl"):
        assert said in lines[0]


class Terminal:
    """Progress bars on a terminal whose output is kept."""

    def __init__(self):
        self.progress = RoundProgress()
        self.screen = io.StringIO()
        self.progress._console = Console(file=self.screen, force_terminal=True, width=100)


def test_phases_in_a_terminal(tmp_path):
    shown_in = Terminal()
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text('{"problem": "What is 3 + 4?", "answer": "7"}\n')
    fit(tmp_path, [shown_in.progress], {"held_out": str(held_out)})
    shown = shown_in.screen.getvalue()
    for phase in ("writing problems", "answering", "voting", "training", "evaluating"):
        assert phase in shown, phase
    assert shown_in.progress._own is None  # the bar is gone
    assert shown.rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in shown.rsplit("\x1b[?25l", 1)[-1]  # the cursor is back


def test_after_a_failure_the_terminal_is_as_it_was(tmp_path):
    class Fails(pl.Callback):
        def on_before_optimizer_step(self, *args):
            raise RuntimeError("stop")

    shown_in = Terminal()
    with pytest.raises(RuntimeError, match="stop"):
        fit(tmp_path, [shown_in.progress, Fails()])
    assert shown_in.progress._own is None
    assert "\x1b[?25h" in shown_in.screen.getvalue().rsplit("\x1b[?25l", 1)[-1]


def test_under_lightnings_bar_ours_stays_out_of_the_way(tmp_path, capsys):
    fit(tmp_path, [RichProgressBar()], enable_progress_bar=True)
    assert not [line for line in capsys.readouterr().out.splitlines() if line.startswith("round ")]


def test_the_former_name_stands_for_the_callback():
    trainer = trainer_for(".", [Phases()])
    assert not any(isinstance(c, RoundProgress) for c in missing_callbacks(trainer))


def test_a_long_run_says_after_its_first_round_how_long_it_will_take(tmp_path, capsys, monkeypatch):
    def said(limit):
        monkeypatch.setattr(terminal, "LONG", limit)
        module, data = selfplay(rounds_per_epoch=2)
        trainer_for(tmp_path / str(limit), max_epochs=2, enable_checkpointing=False).fit(module, data)
        return [line for line in capsys.readouterr().out.splitlines() if "round" in line]

    lines = said(0.0)
    assert [line.startswith("round") for line in lines] == [True, False, True, True, True]
    assert re.fullmatch(r"the first round took \d+ s, 3 more take about \d+ min", lines[1])
    assert all(line.startswith("round") for line in said(1e9))


def test_durations():
    assert terminal._duration(125) == "2 min"
    assert terminal._duration(2 * 3600 + 61) == "2 h 1 min"
