"""kill -9 while answering, while a checkpoint is written, inside an accumulation window: the run ends as undisturbed.

``make soak`` kills twenty times, in every phase.
"""

import sys
from pathlib import Path

from helpers.command_line import small

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from kills import differences, survive

PLAN = [("answering", 1, 0.05, None), ("training 2", 0, 0.0, None), ("saving", 1, 0.0, None)]


def test_three_kills_leave_no_trace(tmp_path):
    options = [str(o) for o in small("elsewhere", rounds=6)]
    assert survive(tmp_path / "undisturbed", options, [], tmp_path / "logs") == []
    kills = survive(tmp_path / "killed", options, PLAN, tmp_path / "more-logs")
    assert [kill.phase for kill in kills] == ["answering", "training", "saving"]
    assert kills[1].detail.startswith("2 of 4"), "not inside an accumulation window"
    assert differences(tmp_path / "undisturbed", tmp_path / "killed") == []
    # the comparison can fail
    ledger = tmp_path / "killed" / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-1])
    assert differences(tmp_path / "undisturbed", tmp_path / "killed") == ["ledger.jsonl"]
