"""What a run shows at its end, and the machinery that attaches itself."""

import io
import json
import math

import lightning.pytorch as pl
import pytest
from helpers.training import selfplay, trainer_for
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console

from lightning_serl.callbacks import (
    DifficultyFilter,
    Export,
    Health,
    Ledger,
    MemoryPlan,
    NoveltyFilter,
    QualityFilter,
    RolloutRefresh,
    RoundProgress,
    Summary,
    ZeroSpread,
    defaults,
)
from lightning_serl.callbacks.defaults import missing_callbacks
from lightning_serl.callbacks.preemption import Preemption
from lightning_serl.callbacks.run_folder.curves import draw_curves
from lightning_serl.datamodules import EvaluationOptions

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    labelled, plain = folder / "labelled.jsonl", folder / "plain.jsonl"
    labelled.write_text('{"problem": "What is 3 + 4?", "answer": "7"}\n{"problem": "What is 9 - 2?", "answer": "7"}\n')
    plain.write_text('{"problem": "What is 3 + 4?"}\n')
    return {"alpha": str(labelled), "beta": str(plain)}


def fit(root, sets, callbacks=(), samples=2, **options):
    module, data = selfplay(evaluation=EvaluationOptions(sets=sets, samples=samples))
    trainer = trainer_for(root, callbacks, **options)
    trainer.fit(module, data)
    return trainer


def test_several_sets_are_all_in_the_summary(tmp_path, sets, capsys):
    summary = Summary()
    fit(tmp_path, sets, [summary])
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["set"] == "alpha"
    assert set(written["after"]) == {"pass@1", "mean@2", "maj@2", "n"}
    assert set(written["sets"]) == {"alpha", "beta"}
    assert set(written["sets"]["beta"]["after"]) == {"agreement", "no_answer", "n"}
    assert written["sets"]["alpha"]["after"] == written["after"]
    assert written["rounds"] == 2
    out = capsys.readouterr().out
    assert "held-out problems: alpha" in out
    assert f"problems: {written['proposed']} written" in out


def test_a_validation_writes_results_and_items_and_says_the_first_interval(tmp_path, sets, capsys):
    module, data = selfplay(evaluation=EvaluationOptions(sets=sets, samples=2))
    trainer_for(tmp_path, [Summary()]).validate(module, data, verbose=False)
    written = json.loads((tmp_path / "evaluation.json").read_text())
    items = [json.loads(line) for line in (tmp_path / "evaluation_items.jsonl").read_text().splitlines()]
    assert [(item["set"], item["uid"]) for item in items] == [
        ("alpha", "alpha-00001"),
        ("alpha", "alpha-00002"),
        ("beta", "beta-00001"),
    ]
    assert sum(item["greedy_right"] for item in items[:2]) == written["alpha"]["correct"]
    low, high = written["alpha"]["intervals"]["pass@1"]
    share = 100 * written["alpha"]["pass@1"]
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("alpha: ")]
    assert line.startswith(f"alpha: pass@1 {share:.1f} % [{100 * low:.1f}, {100 * high:.1f}], mean@2 ")
    assert line.endswith("over 2 problems")
    assert line.count("[") == 1
    (line,) = [line for line in lines if line.startswith("beta: ")]
    assert line.startswith("beta: agreement ")
    assert "[" not in line


def test_beside_a_fit_there_are_no_items(tmp_path, sets):
    summary = Summary()
    summary.deferred = True
    module, data = selfplay(evaluation=EvaluationOptions(sets=sets, samples=0))
    trainer_for(tmp_path, [summary]).validate(module, data, verbose=False)
    assert (tmp_path / "evaluation.json").exists()
    assert not (tmp_path / "evaluation_items.jsonl").exists()


def test_metrics_of_an_evaluation_are_flat(tmp_path, sets):
    fit(tmp_path, sets)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    evaluations = [row for row in rows if "val/alpha/pass@1" in row]
    assert evaluations
    assert all(value is None or isinstance(value, (int, float)) for row in evaluations for value in row.values())


def test_the_ends_of_intervals_are_logged(tmp_path, sets):
    module, data = selfplay(evaluation=EvaluationOptions(sets=sets, samples=2))
    trainer = trainer_for(tmp_path)
    trainer.validate(module, data, verbose=False)
    for name in ("pass@1", "mean@k", "maj@k", "pass@k"):
        low, high = module.last_report["alpha"]["intervals"][name]
        logged = [float(trainer.callback_metrics[f"val/alpha/{name}_{end}"]) for end in ("low", "high")]
        assert logged == pytest.approx([low, high])
    assert "intervals" not in module.last_results["alpha"]


def test_the_table_shows_the_change(capsys):
    Summary()._print(
        {
            "set": "held_out",
            "before": {"pass@1": 0.25, "mean@16": 0.5, "n": 4},
            "after": {"pass@1": 0.75, "mean@16": None, "n": 4},
            "labels": True,
            "kl": None,
            "proposed": 10,
            "kept": 3,
            "rejected": {"duplicate": 2, "too_short": 4},
            "dropped": {"no_spread": 1},
            "seconds": 12.3,
            "rounds": 2,
        }
    )
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if "greedy pass@1" in line)
    assert [part for part in row.replace("│", " ").split("  ") if part.strip()] != []
    for said in ("25.0 %", "75.0 %", "+50.0"):
        assert said in row
    assert "+" not in next(line for line in lines if "mean@16" in line)
    assert "problems: 10 written, 6 rejected (too_short 4, duplicate 2), 1 dropped (no_spread 1), 3 kept" in lines
    assert any("not measured" in line for line in lines)
    assert "time: 12 s for 2 rounds" in lines
    assert not any("no labels here" in line for line in lines)


def test_a_rehearsal_leaves_no_files(tmp_path, sets):
    fit(tmp_path, sets, [Summary(), Export()], fast_dev_run=1)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_the_summary_can_be_resumed():
    first, second = Summary(), Summary()
    first.before, first.after = {"a": {"pass@1": 0.1}}, {"a": {"pass@1": 0.2}}
    first._first_round, first._seconds, first._taken = {"kl": 1.0}, 5.0, 7
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert (second.before, second.after, second._first_round) == (first.before, first.after, first._first_round)
    assert (second._elapsed(), second._taken) == (5.0, 7)


# -- curves ----------------------------------------------------------------------------------------------------


def draw(tmp_path, rows):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    return tmp_path / "curves.png"


def test_curves_with_holes(tmp_path):
    rows = [{"step": 0, "val/a/pass@1": 0.1, "val/a/maj@k": None}, {"step": 1, "kl": 0.5}, {"step": 2, "kl": math.nan}]
    picture = draw(tmp_path, rows)
    assert picture.read_bytes().startswith(PNG)
    first = picture.read_bytes()
    assert draw(tmp_path, rows).read_bytes() == first
    assert draw(tmp_path, [*rows, {"step": 3, "kl": 0.7}]).read_bytes() != first


@pytest.mark.parametrize("rows", [[], [{"step": 1, "loss": 0.5}], [{"step": 1, "kl": None}]])
def test_nothing_to_draw_draws_nothing(tmp_path, rows):
    assert not draw(tmp_path, rows).exists()


def test_no_metrics_at_all(tmp_path):
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


# -- export ------------------------------------------------------------------------------------------------------


def test_export_elsewhere(tmp_path, sets):
    fit(tmp_path, {}, [Export("weights/final")])
    assert (tmp_path / "weights" / "final" / "model.safetensors").exists()
    assert not (tmp_path / "export").exists()


# -- machinery ----------------------------------------------------------------------------------------------------


def kinds(callbacks):
    return {type(c) for c in callbacks}


def test_what_attaches_itself():
    machinery = {MemoryPlan, Preemption, RolloutRefresh, Health, Ledger, RoundProgress, ZeroSpread}
    assert kinds(missing_callbacks(None)) == machinery | {QualityFilter, NoveltyFilter, DifficultyFilter}
    trainer = trainer_for(".", [QualityFilter(), Ledger()])
    assert kinds(missing_callbacks(trainer)) == machinery - {Ledger}
    # the one filter that comes by default is no choice of filters
    trainer = trainer_for(".", [ZeroSpread()])
    assert kinds(missing_callbacks(trainer)) == machinery - {ZeroSpread} | {
        QualityFilter,
        NoveltyFilter,
        DifficultyFilter,
    }


@pytest.mark.parametrize(
    ("listed", "writes", "off"),
    [
        ([DifficultyFilter()], True, "QualityFilter, NoveltyFilter"),
        ([DifficultyFilter()], False, None),  # nothing is written that the others could judge
        ([NoveltyFilter(), QualityFilter()], False, "DifficultyFilter"),
        ([QualityFilter(), NoveltyFilter(), DifficultyFilter()], True, None),
        ([ZeroSpread()], True, None),
        ([], True, None),
    ],
)
def test_default_filters_that_are_off_are_named(listed, writes, off, monkeypatch):
    said = []
    monkeypatch.setattr(defaults, "rank_zero_info", said.append)
    defaults.announce_choice(listed, writes)
    assert [line.partition("; off: ")[2].partition(" (")[0] for line in said] == ([off] if off else [])


def test_a_subclass_of_the_users_stands_for_ours():
    class Mine(Ledger):
        pass

    assert Ledger not in kinds(missing_callbacks(trainer_for(".", [Mine()])))


# -- progress ------------------------------------------------------------------------------------------------------


def test_one_line_per_round_in_a_log_file(tmp_path, capsys):
    fit(tmp_path, {})
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("round ")]
    assert [line.split()[1] for line in lines] == ["1", "2"]
    for said in ("wrote", "trained on", "agreement", "no answer", "length", "kl"):
        assert said in lines[0]


class Terminal(pl.Callback):
    """Notes what a terminal would show, phase by phase."""

    def __init__(self):
        self.phases = RoundProgress()
        self.screen = io.StringIO()
        self.phases._console = Console(file=self.screen, force_terminal=True, width=100)


def test_phases_in_a_terminal(tmp_path, sets):
    terminal = Terminal()
    fit(tmp_path, sets, [terminal.phases])
    shown = terminal.screen.getvalue()
    for phase in ("writing problems", "answering", "voting", "training", "evaluating"):
        assert phase in shown, phase
    assert terminal.phases._own is None  # the bar is gone
    assert shown.rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in shown.rsplit("\x1b[?25l", 1)[-1]  # the cursor is back


def test_after_a_failure_the_terminal_is_as_it_was(tmp_path):
    class Fails(pl.Callback):
        def on_before_optimizer_step(self, *args):
            raise RuntimeError("stop")

    terminal = Terminal()
    with pytest.raises(RuntimeError, match="stop"):
        fit(tmp_path, {}, [terminal.phases, Fails()])
    assert terminal.phases._own is None
    assert "\x1b[?25h" in terminal.screen.getvalue().rsplit("\x1b[?25l", 1)[-1]


def test_under_lightnings_bar_ours_stays_out_of_the_way(tmp_path, capsys):
    fit(tmp_path, {}, [RichProgressBar()], enable_progress_bar=True)
    assert not [line for line in capsys.readouterr().out.splitlines() if line.startswith("round ")]
