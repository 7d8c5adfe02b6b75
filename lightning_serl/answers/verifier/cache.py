"""A dictionary that forgets its oldest entries, for verdicts kept across groups."""

from __future__ import annotations

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Memo(Generic[K, V]):
    """At most ``size`` entries; the oldest goes first.

    Args:
        size: How many entries to keep.
    """

    def __init__(self, size: int = 20_000) -> None:
        self._size = size
        self._entries: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def get(self, key: K) -> V | None:
        """The remembered value, or ``None``."""
        return self._entries.get(key)

    def put(self, key: K, value: V) -> V:
        """Remember and return ``value``."""
        while len(self._entries) >= self._size:
            # The default is for another thread that was faster.
            self._entries.pop(next(iter(self._entries)), None)
        self._entries[key] = value
        return value
