"""A reward for responses that the question makes likelier (SAR)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lightning_serl.errors import InputError
from lightning_serl.types import Group, Verdict


class SelfAligned:
    r"""Scores each response by how much the question lowers its perplexity.

    SAR (arXiv 2509.05489): :math:`r_i = \max\left(\frac{P(a) - P(a|q)}{P(a)}, -1\right)` with P the perplexity of
    the response a, alone and after the question q, under the present policy. It is a sign of relevance and brevity,
    not of being right: the paper adds it with weight 0.2 to a reward for right answers, here
    ``Mix({"MajorityVote": 1.0, "SelfAligned": 0.2})``. Both perplexities are taken after the bare problem text, without
    the chat template.

    Raises:
        InputError: on a call outside a run, where there is no policy to score texts.
    """

    needs: frozenset[str] = frozenset()

    def __call__(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:
        """One verdict for each group, without a label; an empty response gets 0."""
        if ctx is None:
            raise InputError("SelfAligned needs a run, whose policy scores the responses")
        texts = [text for group in groups for text in group.texts]
        questions = [f"{group.instruction.prompt}\n" for group in groups for _ in group.texts]
        # one call for all: a call is a collective where the weights are sharded
        logps = ctx.score(["", *[""] * len(texts), *questions], ["", *texts, *texts])[1:]
        alone, after = logps[: len(texts)], logps[len(texts) :]
        scores = [_gain(a, b) for a, b in zip(alone, after, strict=True)]
        verdicts, done = [], 0
        for group in groups:
            verdicts.append(Verdict(torch.tensor(scores[done : done + len(group)])))
            done += len(group)
        return verdicts


def _gain(alone: torch.Tensor, after: torch.Tensor) -> float:
    """The relative fall of the perplexity, at least -1, from (t,) log-probs in nats."""
    if not len(alone):
        return 0.0
    # P(a|q) / P(a) from the logarithms, which cannot overflow before the bound
    ratio = torch.exp(torch.clamp(alone.double().mean() - after.double().mean(), max=1.0))
    return float(torch.clamp(1 - ratio, min=-1.0))
