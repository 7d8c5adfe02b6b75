"""The example of docs/compare.md: a reward, a source and a filter of one's own in a comparison, interrupted once."""

import json
import re
import shlex
from pathlib import Path

import pytest
from helpers.command_line import cli, problems, write_rows

from lightning_serl.cli.arm_check import check_arm

DOC = (Path(__file__).parents[2] / "docs" / "compare.md").read_text(encoding="utf-8")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The files of the example in the working directory; runs are made in this process."""
    (tmp_path / "my_parts.py").write_text(re.search(r"```python\n(.*?)```", DOC, re.DOTALL)[1], encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(re.search(r"```yaml\n(.*?)```", DOC, re.DOTALL)[1], encoding="utf-8")
    write_rows(tmp_path / "held_out.jsonl", problems(6))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    started = []

    class InThisProcess:
        def __init__(self, arguments, log, relay, threads):
            started.append(arguments)
            if len(started) == stop_at.get("run"):
                raise KeyboardInterrupt
            ended = cli(*arguments)
            log.write_text(ended.out + ended.err)
            self.poll, self.threads = lambda: ended.status, threads
            assert threads == (1 if stop_at.get("jobs") else None)

    checked = {}

    def check(arguments):
        key = tuple(map(str, arguments))
        checked[key] = checked.get(key) or check_arm(arguments)
        return checked[key]

    stop_at = {}
    monkeypatch.setattr("lightning_serl.cli.compare.check_arm", check)  # each takes a third of a second
    monkeypatch.setattr("lightning_serl.cli.compare.ArmProcess", InThisProcess)
    return started, stop_at


def test_the_example(here, tmp_path, monkeypatch):
    started, stop_at = here
    command = shlex.split(DOC.split("```bash\n")[-1].split("```")[0].replace("\\\n", ""))
    assert command[:2] == ["lightning-serl", "compare"]
    small = ["--data.evaluation.sets", '{"held_out": "held_out.jsonl"}', "--data.probe.every", "0"]
    small += ["--data.writing.prompts_per_call", "2"]
    stop_at["run"] = 2  # Ctrl-C
    ended = cli(*command[1:], *small)
    assert (ended.status, ended.error) == (130, "interrupted; the same command runs what is missing")
    assert ended.run == tmp_path / "runs" / "parts"
    rows = result(ended.run)
    assert [(row["method"], row["done"], row["open"]) for row in rows] == [
        ("MajorityVote", [0], []), ("mine", [], [0]), ("random", [], [0]), ("format", [], [0]), ("frozen", [], [0]),
    ]  # fmt: skip

    stop_at.clear()
    stop_at["jobs"] = 64  # more than there are runs, and than cores
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    ended = cli(*command[1:], *small, "--jobs", 64, picture=True)
    assert ended.status == 0, ended.err
    assert "4 runs at a time, each process with" in ended.out
    assert re.search(r"^mine, seed 0: held_out [\d.]+ → [\d.]+ %, in ", ended.out, re.MULTILINE), ended.out
    assert "1 of 5 runs have ended before" in ended.out
    assert [" ".join(call).count("--ckpt_path last") for call in started] == [1] * len(started)
    assert started[1] == started[2], "what a run is given depends on the number of runs at a time"
    by_name = {row["method"]: row for row in result(ended.run)}
    assert by_name["mine"]["done"] == [0]
    assert by_name["frozen"]["figures"]["pass@1"]["change"] == {"value": 0.0, "interval": [0.0, 0.0]}
    assert by_name["frozen"]["figures"]["distinct"]["change"]["value"] == 0
    assert by_name["mine"]["tokens"] > 0
    before = {row["figures"]["pass@1"]["before"]["value"] for row in by_name.values()}
    assert len(before) == 1
    # every response of the embedded policy has a box: the control has nothing to learn from, and its row says so
    assert "seed 0 failed after 0 rounds: round 1: none of" in (ended.run / "comparison.md").read_text()
    assert by_name["format"]["figures"]["pass@1"]["change"]["value"] == 0
    mine = (ended.run / "arms" / "mine-0" / "ledger.jsonl").read_text()
    assert re.search(r"Compute \d+ \+ \d\.", mine)
    assert '"reason": "keyword"' in mine
    assert (ended.run / "comparison.png").read_bytes().startswith(b"\x89PNG")

    count = len(started)
    ended = cli(*command[1:], *small, "--data.max_tokens", 40)
    assert ended.status == 2
    assert ended.error.startswith("data.max_tokens is 40 but was 56 when MajorityVote ran in this comparison")
    assert len(started) == count


def result(folder):
    return json.loads((folder / "comparison.json").read_text())["sets"]["held_out"]["rows"]
