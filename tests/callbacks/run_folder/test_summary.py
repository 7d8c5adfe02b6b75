"""The files and the table of a run's end."""

import json

import pytest
from helpers.training import selfplay, trainer_for

from lightning_serl.callbacks import Export, Summary
from lightning_serl.datamodules import EvaluationOptions


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
            "times": {"answering": 7.5, "sync": 2.4, "training": 0.1},
            "rounds": 2,
        },
        "model.objective.beta is 0",
        "a remedy",
    )
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if "greedy pass@1" in line)
    assert [part for part in row.replace("│", " ").split("  ") if part.strip()] != []
    for said in ("25.0 %", "75.0 %", "+50.0"):
        assert said in row
    assert "+" not in next(line for line in lines if "mean@16" in line)
    assert "problems: 10 written, 6 rejected (too_short 4, duplicate 2), 1 dropped (no_spread 1), 3 kept" in lines
    assert any("not measured" in line for line in lines)
    assert lines[-2:] == [
        "time: 12 s for 2 rounds; answering 75 %, pushing weights 24 %, training 1 %",
        "a remedy",
    ]
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
