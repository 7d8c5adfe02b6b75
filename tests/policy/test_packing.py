"""Packed rows with shared prompts against padded ones: equal to the last digits, or found out and refused."""

import random
from collections import Counter
from itertools import pairwise

import pytest
import torch
from helpers.small_models import CONFIGS, VOCABULARY, small_model, small_policy, tiny_tokenizer, with_lora
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_serl.objectives.experience import partition_packed
from lightning_serl.policy import Policy, packing
from lightning_serl.policy.packing import pack, prepare
from lightning_serl.policy.packing_check import unpackable
from lightning_serl.types import pad_rows

MIXED = {"qwen3_next", "falcon_h1"}  # a recurrent state runs through their lines
ATTENTION = [name for name in CONFIGS if name not in MIXED]


def groups(prompts=4, size=3, seed=0, longest=40):
    """Rows and starts; two prompts are of one length and one is a single token."""
    rng = random.Random(seed)
    rows, starts = [], []
    for length in [1, 9, 9, 20][:prompts]:
        prompt = [rng.randrange(VOCABULARY) for _ in range(length)]
        for _ in range(size):
            rows.append(prompt + [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, longest))])
            starts.append(length)
    return rows, starts


@pytest.fixture
def double(monkeypatch):
    """Norms and softmaxes of transformers are in float32 whatever the model is; here they are as exact as the rest."""
    softmax = nn.functional.softmax
    monkeypatch.setattr(
        nn.functional,
        "softmax",
        lambda x, dim=-1, dtype=None: softmax(x, dim, x.dtype if x.dtype == torch.float64 else dtype),
    )

    def widen(model):
        for module in model.modules():
            kind = type(module).__name__
            if kind.endswith("RMSNorm"):
                eps = getattr(module, "variance_epsilon", None) or module.eps
                shift = 1.0 if kind.startswith("Gemma") else 0.0

                def forward(x, module=module, eps=eps, shift=shift):
                    return (module.weight + shift) * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)

                module.forward = forward
            elif kind == "CohereLayerNorm":

                def forward(x, module=module):
                    x = x - x.mean(-1, keepdim=True)
                    return module.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)

                module.forward = forward
        return model

    return widen


def gradient(policy, rows, starts, slots, packs):
    """Of a loss that weighs every token differently, over all micro-batches."""
    policy.packs = packs
    policy.zero_grad()
    logps, entropies, positions = [None] * len(rows), [None] * len(rows), 0
    for chosen in slots:
        batch = pad_rows([rows[i] for i in chosen], [starts[i] for i in chosen], policy.pad_id)
        place = torch.arange(batch.mask.shape[1], dtype=torch.float64)
        weights = torch.stack([torch.cos(place + i) for i in chosen])
        stats = policy(batch, loss=lambda logp, weights=weights: (weights * logp).sum())
        (weights * stats.logp).sum().backward()
        positions += batch.positions
        for line, i in enumerate(chosen):
            logps[i], entropies[i] = (x[line][batch.mask[line]].detach() for x in stats[:2])
    found = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    return torch.cat(logps), torch.cat(entropies), found, positions


# Cohere's rotary embedding is applied in float32, too
@pytest.mark.parametrize("name", ATTENTION)
def test_packed_rows_are_exact(name, double):
    policy = Policy(double(small_model(name).double()), tiny_tokenizer(), temperature=0.7)
    with policy.gathered():
        assert unpackable(policy) is None
    rows, starts = groups()
    by_length = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    shuffled = random.Random(1).sample(by_length, len(rows))
    padded = gradient(policy, rows, starts, [range(len(rows))], packs=False)
    alone = gradient(policy, rows, starts, [[i] for i in by_length], packs=False)
    together = gradient(policy, rows, starts, [range(len(rows))], packs=True)
    apart = gradient(policy, rows, starts, [shuffled[:5], shuffled[5:]], packs=True)
    for other in (alone, together, apart):
        for a, b in zip(other[:3], padded[:3], strict=True):
            assert float((a - b).norm() / b.norm()) < (1e-6 if name == "cohere" else 1e-10)
    needed = sum(len(r) - s - 1 for r, s in zip(rows, starts, strict=True)) + sum(starts[::3])
    assert together[3] == needed  # each prompt once, and no last token
    assert needed < alone[3] < padded[3]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["llama_tied", "gemma2_window"])
def test_adapters_checkpointing_and_half_precision(name, checkpointing):
    """Layers computed again in the backward pass find their rows there too."""
    model = small_model(name)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    policy = Policy(with_lora(model), tiny_tokenizer()).train()
    rows, starts = groups()
    with policy.gathered():
        assert unpackable(policy) is None
    everything = [range(len(rows))]
    padded, packed = (gradient(policy, rows, starts, everything, packs)[2] for packs in (False, True))
    assert float((packed - padded).norm() / padded.norm()) < 1e-3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = [float((gradient(policy, rows, starts, everything, p)[2] - padded).norm()) for p in (False, True)]
    assert 0 < rough[1] < 1.3 * rough[0]
    policy.packs = True
    scored = list(zip(rows, starts, strict=True))
    with policy.gathered():
        for who in ("policy", "reference"):
            policy.packs = True
            ours = policy.stats(scored, who, rows_per_pass=5)
            policy.packs = False
            for a, b in zip(ours, policy.stats(scored, who), strict=True):
                torch.testing.assert_close(a.logp, b.logp, rtol=1e-3, atol=1e-3)


def test_an_empty_slot_packs_too():
    policy = small_policy("llama_tied")
    policy.packs = prepare(policy.model) is None
    stats = policy(pad_rows([], [], 0))
    stats.logp.sum().backward()
    assert not stats.logp.any()
    assert all(not p.grad.any() for p in policy.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(MIXED))
def test_models_that_mix_tokens_are_found_out(name, dtype):
    policy = small_policy(name).to(dtype)
    with policy.gathered():
        assert unpackable(policy) == "something in it besides attention mixes tokens"
    assert not policy.packs


@pytest.mark.parametrize("damage", ["neighbour", "positions", "attention", "mask"])
def test_the_check_at_the_start_sees_a_leak(damage, monkeypatch):
    policy = small_policy("llama_tied")
    if damage == "neighbour":  # a hundredth of what stands before in the line

        def leak(module, given, out):
            return out + 0.01 * out.roll(1, dims=1)

        policy.model.model.layers[0].mlp.register_forward_hook(leak)
    elif damage == "positions":
        right = packing.pack

        def wrong(batch, mask):
            packed = right(batch, mask)
            packed.position_ids.copy_(torch.arange(packed.position_ids.shape[1]) // 2)
            return packed

        monkeypatch.setattr("lightning_serl.policy.policy.pack", wrong)
    elif damage == "attention":
        policy.model.config._attn_implementation = "flex_attention"
    else:  # a model that makes its masks by itself
        monkeypatch.setattr("transformers.models.llama.modeling_llama.create_causal_mask", lambda **given: None)
    with policy.gathered():
        reason = unpackable(policy)
    assert reason is not None
    assert not policy.packs
    if damage == "attention":
        assert "flex_attention" in reason


def test_prepared_attention_is_as_before(tmp_path):
    ids = torch.tensor([[3, 5, 7, 9, 2, 4]])
    for name in ("llama_tied", "gemma2_window"):
        model = small_model(name)
        want = model(input_ids=ids).logits, model.generate(ids, max_new_tokens=5, do_sample=False)
        assert prepare(model) is prepare(model) is None
        assert torch.equal(model(input_ids=ids).logits, want[0])
        assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False), want[1])
        model.save_pretrained(tmp_path / name)
        assert "packed_" not in (tmp_path / name / "config.json").read_text()


def test_a_line_by_hand():
    rows, starts = [[5, 6, 1, 2], [5, 6, 3], [5, 7, 4, 8, 9]], [2, 2, 2]
    batch = pad_rows(rows, starts, 0)
    packed = pack(batch, batch.mask)
    assert packed.input_ids.tolist() == [[5, 6, 1, 5, 7, 4, 8]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3]]
    assert packed.predictors.tolist() == [1, 2, 1, 4, 5, 6]
    line = torch.arange(7.0).view(1, 1, 7, 1)
    parts = packed.rows(line)
    assert [p[:, 0, :, 0].tolist() for p in parts] == [[[3, 4, 5, 6], [0, 1, 2, 0]], [[0, 1]]]
    assert packed.line([p.transpose(1, 2) for p in parts]).flatten().tolist() == list(range(7))


ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), max_size=12)


@given(ROWS, st.integers(1, 5))
@settings(max_examples=100)
def test_slots_hold_every_row_once_and_count_prompts_once(rows, slots):
    prompts = [(p,) * (3 * p + 1) for p, _ in rows]
    lengths = [len(prompt) + n for prompt, (_, n) in zip(prompts, rows, strict=True)]
    dealt = partition_packed(prompts, lengths, slots)
    assert len(dealt) == slots
    assert sorted(i for slot in dealt for i in slot) == list(range(len(rows)))

    def tokens(slot):
        return sum(rows[i][1] for i in slot) + sum(map(len, {prompts[i] for i in slot}))

    whole = sum(n for _, n in rows) + sum(map(len, set(prompts)))
    most = max(map(tokens, dealt), default=0)
    # a cut may compute one more prompt, and a run ends before a row that does not fit
    assert most <= whole / slots + max(lengths, default=0) + max(map(len, prompts), default=0)
    order = [prompts[i] for slot in dealt for i in slot]
    changes = sum(a != b for a, b in pairwise(order))
    assert changes <= max(0, len(Counter(prompts)) - 1)
