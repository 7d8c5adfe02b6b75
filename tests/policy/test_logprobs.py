"""The fused pass over the logits: exact whatever the gradient is, and the only one if the gradient was predicted."""

from dataclasses import replace

import pytest
import torch
from helpers.small_models import ROWS, STARTS, plain_stats, small_model, small_policy, tiny_tokenizer, with_lora
from torch import nn

from lightning_serl.module import SeRLModule
from lightning_serl.objectives import Objective
from lightning_serl.policy import Policy, fused_logprobs
from lightning_serl.policy.logprobs import OutputLayer, token_stats
from lightning_serl.types import pad_rows

N, WIDTH, VOCABULARY = 13, 6, 50
HEADS = {"plain": {}, "bias": {}, "scaled": {"scale": 0.3}, "capped": {"scale": 2.0, "cap": 1.5}}


@pytest.fixture
def passes(monkeypatch):
    """How many tables of logits were made."""
    made = []
    make = fused_logprobs.FusedLogProbs.table
    monkeypatch.setattr(fused_logprobs.FusedLogProbs, "table", lambda *given: made.append(1) or make(*given))
    return made


def head_of(kind, dtype=torch.float64):
    torch.manual_seed(2)
    return OutputLayer(nn.Linear(WIDTH, VOCABULARY, bias=kind == "bias", dtype=dtype), **HEADS[kind])


def loss_of(logp):
    """Clipped and curved: its derivative depends on the log-prob itself, and is 0 for some."""
    weights = torch.linspace(-1, 1, len(logp), dtype=logp.dtype)
    return (weights * logp.clamp(min=-4.0) ** 2).sum()


def loss_derivative(logp, place):
    with torch.enable_grad():
        logp = logp.clone().requires_grad_()
        return torch.autograd.grad(loss_of(logp), logp)[0][place]


def gradients(logp, hidden, head, factor=1.0, other=0.0):
    (factor * loss_of(logp) + other * logp.sum()).backward()
    leaves = [hidden, *head.layer.parameters()]
    out = [None if p.grad is None else p.grad.clone() for p in leaves]
    for p in leaves:
        p.grad = None
    return out


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk", [1, 5, 13, None])
@pytest.mark.parametrize("kind", HEADS)
def test_one_pass_is_exact(kind, chunk, temperature, passes):
    torch.manual_seed(1)
    hidden = torch.randn(N, WIDTH, dtype=torch.float64, requires_grad=True)
    head, labels = head_of(kind), torch.randint(0, VOCABULARY, (N,))
    chunks = -(-N // (chunk or N))
    table = torch.log_softmax(head(hidden) / temperature, -1)
    logp, entropy = table[torch.arange(N), labels], -(table.exp() * table).sum(-1)
    for factor, other in ((1.0, 0.0), (-3.0, 0.0), (0.0, 0.0), (1.0, 0.5)):
        fresh = torch.log_softmax(head(hidden) / temperature, -1)[torch.arange(N), labels]
        expected = gradients(fresh, hidden, head, factor, other)
        passes.clear()
        got = token_stats(hidden, head, labels, temperature, chunk, loss_derivative=loss_derivative)
        torch.testing.assert_close(got[0], logp, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(got[1], entropy, rtol=1e-10, atol=1e-12)
        for a, b in zip(gradients(got[0], hidden, head, factor, other), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)
        # a gradient that was not predicted costs a second pass, and nothing else does
        assert len(passes) == chunks * (2 if other else 1)


def test_every_use_has_the_same_values(passes):
    """Old, reference and current log-probs make ratios: they must agree to the last bits."""
    torch.manual_seed(1)
    hidden, labels = torch.randn(N, WIDTH, requires_grad=True), torch.randint(0, VOCABULARY, (N,))
    for kind in HEADS:
        head = head_of(kind, torch.float32)
        current = token_stats(hidden, head, labels, 0.7, 4, loss_derivative=loss_derivative)
        assert current[0].requires_grad
        assert not current[1].requires_grad
        with torch.no_grad():
            old = token_stats(hidden, head, labels, 0.7, 4, certainty=True)
        assert not old[0].requires_grad
        for a, b in zip(current[:2], old, strict=False):
            torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)
        assert old[2].all()
        assert not current[2].any()


def test_a_frozen_head_takes_one_pass_and_no_gradient(passes):
    torch.manual_seed(1)
    hidden, labels = torch.randn(N, WIDTH, dtype=torch.float64, requires_grad=True), torch.arange(N)
    head = head_of("plain")
    head.layer.requires_grad_(False)
    expected = gradients(torch.log_softmax(head(hidden), -1)[labels, labels], hidden, head)
    passes.clear()
    got = gradients(token_stats(hidden, head, labels, 1.0, 5)[0], hidden, head)
    assert len(passes) == 3
    assert got[1] is expected[1] is None
    torch.testing.assert_close(got[0], expected[0], rtol=1e-10, atol=1e-13)


def test_backward_twice():
    hidden, labels = torch.randn(N, WIDTH, dtype=torch.float64, requires_grad=True), torch.arange(N)
    logp = token_stats(hidden, head_of("plain"), labels, 1.0, 5, loss_derivative=loss_derivative)[0]
    first, again = (torch.autograd.grad(loss_of(logp), hidden, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(first, again, rtol=1e-12, atol=0)


def test_improbable_tokens_keep_their_log_probs():
    """Their probability is 0 in float32."""
    weight = torch.tensor([[400.0], [0.0], [-400.0]])
    layer = nn.Linear(1, 3, bias=False)
    layer.weight.data = weight
    hidden = torch.ones(3, 1, requires_grad=True)
    stats = token_stats(
        hidden, OutputLayer(layer), torch.arange(3), 1.0, loss_derivative=lambda logp, place: torch.ones(3)[place]
    )
    logp = stats[0]
    assert logp.tolist() == [0.0, -400.0, -800.0]
    logp.sum().backward()
    assert hidden.grad[:, 0].tolist() == [0.0, -400.0, -800.0]
    assert layer.weight.grad[:, 0].tolist() == [-2.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", ["plain", "bias", "capped"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_multiplies_in_half_precision_and_sums_in_full(kind, dtype):
    torch.manual_seed(1)
    hidden, labels = torch.randn(40, WIDTH, requires_grad=True), torch.randint(0, VOCABULARY, (40,))
    head = head_of(kind, torch.float32)
    size = 1e-6  # of gradients; in float16 they are gone before they are summed, unless they are scaled
    truth = gradients(torch.log_softmax(head(hidden), -1)[torch.arange(40), labels], hidden, head, size)

    def tiny_derivative(logp, place):
        return size * loss_derivative(logp, place)

    with torch.autocast("cpu", dtype=dtype):
        assert head(hidden).dtype == dtype
        stats = token_stats(hidden, head, labels, 1.0, 16, loss_derivative=tiny_derivative)
    assert stats[0].dtype == stats[1].dtype == torch.float32
    for got, want in zip(gradients(stats[0], hidden, head, size), truth, strict=True):
        assert got.dtype == torch.float32
        assert float((got - want).norm() / want.norm()) < (2e-2 if dtype == torch.bfloat16 else 3e-3)


@pytest.mark.parametrize(
    ("name", "targets"),
    [("llama_untied", "all-linear"), ("llama_untied", ["lm_head", "q_proj"]), ("gemma2", "all-linear")],
)
def test_gradients_of_adapters_on_and_off_the_head(name, targets):
    policy = Policy(with_lora(small_model(name), targets).double(), tiny_tokenizer(), temperature=0.7, chunk=3)
    batch = pad_rows(ROWS, STARTS, 0)
    policy(batch).logp.sum().backward()
    got = {n: p.grad for n, p in policy.named_parameters()}
    policy.zero_grad()
    sum(p.sum() for p, _, _ in plain_stats(policy.model, ROWS, STARTS, 0.7)).backward()
    trained = [n for n, p in policy.named_parameters() if p.requires_grad]
    assert any("lm_head" in n for n in trained) == (targets != "all-linear")
    # transformers computes parts of Gemma 2 in float32, whose kernels round a padded row otherwise on some processors
    bounds = {"rtol": 1e-5, "atol": 2e-6} if name == "gemma2" else {"rtol": 1e-10, "atol": 1e-12}
    for name_, parameter in policy.named_parameters():
        if name_ in trained:
            torch.testing.assert_close(got[name_], parameter.grad, **bounds)
        else:
            assert got[name_] is None


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (Objective("grpo", beta=0.3), 1),
        (Objective("grpo", aggregation="sequence", beta=0.0), 1),
        (Objective("dr_grpo", dual_clip=1.5, beta=0.3), 1),
        (Objective("grpo", beta=0.0, entropy=0.1), 2),  # entropy pays for its gradient
        (Objective("cispo"), 1),
        (Objective("gspo"), 1),  # before the policy has moved
    ],
)
def test_a_training_step_makes_the_logits_once(objective, expected, passes):
    module = SeRLModule("tiny:base", objective=objective)
    module.policy = small_policy("llama_tied")
    batch = pad_rows(ROWS, STARTS, 0)
    batch.advantages = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(1))
    batch.ref_logp = -torch.rand(batch.mask.shape) if objective.resolve().beta else None
    batch.num_tokens, batch.num_sequences = 14, 3
    loss = module.training_step(batch, 0)
    (4 * loss).backward()  # as accumulation, ranks or a loss scaler may have it
    assert len(passes) == expected


# --- ids that the tokenizer cannot write -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("how", ["spread", "two passes", "one pass", "predicted", "by autograd"])
def test_spare_ids_have_no_probability(kind, how):
    """Against the softmax over the other ids alone, with its gradients; the rows of spare ids get none."""
    torch.manual_seed(3)
    spare = torch.tensor([2, 17, 48, 49])
    real = torch.tensor([i for i in range(VOCABULARY) if i not in spare])
    head = head_of(kind)
    layer, with_certainty = head.layer, how != "one pass"
    layer.requires_grad_(how != "one pass")
    masked = replace(head, layer=layer if how != "by autograd" else lambda x: layer(x), spare=spare)
    hidden = torch.randn(11, WIDTH, dtype=torch.float64, requires_grad=True)
    label = torch.randint(len(real), (11,))
    weights = torch.linspace(-1, 1, 11, dtype=torch.float64)
    derivative = (lambda logp, place: weights[place]) if how == "predicted" else None
    got = token_stats(hidden, masked, real[label], 0.7, 3, with_certainty, how == "spread", derivative)
    logp = torch.log_softmax(head(hidden)[:, real] / 0.7, -1)
    want = logp[torch.arange(11), label], -(logp.exp() * logp).sum(-1), -logp.mean(-1) * with_certainty
    found = []
    for values in (got, want):
        loss = (weights * values[0]).sum()
        if how == "spread":
            loss = loss + (weights.flip(0) * values[1]).sum() + (weights**2 * values[2]).sum()
        found.append(torch.autograd.grad(loss, [hidden, *(p for p in layer.parameters() if p.requires_grad)]))
    for ours, theirs in zip((*got, *found[0]), (*want, *found[1]), strict=True):
        torch.testing.assert_close(ours, theirs)
    if how != "one pass":
        assert not found[0][1][spare].any()
        assert found[0][1].any()
    assert torch.softmax(masked(hidden) / 0.01, -1)[:, spare].max() == 0
    half = replace(masked, layer=lambda x: layer(x.double()).half())(hidden.half())
    assert half.dtype == torch.float16
    assert torch.isfinite(half).all()
