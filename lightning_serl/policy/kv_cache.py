"""A key/value cache whose rows change places, in buffers that grow in steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

# New buffers hold this share more columns than are needed, and at least so many more.
_SPARE, _LEAST = 4, 32


class RowLayer(DynamicLayer):
    """Keys and values of one layer, (rows, K, columns, D), as the front part of larger buffers.

    A new token is written in place, where transformers' own layer copies the whole cache to append it. Layers with a
    sliding window keep all columns too; the mask hides those outside the window.
    """

    def __init__(self) -> None:
        super().__init__()
        self._key_buffer = self._value_buffer = torch.empty(0)
        self.rows = self.columns = 0

    def update(self, key_states: Tensor, value_states: Tensor, *given: Any, **more: Any) -> tuple[Tensor, Tensor]:
        """Append the tokens of all rows, and return all keys and values."""
        rows, _, tokens, _ = key_states.shape
        first = self.columns
        self.reserve(key_states, value_states, rows, first + tokens)
        self.rows, self.columns = rows, first + tokens
        self._key_buffer[:rows, :, first : self.columns] = key_states
        self._value_buffer[:rows, :, first : self.columns] = value_states
        self._show()
        return self.keys, self.values

    def reserve(self, keys: Tensor, values: Tensor, rows: int, columns: int) -> None:
        """Buffers like ``keys`` and ``values`` that hold at least so many rows and columns."""
        held = tuple(self._key_buffer.shape)
        if self._key_buffer.dim() == 4 and held[0] >= rows and held[2] >= columns:
            return
        if self._key_buffer.dim() != 4:
            self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
            held = (0, 0, 0, 0)
        columns = held[2] if held[2] >= columns else columns + max(columns // _SPARE, _LEAST)
        rows = max(rows, held[0])
        for name, like in (("_key_buffer", keys), ("_value_buffer", values)):
            former = getattr(self, name)
            grown = like.new_empty(rows, like.shape[1], columns, like.shape[3])
            if self.columns:
                grown[: self.rows, :, : self.columns] = former[: self.rows, :, : self.columns]
            setattr(self, name, grown)

    def put(self, keys: Tensor, values: Tensor, source: Tensor, rows: int, columns: int) -> None:
        """Add rows ``source`` of (N, K, T, D) keys and values behind the present rows, of ``rows`` at most.

        They end in the last of ``columns`` columns, at least T, which is the present number unless there are no rows.
        """
        last = self.rows + len(source)
        self.reserve(keys, values, max(rows, last), columns)
        self.columns = columns
        for buffer, states in ((self._key_buffer, keys), (self._value_buffer, values)):
            buffer[self.rows : last, :, columns - states.shape[2] : columns] = states[source]
            # hidden by the mask, but a product with NaN or infinity would not be
            buffer[self.rows : last, :, : columns - states.shape[2]] = 0
        self.rows = last
        self._show()

    def move(self, source: Tensor, target: Tensor, rows: int) -> None:
        """Copy rows ``source`` to rows ``target``; then the first ``rows`` rows are all there are."""
        if len(source):
            for buffer in (self._key_buffer, self._value_buffer):
                buffer[target, :, : self.columns] = buffer[source, :, : self.columns]
        self.rows = rows
        self._show()

    def trim(self, columns: int) -> None:
        """Forget the first columns, which no row uses."""
        kept = self.columns - columns
        for buffer in (self._key_buffer, self._value_buffer):
            buffer[: self.rows, :, :kept] = buffer[: self.rows, :, columns : self.columns].clone()
        self.columns = kept
        self._show()

    def _show(self) -> None:
        self.keys = self._key_buffer[: self.rows, :, : self.columns]
        self.values = self._value_buffer[: self.rows, :, : self.columns]


class RowCache(Cache):
    """A cache of :class:`RowLayer` for a model whose layers all attend to keys and values."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[RowLayer() for _ in range(layers)])

    def put(self, prefilled: Any, source: Tensor, rows: int, columns: int) -> None:
        """Add rows of a filled cache, see :meth:`RowLayer.put`."""
        for own, other in zip(self.layers, prefilled.layers, strict=True):
            own.put(other.keys, other.values, source, rows, columns)

    def move(self, source: Tensor, target: Tensor, rows: int) -> None:
        """See :meth:`RowLayer.move`."""
        for layer in self.layers:
            layer.move(source, target, rows)

    def trim(self, columns: int) -> None:
        """See :meth:`RowLayer.trim`."""
        for layer in self.layers:
            layer.trim(columns)


def row_layers(config: Any) -> int | None:
    """The number of layers of a model whose cache can be a :class:`RowCache`, ``None`` for other kinds of cache."""
    kinds = [type(layer) for layer in DynamicCache(config=config).layers]
    if not kinds or any(kind not in (DynamicLayer, DynamicSlidingWindowLayer) for kind in kinds):
        return None
    return len(kinds)
