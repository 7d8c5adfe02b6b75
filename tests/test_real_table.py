"""The table of ``benchmarks/real.py``: rows that were stopped, that failed and that are done."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def real(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("real", FOLDER / "real.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "real", module)
    spec.loader.exec_module(module)
    return module


def of(step, greedy, share, vote):
    figures = {"pass@1": greedy, "mean@k": share, "maj@k": vote}
    return {"step": step, "val/held_out/n": 50} | {f"val/held_out/{name}": value for name, value in figures.items()}


def run_of(statuses, asked):
    """A stand-in for ``subprocess.run`` that ends with each status in turn."""

    def run(command, stdout=None, **_):
        asked.append(command)
        status = statuses.pop(0)
        folder = Path(command[command.index("--trainer.default_root_dir") + 1])
        (folder / "export").mkdir(parents=True, exist_ok=True)
        points = [of(0, 0.5, 0.25, 0.6), {"step": 1, "loss": 0.0}, of(8, 0.9, 0.75, 0.9)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
        counts = dict.fromkeys(("proposed", "kept", "trained", "rejected", "dropped", "rounds", "kl"), 0)
        if not status:
            (folder / "summary.json").write_text(json.dumps(counts))
        stdout.write("error: out of memory\n" if status else "run: x\n")
        return subprocess.CompletedProcess(command, status)

    return run


def test_rows_go_on_where_they_stopped_and_are_run_once(real, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(real.subprocess, "run", run_of([143, 0, 1], asked))
    command = ["real.py", "--model", "tiny:base", "--out", str(tmp_path), "--tasks", "sums", "--arms", "vote", "random"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="sums-vote-0-lora-seeds-default was stopped; the same command continues it"):
        real.main()
    assert real.main() == 0
    assert len(asked) == 3
    assert asked[0] == asked[1]
    assert asked[1][-2:] == ["--ckpt_path", "last"]
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", [*command, "--print"])
    assert real.main() == 0
    assert len(asked) == 3
    rows = capsys.readouterr().out.splitlines()
    assert "| 50.0 [37, 63] → 90.0 [79, 96] (+40.0) | 25.0 [15, 38] → 75.0 [62, 85] (+50.0) |" in rows[2]
    assert "| sums | random | lora | seeds | 0 | failed: error: out of memory | | |" in rows[3]
    assert "- MISSED: vote: mean@k up by 20 on at least three tasks (sums)" in rows
    assert not (tmp_path / "sums-vote-0-lora-seeds-default" / "run" / "export").exists()
    monkeypatch.setattr(sys, "argv", [*command, "--rounds", "9"])
    with pytest.raises(SystemExit, match="was begun with other options"):
        real.main()


def test_seeds_carry_no_label_and_are_not_held_out(real, tmp_path):
    for name, task in real.real_tasks.TASKS.items():
        seeds, held_out = (
            [json.loads(line) for line in path.read_text("utf-8").splitlines()] for path in task.write(name, tmp_path)
        )
        assert len(seeds) == real.real_tasks.TRAIN
        assert not any("answer" in row for row in seeds)
        assert len(held_out) >= real.real_tasks.HELD_OUT - 2
        asked = [(row["problem"], str(row.get("choices"))) for row in seeds + held_out]
        assert len(set(asked)) == len(asked)
