"""Reads the documents of ``data.documents``: a folder of text and Markdown files, one such file, or jsonl passages."""

from __future__ import annotations

import codecs
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_serl.datamodules.problems.passages import LEAST_WORDS, Passage, passages_of
from lightning_serl.errors import InputError, short
from lightning_serl.jsonl import check_unicode, numbered_lines, parse_line, read_text

#: Larger files are rarely prose, and one of them would make up most of a corpus.
LARGEST_BYTES = 20_000_000

_MARKDOWN = frozenset({".md", ".markdown", ".mdown", ".mkd"})
_TEXT = frozenset({".txt", ".text", ".rst", ".adoc", ".org", ""})
_FIELDS = ("text", "passage", "content")
_ADVICE = "give a folder of .txt or .md files, or a jsonl file with a text field"


@dataclass
class Documents:
    """The passages of a corpus, and what was left out of it."""

    name: str  # as the user typed it
    passages: list[Passage] = field(default_factory=list)
    files: int = 0  # that passages were read from
    left_out: Counter[str] = field(default_factory=Counter)  # files by reason
    examples: dict[str, str] = field(default_factory=dict)  # a file of each reason
    repeated: int = 0  # passages of a text that came before
    _texts: set[str] = field(default_factory=set)

    def leave_out(self, reason: str, file: str) -> None:
        """Count a file that is not read."""
        self.left_out[reason] += 1
        self.examples.setdefault(reason, file)

    def add(self, found: Iterator[Passage], file: str) -> None:
        """Take the passages of a file, each text once."""
        read = list(found)
        for passage in read:
            if passage.text in self._texts:
                self.repeated += 1
            else:
                self._texts.add(passage.text)
                self.passages.append(passage)
        if read:
            self.files += 1
        else:
            self.leave_out(f"without a passage of {LEAST_WORDS} words", file)

    def sentences(self) -> list[str]:
        """What was found, and what was left out if anything was, for the log."""
        shown = self.passages[0].file[-60:]
        said = f"documents: {len(self.passages)} passages from {self.files} files or rows of {self.name[-80:]}"
        return [f"{said}, the first from {shown}", *filter(None, [self.left_out_sentence()])]

    def left_out_sentence(self) -> str:
        """What was left out and why, with a file of each reason; empty if nothing was."""
        parts = [f"{n} {reason} ({self.examples[reason][-40:]})" for reason, n in sorted(self.left_out.items())]
        parts += [f"{self.repeated} passages that repeat another"] * bool(self.repeated)
        return "documents left out: " + ", ".join(parts) if parts else ""


def read_documents(name: str, longest: int) -> Documents:
    """Read and divide the documents at a path into passages of at most ``longest`` characters.

    A folder is searched recursively, in the order of names, without following links to folders. Files that are hidden,
    of another kind than text or Markdown, empty, binary, not UTF-8, above :data:`LARGEST_BYTES` or unreadable are left
    out and counted. Offsets are characters of the text without a byte-order mark.

    Raises:
        InputError: if the path does not exist or cannot be used, or no passage is found.
    """
    if not name.strip():
        raise InputError(f"data.documents is empty; {_ADVICE}")
    path, found = Path(name).expanduser(), Documents(name)
    if os.path.isdir(path):  # Path.is_dir raises if the name is too long
        _read_folder(path, longest, found)
    elif not os.path.exists(path):
        raise InputError(f"data.documents {short(name)} does not exist; {_ADVICE}")
    elif path.suffix.lower() in (".jsonl", ".json"):
        _read_rows(path, longest, found)
    else:
        _read_file(path, path.name, longest, found)
    if not found.passages:
        said = found.left_out_sentence() or "it holds no file"
        raise InputError(f"data.documents {short(name[-60:])} has no passage: {said[:130]}; {_ADVICE}")
    return found


def _read_folder(root: Path, longest: int, found: Documents) -> None:
    for folder, below, names in os.walk(root):
        for hidden in [one for one in below if one.startswith(".")]:
            found.leave_out("hidden", str((Path(folder) / hidden).relative_to(root)))
        below[:] = sorted(one for one in below if not one.startswith("."))
        for name in sorted(names):
            path = Path(folder) / name
            _read_file(path, path.relative_to(root).as_posix(), longest, found)


def _read_file(path: Path, file: str, longest: int, found: Documents) -> None:
    """Add the passages of one file, or count why it is left out."""
    try:
        text, reason = _text_or_reason(path)
    except OSError:
        text, reason = "", "unreadable"
    if reason:
        found.leave_out(reason, file)
    else:
        found.add(passages_of(text, file, longest, path.suffix.lower() in _MARKDOWN), file)


def _text_or_reason(path: Path) -> tuple[str, str]:
    """The text of a file, or why it is left out."""
    if path.name.startswith("."):
        return "", "hidden"
    if path.suffix.lower() not in _MARKDOWN | _TEXT:
        return "", "of another kind"
    if not path.is_file():
        return "", "no regular file"
    if path.stat().st_size > LARGEST_BYTES:
        return "", f"above {LARGEST_BYTES // 1_000_000} MB"
    data = path.read_bytes()
    if not data.strip():
        return "", "empty"
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if b"\0" in data and not utf16:
        return "", "binary"
    try:
        return data.decode("utf-8-sig"), ""
    except UnicodeDecodeError:
        return "", "not UTF-8"


def _read_rows(path: Path, longest: int, found: Documents) -> None:
    """Add the passages of a jsonl file: each row is a string, or an object with a text and perhaps a title."""
    what = f"data.documents {found.name}"
    for number, line in numbered_lines(read_text(path, what, _ADVICE)):
        where = f"{what[-150:]}:{number}"
        row = parse_line(line, where)
        text, title = _text_of(row, where)
        file = f"{path.name}:{number}"
        if not text.strip():
            found.leave_out("empty", file)
            continue
        found.add(passages_of(text, file, longest, markdown=False, title=title), file)


def _text_of(row: Any, where: str) -> tuple[str, str]:
    """Text and title of a row."""
    if isinstance(row, str):
        return check_unicode(row, where), ""
    name = next((one for one in _FIELDS if isinstance(row, dict) and one in row), None)
    if name is None or not isinstance(row[name], str):
        raise InputError(f"{where} has no text: a row is a string, or an object with one of {', '.join(_FIELDS)}")
    title = row.get("title")
    return check_unicode(row[name], where), check_unicode(title, where) if isinstance(title, str) else ""
