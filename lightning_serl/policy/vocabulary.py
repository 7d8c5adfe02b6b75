"""What tokenizer and model say of the same ids: rows without a token, tokens without a row, and text from ids."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from lightning_serl.errors import InputError

# Special tokens that texts hold: the marks of thoughts and of channels, by which the answer is told from them.
_MARKS = re.compile(r"think|thought|reason|inner_(?:pre|suf)fix|channel", re.IGNORECASE)
_CHANNEL_MARKS = {"<|message|>", "<|start|>", "<|end|>", "<|constrain|>"}
# Tokens of other media, which no text contains.
_MEDIA = re.compile(r"image|audio|video|vision|speech", re.IGNORECASE)


def spare_ids(tokenizer: Any, rows: int, kept: Collection[int] = ()) -> list[int]:
    """Ids of a model with so many rows that the tokenizer cannot write, but for those ``kept``.

    Embeddings are padded to sizes that suit the hardware. A sampled id of the padding has no text, and no end.
    """
    if not hasattr(tokenizer, "get_vocab"):
        return []  # what it can write is unknown
    known = {*tokenizer.get_vocab().values(), *kept}
    return [i for i in range(rows) if i not in known]


def check_tokenizer(tokenizer: Any, rows: int, shown: str) -> None:
    """Refuse a tokenizer without an end token, or with a token of texts for which the embedding has no row."""
    if tokenizer.eos_token_id is None:
        raise InputError(f"the tokenizer of model {shown} has no end token; set eos_token in its tokenizer_config.json")
    beyond = {i: token for token, i in tokenizer.get_vocab().items() if i >= rows}
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    unused = {i for i, token in beyond.items() if i in special and i != tokenizer.eos_token_id}
    unused = {i for i in unused if i == tokenizer.pad_token_id or _MEDIA.search(beyond[i])}
    if odd := sorted(set(beyond) - unused):
        raise InputError(
            f"the tokenizer of model {shown} has ids up to {max(beyond)} but the model's embedding has {rows} rows (no "
            f"row for {beyond[odd[0]][:40]!r}); give the tokenizer of this model, or call resize_token_embeddings and "
            "train the new rows"
        )


class TextDecoder:
    """Text from ids: special tokens are left out, but for the marks of thoughts and channels, by which they are read.

    Args:
        tokenizer: Of the model.
        ends: Ids that end a completion; they are never text.
    """

    def __init__(self, tokenizer: Any, ends: tuple[int, ...]) -> None:
        self._tokenizer, self.ends = tokenizer, ends
        special = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        has_channels = any("channel" in content for content in special.values())
        outside = {*ends, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        marks = {
            i
            for i, content in special.items()
            if i not in outside and (_MARKS.search(content) or (has_channels and content in _CHANNEL_MARKS))
        }
        # none: the tokenizer leaves out what is special
        self._left_out = set(special) - marks if marks else None

    def __call__(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The text of each row of ids, exactly as the tokenizer spells it."""
        skip = self._left_out is None
        if self._left_out is not None:
            rows = [[i for i in row if i not in self._left_out] for row in rows]
        texts = self._tokenizer.batch_decode(rows, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        return list(texts)
