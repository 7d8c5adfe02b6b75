"""From directories to policies and back, through the real loading code, on small directories made here."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.small_models import save_model, small_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_serl import tiny
from lightning_serl.errors import InputError
from lightning_serl.policy.export import export
from lightning_serl.policy.loading import check_model_path, load_policy
from lightning_serl.policy.lora import LoraOptions

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path):
    return save_model(tmp_path / "model")


def refusal(*arguments, **options):
    with pytest.raises(InputError) as caught:
        load_policy(*arguments, **options)
    message = str(caught.value)
    assert len(message) < 300, message
    assert "\n" not in message
    assert message[-1] not in ".:"
    return message


def edit(path, **changes):
    config = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            config.pop(key, None)
        else:
            config[key] = value
    path.write_text(json.dumps(config))


# --- what loads ------------------------------------------------------------------------------------------------------


def test_the_tiny_base_loads_in_train_mode():
    policy = load_policy("tiny:base", temperature=0.8)
    assert policy.training
    assert all(m.training for m in policy.modules())
    assert policy.temperature == 0.8
    assert policy.model.config.use_cache is False
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    assert policy.tokenizer.eos_token_id == 0


def test_weights_are_those_of_the_directory(folder):
    policy = load_policy(str(folder))
    expected = small_model("llama_tied").state_dict()
    assert all(torch.equal(t, expected[n]) for n, t in policy.named_weights())
    assert next(load_policy(str(folder), dtype="bfloat16").parameters()).dtype == torch.bfloat16


def test_a_home_directory_may_be_abbreviated(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert check_model_path("~/model") == str(folder)
    assert load_policy("~/model").context_length == 128


def test_gradient_checkpointing_changes_no_gradient(folder):
    from lightning_serl.types import pad_rows

    gradients = []
    for on in (False, True):
        for lora in (None, LoraOptions(r=2, target_modules=["q_proj"])):
            torch.manual_seed(0)
            policy = load_policy(str(folder), lora, gradient_checkpointing=on)
            assert policy.model.is_gradient_checkpointing is on
            policy(pad_rows([[5, 6, 7, 8]], [2], 0)).logp.sum().backward()
            gradients.append([p.grad for p in policy.parameters() if p.requires_grad])
    for plain, again in ((gradients[0], gradients[2]), (gradients[1], gradients[3])):
        assert sum(float(g.abs().sum()) for g in plain) > 0
        for a, b in zip(plain, again, strict=True):
            torch.testing.assert_close(a, b)


def test_lora_trains_the_adapter_alone(folder):
    policy = load_policy(str(folder), LoraOptions(r=3, alpha=5, target_modules=["q_proj", "down_proj"]))
    trained = {n: p for n, p in policy.named_parameters() if p.requires_grad}
    assert all("lora_" in n and ("q_proj" in n or "down_proj" in n) for n in trained)
    assert len(trained) == 8
    assert {min(p.shape) for p in trained.values()} == {3}
    config = policy.model.peft_config["default"]
    assert (config.r, config.lora_alpha) == (3, 5)
    assert any("gate_proj" in n for n, p in load_policy(str(folder), LoraOptions()).named_parameters() if "lora" in n)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "~/no/model", "", "  ", "a/b/c", "my model", "a\0b"])
def test_a_missing_directory(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refusal(name)
    assert repr(name) in message
    assert "does not exist" in message
    assert "hub name" in message


def test_a_very_long_name():
    assert "does not exist" in refusal("/" + "a" * 5000)
    assert "does not exist" in refusal("b" * 500)


def test_a_file_in_place_of_a_directory(folder):
    message = refusal(str(folder / "model.safetensors"))
    assert "is a file; give the directory" in message


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["config.json"], "has no config.json"),
        (["model.safetensors"], "has no weights"),
        (["tokenizer.json", "tokenizer_config.json"], "has no tokenizer"),
    ],
)
def test_a_directory_that_lacks_a_part_is_refused_before_loading(folder, names, what, monkeypatch):
    for name in names:
        (folder / name).unlink()
    with pytest.raises(InputError, match=what):
        check_model_path(str(folder))
    message = refusal(str(folder))
    assert str(folder)[-40:] in message
    assert "save_pretrained" in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{nope"),
        ("config.json", b"[1]"),
        ("config.json", b"{}"),
        ("config.json", b""),
        ("config.json", b"\xff\xfe"),
        ("config.json", b'{"model_type": "zork"}'),
        ("config.json", b'{"model_type": "bert", "vocab_size": 448}'),
        ("tokenizer.json", b"{nope"),
        ("tokenizer.json", b"{}"),
        ("tokenizer_config.json", b"[]"),
        ("model.safetensors", b""),
        ("model.safetensors", b"garbage garbage garbage"),
        ("generation_config.json", b"{nope"),
    ],
)
def test_damaged_files(folder, name, content):
    (folder / name).write_bytes(content)
    if name == "generation_config.json":
        # transformers makes a new one from config.json
        assert load_policy(str(folder)).end_ids == (0,)
        return
    message = refusal(str(folder))
    assert str(folder)[-40:] in message
    assert ";" in message


def test_truncated_weights(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "cannot be loaded" in refusal(str(folder))


def test_a_pickle_is_not_executed(folder, tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"lm_head.weight": Evil()}))
    assert "cannot be loaded" in refusal(str(folder))
    assert not (tmp_path / "ran").exists()


def test_weights_that_lack_layers_are_not_made_up(folder):
    edit(folder / "config.json", num_hidden_layers=3, layer_types=None)
    message = refusal(str(folder))
    assert "lack 9 tensors" in message
    assert "model.layers.2." in message


def test_weights_of_another_shape(folder):
    edit(folder / "config.json", intermediate_size=64)
    assert "cannot be loaded" in refusal(str(folder))


def test_a_tokenizer_without_an_end_token(folder):
    edit(folder / "tokenizer_config.json", eos_token=None)
    message = refusal(str(folder))
    assert "no end token" in message
    assert "tokenizer_config.json" in message


def test_code_in_a_model_directory_is_never_run(folder, tmp_path, capfd):
    edit(folder / "config.json", model_type="zork", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]})
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert "custom code" in refusal(str(folder))
    assert not (tmp_path / "ran").exists()
    # the default of transformers would ask on the terminal, and wait
    assert "[y/N]" not in capfd.readouterr().out


@pytest.mark.parametrize("name", ["org/no-such-model", "no-such-model"])
def test_a_hub_name_offline_is_one_quick_sentence(name):
    start = time.monotonic()
    message = refusal(name)
    assert time.monotonic() - start < 5
    assert repr(name) in message
    assert "network" in message


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["nope"], "'nope' matches no layer"),
        (["q_proj", "nope"], "'nope' matches no layer"),
        ("nope.*", "'nope.*'"),
        ("(", "no pattern"),
        (["norm"], "cannot be adapted"),
        (["act_fn"], "cannot be adapted"),
    ],
)
def test_lora_targets_that_match_nothing(folder, targets, said):
    message = refusal(str(folder), LoraOptions(target_modules=targets))
    assert said in message
    assert "q_proj" in message.partition("linear layers")[2]


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_lora_on_one_end_of_tied_weights(folder, tmp_path, target):
    assert "share one tensor" in refusal(str(folder), LoraOptions(target_modules=[target]))
    untied = save_model(tmp_path / "untied", "llama_untied")
    assert load_policy(str(untied), LoraOptions(target_modules=[target])).has_adapter


@pytest.mark.parametrize(
    ("options", "name"),
    [({"r": 0}, "lora.r"), ({"alpha": 0}, "lora.alpha"), ({"dropout": 1.0}, "lora.dropout")],
)
def test_lora_options_refuse(options, name):
    with pytest.raises(ValueError, match=name):
        LoraOptions(**options)


def test_an_unknown_attention(folder):
    assert "attn_implementation" in refusal(str(folder), attn_implementation="zork")
    assert "not installed" in refusal(str(folder), attn_implementation="flash_attention_2")


def test_a_model_whose_logits_are_not_known_is_refused(folder, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def scaled(self, *arguments, **options):
        out = forward(self, *arguments, **options)
        out.logits = out.logits * 1.1
        return out

    monkeypatch.setattr(LlamaForCausalLM, "forward", scaled)
    message = refusal(str(folder))
    assert "LlamaForCausalLM" in message
    assert "logits" in message


# --- export ----------------------------------------------------------------------------------------------------------


def trained(name, lora, seed=0):
    """A policy whose weights left those of its directory."""
    torch.manual_seed(seed)
    policy = load_policy(name, lora)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return policy


def greedy(model, tokenizer, prompt):
    ids = tokenizer(prompt, return_tensors="pt")
    return model.eval().generate(**ids, max_new_tokens=24, do_sample=False, use_cache=True)[0].tolist()


@pytest.mark.parametrize("lora", [None, LoraOptions(r=4)])
@pytest.mark.parametrize("name", ["tiny:base", "llama_untied", "gpt2"])
def test_an_export_reopens_as_the_policy(tmp_path, name, lora):
    where = name if name.startswith("tiny") else str(save_model(tmp_path / "model", name))
    before = {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(tiny.resolve(where)).iterdir()}
    policy = trained(where, lora)
    weights = {n: t.clone() for n, t in policy.model.state_dict().items()}
    export(policy, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.config.use_cache is True
    assert policy.model.config.use_cache is False
    ids = torch.tensor([[40, 41, 300, 7, 8, 9, 10]])
    with policy.gathered():
        torch.testing.assert_close(model(ids).logits, policy.causal_lm(ids).logits, rtol=0, atol=1e-4 if lora else 0)
        plain = AutoModelForCausalLM.from_pretrained(tiny.resolve(where))
        assert (plain(ids).logits - model(ids).logits).abs().max() > 1e-2
        for prompt in ("Question: What is 3 + 4?\nSolution:", "Sam"):
            assert tokenizer(prompt).input_ids == policy.tokenizer(prompt).input_ids
            assert greedy(model, tokenizer, prompt) == greedy(policy.causal_lm, policy.tokenizer, prompt)
    # nothing was merged into the live weights, and the base directory is as it was
    assert all(torch.equal(t, weights[n]) for n, t in policy.model.state_dict().items())
    assert {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(tiny.resolve(where)).iterdir()} == before
    assert load_policy(str(tmp_path / "out")).end_ids == policy.end_ids


def test_an_export_replaces_the_last_one_whole(tmp_path):
    export(trained("tiny:base", None, 0), tmp_path / "a" / "out")
    (tmp_path / "a" / "out" / "left_over").touch()
    first = (tmp_path / "a" / "out" / "model.safetensors").read_bytes()
    export(trained("tiny:base", None, 1), tmp_path / "a" / "out")
    assert (tmp_path / "a" / "out" / "model.safetensors").read_bytes() != first
    assert not (tmp_path / "a" / "out" / "left_over").exists()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["out"]
    assert (tmp_path / "a" / "out").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("point", ["weights", "tokenizer", "move"])
def test_a_failing_export_leaves_the_last_one(tmp_path, point, monkeypatch):
    policy = trained("tiny:base", None)
    out = tmp_path / "out"
    export(policy, out)
    before = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in out.iterdir()}

    def fail(*_, **__):
        raise OSError("no space left")

    if point == "weights":
        monkeypatch.setattr(type(policy.model), "save_pretrained", fail)
    elif point == "tokenizer":
        monkeypatch.setattr(policy.tokenizer, "save_pretrained", fail)
    else:
        rename = Path.rename
        monkeypatch.setattr(Path, "rename", lambda a, b: fail() if ".former" not in f"{a}{b}" else rename(a, b))
    with pytest.raises(OSError, match="no space left"):
        export(policy, out)
    assert {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in out.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert policy.model.config.use_cache is False


def test_a_temperature_without_do_sample_does_not_spoil_the_export(folder, tmp_path):
    # as published for Llama 2 chat; save_pretrained refuses it
    edit(folder / "generation_config.json", do_sample=False, temperature=0.6, top_p=0.9)
    export(load_policy(str(folder)), tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (saved["temperature"], saved["top_p"], saved["do_sample"]) == (0.6, 0.9, True)


EXPORT = """
import sys
from pathlib import Path
import torch
from lightning_serl.policy.export import export
from lightning_serl.policy.loading import load_policy
from lightning_serl.policy.lora import LoraOptions
for kind, lora in (("full", None), ("lora", LoraOptions(r=2))):
    torch.manual_seed(0)
    policy = load_policy(sys.argv[1], lora)
    for p in policy.parameters():
        p.data.add_(0.01) if p.requires_grad else None
    export(policy, Path(kind))
"""


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """The folders of two processes under different hash seeds, each with an export of every kind."""
    folders, processes = [tmp_path_factory.mktemp("run") for _ in range(2)], []
    for number, here in enumerate(folders, 1):
        base = save_model(here / "base")
        shutil.copy(ROOT / "README.md", here)
        environment = {**os.environ, "PYTHONHASHSEED": str(number), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        processes.append(subprocess.Popen([sys.executable, "-c", EXPORT, str(base)], cwd=here, env=environment))
    assert [process.wait(300) for process in processes] == [0, 0]
    return folders


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_exports_of_two_runs_are_the_same_bytes_and_name_no_path(two_runs, kind):
    runs = [{p.name: p.read_bytes() for p in (here / kind).iterdir()} for here in two_runs]
    assert runs[0] == runs[1]
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= set(runs[0])
    for name, content in runs[0].items():
        if name.endswith(".json"):
            assert not any(str(here).encode() in content for here in two_runs), name
            assert b"_name_or_path" not in content, name


def test_the_tokenizer_of_the_export_is_the_same(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    policy = load_policy("tiny:base")
    policy.tokenizer = tokenizer
    export(policy, tmp_path / "out")
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again.chat_template == tokenizer.chat_template
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_a_run_folder_in_place_of_a_model_names_its_export(tmp_path):
    run = tmp_path / "runs" / "one"
    (run / "export").mkdir(parents=True)
    (run / "ledger.jsonl").touch()
    for files, given, said in (
        ((), run, "without an export yet"),
        (("config.json",), run, f"whose trained model is '{run / 'export'}'"),
        ((), run.parent, f"did you mean '{run / 'export'}'?"),
    ):
        for name in files:
            (run / "export" / name).touch()
        with pytest.raises(InputError) as refused:
            check_model_path(str(given))
        assert said in str(refused.value)
