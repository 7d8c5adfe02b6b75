"""What is foreseen from a configuration, beside what the loaded model really holds."""

import pytest
import torch
from helpers.command_line import cli, small
from helpers.small_models import CONFIGS, save_model, small_model
from transformers import LlamaConfig

from lightning_serl.policy.loading import load_policy
from lightning_serl.policy.lora import LoraOptions
from lightning_serl.policy.memory_plan import Work, largest_below, plan

WORK = Work(rows=2, length=32, sampled=4)


@pytest.mark.parametrize("name", ["llama_tied", "llama_untied", "gpt2", "gemma2"])
def test_weights_and_gradients_are_those_of_the_model(name):
    model = small_model(name)
    held = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    foreseen = plan(CONFIGS[name], torch.float32, WORK)
    assert foreseen.weights == held
    assert foreseen.gradients == sum(p.nbytes for p in model.parameters())
    assert foreseen.optimizer == 2 * foreseen.gradients
    assert foreseen.frozen == 0
    assert plan(CONFIGS[name], torch.float32, Work(2, 32, 4, reference=True)).frozen == held


def test_an_adapter_trains_little_and_four_bits_weigh_little(tmp_path):
    options = LoraOptions(r=4)
    where = save_model(tmp_path / "model", "llama_untied")
    policy = load_policy(str(where), options)
    trained = sum(p.nbytes for p in policy.parameters() if p.requires_grad)
    lora = plan(CONFIGS["llama_untied"], torch.float32, WORK, options)
    assert lora.gradients == trained
    assert lora.weights == sum(t.nbytes for t in (*policy.parameters(), *policy.buffers()))
    packed = plan(CONFIGS["llama_untied"], torch.float32, WORK, options, quantized=True)
    assert packed.gradients == trained
    real = load_policy(str(where), options, quantize="nf4")
    held = sum(t.nbytes for t in (*real.parameters(), *real.buffers()))
    linear = sum(m.weight.numel() for m in real.modules() if hasattr(m, "quant_state"))
    # the scales of a 4-bit weight are neither parameter nor buffer: about a byte per 64 weights
    assert held < packed.weights < held + 2 * linear / 50


def test_a_deep_model_is_foreseen_from_two_shallow_ones():
    sizes = {"vocab_size": 500, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    deep = LlamaConfig(**sizes, num_hidden_layers=7)
    # a rank pattern makes layers unlike, so that the whole model is traced
    whole = plan(deep, torch.float32, WORK, LoraOptions(r=4, peft={"rank_pattern": {"q_proj": 4}}))
    assert plan(deep, torch.float32, WORK, LoraOptions(r=4)) == whole


def test_what_makes_a_run_smaller_is_seen():
    def peak(**changes):
        return plan(CONFIGS["llama_untied"], torch.float32, Work(**{"rows": 8, "length": 64, "sampled": 1} | changes))

    base = peak()
    assert peak(checkpointing=True).activations < base.activations
    assert peak(rows=4).activations < base.activations
    assert peak(reference=True, offload=True).peak == base.peak
    assert peak(reference=True, offload=True).host == base.weights
    assert peak(ranks=2).weights == base.weights // 2
    assert peak(sampled=500).engine > 100 * base.engine
    assert peak(sampled=1, written=1, written_length=640).engine > 5 * base.engine
    assert 0 < peak(scored=8).scoring < base.activations
    assert peak(scored=800).training > base.training
    # rows of 64 tokens in groups of 4 with 48 tokens of prompt: 2 x 48 + 8 x 15 positions in place of 512
    packed = peak(group=4, prompt=48)
    assert 0.3 * base.activations < packed.activations < 0.8 * base.activations
    assert peak(group=4, prompt=48, scored=8).scoring < peak(scored=8).scoring
    # on a CPU the allocator keeps half of what is freed
    assert 0 < packed.allocator < packed.activations / 2
    assert packed.training == packed.lasting + packed.gradients + packed.activations + packed.allocator
    assert peak(device="cuda").allocator == 0


AMOUNTS = [lambda n: 100 * n, lambda n: 1000 + 7 * n, lambda n: 50 + max(0, n - 9) * 30, lambda n: n * n, lambda n: 5]


@pytest.mark.parametrize("amount", AMOUNTS)
@pytest.mark.parametrize("most", [1, 2, 3, 17, 256])
def test_the_largest_number_below_a_limit(amount, most):
    for limit in (0, 4, 5, 99, 100, 1007, 1100, 1750, 65536, 10**6):
        asked = []
        found = largest_below(lambda n: asked.append(n) or amount(n), most, limit)  # noqa: B023
        assert found == max((n for n in range(1, most + 1) if amount(n) <= limit), default=0)
        assert len(asked) <= 40


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_precision_that_spoils_four_bits_is_refused(tmp_path, precision):
    ended = cli(
        "fit", *small(tmp_path), "--model.lora.r", 2, "--model.quantize", "nf4", "--trainer.precision", precision
    )
    assert ended.status == 2
    assert "scales of 4-bit weights" in ended.error
