"""The names of metrics: those of the documents are those of the code and of a run."""

import re
from pathlib import Path

from lightning_serl.callbacks.monitors import OF_ROUND, OF_STEP

METRICS = Path(__file__).parents[2] / "docs" / "metrics.md"


def documented(title):
    """The names in the first column of a section's table; ``.../max`` takes the beginning of the name before it."""
    section = METRICS.read_text(encoding="utf-8").partition(f"## {title}\n")[2].partition("\n## ")[0]
    for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE):
        first = ""
        for name in re.findall(r"`([^`]+)`", row):
            first = first if name.startswith(".../") else name
            yield first.rpartition("/")[0] + name.removeprefix("...") if name.startswith(".../") else name


def test_every_name_is_documented():
    assert set(documented("Of an optimizer step")) == set(OF_STEP)
    depending = {"serl/reason/REASON", "serl/role/ROLE/reward", "serl/health/SIGN", "serl/probe/SIGN"}
    assert set(documented("Of a round")) == {*OF_ROUND, *depending}
