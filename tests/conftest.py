"""What all tests share: fixed random numbers, one thread, and the recorded data beside the checkout."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
# The recorded data lie beside the checkout; they are not ours to ship.
GOLDEN = ROOT.parent / "shared" / "data"
_counts = {"selected": 0, "deselected": 0}


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder of recorded responses; only tests marked ``golden`` may ask for it."""
    return GOLDEN


@pytest.fixture(autouse=True)
def _fixed_random_numbers():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config, items):
    golden = [item for item in items if item.get_closest_marker("golden")]
    if GOLDEN.is_dir():
        _counts["selected"] = len(golden)
        return
    _counts["deselected"] = len(golden)
    if golden:
        config.hook.pytest_deselected(items=golden)
        items[:] = [item for item in items if item not in golden]


def pytest_terminal_summary(terminalreporter):
    if any(_counts.values()):
        where = "found" if GOLDEN.is_dir() else "absent"
        terminalreporter.write_line(
            f"golden tests: {_counts['selected']} selected, {_counts['deselected']} deselected "
            f"(recorded data {where} at ../{GOLDEN.relative_to(ROOT.parent)})"
        )
