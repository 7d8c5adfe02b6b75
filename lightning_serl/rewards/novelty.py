"""A vote that pays most for responses unlike the others (EVOL-RL)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_serl.answers import AnswerGrader
from lightning_serl.errors import check_range
from lightning_serl.rewards.base import AnswerVote, facts_of
from lightning_serl.rewards.majority import majority
from lightning_serl.types import Group, Verdict


class NoveltyVote(AnswerVote):
    r"""Scores the majority's responses in [0.5, 1], the others in [-1, -0.5], each by how new its text is.

    EVOL-RL (arXiv 2509.15194): with :math:`\bar s_i` the mean similarity of response i to the others of its side (the
    majority, or all other answers) and :math:`m_i` its largest similarity to any response of the group, its novelty is
    :math:`1 - \alpha \bar s_i - (1 - \alpha) m_i`, scaled to [0, 1] within its side by the smallest and the largest.
    The lower end of each band is the least new. The majority alone would make all responses alike; novelty keeps other
    ways to the same answer. A response without an answer gets -1. Use it with an entropy bonus and clip-higher, as
    the paper does (``model.objective.entropy``, ``model.objective.clip_high``; ``preset:method-evol-rl``).

    The paper embeds the texts with a model of 4B weights; here the similarity of two texts is by default the share of
    word 4-grams they have in common, and ``embed`` takes a function of your own.

    Args:
        grader: As in :class:`~lightning_serl.rewards.MajorityVote`; by default that of the run.
        alpha: The weight of the mean similarity beside the largest, in [0, 1].
        embed: Takes n texts, returns (n, d) vectors whose cosine is the similarity.

    Raises:
        InputError: for ``alpha`` outside [0, 1].
    """

    def __init__(
        self,
        grader: str | AnswerGrader | None = None,
        alpha: float = 0.5,
        embed: Callable[[list[str]], Tensor] | None = None,
    ) -> None:
        check_range("alpha of the novelty vote", alpha, at_least=0, at_most=1)
        super().__init__(grader)
        self.alpha, self.embed = alpha, embed

    def vote(self, group: Group, answers: Sequence[str | None], classes: Sequence[int]) -> Verdict:
        """See :meth:`AnswerVote.vote`."""
        n, info, found = len(group), facts_of(classes), majority(answers, classes)
        if found is None:
            return Verdict(torch.full((n,), -1.0), confidence=0.0, info=info)
        label, winner = found
        scores, similarity = torch.full((n,), -1.0), self._similarity(group.texts)
        for least, inside in ((0.5, True), (-1.0, False)):
            side = [i for i, number in enumerate(classes) if number >= 0 and (number == winner) is inside]
            if side:
                scores[side] = least + 0.5 * self._novelty(similarity, side)
        return Verdict(scores, label, list(classes).count(winner) / n, info=info)

    def _similarity(self, texts: list[str]) -> Tensor:
        """(n, n) similarities of the texts; 0 of a text with itself."""
        if self.embed is None:
            grams = [_grams(text) for text in texts]
            table = torch.tensor([[len(a & b) / len(a | b) for b in grams] for a in grams])
        else:
            vectors = torch.nn.functional.normalize(torch.as_tensor(self.embed(texts)).float(), dim=-1)
            table = vectors @ vectors.T
        return table.fill_diagonal_(0)

    def _novelty(self, similarity: Tensor, side: list[int]) -> Tensor:
        """Novelty of the responses of a side, scaled to [0, 1]; 0 where all are equally new."""
        mean = similarity[side][:, side].sum(-1) / max(len(side) - 1, 1)
        novelty = 1 - self.alpha * mean - (1 - self.alpha) * similarity[side].amax(-1)
        low, high = novelty.min(), novelty.max()
        return torch.zeros(len(side)) if high - low < 1e-9 else (novelty - low) / (high - low)


def _grams(text: str, size: int = 4) -> frozenset[tuple[str, ...]]:
    """The 4-grams of words of a text; a shorter text is one gram."""
    words = text.lower().split()
    return frozenset(tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1)))
