"""Weights as directories: read back by transformers and peft, whole or absent, old ones removed."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from helpers.small_models import small_model, small_policy
from peft import PeftModel
from transformers import AutoModelForCausalLM

from lightning_serl.engines.vllm import weight_files
from lightning_serl.engines.vllm.weight_files import WeightWriter, read_names
from lightning_serl.errors import EngineFailure
from lightning_serl.policy import Policy
from lightning_serl.policy.lora import LoraOptions, add_lora

ROWS = [(list(range(30, 44)), 1)]


def score(policy):
    with policy.gathered():
        return policy.stats(ROWS)[0].logp


def parts(policy):
    return [policy.causal_lm.config, policy.tokenizer]


@pytest.fixture
def writer(tmp_path):
    made = WeightWriter(tmp_path)
    yield made
    made.close()


@pytest.fixture
def adapted():
    policy = Policy(add_lora(small_model("llama_tied"), LoraOptions(r=4)), small_policy("llama_tied").tokenizer)
    with torch.no_grad():
        for name, tensor in policy.model.named_parameters():
            if "lora_B" in name:
                tensor.copy_(torch.randn_like(tensor))
    return policy


@pytest.mark.parametrize(("limit", "files"), [(2**31, 1), (20_000, 6)])
def test_full_weights_are_read_back_by_transformers_also_in_pieces(writer, monkeypatch, limit, files):
    monkeypatch.setattr(weight_files, "SHARD_BYTES", limit)
    policy = small_policy("llama_tied")
    written = writer.write_full(policy.named_weights(), 7, parts(policy))
    tensors = dict(policy.named_weights())
    # the head is a tensor of its own in the files, though it is tied to the embedding in the model
    names, size = read_names(written.path)
    assert names == set(tensors)
    assert "lm_head.weight" in tensors
    assert size == sum(t.numel() * 4 for t in tensors.values())
    assert len(list(written.path.glob("*.safetensors"))) == files
    again = Policy(AutoModelForCausalLM.from_pretrained(written.path), policy.tokenizer)
    assert torch.equal(score(again), score(policy))


def test_an_adapter_is_read_back_by_peft(writer, adapted):
    config = adapted.model.peft_config["default"].to_dict()
    written = writer.write_adapter(adapted.adapter_state().items(), config, 3)
    assert {p.name for p in written.path.iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    assert len(read_names(written.path)[0]) == len(adapted.adapter_state())
    again = Policy(PeftModel.from_pretrained(small_model("llama_tied"), written.path), adapted.tokenizer)
    assert torch.equal(score(again), score(adapted))
    assert not torch.equal(score(again), score(small_policy("llama_tied")))


def test_every_version_has_a_new_path_and_two_are_kept(writer):
    policy = small_policy("llama_tied")
    paths = [writer.write_full(policy.named_weights(), version).path for version in (1, 2, 2, 3)]
    assert len(set(paths)) == 4
    assert [p.exists() for p in paths] == [False, False, True, True]
    assert {p.name for p in writer.folder.iterdir()} == {"lock", *(p.name for p in paths[2:])}
    writer.close()
    assert not writer.folder.exists()
    writer.close()
    with pytest.raises(EngineFailure, match="start the engine again"):
        writer.write_full(policy.named_weights(), 4)


@pytest.mark.parametrize("reason", [RuntimeError("a rank failed"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_nothing(writer, reason):
    def breaks_off():
        yield "one", torch.ones(3)
        raise reason

    with pytest.raises(type(reason)):
        writer.write_full(breaks_off(), 1)
    with pytest.raises(EngineFailure, match="no weights"):
        writer.write_full(iter(()), 2)
    assert [p.name for p in writer.folder.iterdir()] == ["lock"]


def test_a_full_disk_is_said_in_a_sentence(writer):
    def too_much():
        yield "one", torch.ones(3)
        raise OSError(28, "No space left on device")

    said = r"version 5 cannot be written to .* \(no space left\); set data.engine.publish_to to a folder"
    with pytest.raises(EngineFailure, match=said):
        writer.write_full(too_much(), 5)


def test_a_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(EngineFailure, match="no folder for the engine's weights can be created in"):
        WeightWriter(tmp_path / "file")


def test_ram_is_taken_if_there_is_room(monkeypatch, tmp_path):
    monkeypatch.setattr(weight_files, "RAM", tmp_path)
    assert weight_files.default_root(1) == tmp_path
    monkeypatch.setattr(weight_files.tempfile, "tempdir", "/elsewhere")
    assert str(weight_files.default_root(10**18)) == "/elsewhere"


KILLED = """
import sys, time, torch
from lightning_serl.engines.vllm.weight_files import WeightWriter
print(WeightWriter(sys.argv[1]).write_adapter([("a", torch.ones(3))], {}, 1).path, flush=True)
time.sleep(600)
"""


def test_files_of_a_killed_process_are_removed_and_those_of_a_live_one_are_not(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    left = process.stdout.readline().strip()
    WeightWriter(tmp_path).close()
    assert os.path.isdir(left)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    WeightWriter(tmp_path).close()
    assert not os.path.exists(left)
    assert list(tmp_path.iterdir()) == []
