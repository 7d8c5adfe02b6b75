"""The README's python examples run as they stand, in an empty folder."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command_line import environment, finish, fork

README = Path(__file__).parents[2] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
EXPECTED = ["my_run", "my_other_run", "0.75 [1.0, 1.0, 0.0] 0.66"]


def test_every_example_is_expected():
    assert len(EXAMPLES) == len(EXPECTED)


@pytest.mark.parametrize("number", range(len(EXPECTED)))
def test_example(number, tmp_path):
    script = tmp_path / "example.py"
    script.write_text(EXAMPLES[number], encoding="utf-8")
    if number == 0:  # as a user runs it
        command = [sys.executable, "-W", "error::DeprecationWarning:lightning_serl", "example.py"]
        options = {"cwd": tmp_path, "env": environment(), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        ended = finish(subprocess.Popen(command, text=True, **options), 300)
    else:
        ended = finish(fork(script, cwd=tmp_path), 300)
    assert ended.status == 0, ended.err[-3000:]
    if number < 2:
        folder = tmp_path / EXPECTED[number]
        rows = (folder / "metrics.jsonl").read_text().splitlines()
        assert len(rows) == (3 if number == 0 else 2)
        assert (folder / "export" / "model.safetensors").exists() == (number == 0)
    else:
        assert EXPECTED[number] in ended.out


def test_the_first_example_is_about_twenty_lines():
    lines = [line for line in EXAMPLES[0].splitlines() if line.strip()]
    assert len(lines) <= 26
