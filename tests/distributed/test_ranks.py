"""One global round for all ranks: same gradients, same ledger, and a common end when one rank fails."""

import time
from pathlib import Path

import gradient_job
import pytest
import torch
from selfplay_job import rank_selfplay
from spine_kit import distance, rows, run_script, tiny_llama, trainer_for, weights

HERE = Path(__file__).parent


def ranks_of(root):
    return [torch.load(root / f"rank{r}.pt", weights_only=True) for r in (0, 1)]


def seconds_since_the_failure(root):
    return time.time() - (root / "raised").stat().st_mtime


def test_two_ranks_take_the_gradient_of_one(tmp_path):
    model = tiny_llama(tmp_path / "model")
    status, _, err = run_script(HERE / "gradient_job.py", model, tmp_path, limit=150)
    assert status == 0, err[-2000:]
    alone = gradient_job.gradients(model, tmp_path / "alone")
    for found in ranks_of(tmp_path):
        for case, ours, theirs in zip(gradient_job.CASES, alone, found, strict=True):
            assert len(ours["gradients"]) == 2 * case[3][0] * case[3][1]
            for a, b in zip(theirs["gradients"], ours["gradients"], strict=True):
                assert distance(a, b) < 1e-10, case
            for name, value in ours["metrics"].items():
                if name != "serl/batch/pad_frac":
                    assert theirs["metrics"][name] == pytest.approx(value, rel=1e-9, abs=1e-12), (case, name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same self-play on one rank: its folder and final weights."""
    root = tmp_path_factory.mktemp("alone")
    module, data = rank_selfplay()
    trainer_for(root, gradient_clip_val=1.0, enable_checkpointing=False).fit(module, data)
    return root, weights(module)


def test_two_ranks_play_and_train_the_rounds_of_one(tmp_path, alone):
    both, (alone, true_weights) = tmp_path, alone
    status, _, err = run_script(HERE / "selfplay_job.py", both, "play", limit=120)
    assert status == 0, err[-2000:]
    assert {e["event"] for e in rows(alone, "ledger")} >= {"proposed", "voted", "kept", "trained"}
    assert rows(both, "ledger") == rows(alone, "ledger")
    assert rows(both, "samples") == rows(alone, "samples")
    for mine, theirs in zip(rows(alone), rows(both), strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine.keys() - {"serl/batch/pad_frac"}:
            assert theirs[name] == pytest.approx(mine[name], rel=1e-3, abs=1e-5), name
    first, second = ranks_of(both)
    assert max(m["grad_norm"] for m in rows(alone)) > 0.05, "too small a step to compare weights after"
    for name, tensor in true_weights.items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        assert torch.allclose(first["weights"][name], tensor, rtol=0, atol=1e-5), name


def test_one_engine_fails_and_all_ranks_end_with_its_message(tmp_path, alone):
    """In the second round; then the run is resumed on two ranks."""
    status, _, err = run_script(HERE / "selfplay_job.py", tmp_path, "fail", limit=120)
    assert status not in (0, None), "the job hung"
    assert seconds_since_the_failure(tmp_path) < 20
    assert "RuntimeError: the engine is gone" in err
    assert "RankFailure: rank 1 failed while" in err
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    status, _, err = run_script(HERE / "selfplay_job.py", tmp_path, "resume", limit=120)
    assert status == 0, err[-2000:]
    assert rows(tmp_path, "ledger") == rows(alone[0], "ledger")
    for name, tensor in alone[1].items():
        assert torch.allclose(ranks_of(tmp_path)[0]["weights"][name], tensor, rtol=0, atol=1e-5), name


def test_one_rank_fails_in_its_training_step(tmp_path):
    """Nobody can agree there: the connection breaks, and rank 0 saves alone instead of waiting for a lost peer."""
    status, _, err = run_script(HERE / "selfplay_job.py", tmp_path, "fail-step", limit=120)
    assert status not in (0, None), "the job hung"
    assert seconds_since_the_failure(tmp_path) < 20
    assert "rank 1 has no room" in err
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
