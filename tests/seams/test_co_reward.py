"""Co-Reward (2508.00410): a question and its paraphrase are answered apart, and each is scored by the other's vote."""

import re
from collections import Counter
from dataclasses import replace

from lightning_serl import Instruction
from lightning_serl.datamodules import RoundOptions
from lightning_serl.datamodules.sources import FollowUps, PromptSet
from lightning_serl.rewards import CrossVote
from lightning_serl.tiny.language import is_expression, seed_questions
from lightning_serl.types import Link

ENDING = "How many are there in the end?"
STORIES = [q for q in seed_questions(60) if not is_expression(q) and not q.endswith(ENDING)]


class Reworded(FollowUps):
    """Puts each question that was answered a second time, with another last sentence."""

    def follow(self, groups, verdicts, ctx):
        return [self.paraphrase(group.instruction) for group in groups]

    def paraphrase(self, question):
        sentences = re.split(r"(?<=[.?]) ", question.prompt)
        return replace(question, prompt=" ".join([*sentences[:-1], ENDING]), uid="", link=Link("view", question.uid))


def winners(group):
    """Every answer that no other outnumbers, counted by hand."""
    counts = Counter(answer for answer in group.answers if answer is not None)
    return {answer for answer, count in counts.items() if count == max(counts.values())}


def test_each_side_is_scored_by_the_other(three_rounds):
    size = RoundOptions(prompts_per_round=4, samples_per_prompt=8, max_attempts=1, max_waves=1)
    source = Reworded(PromptSet([Instruction(q, uid="") for q in STORIES]))
    record = three_rounds(source=source, reward=CrossVote(), round=size, max_tokens=40)

    assert len(record.rounds) == 3
    differs = 0
    for pairs, trained in zip(record.rounds, record.trained, strict=True):
        sides = {group.instruction.uid: (group, verdict) for group, verdict in pairs}
        views = [group for group, _ in pairs if group.instruction.link]
        assert (len(views), len(pairs)) == (4, 8)
        for view in views:
            asked = sides[view.instruction.link.parent][0]
            for mine, other in ((view, asked), (asked, view)):
                verdict = sides[mine.instruction.uid][1]
                assert verdict.label in (winners(other) or {None})
                assert verdict.scores.tolist() == [float(a is not None and a == verdict.label) for a in mine.answers]
                assert (mine.instruction.uid in trained) == (0 < verdict.scores.sum() < 8)  # both sides are trained on
                differs += verdict.label is not None and verdict.label not in winners(mine)
    assert differs > 0  # somewhere a side's own vote would have paid other responses
