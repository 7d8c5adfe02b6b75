"""A dictionary of bounded size, for verdicts that are kept across groups."""

from __future__ import annotations

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """Holds at most ``size`` entries and drops the oldest first.

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
        """The stored value, or ``None``."""
        return self._entries.get(key)

    def put(self, key: K, value: V) -> V:
        """Store and return ``value``."""
        while len(self._entries) >= self._size:
            # The default covers another thread that removed it first.
            self._entries.pop(next(iter(self._entries)), None)
        self._entries[key] = value
        return value
