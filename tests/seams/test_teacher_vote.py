"""Co-rewarding-II (2508.00410): the label is the vote of a teacher, a slow average of the policy's own weights."""

from collections import Counter

import torch

from lightning_serl.callbacks import ReferenceSync
from lightning_serl.datamodules import RoundOptions
from lightning_serl.rewards import TeacherVote


def logprobs(model, group):
    """Of all tokens of a group's responses, from a plain transformers model."""
    out = []
    for completion in group.completions:
        ids = torch.tensor([group.prompt_ids + completion.token_ids])
        with torch.no_grad():
            logp = model(ids).logits[0, len(group.prompt_ids) - 1 : -1].log_softmax(-1)
        out.append(logp.gather(1, torch.tensor([completion.token_ids]).T)[:, 0])
    return torch.cat(out)


def test_the_teacher_votes(three_rounds):
    size = RoundOptions(prompts_per_round=12, samples_per_prompt=8, max_attempts=1)
    sync = ReferenceSync(mode="ema", alpha=0.2, who="teacher")
    record = three_rounds(sync, seeds="tiny:seeds", source="seeds", reward=TeacherVote(), round=size, max_tokens=40)

    assert len(record.rounds) == 3
    differs = 0
    for number, pairs in enumerate(record.rounds):
        policy, teacher = record.models[number], record.teachers[number]
        # Draws of its own: while it still equals the policy it must not repeat the policy's responses.
        assert any(group.texts != group.links["teacher", None][0].texts for group, _ in pairs)
        for group, verdict in pairs:
            (taught,) = group.links["teacher", None]
            written = torch.tensor([p for c in taught.completions for p in c.logprobs])
            assert float((written - logprobs(teacher, taught)).abs().max()) < 1e-4  # the teacher wrote this,
            assert number == 0 or float((written - logprobs(policy, taught)).abs().max()) > 1e-3  # not the policy
            counts = Counter(a for a in taught.answers if a is not None)
            assert counts[verdict.label] == max(counts.values(), default=0)
            assert verdict.scores.tolist() == [float(a is not None and a == verdict.label) for a in group.answers]
            own = Counter(a for a in group.answers if a is not None)
            differs += own[verdict.label] < max(own.values(), default=0)
    assert differs > 0  # somewhere the policy's own vote would have paid other responses

    # The teacher follows: after each step it goes a fifth of the way to the policy.
    for number in (0, 1):
        old, new, policy = record.teachers[number], record.teachers[number + 1], record.models[number + 1]
        for a, b, p in zip(old.parameters(), new.parameters(), policy.parameters(), strict=True):
            assert 0 < float((b - a).abs().max()) < float((p - a).abs().max())
            torch.testing.assert_close(b, a + 0.2 * (p - a))
