"""kill -9 inside an accumulation window and while a checkpoint is written: the run ends as an undisturbed one.

``make soak`` kills twenty times, in every phase.
"""

import sys
from pathlib import Path

from helpers.command_line import cli, small

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from kills import command, differences, survive


def test_a_kill_leaves_no_trace(tmp_path):
    options = [str(o) for o in small("elsewhere", rounds=4)]
    _python, _m, _package, *arguments = command(tmp_path / "undisturbed", options, None)
    ended = cli(*arguments)
    assert ended.status == 0, ended.err
    plan = [("training 2", 0, 0.0, None), ("saving", 1, 0.0, None)]
    kills = survive(tmp_path / "killed", options, plan, tmp_path / "logs")
    assert [kill.phase for kill in kills] == ["training", "saving"]
    assert kills[0].detail.startswith("2 of 4")
    assert differences(tmp_path / "undisturbed", tmp_path / "killed") == []
    # the comparison can fail
    ledger = tmp_path / "killed" / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-1])
    assert differences(tmp_path / "undisturbed", tmp_path / "killed") == ["ledger.jsonl"]
