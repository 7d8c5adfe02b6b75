"""SeRL's published rule reward: prompt and response together against the gold label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lightning_serl.answers.verifier.cache import BoundedCache
from lightning_serl.rewards.pairwise import is_readable, read_group, read_text, same_texts
from lightning_serl.types import Group, Verdict


class RuleReward:
    r"""Scores 1 if math-verify equates label and text in either direction; :class:`VerifiableReward` is better.

    The text is prompt, newline, response, so a number of the prompt can count as the answer, and a truncated response
    is read like any other. Every error scores 0: a label or text from which nothing can be read, one that takes too
    long, and one whose extraction cannot be printed. A group without a label gets weights 0.

    ``info`` holds ``answers`` (what was read from each text), ``no_answer`` and, without a label, ``reason``.

    Args:
        boxed: Read the label as ``\boxed{label}`` unless it holds a box, as the published evaluation files do. The
            published training with gold labels reads them bare; math-verify then understands only numbers and simple
            fractions, so no answer to 90 of the 500 published seeds can be right.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, boxed: bool = True) -> None:
        self.boxed = boxed
        self._verdicts: BoundedCache[tuple[str, str], bool] = BoundedCache()

    def __call__(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:
        """One verdict for each group; ``answers`` and ``cluster`` stay as they are."""
        return [self._score(group) for group in groups]

    def _score(self, group: Group) -> Verdict:
        n, label = len(group), group.instruction.label
        texts, read = read_group(group)
        answers = [r.get("answer") for r in read]
        info: dict[str, Any] = {"tie": False, "answers": answers, "no_answer": answers.count(None)}
        if label is None:
            info["reason"] = "the instruction has no label"
            return Verdict(torch.zeros(n), confidence=0.0, weight=torch.zeros(n), info=info)
        gold = "\\boxed{" + label + "}" if self.boxed and "\\boxed" not in label else label
        gold_is_readable = bool(n) and is_readable(read_text(gold))
        right = [
            gold_is_readable and is_readable(r) and self._same(gold, str(r["key"]), text)
            for r, text in zip(read, texts, strict=True)
        ]
        scores = torch.tensor([float(flag) for flag in right])
        return Verdict(scores, label, float(scores.sum()) / max(n, 1), info=info)

    def _same(self, gold: str, key: str, text: str) -> bool:
        """Whether math-verify equates label and text, cached by what it extracts from the text."""
        known = self._verdicts.get((gold, key))
        if known is not None:
            return known
        return self._verdicts.put((gold, key), bool(same_texts(gold, text)))
