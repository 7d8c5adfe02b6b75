"""Measures the variety of a set of problems."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_serl.pool.words import tokenise


def unique_ngrams(texts: Iterable[str], n: int = 4) -> float:
    """The share of distinct n-grams among all n-grams of some texts (distinct-n, Li et al. 2016); 1 if there is none.

    Args:
        texts: Problems; no n-gram spans two of them.
        n: Words per n-gram, as :func:`lightning_serl.pool.words.tokenise` finds them.
    """
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        words = tokenise(text)
        for start in range(len(words) - n + 1):
            seen.add(tuple(words[start : start + n]))
            total += 1
    return len(seen) / total if total else 1.0
