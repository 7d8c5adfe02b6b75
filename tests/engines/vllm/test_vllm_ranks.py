"""One vLLM engine per rank beside the trainer's process group."""

from pathlib import Path

import pytest
import torch
from helpers.ranks import run_script
from helpers.training import rows

pytestmark = pytest.mark.vllm
HERE = Path(__file__).parent


def test_engines_come_and_go_and_the_process_group_stays(tmp_path):
    status, _, err = run_script(HERE / "vllm_job.py", tmp_path, limit=240)
    assert status == 0, err[-3000:]
    first, second = (torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1))
    for found in (first, second):
        assert found["pushes"] == 3  # a canary, and two rounds
        assert found["closed"] == -1
        assert found["size"] == 2
        assert found["after"] == found["beside"] == found["dropped"] == 3.0
        assert 1 <= found["wrote"] <= 4
    for name, tensor in first["weights"].items():
        assert torch.equal(tensor, second["weights"][name]), name
    assert {e["event"] for e in rows(tmp_path, "ledger")} >= {"proposed", "voted", "trained"}
    assert any("serl/sync/probe_logp_err" in row for row in rows(tmp_path))
