"""SeRL's rule reward exactly as published: prompt and response together against the gold label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lightning_serl.answers.verifier.cache import Memo
from lightning_serl.answers.verifier.client import shared_client
from lightning_serl.types import Group, Verdict

# The published code gives math-verify this long for a parse and for a comparison.
REQUEST_SECONDS = 5.0


class RuleReward:
    r"""Scores 1 where math-verify equates label and text either way; :class:`VerifiableReward` is the better rule.

    The text is prompt, newline, response, so a number of the prompt can count as the answer, and a response that was
    cut off is read like any other. Whatever ends in an error scores 0: a label or text from which nothing can be read,
    one that takes too long, and one whose extraction cannot be printed. A group without a label gets weight 0.

    ``info`` holds ``answers`` (what was read from each text), ``no_answer`` and, without a label, ``reason``.

    Args:
        boxed: Read the label as ``\boxed{label}`` unless it holds a box, as the published evaluation files do. The
            published training with gold labels reads them bare, of which math-verify understands numbers and simple
            fractions alone: no answer to 90 of the 500 published seeds can then be right.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, boxed: bool = True) -> None:
        self.boxed = boxed
        self._verdicts: Memo[tuple[str, str], bool] = Memo()

    def __call__(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:
        """One verdict for each group; ``answers`` and ``cluster`` stay as they are."""
        return [self._score(group) for group in groups]

    def _score(self, group: Group) -> Verdict:
        n, label = len(group), group.instruction.label
        texts = [f"{group.instruction.prompt}\n{text}" for text in group.texts]
        read = [shared_client().ask("read", REQUEST_SECONDS, text=text) or {} for text in texts]
        answers = [r.get("answer") for r in read]
        info: dict[str, Any] = {"tie": False, "answers": answers, "no_answer": answers.count(None)}
        if label is None:
            info["reason"] = "the instruction has no label"
            return Verdict(torch.zeros(n), confidence=0.0, weight=torch.zeros(n), info=info)
        gold = "\\boxed{" + label + "}" if self.boxed and "\\boxed" not in label else label
        own = (shared_client().ask("read", REQUEST_SECONDS, text=gold) or {}) if n else {}
        right = [
            _readable(own) and _readable(r) and self._same(gold, str(r["key"]), text)
            for r, text in zip(read, texts, strict=True)
        ]
        scores = torch.tensor([float(flag) for flag in right])
        return Verdict(scores, label, float(scores.sum()) / max(n, 1), info=info)

    def _same(self, gold: str, key: str, text: str) -> bool:
        """Whether math-verify equates label and text, remembered by what it extracts from the text."""
        known = self._verdicts.get((gold, key))
        if known is not None:
            return known
        reply = shared_client().ask("same", REQUEST_SECONDS, a=gold, b=text)
        return self._verdicts.put((gold, key), bool(reply and reply.get("same")))


def _readable(read: dict[str, Any]) -> bool:
    """Whether something was extracted and can be printed, which the published code does before it believes a match."""
    return read.get("key") is not None and bool(read.get("printable"))
