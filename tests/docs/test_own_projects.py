"""The examples of docs/own-projects.md: the module runs as it stands, the rest is real."""

import re
from pathlib import Path

from helpers.command_line import finish, fork

from lightning_serl.cli.short_names import CLASS_PATHS
from lightning_serl.datamodules.rounds.context import Context

DOC = (Path(__file__).parents[2] / "docs" / "own-projects.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)


def test_the_module_of_the_page_trains(tmp_path):
    _, module, _ = EXAMPLES
    script = tmp_path / "example.py"
    script.write_text(module, encoding="utf-8")
    ended = finish(fork(script, cwd=tmp_path), 300)
    assert ended.status == 0, ended.err[-3000:]
    assert len((tmp_path / "reinforce_run" / "metrics.jsonl").read_text().splitlines()) == 2


def test_the_page_names_what_there_is():
    table = re.findall(r"^\| `([\w(), =\"*`]+)` \|", DOC, re.MULTILINE)
    named = {name for cell in table for name in re.findall(r"(?:^|`)(\w+)", cell)}
    assert {"extract", "same", "grader", "generate", "score", "rng", "seed", "round", "verdicts"} <= named
    assert [name for name in named if not (hasattr(Context, name) or name in Context.__dataclass_fields__)] == []
    for option, name in re.findall(r"`--(data\.(?:reward|grader)) (\w+) --", DOC):
        assert name in CLASS_PATHS[option]
