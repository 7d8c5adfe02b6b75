"""What the terminal says of a long run."""

import re

from helpers.training import selfplay, trainer_for

from lightning_serl.callbacks.run_folder import terminal as progress


def test_a_long_run_says_after_its_first_round_how_long_it_will_take(tmp_path, capsys, monkeypatch):
    def said(limit):
        monkeypatch.setattr(progress, "LONG", limit)
        module, data = selfplay(rounds_per_epoch=2)
        trainer_for(tmp_path / str(limit), max_epochs=2, enable_checkpointing=False).fit(module, data)
        return [line for line in capsys.readouterr().out.splitlines() if "round" in line]

    lines = said(0.0)
    assert [line.startswith("round") for line in lines] == [True, False, True, True, True]
    assert re.fullmatch(r"the first round took \d+ s, 3 more take about \d+ min", lines[1])
    assert all(line.startswith("round") for line in said(1e9))


def test_durations():
    assert progress._duration(125) == "2 min"
    assert progress._duration(2 * 3600 + 61) == "2 h 1 min"
