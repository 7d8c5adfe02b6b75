"""The quickstart by the command line on the real vLLM, cut short."""

import json

import pytest
from helpers.command_line import cli, finish, start
from helpers.training import rows

from lightning_serl.policy.loading import load_policy

pytestmark = pytest.mark.vllm


def test_two_rounds(tmp_path):
    process = start(
        "fit", "-c", "preset:quickstart", "--seed_everything", 0, "--trainer.default_root_dir", tmp_path,
        "--data.engine", "VLLMEngine", "--data.engine.kv_cache_gb", 0.25, "--data.rounds_per_epoch", 2,
        "--data.probe.every", 0, "--data.evaluation.samples", 0,
    )  # fmt: skip
    ended = finish(process, limit=400)
    assert ended.status == 0, ended.err[-2000:]
    assert ended.run == tmp_path
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["rounds"] == 2
    # greedy decoding needs no seed: both engines see the same policy
    assert summary["before"]["pass@1"] == 0.275
    assert summary["before"]["n"] == 200
    assert summary["after"]["pass@1"] > 0.15
    synced = [row for row in rows(tmp_path) if "serl/sync/bytes" in row]
    assert len(synced) == 2
    assert all(row["serl/sync/probe_logp_err"] < 1e-4 for row in synced)
    assert all(row["sampling/sampling_logp_difference/mean"] < 1e-4 for row in synced)


def test_an_adapter_by_the_preset_for_one_gpu(no_vllm, tmp_path):
    """The preset itself, with a tiny stand-in on the CPU."""
    ended = cli(
        "fit", "-c", "preset:one-gpu", "--seed_everything", 0, "--trainer.default_root_dir", tmp_path,
        "--model.model_name_or_path", "tiny:base", "--model.dtype", "float32", "--trainer.accelerator", "cpu",
        "--trainer.precision", "32-true", "--trainer.max_epochs", 1, "--trainer.accumulate_grad_batches", 2,
        "--data.engine.kv_cache_gb", 0.25, "--data.engine.max_model_len", 512, "--data.seeds", "tiny:seeds",
        "--data.max_tokens", 56, "--data.writing.sampling.max_tokens", 100, "--data.writing.exemplars", 2,
        "--data.writing.from_kept", 0, "--data.writing.prompts_per_call", 2, "--data.rounds_per_epoch", 2,
        "--data.round.prompts_per_round", 2, "--data.round.samples_per_prompt", 4, "--data.solve.answer_format", "",
        "--data.writing.template.header", "Write new math questions.", "--data.probe.every", 0,
    )  # fmt: skip
    assert ended.status == 0, ended.err[-2000:]
    metrics = [row for row in rows(tmp_path) if "serl/sync/bytes" in row]
    assert len(metrics) == 2
    # the base travels once, with the canary of the adapter and the first version of it
    adapter = metrics[1]["serl/sync/bytes"]
    base = 4 * sum(p.numel() for p in load_policy("tiny:base").model.parameters())
    assert base <= metrics[0]["serl/sync/bytes"] - 2 * adapter < 1.5 * base
    assert all(row["serl/sync/probe_logp_err"] < 1e-4 for row in metrics)
