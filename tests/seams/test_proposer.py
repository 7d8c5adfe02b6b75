"""A trained proposer in a run: every proposal is paid by its own problem, and those that hold none are left out."""

from collections import Counter

from lightning_serl.datamodules import RoundOptions
from lightning_serl.datamodules.sources import Proposer, Writing
from lightning_serl.engines.base import Sampling
from lightning_serl.prompts import InstructionTemplate
from lightning_serl.rewards import ChildReward, MajorityVote

PROPOSALS, ANSWERS = 6, 8


def test_proposals_are_paid_by_their_children(three_rounds):
    template = InstructionTemplate(header="Write new math questions.")
    writing = Writing(exemplars=4, from_kept=0, template=template, sampling=Sampling(max_tokens=24))
    record = three_rounds(
        seeds="tiny:seeds",
        source=Proposer(proposals=PROPOSALS),
        writing=writing,
        reward=MajorityVote(),
        role_rewards={"propose": ChildReward("sqlm")},
        round=RoundOptions(3, ANSWERS, max_attempts=2, max_waves=1, max_derived=PROPOSALS),
        max_tokens=40,
    )
    assert len(record.rounds) >= 3
    played = [{g.instruction.uid: (g, v) for g, v in pairs} for pairs in record.rounds]
    trained = sum(record.trained, Counter())
    weights, seen = [], []
    for groups in played:
        children = {tuple(g.instruction.link): g for g, _ in groups.values() if g.instruction.link}
        for uid, (group, verdict) in groups.items():
            scores, weight = verdict.scores.tolist(), verdict.weight.tolist()
            differing = {s for s, w in zip(scores, weight, strict=True) if w}
            seen.append(uid)
            assert trained[uid] in (0, sum(weight) if len(differing) > 1 else 0)  # 0 where a round had no room
            for index, text in enumerate(group.texts if group.instruction.role == "propose" else ()):
                child = children.get(("problem", uid, index))
                weights.append(weight[index])
                assert weight[index] == (child is not None)
                if child is not None:
                    assert text.strip().startswith(child.instruction.prompt)
                    most = max(Counter(a for a in child.answers if a is not None).values(), default=0)
                    assert scores[index] == (1 < most < ANSWERS)
    assert len(set(seen)) == len(seen)
    assert any(trained[uid] for groups in played for uid, (g, _) in groups.items() if g.instruction.role == "propose")
    assert 0 < sum(weights) < len(weights)  # some proposals hold no whole problem
