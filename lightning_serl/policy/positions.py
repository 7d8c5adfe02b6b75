"""Position embeddings that change with the longest row of a batch, and the length up to which they do not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Kinds of rotary embedding whose frequencies depend on the longest row of each pass.
_BY_LENGTH = {"longrope", "dynamic"}


def steady_length(config: Any) -> int | None:
    """Most tokens of a row at which no row of its batch changes its position embedding; ``None`` for no limit.

    Beyond it (LongRoPE, Ding et al., 2402.13753; dynamic NTK scaling) the log-probs of a row would depend on its
    neighbours, and the keys of tokens that are written before it would have other frequencies than those after it.
    """
    text = config.get_text_config()
    most = getattr(text, "max_position_embeddings", None)
    lengths = [
        one.get("original_max_position_embeddings") or getattr(text, "original_max_position_embeddings", None) or most
        for one in _rotary(getattr(text, "rope_parameters", None))
        if one.get("rope_type") in _BY_LENGTH
    ]
    return min((int(n) for n in lengths if n is not None), default=None)


def _rotary(parameters: Any) -> Iterator[dict[str, Any]]:
    """The parameters of a model's rotary embeddings: one, or one for each type of layer."""
    if isinstance(parameters, dict):
        yield parameters
        yield from (one for one in parameters.values() if isinstance(one, dict))
