"""LoRA and QLoRA through the real loading code and Lightning's fit loop: options, references, merging, checkpoints."""

import hashlib
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from helpers.command_line import cli, problems, rows, small, write_rows
from helpers.gradients import RecordedData, recorded_round
from helpers.small_models import save_model
from helpers.training import QUIET
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_serl import SeRLModule, tiny
from lightning_serl.callbacks import ReferenceSync
from lightning_serl.errors import InputError
from lightning_serl.objectives import Objective
from lightning_serl.policy.export import export
from lightning_serl.policy.loading import check_model_path, load_policy
from lightning_serl.policy.lora import LoraOptions

ROWS = [(list(range(40, 52)), 4), ([7, 300, 7, 12, 9, 55], 1)]
IDS = torch.tensor([[40, 41, 300, 7, 8, 9, 10, 300, 12]])


def trained(where, options, seed=0, **more):
    """A policy whose adapter does something."""
    torch.manual_seed(seed)
    policy = load_policy(str(where), options, **more)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return policy


def logps(policy, who="policy"):
    with policy.gathered():
        return torch.cat([s.logp for s in policy.stats(ROWS, who)])


def digest(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path(folder).iterdir())}


# --- options ---------------------------------------------------------------------------------------------------------


def test_any_option_of_peft_reaches_it(tmp_path):
    where = str(save_model(tmp_path / "model", "llama_untied"))
    peft = {
        "use_rslora": True,
        "rank_pattern": {"q_proj": 2, r"layers\.0\.mlp\..*": 5},
        "alpha_pattern": {"q_proj": 9},
        "exclude_modules": ["k_proj"],
        "modules_to_save": ["lm_head"],
        "init_lora_weights": "gaussian",
    }
    model = load_policy(str(where), LoraOptions(r=4, alpha=8, peft=peft)).causal_lm.model
    attention = model.layers[0].self_attn
    assert attention.q_proj.r["default"] == 2
    assert attention.q_proj.scaling["default"] == 9 / 2**0.5
    assert attention.v_proj.scaling["default"] == 8 / 4**0.5
    assert model.layers[0].mlp.up_proj.r["default"] == 5
    assert not hasattr(attention.k_proj, "lora_A")


@pytest.mark.parametrize(
    ("peft", "said"),
    [
        ({"use_rsloraa": True}, "did you mean use_rslora?"),
        ({"zork": 1}, "see peft.LoraConfig"),
        ({"lora_alpha": 3}, "set model.lora.alpha"),
        ({"task_type": "SEQ_CLS"}, "has no option 'task_type'"),
        ({"use_dora": "perhaps"}, "must be true or false"),
        ({"rank_pattern": [1]}, "must be a mapping"),
        ({"rank_pattern": {"z_proj": 2}}, "matches no adapted layer"),
        ({"alpha_pattern": {"nothing": 2}}, "matches no adapted layer"),
        ({"modules_to_save": ["nothing"]}, "matches no layer"),
        ({"modules_to_save": ["lm_head"]}, "share one tensor"),
        ({"init_lora_weights": "pissa"}, "rewrites the base"),
        ({"bias": "all"}, "weights of the base"),
        ({"layer_replication": [[0, 1]]}, "changes the layers"),
        ({"layers_pattern": "h"}, "refused by peft"),
    ],
)
def test_options_that_peft_or_the_promises_here_refuse(peft, said):
    with pytest.raises(InputError, match=said.replace("?", r"\?")) as caught:
        load_policy("tiny:base", LoraOptions(peft=peft))
    assert len(str(caught.value)) <= 300


# --- merging ---------------------------------------------------------------------------------------------------------

KINDS = {
    "plain": (LoraOptions(r=4), {}),
    "rank-stabilised": (LoraOptions(r=4, peft={"use_rslora": True, "rank_pattern": {"q_proj": 2}}), {}),
    "dora": (LoraOptions(r=4, peft={"use_dora": True}), {}),
    "saved modules": (LoraOptions(r=4, target_modules=["q_proj"], peft={"modules_to_save": ["lm_head"]}), {}),
    "embedding": (LoraOptions(r=4, target_modules=["embed_tokens", "q_proj"]), {}),
    "nf4": (LoraOptions(r=4), {"quantize": "nf4"}),
    "nf4 dora": (LoraOptions(r=4, peft={"use_dora": True}), {"quantize": "nf4"}),
    "nf4 saved modules": (LoraOptions(r=4, target_modules=["q_proj"], peft={"modules_to_save": ["lm_head"]}),
                          {"quantize": "nf4"}),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_are_the_policy_and_nothing_live_moves(kind, tmp_path):
    where = str(save_model(tmp_path / "model", "llama_untied"))
    options, more = KINDS[kind]
    policy = trained(where, options, **more)
    before = {n: t.clone() for n, t in policy.model.state_dict().items()}
    merged = dict(policy.merged_weights())
    plain = AutoModelForCausalLM.from_pretrained(where)
    assert list(merged) == list(dict(policy.named_weights())) == list(plain.state_dict())
    with policy.gathered():
        start = plain(IDS).logits
        plain.load_state_dict(merged)
        assert (plain(IDS).logits - policy.causal_lm(IDS).logits).abs().max() < 1e-4
        assert (plain(IDS).logits - start).abs().max() > 1e-2
        # the base as the trainer computes with it: what an engine is given once, before adapters travel alone
        plain.load_state_dict(dict(policy.named_weights()))
        with policy.acting_as("reference"):
            assert (plain(IDS).logits - policy.causal_lm(IDS).logits).abs().max() < 1e-4
    after = policy.model.state_dict()
    assert all(torch.equal(after[n], t) for n, t in before.items())
    assert policy.quantized == ("quantize" in more)


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_an_export_gives_the_same_greedy_answers(quantize, tmp_path):
    policy = trained("tiny:base", LoraOptions(r=4), quantize=quantize)
    base = digest(tiny.path("base"))
    for form in ("merged", "adapter"):
        export(policy, tmp_path / form, form)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not hasattr(merged.config, "quantization_config")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    if quantize is None:
        plain = AutoModelForCausalLM.from_pretrained(tiny.path("base"))
        reopened = PeftModel.from_pretrained(plain, tmp_path / "adapter")
    else:
        reopened = load_policy("tiny:base", LoraOptions(start_from=str(tmp_path / "adapter")), quantize=quantize).model
    with policy.gathered():
        for model, bound in ((merged, 1e-2 if quantize else 1e-4), (reopened.eval(), 1e-5)):
            assert (model(IDS).logits - policy.causal_lm(IDS).logits).abs().max() < bound
            for prompt in ("Question: What is 3 + 4?\nSolution:", "Sam"):
                asked = tokenizer(prompt, return_tensors="pt")
                how = {"max_new_tokens": 24, "do_sample": False, "use_cache": True}
                assert torch.equal(model.generate(**asked, **how), policy.causal_lm.generate(**asked, **how))
    assert digest(tiny.path("base")) == base
    assert {"generation_config.json", "tokenizer.json"} <= set(digest(tmp_path / "adapter"))


def test_a_merged_sum_is_rounded_once(tmp_path):
    where = str(save_model(tmp_path / "model", "llama_untied"))
    policy = trained(where, LoraOptions(r=4, alpha=4), dtype="bfloat16")
    layer = policy.causal_lm.model.layers[0].self_attn.q_proj
    expected = layer.base_layer.weight.float() + layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(dict(policy.merged_weights())[name], expected.bfloat16())


def test_forms_that_do_not_fit_the_run(tmp_path):
    with pytest.raises(InputError, match="trains no adapter; use full"):
        export(load_policy("tiny:base"), tmp_path / "out", "adapter")
    with pytest.raises(InputError, match="use adapter or merged"):
        export(load_policy("tiny:base", LoraOptions()), tmp_path / "out", "full")


# --- references ------------------------------------------------------------------------------------------------------


@pytest.fixture
def begun(tmp_path):
    """A base directory and an adapter of it."""
    where = str(save_model(tmp_path / "model", "llama_untied"))
    first = trained(where, LoraOptions(r=3, alpha=5, target_modules=["q_proj", "down_proj"]))
    export(first, tmp_path / "adapter", "adapter")
    return where, tmp_path / "adapter", first


def test_training_starts_from_an_adapter_which_is_then_the_reference(begun):
    where, adapter, first = begun
    policy = load_policy(where, LoraOptions(start_from=str(adapter)))
    assert torch.equal(logps(policy), logps(first))
    assert not torch.allclose(logps(policy, "reference"), logps(policy), atol=1e-3), "the base without adapter"
    twin = policy.freeze_copy("reference")
    assert policy.freeze_copy("reference") is twin
    trainable = {n for n, p in policy.named_parameters() if p.requires_grad}
    assert not any(".reference." in n for n in trainable)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5)
    assert torch.equal(logps(policy, "reference"), logps(first))
    assert not torch.allclose(logps(policy), logps(first), atol=1e-3)
    # an error inside leaves the trained adapter on, and trainable
    with pytest.raises(RuntimeError), policy.acting_as("reference"):
        raise RuntimeError
    assert {n for n, p in policy.named_parameters() if p.requires_grad} == trainable
    policy.move_copy("reference", 1.0)
    assert torch.equal(logps(policy, "reference"), logps(policy))
    assert set(policy.adapter_state()) == set(first.adapter_state())


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda d: (d / "adapter_config.json").unlink(), "no directory with an adapter_config.json"),
        (lambda d: (d / "adapter_config.json").write_text("{nope"), "cannot be read"),
        (lambda d: (d / "adapter_config.json").write_text('{"peft_type": "IA3"}'), "no LoRA adapter"),
        (lambda d: (d / "adapter_model.safetensors").write_bytes(b"garbage"), "is damaged"),
        (lambda d: (d / "adapter_model.safetensors").unlink(), "is damaged"),
    ],
)
def test_an_adapter_that_cannot_be_started_from(begun, damage, said):
    where, adapter, _ = begun
    damage(adapter)
    with pytest.raises(InputError, match=said) as caught:
        load_policy(where, LoraOptions(start_from=str(adapter)))
    assert len(str(caught.value)) <= 300


def test_an_adapter_of_another_model_and_an_adapter_as_a_model(begun, tmp_path):
    _, adapter, _ = begun
    with pytest.raises(InputError, match=r"model\.lora\.start_from"):
        load_policy("tiny:base", LoraOptions(start_from=str(adapter)))
    with pytest.raises(InputError, match="holds only an adapter"):
        check_model_path(str(adapter))


class Seen(pl.Callback):
    """The divergence to the reference at every step."""

    def __init__(self):
        self.kl = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.kl.append(pl_module.step_metrics["kl"])


def fit(where, root, options, ckpt=None, epochs=3, sync=None, **more):
    torch.manual_seed(3)
    module = SeRLModule(
        where,
        lora=options,
        objective=Objective(beta=0.1),
        optimizer=lambda p: torch.optim.AdamW(p, lr=0.02),
        **more,
    )
    seen = Seen()
    trainer = pl.Trainer(
        **QUIET, max_epochs=epochs, default_root_dir=root, callbacks=[seen, *([sync] if sync else [])],
        enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, RecordedData([recorded_round(0), recorded_round(1)]), ckpt_path=ckpt)
    trainer.save_checkpoint(root / f"{epochs}.ckpt")
    return module, seen.kl


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_frozen_weights_stay_and_a_resumed_run_is_the_same(quantize, tmp_path):
    where = str(save_model(tmp_path / "model", "llama_untied"))
    before = digest(where)
    options = LoraOptions(r=2)
    first = load_policy(where, options, quantize=quantize)
    base = {n: t.clone() for n, t in first.model.state_dict().items() if "lora_" not in n}
    whole, kl = fit(where, tmp_path, options, quantize=quantize)
    assert abs(kl[0]) < 1e-6
    assert kl[-1] > 1e-4
    fit(where, tmp_path, options, epochs=1, quantize=quantize)
    saved = torch.load(tmp_path / "1.ckpt", weights_only=True)
    assert saved["state_dict"]
    assert all("lora_" in name for name in saved["state_dict"])
    again, _ = fit(where, tmp_path, options, ckpt=tmp_path / "1.ckpt", quantize=quantize)
    after = whole.policy.model.state_dict()
    assert base
    assert all(torch.equal(after[n], t) for n, t in base.items())
    assert all(torch.equal(t, after[n]) for n, t in again.policy.model.state_dict().items())
    moved = [n for n, p in whole.policy.model.named_parameters() if p.requires_grad]
    start = dict(first.model.named_parameters())
    assert moved
    assert all(not torch.equal(dict(whole.policy.model.named_parameters())[n], start[n]) for n in moved if "_B" in n)
    assert digest(where) == before


@pytest.mark.parametrize("mode", ["copy", "ema"])
def test_the_reference_moves_under_lora_and_resumes(mode, tmp_path):
    where, options = str(save_model(tmp_path / "model", "llama_untied")), LoraOptions(r=2)
    sync = ReferenceSync(mode, every_n_steps=2, alpha=0.5)
    module, kl = fit(where, tmp_path, options, sync=sync)
    policy = module.policy
    assert abs(kl[0]) < 1e-6
    assert kl[1] > 1e-5
    if mode == "copy":
        assert abs(kl[2]) < 1e-6, "the reference was the policy of step 2"
        assert torch.equal(logps(policy, "reference"), logps(policy))
    assert not torch.allclose(logps(policy, "reference"), logps(load_policy(where)), atol=1e-4), "it left the base"
    fit(where, tmp_path, options, epochs=2, sync=ReferenceSync(mode, every_n_steps=2, alpha=0.5))
    saved = torch.load(tmp_path / "2.ckpt", weights_only=True)
    assert set(saved["serl_policy"]["frozen"]) == {"reference"}
    again, _ = fit(
        where, tmp_path, options, ckpt=tmp_path / "2.ckpt", sync=ReferenceSync(mode, every_n_steps=2, alpha=0.5)
    )
    after = again.policy.model.state_dict()
    assert all(torch.equal(after[n], t) for n, t in policy.model.state_dict().items())


def test_a_run_from_an_adapter_measures_its_divergence_from_there(begun, tmp_path):
    where, adapter, first = begun
    module, kl = fit(where, tmp_path, LoraOptions(start_from=str(adapter)))
    assert abs(kl[0]) < 1e-6
    assert kl[-1] > 1e-5
    # the run packs its rows and `first` pads them: equal up to a rounding of log-probs near 10, which is about 1e-6,
    # while the base and the trained policy are off by more than 0.1
    expected = logps(first)
    torch.testing.assert_close(logps(module.policy, "reference"), expected, rtol=0, atol=1e-5)
    for other in (logps(load_policy(where)), logps(module.policy)):
        assert (other - expected).abs().max() > 0.1


def test_a_frozen_copy_may_wait_elsewhere(tmp_path):
    where = str(save_model(tmp_path / "model", "llama_untied"))
    stays, kl = fit(where, tmp_path, None)
    waits, same = fit(where, tmp_path, None, offload_frozen=True)
    assert same == kl
    twin = waits.policy.frozen["reference"]
    home = [p.data_ptr() for p in twin.parameters()]
    waits.policy.offload_frozen = True
    assert torch.equal(logps(waits.policy, "reference"), logps(stays.policy, "reference"))
    assert [p.data_ptr() for p in twin.parameters()] == home


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="says what is mapped on Linux alone")
def test_a_packed_base_lets_go_of_its_files(tmp_path):
    base = str(save_model(tmp_path / "base"))

    def mapped():
        return str(base) in Path("/proc/self/maps").read_text()

    plain = load_policy(str(base), LoraOptions(r=2))
    assert mapped()
    weights = {n: p.clone() for n, p in plain.named_parameters() if "embed" in n or "norm" in n}
    del plain
    packed = load_policy(str(base), LoraOptions(r=2), quantize="nf4")
    assert not mapped()
    assert weights
    assert all(torch.equal(dict(packed.named_parameters())[n], w) for n, w in weights.items())


# --- what is refused -------------------------------------------------------------------------------------------------


def test_four_bits_need_an_adapter(monkeypatch):
    with pytest.raises(InputError, match=r"set --model\.lora\.r"):
        SeRLModule("tiny:base", quantize="nf4")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install bitsandbytes"):
        SeRLModule("tiny:base", quantize="nf4", lora=LoraOptions())


# --- whole runs ------------------------------------------------------------------------------------------------------


def test_an_adapter_run_from_the_command_line(tmp_path):
    """Options, a moving reference, the adapter's export with its card, resume, validation and a run from the export."""
    held_out = write_rows(tmp_path / "held.jsonl", problems(3))
    run = ["--model.lora.r", 2, "--model.lora.peft.use_rslora", "true", "--model.quantize", "nf4"]
    sync = ["--trainer.callbacks+", "ReferenceSync", "--trainer.callbacks.mode", "ema"]
    form = ["--trainer.callbacks+", "Export", "--trainer.callbacks.form", "adapter"]
    base = digest(tiny.path("base"))
    ended = cli("fit", *small(tmp_path / "run", rounds=1), *run, *sync, *form)
    assert ended.status == 0, ended.err
    assert "gemm_4bit" not in ended.err
    exported = tmp_path / "run" / "export"
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= set(digest(exported))
    assert "model.safetensors" not in digest(exported)
    card = (exported / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1]) == {
        "license": "apache-2.0",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["serl", "self-play", "reinforcement-learning", "lightning-serl"],
    }
    for fact in ("grpo (KL weight 0.01", "| rounds | 1 of 1 ", "LoRA of rank 2", "use_rslora", "nf4", "none were used"):
        assert fact in card, fact
    more = [*run, *sync, *form, "--ckpt_path", "last", "--trainer.max_epochs", 2]
    ended = cli("fit", *small(tmp_path / "run", rounds=1), *more)
    assert ended.status == 0, ended.err
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert (state["global_step"], set(state["serl_policy"]["frozen"])) == (2, {"reference"})
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    ended = cli("validate", *small(tmp_path / "eval", held_out), *run, "--ckpt_path", last)
    assert ended.status == 0, ended.err
    ended = cli("fit", *small(tmp_path / "next", rounds=1), "--model.lora.start_from", exported)
    assert ended.status == 0, ended.err
    assert rows(tmp_path / "next" / "metrics.jsonl")[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert "its own options count" in ended.err
    ended = cli("fit", *small(tmp_path / "none", rounds=1), *form)
    assert (ended.status, "trains no adapter" in ended.error) == (2, True)
    assert digest(tiny.path("base")) == base


def test_two_ranks_train_the_adapter_of_one(tmp_path, pair):
    run = ["--model.lora.r", 2, "--model.quantize", "nf4", "--model.optimizer.init_args.lr", 0.01]
    run += ["--data.source", "seeds", "--data.reward", "RandomReward", "--trainer.accumulate_grad_batches", 2]
    alone = cli("fit", *small(tmp_path / "one", rounds=2), *run)
    assert alone.status == 0, alone.err
    two = ["--trainer.devices", 2, "--trainer.strategy", "ddp", "--trainer.accumulate_grad_batches", 1]
    for status, _, err in pair.run("command", arguments=["fit", *small(tmp_path / "two", rounds=2), *run, *two]):
        assert status == 0, err
    one, other = (load_file(tmp_path / n / "export" / "model.safetensors") for n in ("one", "two"))
    base = dict(load_policy("tiny:base", LoraOptions(r=2), quantize="nf4").named_weights())
    assert max((one[n] - base[n]).abs().max() for n in one) > 1e-3
    assert max((one[n] - other[n]).abs().max() for n in one) < 1e-4
