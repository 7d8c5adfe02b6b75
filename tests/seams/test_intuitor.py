"""Intuitor (2505.19590): the reward is the policy's own certainty; nothing is voted on and no label exists."""

import pytest
import torch

from lightning_serl.datamodules import RoundOptions
from lightning_serl.rewards import SelfCertainty


def logprobs(model, group, completion):
    """(tokens, vocabulary) log-probs of a plain transformers model along one response."""
    ids = torch.tensor([group.prompt_ids + completion.token_ids])
    with torch.no_grad():
        return model(ids).logits[0, len(group.prompt_ids) - 1 : -1].log_softmax(-1)


def certainties(model, group):
    return torch.tensor([-logprobs(model, group, c).mean() for c in group.completions])


def likelihoods(model, group):
    chosen = [logprobs(model, group, c).gather(1, torch.tensor([c.token_ids]).T) for c in group.completions]
    return torch.tensor([logp.sum() for logp in chosen])


def test_certainty_is_rewarded(three_rounds):
    size = RoundOptions(prompts_per_round=4, samples_per_prompt=8, max_attempts=1)
    record = three_rounds(seeds="tiny:seeds", source="seeds", reward=SelfCertainty(), round=size, max_tokens=40)

    assert len(record.rounds) == 3
    for number, pairs in enumerate(record.rounds):
        assert [len(group) for group, _ in pairs] == [8] * 4
        # Scores differ inside every group whose responses do; those groups, and no others, are trained on.
        differing = {
            group.instruction.uid: 8 for group, _ in pairs if len({c.token_ids for c in group.completions}) > 1
        }
        assert differing == {g.instruction.uid: 8 for g, verdict in pairs if verdict.scores.std() > 1e-3}
        assert record.trained[number] == differing
        assert len(differing) > 1
        for group, verdict in pairs:
            assert [len(tokens) for tokens in group.stats["certainty"]] == [len(c.token_ids) for c in group.completions]
            assert verdict.scores.tolist() == pytest.approx(
                certainties(record.models[number], group).tolist(), abs=1e-4
            )

    # The present policy scores itself; the frozen base would have said something else of the later rounds.
    for pairs in record.rounds[1:]:
        assert max(float((v.scores - certainties(record.models[0], g)).abs().max()) for g, v in pairs) > 1e-2
    # One step makes certain responses likelier than uncertain ones.
    before, after = record.models[0], record.models[1]
    for group, verdict in record.rounds[0]:
        gain = likelihoods(after, group) - likelihoods(before, group)
        assert float((gain * (verdict.scores - verdict.scores.mean())).sum()) > 0
