"""A reward for reasoning whose intermediate states point to its own answer (CoVo)."""

from __future__ import annotations

import cmath
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from lightning_serl.answers import AnswerGrader, resolve_grader, strip_thinking
from lightning_serl.errors import InputError, check_range
from lightning_serl.rewards.base import facts_of, fill_answers, grader_of
from lightning_serl.types import Group, Verdict

#: One response: its state prefixes, its answers to compare, and the place of its own among them.
_Case = tuple[list[str], list[str], int]


class CoVo:
    r"""Scores 1 for an answer whose responses lean towards it from early on and without turning away, else 0.

    CoVo (arXiv 2506.08745). The states of a response are the problem and its first 0, 1, ... T - 1 steps. A state
    leans towards the answer of the group that has the highest mean log-prob per token after it. With Con the share of
    states that lean towards the response's own answer, and Vol one minus the length of the last unbroken run of such
    states over T, the responses i of an answer have the reward

    .. math:: r = \left\| \frac{1}{m} \sum_{i=1}^m \mathrm{Con}_i
        \begin{pmatrix} \cos \mathrm{Vol}_i \\ \sin \mathrm{Vol}_i \end{pmatrix} \right\|,

    and all get 1 if :math:`r \ge` ``threshold``, as in the published code. A group in which only one answer was given
    gets 0: unanimity would be reinforced under a baseline over the batch, and lock in. The curiosity bonus of the paper
    is left out.

    Fragile as :class:`SelfCertainty` is: the policy rates itself, so it can learn to state the answer first, after
    which every state leans towards it. Watch the signs of health. It costs a pass over each state and answer: at most
    ``n x states x most`` short rows for a group, in one call.

    Args:
        grader: As in :class:`~lightning_serl.rewards.MajorityVote`; by default that of the run.
        threshold: Rewards from here on count 1; ``None`` pays the reward itself.
        states: Most states of a response; steps are its lines, or its sentences if it has one line, and more steps
            than states are merged.
        most: Answers that are compared, the most common ones; responses with another answer get 0.

    Raises:
        InputError: for an option out of range, and on a call outside a run.
    """

    needs: frozenset[str] = frozenset()

    def __init__(
        self,
        grader: str | AnswerGrader | None = None,
        threshold: float | None = 0.5,
        states: int = 15,
        most: int = 8,
    ) -> None:
        check_range("threshold of CoVo", threshold, at_least=0, at_most=1)
        check_range("states of CoVo", states, at_least=1)
        check_range("most of CoVo", most, at_least=2)
        self.grader, self.named = resolve_grader("math" if grader is None else grader), grader is not None
        self.threshold, self.states, self.most = threshold, states, most

    def __call__(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:
        """One verdict for each group, whose label is the answer with the largest reward; one pass for all."""
        if ctx is None:
            raise InputError("CoVo needs a run, whose policy scores the states")
        fill_answers(groups, grader_of(self.grader, self.named, ctx))
        cases = [self._cases(group) for group in groups]
        rows = [(s, f" {a}") for one in cases for states, answers, _ in one.values() for s in states for a in answers]
        # one call for all, never an empty one: a call is a collective where the weights are sharded
        logps = ctx.score(["", *(state for state, _ in rows)], ["", *(answer for _, answer in rows)])[1:]
        means = iter([float(logp.mean()) if len(logp) else -math.inf for logp in logps])
        verdicts = []
        for group, one in zip(groups, cases, strict=True):
            traits = {
                index: consistency([[next(means) for _ in answers] for _ in states], own)
                for index, (states, answers, own) in one.items()
            }
            verdicts.append(self._verdict(group, traits))
        return verdicts

    def _cases(self, group: Group) -> dict[int, _Case]:
        """What is compared of each response, by its index; nothing where a single answer was given."""
        answers, classes = group.answers or [], group.cluster or []
        sizes = Counter(c for c in classes if c >= 0)
        shown = sorted(sizes, key=lambda c: (-sizes[c], c))[: self.most]
        texts = [min(a for a, c in zip(answers, classes, strict=True) if c == one and a is not None) for one in shown]
        return {
            index: (self._states(group.instruction.prompt, text), texts, shown.index(number))
            for index, (text, number) in enumerate(zip(group.texts, classes, strict=True))
            if number in shown and len(shown) > 1
        }

    def _states(self, problem: str, text: str) -> list[str]:
        body = strip_thinking(text).strip()
        steps = [line for line in body.splitlines() if line.strip()]
        steps = steps if len(steps) > 1 else re.split(r"(?<=[.!?])\s+", body)
        count = min(self.states, len(steps))
        cuts = [len(steps) * k // count for k in range(count)]
        return ["\n".join([problem, *steps[:cut], "The answer is"]) for cut in cuts]

    def _verdict(self, group: Group, traits: dict[int, tuple[float, float]]) -> Verdict:
        classes, info = group.cluster or [], facts_of(group.cluster or [])
        rewards = {}
        for number in sorted({classes[index] for index in traits}):
            own = [cmath.rect(*traits[index]) for index in traits if classes[index] == number]
            rewards[number] = abs(sum(own) / len(own))
        paid = rewards if self.threshold is None else {c: float(r >= self.threshold) for c, r in rewards.items()}
        scores = torch.tensor([paid.get(number, 0.0) for number in classes])
        best = max(rewards, key=lambda c: (rewards[c], -c), default=None)
        label = min((a for a, c in zip(group.answers or [], classes, strict=True) if c == best and a), default=None)
        return Verdict(scores, label, float((scores > 0).float().mean()) if len(scores) else 0.0, info=info)


def consistency(table: Sequence[Sequence[float]], own: int) -> tuple[float, float]:
    """Con and Vol of a response from the mean log-probs of the answers (columns) after each state (rows)."""
    leans = [row[own] >= max(row) for row in table]
    run = next((k for k, lean in enumerate(reversed(leans)) if not lean), len(leans))
    return sum(leans) / len(leans), 1 - run / len(leans)
