"""``lightning-serl plan``: what it prints, what it refuses, and that it says what a fit says of the memory."""

import json
import re
from statistics import fmean
from unittest import mock

import pytest
import torch
from helpers.command_line import cli, rows, small
from transformers import Qwen2Config

from lightning_serl.callbacks import foresight
from lightning_serl.cli import plan
from lightning_serl.cli.plan_options import PlanOptions, split_options
from lightning_serl.errors import InputError
from lightning_serl.policy.devices import CARDS, card, card_machine, card_named, cpu_machine
from lightning_serl.policy.lora import LoraOptions
from lightning_serl.policy.memory_plan import Plan
from lightning_serl.policy.model_shape import model_shape
from lightning_serl.policy.roofline import Machine, Shape

QUIET = Machine(1e11, 1e11, 1e10, 1e10, 1e10, 1e10, 1e-4, 1e-4, 1e-5, 1e9, 1e9)


def qwen2(vocab, hidden, inner, layers, heads, kv_heads):
    return Qwen2Config(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, tie_word_embeddings=True,
    )  # fmt: skip


@pytest.fixture
def unmeasured(monkeypatch):
    """A machine that takes no time to measure."""
    monkeypatch.setattr(plan, "cpu_machine", lambda *given: QUIET)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A directory that holds the configuration of a model, and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    qwen2(151936, 896, 4864, 8, 14, 2).save_pretrained(folder)
    return folder


def test_a_plan_says_of_the_memory_what_a_fit_says(tmp_path, unmeasured, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = small(tmp_path / "run")
    planned = cli("plan", *options, "--plan.json", "plan.json")
    assert planned.status == 0, planned.err
    assert {p.name for p in tmp_path.iterdir()} == {"plan.json"}, "a plan writes nothing else"
    found = json.loads((tmp_path / "plan.json").read_text())
    fitted = cli("fit", *options)
    steps = [row for row in rows(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    said = re.search(
        r"libraries ([\d.]+), .*activations ([\d.]+), allocator ([\d.]+), engine ([\d.]+); peak ([\d.]+)",
        fitted.err + fitted.out,
    )
    held, *shown, peak = (
        re.search(rf"^  {part} +([\d.]+)", planned.out, re.MULTILINE)[1]
        for part in ("libraries", "activations", "allocator", "writing", "peak")
    )
    assert list(said.groups()[1:4]) == shown
    # what this process holds besides a model grew between the two
    grown = float(said[1]) - float(held)
    assert 0 <= grown < 0.5
    assert float(said[5]) - float(peak) == pytest.approx(grown, abs=0.02)
    assert found["memory"]["libraries"] == pytest.approx(float(held) * 2**30, abs=0.01 * 2**30)
    assert found["fits"]
    assert 0 < found["memory"]["expected"] <= found["memory"]["peak"]
    assert set(found["seconds"]) == {"writing", "filtering", "answering", "grading", "logprobs", "training"}
    assert found["round_seconds"] == pytest.approx(sum(found["seconds"].values()), abs=0.01)
    assert found["run_seconds"] == pytest.approx(2 * found["round_seconds"], abs=0.1)
    for line in ("the run: 2 rounds", "what limits: ", "assumed: answers of 34 tokens"):
        assert line in planned.out
    like = PlanOptions(like=str(tmp_path / "run"), kept=0.5)
    assert (like.kept, like.answer_tokens) == (0.5, fmean(row["completions/mean_length"] for row in steps))


def traced(config, dtype, work, lora=None, quantized=False):
    """A memory plan without tracing, which the other test looks at."""
    return Plan(160 // work.ranks, 0, 16 if lora else 320, 0, 1000 * work.rows, work.engine or 0,
                separate=work.engine is not None)  # fmt: skip


def test_a_configuration_suffices_for_any_card(bare, tmp_path, monkeypatch):
    monkeypatch.setattr(foresight, "plan", traced)
    options = ["--model.model_name_or_path", bare, "--data.seeds", "tiny:seeds", "--trainer.precision", "bf16-mixed"]
    file = tmp_path / "plan.json"
    large = ["-c", "preset:several-nodes", "--plan.device", "H100_80GB", "--plan.gpus", "8", "--plan.servers", "4"]
    found = {}
    for name, more in {
        "one": ["--plan.device", "h100-80gb"],
        "vllm": ["--plan.device", "h100-80gb", "--data.engine", "VLLMEngine"],
        "lora": ["--plan.device", "rtx4090", "-c", "preset:lora-24gb"],
        "large": large,
    }.items():
        ended = cli("plan", *options, *more, f"--plan.json={file}")
        assert ended.status == 0, (name, ended.err)
        for said in ("3.5 characters for each token", "not measured"):
            assert said in ended.out, name
        found[name] = json.loads(file.read_text())
    one, vllm, lora, several = found.values()
    assert (one["memory"]["weights"], several["memory"]["weights"]) == (160, 10)
    assert vllm["memory"]["engine"] == int(0.45 * CARDS["h100-80gb"].memory * 2**30)
    assert one["limit"] == "answering"
    assert vllm["seconds"]["answering"] < one["seconds"]["answering"] / 2
    assert any("VLLMEngine" in said for said in one["changes"])
    assert lora["memory"]["optimizer"] < one["memory"]["optimizer"]
    assert several["device"] == {"name": "H100_80GB", "nodes": 2, "devices": 8, "servers": 4}
    assert several["card_hours"] == pytest.approx(several["run_seconds"] / 3600 * 20, rel=0.01)


# (arguments after plan, what the error says)
REFUSED = [
    (["--plan.device", "h10"], "plan.device 'h10' is not known; did you mean"),
    (["--plan.device", "abacus"], "known are cpu (this machine), b200, h200, h100-80gb"),
    (["--plan.devices", "t4"], "there is no option --plan.devices; did you mean --plan.device?"),
    (["--plan.gpus", "many"], "plan.gpus must be a whole number, got 'many'"),
    (["--plan.gpus", "0"], "plan.gpus must be at least 1, got 0"),
    (["--plan.kept", "1.5"], "plan.kept must be above 0 and at most 1, got 1.5"),
    (["--plan.json"], "plan.json needs a value"),
    (["--plan.json", "/nowhere/at/all.json"], "plan.json: the folder of '/nowhere/at/all.json' does not exist"),
    (["--plan.json", "/"], "plan.json '/' is a folder; name a file in it"),
    (["--plan.like", "/nowhere"], "plan.like /nowhere: there is no metrics.jsonl"),
    (["--model.learning_rate", "1"], "did you mean --model.lr?"),
    (["--data.seeds", "absent.jsonl"], "absent.jsonl"),
    (["--model.model_name_or_path", "/nowhere/model"], "model directory '/nowhere/model' does not exist"),
]


def test_what_a_plan_refuses(unmeasured, tmp_path):
    for arguments, said in REFUSED:
        ended = cli("plan", "-c", "preset:quickstart", *arguments)
        assert ended.status == 2, arguments
        assert said in ended.error, (arguments, ended.error)
    unreachable = mock.patch("socket.create_connection", side_effect=OSError("no route to host"))
    with unreachable, mock.patch("lightning_serl.policy.loading.getproxies", dict):
        said = cli("plan", "-c", "preset:quickstart", "--model.model_name_or_path", "some/model").error
    assert "cannot be reached (no route to host); give a directory with the model's config.json" in said
    assert cli("plna").error == "there is no command 'plna'; did you mean plan?"
    (tmp_path / "config.json").write_text('{"model_type": "abacus"}')
    ended = cli("plan", "-c", "preset:quickstart", "--model.model_name_or_path", tmp_path)
    assert (ended.status, ended.error.startswith("there is no plan for model ")) == (2, True), ended.err
    # a fit still wants the weights
    (tmp_path / "config.json").write_text("{}")
    refused = cli("fit", "-c", "preset:quickstart", "--model.model_name_or_path", tmp_path)
    assert "has no weights" in refused.error
    assert "--plan.device NAME" in cli("plan", "--help").out


def test_options_of_the_plan_are_taken_out():
    given, rest = split_options(
        ["-c", "preset:grpo", "--plan.kept=0.5", "--plan.answer-tokens", "80", "--model.lr", "1"]
    )
    assert given == PlanOptions(kept=0.5, answer_tokens=80.0)
    assert rest == ["-c", "preset:grpo", "--model.lr", "1"]


def test_shapes_are_those_of_the_model():
    config = qwen2(100, 8, 20, 2, 2, 1)
    shape = model_shape(config, torch.float32, None, torch.bfloat16)
    layer = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 20
    assert (shape.products, shape.head, shape.inner, shape.kv_heads, shape.heads) == (2 * layer, 800, 20, 4, 8)
    assert (shape.itemsize, shape.weight_bytes) == (2, 4)
    lora = model_shape(config, torch.float32, LoraOptions(r=2), None)
    # two factors for each of seven linear layers
    assert lora.adapter == lora.trained == 2 * 2 * (16 + 12 + 12 + 16 + 28 + 28 + 28)


def test_machines():
    half, single = (card_machine(CARDS["a100-80gb"], d, False, False) for d in (torch.bfloat16, torch.float32))
    assert half.products == pytest.approx(16 * single.products)
    assert card(" RTX-4090") is CARDS["rtx4090"]
    names = {
        "NVIDIA H100 80GB HBM3": "h100-80gb", "NVIDIA H100 PCIe": "h100-pcie", "NVIDIA A100-SXM4-40GB": "a100-40gb",
        "NVIDIA GeForce RTX 4090": "rtx4090", "Tesla T4": "t4", "NVIDIA H200": "h200", "NVIDIA L40S": "l40s",
        "NVIDIA L4": "l4", "NVIDIA A10G": "a10g", "Radeon": None,
    }  # fmt: skip
    assert {name: card_named(name) for name in names} == names
    with pytest.raises(InputError, match="known are cpu"):
        card("")
    shape = Shape(
        products=1, weights=1, head=1, layers=1, hidden=32, heads=32, kv_heads=32, inner=64, vocab=10, width=16
    )
    here = cpu_machine(shape, torch.float32, 8, 64)
    assert all(1e5 < rate < 1e14 for rate in (here.products, here.decoding, here.bandwidth, here.fresh))
    assert 1e-7 < here.call < 1
