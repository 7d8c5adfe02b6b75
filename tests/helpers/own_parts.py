"""Parts as a user writes them beside the command: without types, and with options of their own."""

import re

import torch

from lightning_serl.datamodules.sources import InstructionSource
from lightning_serl.engines import TransformersEngine
from lightning_serl.rewards import MajorityVote
from lightning_serl.types import Instruction, Verdict

SEEN = {}  # what the reward saw, by name


class Sums(InstructionSource):
    """A fixed list, which the novelty filter must not thin out."""

    filtered = False

    def __init__(self, first=1):
        self.first = first

    def propose(self, k, ctx):
        return [Instruction(f"Compute {self.first + i} + 2.", "") for i in range(k)]


class LastNumber:
    """Reads the last number, boxed or not, which the math grader would not."""

    def __init__(self, prefix=""):
        self.prefix = prefix

    def extract(self, text):
        found = re.findall(r"\d+", text)
        return self.prefix + found[-1] if found else None

    def same(self, a, b):
        return a == b


class Watch:
    """Scores by the majority of the run's grader, and keeps what it was given."""

    def __init__(self, power=1.0):
        self.power = power

    def __call__(self, groups, ctx):
        group = groups[0]
        verdicts = MajorityVote()(groups, ctx)
        told = ctx.generate(["Is 4 right?", "Is 4 right?"], max_tokens=3)
        again = ctx.generate(["Is 4 right?"], 1, max_tokens=3)
        SEEN.update(
            answers=list(group.answers),
            extracted=[ctx.extract(text, group.instruction) for text in group.texts],
            label=verdicts[0].label,
            same=ctx.same("n4", "n4") and not ctx.same("n4", "n5"),
            told=[g.texts for g in told],
            again=again[0].texts,
            prompts=[g.instruction.prompt for g in groups],
            power=self.power,
        )
        return [Verdict(v.scores**self.power, v.label, v.confidence) for v in verdicts]


class Slow(TransformersEngine):
    """An engine with an option of its own."""

    def __init__(self, nap=0.0, max_rows=64):
        super().__init__(max_rows)
        self.nap = nap


def by_length(groups, ctx):
    """A reward that is a plain function."""
    return [Verdict(torch.tensor([float(len(t)) for t in g.texts])) for g in groups]
