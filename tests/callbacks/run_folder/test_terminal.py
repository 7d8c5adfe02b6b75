"""Progress bars, the line of each round, and the estimate of the time left."""

import io
import re
import threading
from datetime import datetime
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from helpers.training import selfplay, trainer_for
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console

from lightning_serl import SelfPlayDataModule
from lightning_serl.callbacks import Phases, RoundProgress
from lightning_serl.callbacks.defaults import missing_callbacks
from lightning_serl.callbacks.run_folder import terminal
from lightning_serl.callbacks.run_folder.live_table import LiveTable
from lightning_serl.callbacks.run_folder.phase_clock import PhaseClock, Written, duration
from lightning_serl.datamodules import EvaluationOptions
from lightning_serl.types import Group, Round, Verdict


def fit(root, callbacks=(), sets=None, **options):
    module, data = selfplay(evaluation=EvaluationOptions(sets=sets or {}, samples=2))
    trainer_for(root, callbacks, **options).fit(module, data)


def test_a_log_file_shows_every_phase_and_a_line_per_round(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(terminal, "EVERY", 0.001)
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text('{"problem": "What is 3 + 4?", "answer": "7"}\n')
    fit(tmp_path, sets={"held_out": str(held_out)})
    for thread in threading.enumerate():
        if thread.name == "progress":
            thread.join(5)
            assert not thread.is_alive()
    shown = capsys.readouterr().out.splitlines()
    lines = [line for line in shown if line.startswith("round ")]
    assert [line.split()[1] for line in lines] == ["1/2:", "2/2:"]
    for said in ("wrote", "kept 3 of", "reward 0.", "agreement 0.", "tokens", "kl 0.0000", " s"):
        assert said in lines[0]
    first = next(i for i, line in enumerate(shown) if line.startswith("the first round took "))
    assert re.fullmatch(
        r"the first round took \d+ s; 1 more takes about \d+ s, until (\w+ \d+ \w+ )?\d\d:\d\d", shown[first]
    )
    number = r"[\d,]+"
    for phase, total in (
        ("answering", r"\d+ answers"),
        ("evaluating", "3 answers"),
        ("writing problems", r"\d+ problems"),
    ):
        wanted = rf"{phase}: \d+ of {total}, ({number} tokens/s, )?((at most )?\d+ s left|\d+ s so far)"
        assert [line for line in shown if re.fullmatch(wanted, line)], (phase, shown)


STATS = {
    "serl/round/groups": 14.0, "serl/filter/yield": 14 / 16, "serl/filter/proposed": 24.0,
    "serl/vote/no_answer_frac": 0.0, "serl/vote/agreement_mean": 0.71, "reward": 0.6234,
    "completions/mean_length": 143.4,
}  # fmt: skip
UNREAD, PROPOSED = "serl/vote/no_answer_frac", "serl/filter/proposed"
# (changes of the statistics, seeds among the proposals, kl, rounds left, seconds, the line)
ROUNDS = [
    ({}, 0, 0.00123, 197, 41, "round   3/200: wrote 24, KEPT, 143 tokens, kl 0.0012, 41 s"),
    ({}, 0, None, 197, 41, "round   3/200: wrote 24, KEPT, 143 tokens, 41 s"),
    ({}, 0, -0.00001, 0, 4, "round 3/3: wrote 24, KEPT, 143 tokens, kl 0.0000, 4 s"),
    ({"reward": -0.001}, 0, None, 0, 4, "round 3/3: wrote 24, kept 14 of 16; reward 0.00, AGREED, 4 s"),
    ({"reward": -0.4}, 0, None, 0, 4, "round 3/3: wrote 24, kept 14 of 16; reward -0.40, AGREED, 4 s"),
    ({PROPOSED: 0.0}, 0, None, 0, 4, "round 3/3: 16 from queue, KEPT, 143 tokens, 4 s"),
    ({}, 24, None, 0, 4, "round 3/3: took 24 seeds, KEPT, 143 tokens, 4 s"),
    ({}, 8, None, 0, 4, "round 3/3: wrote 16, took 8 seeds, KEPT, 143 tokens, 4 s"),
    ({UNREAD: 0.021}, 0, None, 0, 4, "round 3/3: wrote 24, KEPT, unread 2 %, 143 tokens, 4 s"),
    (
        {"serl/round/carried": 7.0, "serl/filter/yield": 0.5}, 0, None, 0, 4,
        "round 3/3: wrote 24, kept 14 of 14; reward 0.62, AGREED, 4 s",
    ),
    ({}, 0, 0.5, float("inf"), 200, "round 3: wrote 24, KEPT, 143 tokens, kl 0.5000, 3 min"),
    ({UNREAD: 1.0}, 0, 0.5, 19997, 9000, "round     3/20000: wrote 24, KEPT, unread 100 %, 2 h 30 min"),
    ({UNREAD: 0.004}, 0, None, 0, 99.7, "round 3/3: wrote 24, KEPT, 143 tokens, 2 min"),
    ({"completions/mean_length": 0.4}, 0, None, 0, 0.2, "round 3/3: wrote 24, KEPT, 0 tokens, 0 s"),
    ({PROPOSED: 1234.0}, 0, 1.5, 0, 4, "round 3/3: wrote 1234, KEPT, 143 tokens, kl 1.5000, 4 s"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "taken", "kl", "left", "seconds", "line"), ROUNDS)
def test_the_line_of_a_round_fits_100_columns(changes, taken, kl, left, seconds, line):
    played = Round(2, stats=STATS | changes, taken=taken)
    line = line.replace("KEPT", "kept 14 of 16; reward 0.62, agreement 0.71").replace(
        "AGREED", "agreement 0.71, 143 tokens"
    )
    assert terminal._round_line(played, {} if kl is None else {"kl": kl}, left, seconds) == line
    assert len(line) <= 100
    narrow = terminal._round_line(played, {} if kl is None else {"kl": kl}, left, seconds, 80)
    assert len(narrow) <= 80
    assert narrow.startswith(line.partition(":")[0])


def test_the_end_of_the_run_is_said():
    noon = datetime(2026, 3, 1, 12, 0)
    assert terminal._estimate(41, 199, noon) == "the first round took 41 s; 199 more take about 2 h 16 min, until 14:15"
    late = terminal._estimate(3600, 20, noon)
    assert late == "the first round took 1 h 0 min; 20 more take about 20 h 0 min, until Mon 02 Mar 08:00"
    assert terminal._estimate(7, 0, noon) == terminal._estimate(7, float("inf"), noon) == "the first round took 7 s"


# (name, total, longest, [(units done, tokens so far)], seconds since the start, the line)
CLOCKS = [
    ("answering", 256, 1024, [], 10.0, 0, "answering: 0 of 256 answers, 10 s so far"),
    ("answering", 256, 1024, [], 10.0, 2560, "answering: 0 of 256 answers, 256 tokens/s, at most 17 min left"),
    ("answering", 100, 1024, [(50, 5000)], 10.0, 5000, "answering: 50 of 100 answers, 500 tokens/s, 10 s left"),
    ("answering", 100, 1024, [(50, 5000)], 20.0, 7000, "answering: 50 of 100 answers, 350 tokens/s, 9 s left"),
    ("answering", 100, 1024, [(100, 5000)], 20.0, 5000, "answering: 100 of 100 answers, 250 tokens/s, 0 s left"),
    ("probing", 64, None, [], 30.0, 300, "probing: 0 of 64 answers, 10 tokens/s, 30 s so far"),
    ("training", 22, None, [(2, 4000)], 40.0, 4000, "training: 2 of 22 micro-batches, 100 tokens/s, 7 min left"),
    ("voting", 16, None, [(4, 0)], 40.0, 0, "voting: 4 of 16 prompts, 2 min left"),
    ("voting", 16, None, [], 40.0, 0, "voting: 0 of 16 prompts, 40 s so far"),
    ("scoring", 16, None, [], 400.0, 0, "scoring: 0 of 16 prompts, 7 min so far"),
    ("evaluating", 3, 8, [(1, 8)], 4.0, 8, "evaluating: 1 of 3 answers, 2 tokens/s, 8 s left"),
    ("evaluating", 3, 8, [], 2.0, 1_000_000, "evaluating: 0 of 3 answers, 500,000 tokens/s, at most 0 s left"),
    ("writing problems", 8, None, [(2, 600)], 6.0, 600, "writing problems: 2 of 8 problems, 100 tokens/s, 18 s left"),
    ("writing problems", 8, None, [], 6.0, 600, "writing problems: 0 of 8 problems, 100 tokens/s, 6 s so far"),
    ("dreaming", 8, None, [(9, 0)], 6.0, 0, "dreaming: 9 of 8, 0 s left"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "total", "longest", "steps", "seconds", "tokens", "line"), CLOCKS)
def test_the_line_of_a_phase(monkeypatch, name, total, longest, steps, seconds, tokens, line):
    clock = PhaseClock(name, total, Written(70, 5), longest, began=0.0)
    monkeypatch.setattr("time.monotonic", lambda: seconds)
    for done, now in steps:
        clock.advance(done, Written(70 + now))
    assert clock.line(Written(70 + tokens)) == line


def test_answers_count_when_the_engine_has_finished_them(monkeypatch):
    """Eight answers of a problem are handed on together, at the time of the longest."""
    monkeypatch.setattr("time.monotonic", lambda: 10.0)
    clock = PhaseClock("probing", 240, Written(70, 5), 1024, began=0.0)
    assert clock.line(Written(2070, 5)) == "probing: 0 of 240 answers, 200 tokens/s, at most 20 min left"
    assert clock.line(Written(2070, 65)) == "probing: 60 of 240 answers, 200 tokens/s, 30 s left"
    # few of many are finished: what is known of the rest is that they end
    assert clock.line(Written(200_070, 6)) == "probing: 1 of 240 answers, 20,000 tokens/s, 2 s left"
    clock.advance(64, Written(3070, 85))
    assert clock.line(Written(4070, 85)) == "probing: 80 of 240 answers, 400 tokens/s, 20 s left"
    assert clock.line(Written(4070, 900)).startswith("probing: 240 of 240 answers")
    other = PhaseClock("filtering", 8, Written(70, 5), began=0.0)
    assert other.line(Written(70, 9)) == "filtering: 0 of 8 problems, 10 s so far"


@pytest.mark.parametrize(("phase", "longest"), [("probing", 1024), ("evaluating", 1024), ("training", None)])
def test_the_longest_answer_is_known_where_no_option_sets_it(phase, longest):
    progress = RoundProgress()
    progress._trainer = SimpleNamespace(datamodule=SelfPlayDataModule(seeds="tiny:seeds"))
    assert progress._make_clock(phase, 4).longest == longest


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
    for said in ("writing problems", "answering", "voting", "training", "evaluating", "last vote: ", " answers"):
        assert said in shown, said
    assert re.search(r"round 2/2, about \d+ s left", shown)
    assert shown_in.progress._table is None
    assert shown.rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in shown.rsplit("\x1b[?25l", 1)[-1]  # the cursor is back


def test_the_table_fits_its_terminal():
    """No line is wrapped, the text of a model cannot move the cursor, and an ASCII terminal gets ASCII."""
    prompt = "What is \x1b[2J the\nsum of " + "many " * 60 + "numbers?"
    group = Group.from_texts(prompt, ["7", "7", "8"])
    played = Round(3, answered=[(group, Verdict(torch.zeros(3), label="7\x1b[31m", confidence=2 / 3))])
    for width, encoding in ((30, "utf-8"), (50, "utf-8"), (80, "utf-8"), (80, "ascii"), (200, "utf-8")):
        screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        console = Console(file=screen, width=width, legacy_windows=False)
        table = LiveTable(console, lambda name: Written(123_456))
        table.tell_run(4, 196, 41)
        table.tell_vote(played)
        table._clocks = [
            PhaseClock("writing problems", 64, Written(0)),
            PhaseClock("answering", 256, Written(0), 1024, 96),
        ]
        console.print(table)
        screen.flush()
        lines = screen.buffer.getvalue().decode(encoding).splitlines()
        assert len(lines) == 4
        assert all(len(line.rstrip()) <= width for line in lines), lines
        assert "\x1b" not in "".join(lines)
        if width >= 50:  # the time left is whole, and so is what stands beside it
            assert re.search(r"96 of 256 answers .*(left|so far)$", lines[2].rstrip()), lines
            assert ("tokens/s" in lines[2]) == (width >= 80)
        if width >= 80:
            assert lines[0].rstrip() == "round 4/200, about 2 h 15 min left"
            assert "96 of 256 answers" in lines[2]
            assert lines[3].startswith("last vote: 7 [31m (67 % of 3) for What is [2J the sum of many")


def test_after_a_failure_the_terminal_is_as_it_was(tmp_path):
    class Fails(pl.Callback):
        def on_before_optimizer_step(self, *args):
            raise RuntimeError("stop")

    shown_in = Terminal()
    with pytest.raises(RuntimeError, match="stop"):
        fit(tmp_path, [shown_in.progress, Fails()])
    assert shown_in.progress._table is None
    assert "\x1b[?25h" in shown_in.screen.getvalue().rsplit("\x1b[?25l", 1)[-1]


def test_under_lightnings_bar_ours_stays_out_of_the_way(tmp_path, capsys):
    fit(tmp_path, [RichProgressBar()], enable_progress_bar=True)
    assert not [line for line in capsys.readouterr().out.splitlines() if line.startswith("round ")]


def test_the_former_name_stands_for_the_callback():
    trainer = trainer_for(".", [Phases()])
    assert not any(isinstance(c, RoundProgress) for c in missing_callbacks(trainer))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (41, "41 s"), (99, "99 s"), (125, "2 min"), (3599, "1 h 0 min"), (7261, "2 h 1 min"),
     (172_799, "2 d 0 h"), (300_000, "3 d 11 h")],
)  # fmt: skip
def test_durations(seconds, said):
    assert duration(seconds) == said
