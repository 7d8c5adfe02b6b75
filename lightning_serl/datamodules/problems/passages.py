"""Divides texts into passages: along headings and paragraphs, and where those are too long along sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lightning_serl.pool.words import count_words

#: Shorter passages hold no fact that could be asked for: lone headings, page numbers, signatures.
LEAST_WORDS = 6

_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n.{0,20000}?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_FENCE = re.compile(r"^[ \t]{0,3}(?:```|~~~)", re.MULTILINE)
_PARAGRAPH_END = re.compile(r"\n[ \t\r]*\n\s*")
_HEADING = re.compile(r"[ \t]{0,3}(#{1,6})[ \t]+(\S[^\n]*?)[ \t#]*(?:\r?\n|\Z)")
_UNDERLINED = re.compile(r"[ \t]{0,3}(\S[^\n]{0,200}?)[ \t]*\r?\n[ \t]{0,3}(=+|-{2,})[ \t]*(?:\r?\n|\Z)")
_SENTENCE_END = re.compile(r"[.!?؟।][\"'”’»)\]]{0,3}\s+|[。！？][”」』）]{0,3}|\n")
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Passage:
    """A part of a document that problems are written from.

    Attributes:
        file: Where it is, as ledger and errors cite it: path inside the folder, with the row of a jsonl file.
        start: Offset of its first character in the decoded text.
        end: Offset after its last character.
        text: What the policy sees: the headings above the passage, then ``end - start`` characters of the document.
    """

    file: str
    start: int
    end: int
    text: str

    @property
    def key(self) -> str:
        """A name that is unique in a corpus."""
        return f"{self.file}:{self.start}"

    @property
    def citation(self) -> dict[str, str | int]:
        """File and offsets, for ``Instruction.meta`` and the ledger."""
        return {"file": self.file, "start": self.start, "end": self.end}


@dataclass(frozen=True)
class _Block:
    """A paragraph, with the headings that it stands under."""

    start: int
    end: int
    headings: tuple[str, ...]


def passages_of(text: str, file: str, longest: int, markdown: bool, title: str = "") -> Iterator[Passage]:
    """The passages of a text in order; those of fewer than :data:`LEAST_WORDS` words are left out.

    Paragraphs are joined up to ``longest`` characters under one heading, and never over a heading. A paragraph that is
    longer is divided at sentence ends, else at white space, else anywhere. Headings do not count as characters.

    Args:
        text: The document.
        file: See :class:`Passage`.
        longest: Characters of a passage, at most.
        markdown: Whether lines such as ``# Title`` are headings, and ``---`` lines at the top surround metadata.
        title: A heading above the whole text.
    """
    above = (title,) if title else ()
    blocks = [part for block in _blocks(text, markdown) for part in _divided(text, block, longest)]
    joined: list[_Block] = []
    for block in blocks:
        last = joined[-1] if joined else None
        if last is not None and last.headings == block.headings and block.end - last.start <= longest:
            joined[-1] = _Block(last.start, block.end, last.headings)
        else:
            joined.append(block)
    for block in joined:
        body = text[block.start : block.end]
        if count_words(body) >= LEAST_WORDS:
            shown = [" > ".join((*above, *block.headings)), body] if above or block.headings else [body]
            yield Passage(file, block.start, block.end, "\n".join(shown))


def _blocks(text: str, markdown: bool) -> Iterator[_Block]:
    """The paragraphs of a text; those of code between fences stay together."""
    front = _FRONT_MATTER.match(text) if markdown else None
    start, fenced = (front.end() if front else 0), False
    headings: list[tuple[int, str]] = []
    pieces = [*((m.start(), m.end()) for m in _PARAGRAPH_END.finditer(text, start)), (len(text), len(text))]
    begin = start
    for stop, following in pieces:
        if markdown and len(_FENCE.findall(text[start:stop])) % 2:
            fenced = not fenced
        if fenced and stop < len(text):
            start = following
            continue
        if markdown:
            begin = _skip_headings(text, begin, stop, headings)
        yield from _trimmed(text, begin, stop, tuple(name for _, name in headings))
        start = begin = following


def _skip_headings(text: str, begin: int, stop: int, headings: list[tuple[int, str]]) -> int:
    """The offset behind the headings that a paragraph opens with, which are entered into the list of those above."""
    while begin < stop:
        marked = _HEADING.match(text, begin, stop) or _UNDERLINED.match(text, begin, stop)
        if marked is None:
            break
        mark, name = (marked[1], marked[2]) if marked.re is _HEADING else (marked[2], marked[1])
        depth = len(mark) if mark[0] == "#" else 1 if mark[0] == "=" else 2
        headings[:] = [one for one in headings if one[0] < depth]
        headings.append((depth, name.strip()))
        begin = marked.end()
    return begin


def _trimmed(text: str, start: int, end: int, headings: tuple[str, ...]) -> Iterator[_Block]:
    """The block without white space around it, if anything is left."""
    body = text[start:end]
    if body.strip():
        left = start + len(body) - len(body.lstrip())
        yield _Block(left, start + len(body.rstrip()), headings)


def _divided(text: str, block: _Block, longest: int) -> Iterator[_Block]:
    """Parts of a block of at most ``longest`` characters."""
    start = block.start
    while block.end - start > longest:
        window = start, start + longest
        cut = next((found for mark in (_SENTENCE_END, _SPACE) if (found := _last(mark, text, *window))), window[1])
        yield from _trimmed(text, start, cut, block.headings)
        start = cut
    yield from _trimmed(text, start, block.end, block.headings)


def _last(mark: re.Pattern[str], text: str, start: int, end: int) -> int | None:
    """The end of the last mark in the second half of a window, so that no part is very short."""
    found = [m.end() for m in mark.finditer(text, start + (end - start) // 2, end)]
    return found[-1] if found else None
