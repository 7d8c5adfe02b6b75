"""``lightning-serl merge``: the merged directory is the model that the adapter was, and what is refused."""

import json

import pytest
import torch
import yaml
from helpers.command_line import cli
from helpers.small_models import save_model
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lightning_serl.policy import LoraOptions, load_policy
from lightning_serl.policy.export import export

IDS = torch.tensor([[5, 17, 130, 9, 60, 33], [2, 2, 48, 51, 7, 100]])
#: What an adapter changes, and the base that it changes.
ADAPTERS = {
    "all linear": ("qwen2", {"target_modules": "all-linear"}),
    "shared ends": ("llama_tied", {"target_modules": "all-linear", "use_dora": True}),
    "output layer of shared ends": ("llama_tied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "embedding of shared ends": ("llama_tied", {"target_modules": ["embed_tokens", "v_proj"]}),
    "apart": ("llama_untied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}),
}


def shaken(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_merged_model_is_what_peft_computes(kind, tmp_path):
    family, options = ADAPTERS[kind]
    base, adapter, out = tmp_path / "base", tmp_path / "adapter", tmp_path / "merged"
    save_model(base, family)
    model = AutoModelForCausalLM.from_pretrained(base)
    shaken(get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", **options))).save_pretrained(adapter)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(adapter)
    GenerationConfig(do_sample=True, temperature=0.5, eos_token_id=[0, 7]).save_pretrained(adapter)
    ended = cli("merge", adapter, "--out", out)
    assert ended.status == 0, ended.err
    assert ended.out.splitlines()[-1] == f"merged: {out}"
    expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    merged = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        assert (merged(IDS).logits - expected(IDS).logits).abs().max() < 1e-4
        assert (merged(IDS).logits - AutoModelForCausalLM.from_pretrained(base)(IDS).logits).abs().max() > 1e-2
    assert AutoTokenizer.from_pretrained(out).chat_template == tokenizer.chat_template
    assert GenerationConfig.from_pretrained(out).eos_token_id == [0, 7]
    assert "adapter_config.json" not in {path.name for path in out.iterdir()}
    assert yaml.safe_load((out / "README.md").read_text().split("---")[1])["library_name"] == "transformers"


def test_an_adapter_of_a_run_on_four_bits(tmp_path):
    policy = load_policy("tiny:base", LoraOptions(r=2), quantize="nf4")
    shaken(policy.model)
    options = {"model": {"temperature": 0.7, "dtype": "bfloat16", "quantize": "nf4"}, "data": {"max_tokens": 9}}
    export(policy, tmp_path / "run" / "export", "adapter", "a card", options, "tiny:base")
    ended = cli("merge", tmp_path / "run", "--out", tmp_path / "out", "--dtype=float32")
    assert ended.status == 0, ended.err
    assert "held in 4 bits in training and dequantised; the weights are float32" in ended.err
    with policy.gathered():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert (merged(IDS).logits - policy.causal_lm(IDS).logits).abs().max() < 1e-2
    asked = {"model": {"temperature": 0.7}, "data": {"max_tokens": 9}}
    assert json.loads((tmp_path / "out" / "serl.json").read_text()) == asked
    ended = cli("merge", tmp_path / "run", "--out", tmp_path / "low")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "low").dtype == torch.bfloat16


def test_what_cannot_be_merged_is_refused_in_one_sentence(tmp_path, recwarn):
    base, adapter, full = tmp_path / "base", tmp_path / "adapter", tmp_path / "full"
    save_model(base, "qwen2")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, task_type="CAUSAL_LM"))
    model.save_pretrained(adapter)
    (full / "export").mkdir(parents=True)
    (full / "export" / "config.json").write_text("{}")
    (tmp_path / "runs" / "one" / "export").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "ledger.jsonl").touch()
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "config.yaml").write_text("seed_everything: 0")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    nothing = tmp_path / "nothing"
    for given, more, said in (
        (nothing, [], "does not exist"),
        (adapter / "adapter_config.json", [], "is a file"),
        (tmp_path / "taken", [], "is no adapter (there is no adapter_config.json)"),
        (tmp_path / "runs", [], f"did you mean '{tmp_path / 'runs' / 'one' / 'export'}'?"),
        (base, [], "holds a whole model and no adapter"),
        (full, [], "holds a whole model and no adapter"),
        (tmp_path / "young", [], "has no export yet"),
        (adapter, ["--out", tmp_path / "taken"], "exists already"),
        (adapter, ["--out", tmp_path / "taken" / "file" / "x"], "cannot be made"),
        (adapter, ["--base", nothing], "does not exist"),
        (adapter, ["--base", "tiny:base"], "is of another model"),
        (adapter, ["--quantise", "nf4"], "did you mean --quantize?"),
        (adapter, ["--dtype", "int8"], "--dtype"),
        (adapter, ["--base"], "--base"),
    ):
        ended = cli("merge", given, *([] if "--out" in more else ["--out", tmp_path / "out"]), *more)
        assert (ended.status, said in ended.error) == (2, True), ended.err
        assert not (tmp_path / "out").exists()
    assert "--out" in cli("merge", adapter).error
    base.rename(tmp_path / "moved")
    assert "give it with --base" in cli("merge", adapter, "--out", tmp_path / "out").error
    assert cli("merge", adapter, "--out", tmp_path / "out", "--base", tmp_path / "moved").status == 0
    assert not [one for one in recwarn if "base_model_name_or_path" in str(one.message)]
    assert "usage: lightning-serl merge" in cli("merge", "--help").out
