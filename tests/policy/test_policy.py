"""The policy's log-probs against the plain computation, its other selves, and what it hands to engines."""

import copy
import math

import pytest
import torch
from helpers.small_models import (
    CONFIGS,
    ROWS,
    STARTS,
    VOCABULARY,
    plain_stats,
    small_model,
    small_policy,
    tiny_tokenizer,
    with_lora,
)
from torch import nn

from lightning_serl.errors import InputError
from lightning_serl.policy import Policy, token_logprobs
from lightning_serl.types import RolloutBatch, pad_rows

# --- token_logprobs --------------------------------------------------------------------------------------------------


def naive(hidden, weight, bias, labels, temperature):
    logits = hidden @ weight.T if bias is None else hidden @ weight.T + bias
    p = torch.log_softmax(logits / temperature, -1)
    return p[torch.arange(len(labels)), labels], -(p.exp() * p).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.5])
@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8, 12, 13, 100])
@pytest.mark.parametrize("kind", ["tensor", "module", "module with bias"])
def test_token_logprobs_equal_the_naive_ones(kind, chunk, temperature):
    torch.manual_seed(1)
    n, width, vocabulary = 13, 6, 50
    hidden = torch.randn(n, width, dtype=torch.float64, requires_grad=True)
    head = nn.Linear(width, vocabulary, bias=kind == "module with bias", dtype=torch.float64)
    labels = torch.randint(0, vocabulary, (n,))
    weights = torch.randn(2, n, dtype=torch.float64)

    def gradients(logp, entropy):
        (weights[0] * logp + weights[1] * entropy).sum().backward()
        out = [hidden.grad, *(p.grad for p in head.parameters())]
        hidden.grad = None
        head.zero_grad()
        return out

    expected = naive(hidden, head.weight, head.bias, labels, temperature)
    got = token_logprobs(hidden, head.weight if kind == "tensor" else head, labels, temperature, chunk)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == torch.float64
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)
    for a, b in zip(gradients(*got), gradients(*expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


def test_token_logprobs_by_hand():
    # logits 0 and log 3: probabilities 1/4 and 3/4
    logp, entropy = token_logprobs(torch.ones(2, 1), torch.tensor([[0.0], [math.log(3)]]), torch.tensor([0, 1]))
    assert logp.tolist() == pytest.approx([math.log(0.25), math.log(0.75)])
    assert entropy.tolist() == pytest.approx([0.562335] * 2)
    assert token_logprobs(torch.ones(0, 1), torch.ones(2, 1), torch.zeros(0).long())[0].shape == (0,)


def test_token_logprobs_are_float32_for_a_bfloat16_head():
    hidden, weight = torch.randn(5, 4).bfloat16(), torch.randn(9, 4).bfloat16()
    labels = torch.tensor([0, 8, 3, 3, 1])
    logp, entropy = token_logprobs(hidden, weight, labels, chunk=2)
    assert logp.dtype == entropy.dtype == torch.float32
    expected = torch.log_softmax((hidden @ weight.T).float(), -1)[torch.arange(5), labels]
    torch.testing.assert_close(logp, expected)


# --- forward ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_forward_equals_the_models_own_logits(name):
    policy = small_policy(name, temperature=0.7, chunk=4)
    with policy.gathered():
        stats = policy(pad_rows(ROWS, STARTS, 0), certainty=True)
        alone = policy.stats(list(zip(ROWS, STARTS, strict=True)), certainty=True, rows_per_pass=2)
        for i, expected in enumerate(plain_stats(policy.model, ROWS, STARTS, 0.7)):
            piece = slice(STARTS[i], len(ROWS[i]))
            for got, one, value in zip(stats, alone[i], expected, strict=True):
                torch.testing.assert_close(got[i, piece].double(), value, rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(one.double(), value, rtol=1e-4, atol=1e-4)
    outside = ~pad_rows(ROWS, STARTS, 0).mask
    assert all(not values[outside].any() for values in stats)
    assert stats.logp.std() > 0.1


@pytest.mark.parametrize("name", ["gemma2", "cohere", "granite", "falcon_h1"])
def test_scaling_and_cap_matter_here(name):
    policy = small_policy(name)
    with policy.gathered():
        ids = torch.tensor([ROWS[0]])
        hidden = policy.model.base_model(input_ids=ids).last_hidden_state
        bare = policy.model.get_output_embeddings()(hidden)
        torch.testing.assert_close(policy.head(hidden), policy.model(ids).logits)
        assert (bare - policy.model(ids).logits).abs().max() > 0.1


def test_the_gradient_is_that_of_the_plain_computation():
    policy = Policy(small_model("llama_tied").double(), tiny_tokenizer(), temperature=0.7, chunk=3)
    batch = pad_rows(ROWS, STARTS, 0)
    policy(batch).logp.sum().backward()
    got = {n: p.grad.clone() for n, p in policy.model.named_parameters()}
    policy.zero_grad()
    sum(p.sum() for p, _, _ in plain_stats(policy.model, ROWS, STARTS, 0.7)).backward()
    for name, parameter in policy.model.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-10, atol=1e-12)


def test_certainty_is_only_computed_on_demand():
    stats = small_policy("llama_tied")(pad_rows(ROWS, STARTS, 0))
    assert stats.certainty is None
    assert stats.entropy is not None


def test_padding_ids_change_nothing():
    policy = small_policy("qwen2")
    with policy.gathered():
        values = [policy(pad_rows(ROWS, STARTS, pad)).logp for pad in (0, 77)]
    assert torch.equal(*values)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("attended", [True, False])
def test_an_empty_slot_is_zero_with_a_graph(attended, lora):
    policy = small_policy("llama_tied")
    if lora:
        policy = Policy(with_lora(policy.model), policy.tokenizer)
    batch = pad_rows([], [], 0)
    if not attended:
        batch.attention_mask.zero_()
    assert not batch.mask.any()
    stats = policy(batch)
    assert stats.logp.tolist() == stats.entropy.tolist() == [[0.0, 0.0]]
    (stats.logp.sum() + stats.entropy.sum()).backward()
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert not parameter.grad.any(), name


def test_pad_rows():
    batch = pad_rows([[5, 6, 7], [8]], [1, 0], 9)
    assert isinstance(batch, RolloutBatch)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.mask.tolist() == [[False, True, True], [True, False, False]]
    assert batch.position_ids.tolist() == [[0, 1, 2]] * 2
    assert batch.advantages.shape == (2, 3)
    assert pad_rows([[3]], [0], 9).input_ids.tolist() == [[3, 9]]


def test_stats_of_rows_with_nothing_to_score():
    policy = small_policy("llama_tied")
    with policy.gathered():
        out = policy.stats([([1, 2], 2), ([1, 2, 3], 1), ([], 0)])
    assert [len(s.logp) for s in out] == [0, 2, 0]
    assert policy.stats([]) == []


# --- other selves ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama_tied", "qwen2", "gpt2"])
def test_the_reference_under_lora_is_the_base_model(name):
    base = small_model(name)
    policy = Policy(with_lora(copy.deepcopy(base)), tiny_tokenizer())
    plain = Policy(base, policy.tokenizer)
    rows = list(zip(ROWS, STARTS, strict=True))
    with policy.gathered():
        acting, reference = policy.stats(rows), policy.stats(rows, "reference")
    with plain.gathered():
        expected = plain.stats(rows)
    trainable = {n for n, p in policy.named_parameters() if p.requires_grad}
    assert trainable
    assert all("lora_" in n for n in trainable)
    for a, r, e in zip(acting, reference, expected, strict=True):
        assert torch.equal(r.logp, e.logp)
        assert (a.logp - e.logp).abs().max() > 1e-3
    # the adapter is on again, after an error too
    with pytest.raises(RuntimeError), policy.gathered(), policy.acting_as("reference"):
        raise RuntimeError
    with policy.gathered():
        again = policy.stats(rows)
    assert all(torch.equal(a.logp, b.logp) for a, b in zip(again, acting, strict=True))
    assert {n for n, p in policy.named_parameters() if p.requires_grad} == trainable


def test_a_frozen_copy_stays():
    policy = small_policy("llama_tied").train()
    rows = list(zip(ROWS, STARTS, strict=True))
    parameters = len(list(policy.parameters()))
    twin = policy.freeze_copy("reference")
    assert policy.freeze_copy("reference") is twin
    with policy.gathered():
        before = policy.stats(rows)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    policy(pad_rows(ROWS, STARTS, 0)).logp.sum().backward()
    optimizer.step()
    with policy.gathered():
        moved, kept = policy.stats(rows), policy.stats(rows, "reference")
        with policy.acting_as("reference") as actor:
            assert actor is twin
    for b, m, k in zip(before, moved, kept, strict=True):
        assert torch.equal(k.logp, b.logp)
        assert not torch.allclose(m.logp, b.logp)
    assert len(list(policy.parameters())) == parameters
    assert not any("frozen" in n for n in policy.state_dict())
    assert not any(p.requires_grad for p in twin.parameters())
    assert not twin.training


def test_a_self_that_does_not_exist_is_named():
    policy = small_policy("llama_tied")
    for who in ("reference", "teacher"):
        with pytest.raises(InputError, match=f"no {who} policy"), policy.acting_as(who):
            pass
    lora = Policy(with_lora(small_model("llama_tied")), tiny_tokenizer())
    with lora.acting_as("policy") as actor:
        assert actor is lora


# --- outside of training_step ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_gathered_restores_modes_and_gradients(fails):
    policy = small_policy("llama_tied").train()
    policy.model.model.layers[1].eval()
    before = {n: m.training for n, m in policy.named_modules()}
    assert set(before.values()) == {True, False}

    def use():
        with policy.gathered() as inside:
            assert inside is policy
            assert not any(m.training for m in policy.modules())
            assert not torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
            if fails:
                raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            use()
    else:
        use()
    assert {n: m.training for n, m in policy.named_modules()} == before
    assert torch.is_grad_enabled()
    with torch.no_grad():
        with policy.gathered():
            pass
        assert not torch.is_grad_enabled()


def test_gathered_enters_the_trainers_precision():
    class Precision:
        entered = 0

        def forward_context(self):
            self.entered += 1
            return torch.autocast("cpu", dtype=torch.bfloat16)

    class Trainer:
        precision_plugin = Precision()

    policy = small_policy("llama_tied")
    with policy.gathered(Trainer):
        assert torch.is_autocast_enabled("cpu")
        assert policy.model.lm_head(torch.ones(1, 32)).dtype == torch.bfloat16
        # statistics leave autocast in float32
        assert policy.stats([(ROWS[0], 1)])[0].logp.dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")
    assert Trainer.precision_plugin.entered == 1


def low(name, dora=False):
    """A policy under LoRA whose base is in bfloat16 and whose adapter is in float32."""
    model = small_model(name).to(torch.bfloat16)
    return Policy(with_lora(model, use_dora=dora), tiny_tokenizer())


def logits(policy, who="policy"):
    ids = torch.tensor([ROWS[0]])
    with policy.acting_as(who) as actor:
        return actor.head(actor.causal_lm.base_model(input_ids=ids).last_hidden_state)


@pytest.mark.parametrize("who", ["policy", "reference"])
@pytest.mark.parametrize("name", ["llama_untied", "qwen2", "gemma2", "cohere", "granite", "gpt2", "opt"])
def test_without_autocast_the_numbers_are_those_of_autocast(name, who):
    policy = low(name)
    before = list(policy.parameters())
    assert {p.dtype for p in before} == {torch.bfloat16, torch.float32}
    with policy.gathered(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = logits(policy, who)
        with policy.without_autocast():
            assert not torch.is_autocast_enabled("cpu")
            assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}
            assert torch.equal(logits(policy, who), expected)
        with pytest.raises(KeyboardInterrupt), policy.without_autocast():
            raise KeyboardInterrupt
        assert torch.is_autocast_enabled("cpu")
    # the very parameters, on which an optimizer and DDP's hooks sit
    assert all(a is b for a, b in zip(policy.parameters(), before, strict=True))
    assert {p.dtype for p in before if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("kind", ["float32 base", "dora", "no autocast"])
def test_autocast_stays_where_it_does_more_than_cast_an_adapter(kind):
    policy = (
        Policy(with_lora(small_model("qwen2")), tiny_tokenizer())
        if kind == "float32 base"
        else low("qwen2", kind == "dora")
    )
    on = kind != "no autocast"
    with policy.gathered(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=on), policy.without_autocast():
        assert torch.is_autocast_enabled("cpu") is on
        assert any(p.dtype == torch.float32 for p in policy.parameters())


# --- facts and weights -----------------------------------------------------------------------------------------------


def test_end_ids_join_tokenizer_and_generation_config():
    policy = small_policy("llama_tied")
    assert policy.end_ids == (0,)
    policy.model.generation_config.eos_token_id = [5, 0, 7]
    assert policy.end_ids == (0, 5, 7)
    policy.model.generation_config.eos_token_id = 9
    assert policy.end_ids == (0, 9)
    policy.model.generation_config.eos_token_id = None
    assert policy.end_ids == (0,)


def test_facts():
    policy = small_policy("gpt2")
    assert policy.context_length == 128
    assert policy.pad_id == 0
    assert policy.device == torch.device("cpu")
    assert not policy.has_adapter
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    assert Policy(policy.model, tokenizer).pad_id == tokenizer.eos_token_id
    with pytest.raises(InputError, match="temperature"):
        Policy(policy.model, tokenizer, temperature=0)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="eos_token"):
        Policy(policy.model, tokenizer)


@pytest.mark.parametrize("targets", ["all-linear", ["lm_head", "q_proj", "embed_tokens"]])
@pytest.mark.parametrize("name", ["llama_tied", "llama_untied", "gemma2", "gpt2", "opt"])
def test_named_weights_are_those_of_the_plain_model(name, targets):
    base = small_model(name)
    expected = base.state_dict()
    if name == "gpt2" and targets != "all-linear":
        targets = ["lm_head", "c_attn", "wte"]
    assert "lm_head.weight" in expected
    plain = dict(Policy(base, tiny_tokenizer()).named_weights())
    wrapped = dict(Policy(with_lora(copy.deepcopy(base), targets), tiny_tokenizer()).named_weights())
    for got in (plain, wrapped):
        assert list(got) == list(expected)
        assert all(torch.equal(got[n], expected[n]) for n in expected)
        assert not any(t.requires_grad for t in got.values())
    assert not any("lora" in n or "base_layer" in n for n in wrapped)


def test_adapter_state_is_the_adapter_alone():
    policy = Policy(with_lora(small_model("qwen2")), tiny_tokenizer())
    state = policy.adapter_state()
    assert len(state) == sum(p.requires_grad for p in policy.parameters())
    assert all("lora_A" in n or "lora_B" in n for n in state)
    other = Policy(with_lora(small_model("qwen2"), seed=5), tiny_tokenizer())
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(other.model, state)
    with policy.gathered(), other.gathered():
        a, b = (p.stats([(ROWS[0], 1)])[0].logp for p in (policy, other))
    assert torch.equal(a, b)


def test_the_vocabulary_of_the_small_models_holds_the_tokenizers():
    assert len(tiny_tokenizer()) <= VOCABULARY
