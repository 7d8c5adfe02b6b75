"""A forward pass in training computes what the completions were written with, and an adapter's dropout repeats."""

from types import SimpleNamespace

import pytest
import torch
from helpers.architectures import SIZES, config
from helpers.small_models import tiny_tokenizer
from transformers import AutoModelForCausalLM

from lightning_serl.policy import LoraOptions, Policy
from lightning_serl.policy.dropout import repeated_dropout
from lightning_serl.policy.loading import prepare_for_training
from lightning_serl.types import pad_rows

_GPT2 = {"vocab_size": 448, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
NOISY = {
    "modules": ("GPT2Config", {**_GPT2, "resid_pdrop": 0.3, "attn_pdrop": 0.3, "embd_pdrop": 0.3}),
    "a function": ("OPTConfig", {**SIZES, "ffn_dim": 48, "dropout": 0.3, "attention_dropout": 0.3, "pad_token_id": 1}),
    "attention": ("LlamaConfig", {**SIZES, "attention_dropout": 0.3}),
    "a router": ("MixtralConfig", {**SIZES, "num_local_experts": 4, "router_jitter_noise": 0.3}),
}
ROWS = pad_rows([[5, 6, 7, 8, 9, 10], [9, 4, 3]], [2, 1], 0)


def policy_of(kind, lora=None):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(kind), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0) if parameter.dim() > 1 else None
    noisy = Policy(model, tiny_tokenizer()).train()(ROWS).logp
    return Policy(prepare_for_training(model, False, lora), tiny_tokenizer()).train(), noisy


@pytest.mark.parametrize("place", NOISY)
def test_the_base_is_trained_without_noise(place):
    policy, noisy = policy_of(NOISY[place])
    with policy.gathered():
        written = policy(ROWS).logp
    assert (noisy - written).abs().max() > 1e-2, "the family draws nothing, so that this shows nothing"
    torch.testing.assert_close(policy(ROWS).logp, written)
    given = [v for k, v in NOISY[place][1].items() if "drop" in k or "jitter" in k]
    assert given[0] in policy.causal_lm.config.to_dict().values(), "the configuration is exported as it was"


def test_the_dropout_of_an_adapter_depends_on_its_place_alone():
    policy, _ = policy_of(NOISY["attention"], LoraOptions(r=4, dropout=0.5))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            parameter.normal_() if "lora_B" in name else None
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    trainer = SimpleNamespace(global_step=0, accumulate_grad_batches=2, global_rank=0, strategy=strategy)

    def drawn(batch_idx):
        with repeated_dropout(policy, trainer, batch_idx):
            return policy(ROWS).logp

    state = torch.get_rng_state()
    first = drawn(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(drawn(0), first)
    assert torch.equal(drawn(2), first), "the same micro-batch of a step"
    assert not torch.equal(drawn(1), first)
    trainer.global_step = 1
    assert not torch.equal(drawn(0), first), "another step"
