"""The worked examples of ``examples/``: their commands print what ``expected.txt`` shows, up to figures and times."""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
from helpers.command_line import cli, rows

ROOT = Path(__file__).parents[2]
# Lines that a slow machine adds: phases of more than half a minute, and what would save time.
_OF_TIME = re.compile(r" so far$|at most .* left$|took most of it; what saves time")
FOLDERS = ["word-problems", "multiple-choice", "short-text"]


def shape(text):
    """The lines of a terminal without what differs by machine: figures, times, reasons in parentheses, borders."""
    lines = []
    for line in text.splitlines():
        if line.startswith(("GPU available", "TPU available", "run: ")) or _OF_TIME.search(line):
            continue
        line = re.sub(r"^(time: [^;]*);.*", r"\1", line)  # shares of the parts, the largest first
        line = re.sub(r"wrote \d+, |\d+ from queue, |unread \d+ %, |kl -?[\d.]+, ", "", line)  # parts of a round's line
        line = re.sub(r" ?\([^)]*\)|[━─┏┳┓┡╇┩└┴┘]+", "", line)
        line = re.sub(r"[-+]?\d[\d.,:]*(?: (?:s|min|h|d)\b)?", "#", line)
        lines.append(" ".join(line.split()))
    return sorted(filter(None, lines))


def chain(*arguments):
    """``examples/word_chain.py`` by its functions."""
    spec = importlib.util.spec_from_file_location("word_chain", ROOT / "examples" / "word_chain.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    seeds, out, _, *answers = arguments
    module.build(Path(seeds), Path(out), answers)


@pytest.mark.parametrize("folder", FOLDERS)
def test_an_example_prints_what_it_shows(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    expected = (ROOT / "examples" / folder / "expected.txt").read_text(encoding="utf-8")
    readme = (ROOT / "examples" / folder / "README.md").read_text(encoding="utf-8").replace("\\\n", "")
    commands, printed = [], [line for line in expected.splitlines() if line.startswith("wrote ")]
    for line in expected.splitlines():
        if line.startswith("$ "):
            commands.append(line)
            assert " ".join(line[2:].split()) in " ".join(readme.split())
    for command in commands:
        words = shlex.split(re.sub(r"\b(models|runs)/", f"{tmp_path}/", command[2:]))
        if words[0] == "python":
            chain(*words[2:])
            continue
        ended = cli(*words[1:], "--trainer.accelerator", "cpu")
        assert ended.status == 0, ended.err
        printed += (ended.out + ended.err).splitlines()
    assert shape("\n".join([*commands, *printed])) == shape(expected)
    sample = rows(tmp_path / folder / "samples.jsonl")[0]
    assert ("choices" in sample) == (folder == "multiple-choice")


def test_seeds_and_held_out_problems_are_well_formed():
    seen = set()
    for folder in FOLDERS:
        seeds, held_out = (rows(ROOT / "examples" / folder / name) for name in ("seeds.jsonl", "heldout.jsonl"))
        assert (len(seeds), len(held_out)) == (20, 10)
        assert all("answer" not in row for row in seeds)
        for row in held_out:
            choices = row.get("choices")
            assert row["answer"] in ("ABCDEFGHIJ"[: len(choices)] if choices else row["answer"])
        problems = [json.dumps(row["problem"]) for row in seeds + held_out]
        assert not seen.intersection(problems)
        assert len(set(problems)) == 30
        seen.update(problems)
