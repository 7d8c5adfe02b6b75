"""A trained proposer, as in R-Zero (2508.05004): a proposal earns most if the policy solves it half of the time."""

from collections import Counter

import torch

from lightning_serl import Instruction
from lightning_serl.datamodules import RoundOptions
from lightning_serl.datamodules.sources import InstructionSource
from lightning_serl.prompts import InstructionTemplate, split_items
from lightning_serl.rewards import MajorityVote
from lightning_serl.tiny.language import seed_questions
from lightning_serl.types import Link, Verdict

SHOWN, PROPOSALS, ANSWERS = 4, 6, 8
SEEDS = [Instruction(question, uid="") for question in seed_questions(40)]


class Proposer(InstructionSource):
    """Asks for problems with few-shot prompts; every problem that a completion holds is then put to the policy."""

    template = InstructionTemplate(header="Write new math questions.")

    def propose(self, k, ctx):
        texts = [self.template.render(ctx.rng.sample(SEEDS, SHOWN)) for _ in range(k)]
        prompts = [Instruction(t, f"propose {ctx.round} {i}", role="propose") for i, t in enumerate(texts)]
        return ctx.generate(prompts, PROPOSALS, stop=("\n",), max_tokens=24)

    def derive(self, groups, verdicts, ctx):
        for group in groups:
            for index, completion in enumerate(group.completions):
                for item in split_items(completion.text, first=SHOWN + 1, finished=completion.finished)[:1]:
                    if not item.truncated:
                        yield Instruction(item.text, uid="", link=Link("problem", group.instruction.uid, index))


class PaidByChildren:
    """Scores a proposal min(p, 1 - p), p being its problem's mean score; without a problem it has no weight."""

    needs = frozenset()

    def __call__(self, groups, ctx):
        return [self.score(group, ctx) for group in groups]

    def score(self, group, ctx):
        scores, weight = torch.zeros(len(group)), torch.zeros(len(group))
        for (_, index), (child,) in group.links.items():
            p = ctx.verdicts[child.instruction.uid].scores.mean()
            scores[index], weight[index] = torch.minimum(p, 1 - p), 1.0
        return Verdict(scores, weight=weight, confidence=float(scores.mean()))


def test_proposals_are_paid_by_their_children(three_rounds):
    size = RoundOptions(3, ANSWERS, max_attempts=1, max_waves=1, max_derived=PROPOSALS)
    rewards = {"solve": MajorityVote(), "propose": PaidByChildren()}
    record = three_rounds(source=Proposer(), reward=rewards, round=size, max_tokens=40)

    assert len(record.rounds) == 3
    weights = []
    for pairs, trained in zip(record.rounds, record.trained, strict=True):
        children = {tuple(group.instruction.link): group for group, _ in pairs if group.instruction.link}
        for group, verdict in pairs:
            uid, scores, weight = group.instruction.uid, verdict.scores.tolist(), verdict.weight.tolist()
            differing = {s for s, w in zip(scores, weight, strict=True) if w}
            assert trained[uid] == (sum(weight) if len(differing) > 1 else 0)  # proposals too, bar those of weight 0
            for index, text in enumerate(group.texts if group.instruction.role == "propose" else ()):
                child = children.get(("problem", uid, index))
                weights.append(weight[index])
                assert weight[index] == (child is not None)
                if child is None:
                    assert scores[index] == 0
                else:
                    assert child.instruction.prompt == text.strip()
                    most = max(Counter(a for a in child.answers if a is not None).values(), default=0)
                    assert scores[index] == min(most, ANSWERS - most) / ANSWERS
    assert 0 < sum(weights) < len(weights)  # some proposals hold no problem
