"""Drawing tokens over a large vocabulary, in blocks, against one cumulative sum in float64."""

import pytest
import torch

from lightning_serl.engines import Sampling
from lightning_serl.engines.token_choice import choose_tokens


def reference(logits, temperature, draw):
    """The token in which the share ``draw`` of all probability falls, and the log-probs of all tokens, in float64."""
    logp = torch.log_softmax((logits / temperature).double(), -1)
    cumulative = logp.exp().cumsum(-1)
    return torch.searchsorted(cumulative, draw[:, None] * cumulative[:, -1:], right=True)[:, 0], cumulative, logp


@pytest.mark.parametrize(("vocabulary", "temperature"), [(2047, 1.0), (2049, 0.7), (5000, 1.3), (49_152, 1.0)])
def test_blocks_draw_what_one_sum_draws(vocabulary, temperature):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = 4 * torch.randn(64, vocabulary, generator=generator)
    logits[::3] *= 5  # nearly all the probability in a few tokens
    draw = torch.rand(64, generator=generator, dtype=torch.float64)
    chosen, logp = choose_tokens(logits, Sampling(1, temperature), draw)
    expected, cumulative, exact = reference(logits, temperature, draw)
    # float32 probabilities move an edge by a few 1e-7: only a draw as near to an edge as that may differ
    edges = cumulative.gather(-1, torch.minimum(chosen, expected)[:, None])[:, 0]
    differs = chosen != expected
    assert ((edges - draw)[differs].abs() < 2e-6).all()
    assert differs.float().mean() < 0.05
    assert torch.allclose(logp.double(), exact.gather(-1, chosen[:, None])[:, 0], atol=2e-6, rtol=0)


def test_blocks_without_probability_are_not_drawn():
    vocabulary, allowed = 10_000, [700, 3000, 9999]
    logits = torch.full((5, vocabulary), -torch.inf)
    logits[:, allowed] = torch.tensor([0.5, 0.25, 0.25]).log()
    draw = torch.tensor([0.0, 0.4999, 0.5001, 0.7501, 1 - 2**-53], dtype=torch.float64)
    chosen, logp = choose_tokens(logits, Sampling(1), draw)
    assert chosen.tolist() == [700, 700, 3000, 9999, 9999]
    assert logp.exp().tolist() == pytest.approx([0.5, 0.5, 0.25, 0.25, 0.25], abs=1e-6)


def test_top_k_and_top_p_over_a_large_vocabulary():
    logits = torch.zeros(2000, 6000)
    logits[:, 100], logits[:, 5000] = 12.0, 11.0
    draw = torch.linspace(0, 1 - 1e-9, 2000, dtype=torch.float64)
    for sampling in (Sampling(1, 1.0, 1.0, 2), Sampling(1, 1.0, 0.9, 0)):
        chosen, _ = choose_tokens(logits.clone(), sampling, draw)
        assert set(chosen.tolist()) == {100, 5000}
        share = torch.sigmoid(torch.tensor(1.0)).item()
        assert (chosen == 100).float().mean().item() == pytest.approx(share, abs=2e-3)
