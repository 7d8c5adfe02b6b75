"""The vote with the passage in view is the label of a problem; its answers can be imitated without the passage."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from lightning_serl.errors import check_range
from lightning_serl.prompts.self_contained import refers_to_text
from lightning_serl.rewards.cross_vote import unscored
from lightning_serl.rewards.majority import MajorityVote
from lightning_serl.types import Group, Verdict

#: Relation of a problem without its passage to the group that answers it with the passage.
CLOSED_BOOK = "closed_book"

_WORD = re.compile(r"\w+")


class OpenBookVote:
    r"""Votes on answers that were written with the passage in view, and turns the agreed ones into examples.

    The vote is a label if at least ``min_share`` of the responses agree, no other answer is as common, and the problem
    does not contain the answer itself. The problem is then answered without the passage and scored against the label
    (role ``solve``; SPICE, arXiv 2510.24684). This reward, of role ``open_book``, decides what the responses with the
    passage are used for.

    With ``imitate`` above 0 the responses that gave the label are trained on **under the prompt without the passage**
    (GATES, arXiv 2602.20574, which imitates whole traces of agreeing answers). With :math:`p` the mean score of the
    answers without the passage, each has the advantage :math:`\text{imitate} \cdot (1 - p)`, which is what a right
    answer is above the mean of its group, so that it fades as the policy learns the answer, and also teaches where no
    answer without the passage is right yet. It is no policy gradient: these responses were sampled under another
    prompt, so the log-probs of the sampler are dropped, their importance ratio is 1, and the term is
    :math:`-A \log \pi(y \mid q)`, the likelihood of the response. Responses that speak of the passage are left out.

    Groups are left out as ``low_consensus``, ``no_answer``, ``answer_in_problem``, ``too_easy`` (all answers without
    the passage are right), or ``needs_passage`` (every agreed response speaks of the passage).

    Args:
        min_share: Least share of the responses that agree.
        imitate: Factor of the advantage of agreed responses; 0 trains on none of them.
        answered_by: Whose weights write the responses with the passage in view: ``policy`` or ``reference``.

    Raises:
        InputError: for a share outside [0, 1], or ``imitate`` below 0.
    """

    def __init__(
        self, min_share: float = 0.6, imitate: float = 1.0, answered_by: Literal["policy", "reference"] = "policy"
    ) -> None:
        check_range("data.reading.min_share", min_share, at_least=0, at_most=1)
        check_range("data.reading.imitate", imitate, at_least=0)
        self.vote, self.imitate = MajorityVote(min_share=min_share, ties="abstain"), imitate
        self.answered_by = answered_by
        self.needs: frozenset[str] = frozenset() if answered_by == "policy" else frozenset({answered_by})

    def labels(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:
        """The votes; a verdict without label says why in ``info["unscored"]``, or has no answer."""
        return [self._checked(g, v) for g, v in zip(groups, self.vote(groups, ctx), strict=True)]

    def _checked(self, group: Group, verdict: Verdict) -> Verdict:
        problem = group.instruction
        if verdict.label is None or problem.meta.get("choices") or not quotes(problem.prompt, verdict.label):
            return verdict
        return replace(unscored(group, "answer_in_problem", verdict.info), confidence=verdict.confidence)

    def __call__(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:
        """One verdict for each group, once the answers without the passage have theirs (``ctx.verdicts``)."""
        return [self._score(g, v, ctx) for g, v in zip(groups, self.labels(groups, ctx), strict=True)]

    def _score(self, group: Group, verdict: Verdict, ctx: Any) -> Verdict:
        closed = group.links.get((CLOSED_BOOK, None))
        if verdict.label is None:
            return replace(verdict, weight=torch.zeros(len(group)))
        if closed is None or not self.imitate:
            return replace(verdict, scores=torch.zeros(len(group)), centred=True)
        right = ctx.verdicts[closed[0].instruction.uid].scores.clamp(0, 1)
        amount = self.imitate * (1 - float(right.mean()))
        agreed = torch.tensor([self._may_be_imitated(group, k, verdict) for k in range(len(group))])
        if amount < 1e-6 or not bool(agreed.any()):
            why = unscored(group, "too_easy" if amount < 1e-6 else "needs_passage", verdict.info)
            return replace(why, label=verdict.label, confidence=verdict.confidence)
        group.prompt_ids = closed[0].prompt_ids
        group.completions = [replace(one, logprobs=None) for one in group.completions]
        return replace(verdict, scores=amount * agreed.float(), weight=agreed.float(), centred=True)

    def _may_be_imitated(self, group: Group, k: int, verdict: Verdict) -> bool:
        completion = group.completions[k]
        return bool(verdict.scores[k] > 0) and completion.finished and not refers_to_text(completion.text)


def quotes(problem: str, answer: str) -> bool:
    """Whether a problem contains an answer, as whole words in any case.

    One of two alternatives ("of stone or of wood?") is no quotation, nor is yes, no, true or false.
    """
    words, sought = _words(problem), _words(answer)
    if not sought or sought in (["yes"], ["no"], ["true"], ["false"]):
        return False
    places = [i for i in range(len(words) - len(sought) + 1) if words[i : i + len(sought)] == sought]
    return bool(places) and not _ALTERNATIVES & set(words)


_ALTERNATIVES = frozenset({"or", "ou", "oder", "или", "либо", "oppure"})


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())
