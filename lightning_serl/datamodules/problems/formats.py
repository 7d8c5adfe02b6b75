"""Recognises files that are no jsonl by their first bytes and their name, and says how to convert them."""

from __future__ import annotations

import codecs
from pathlib import Path

from lightning_serl.errors import InputError

_READ = "jsonl (one JSON object per line) or one JSON list, in UTF-8"

_PANDAS = "pandas.{reader}('{name}').to_json('problems.jsonl', orient='records', lines=True)"
# First bytes, the name of the format, and how to convert a file of it.
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"PAR1", "a parquet file", _PANDAS.format(reader="read_parquet", name="{name}")),
    (b"ARROW1", "an arrow file", _PANDAS.format(reader="read_feather", name="{name}")),
    (b"\x1f\x8b", "a gzip archive", "gunzip {name}"),
    (b"BZh", "a bzip2 archive", "bunzip2 {name}"),
    (b"\xfd7zXZ", "an xz archive", "unxz {name}"),
    (b"\x28\xb5\x2f\xfd", "a zstandard archive", "unzstd {name}"),
    (b"7z\xbc\xaf", "a 7z archive", "7z x {name}"),
    (b"SQLite format 3", "an SQLite database", "pandas.read_sql"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself", "git lfs pull"),
    (b"\x93NUMPY", "a numpy array", "numpy.load and json.dumps"),
    (b"%PDF", "a pdf file", "copy its problems into a jsonl file"),
    (b"\xd0\xcf\x11\xe0", "an xls file (Excel)", _PANDAS.format(reader="read_excel", name="{name}")),
    (b"\x80\x04", "a pickle", "pandas.read_pickle"),
    (b"\x80\x05", "a pickle", "pandas.read_pickle"),
    (codecs.BOM_UTF32_LE, "UTF-32 text, not UTF-8", "iconv -f UTF-32 -t UTF-8 {name} > problems.jsonl"),
    (codecs.BOM_UTF32_BE, "UTF-32 text, not UTF-8", "iconv -f UTF-32 -t UTF-8 {name} > problems.jsonl"),
    (codecs.BOM_UTF16_LE, "UTF-16 text, not UTF-8", "iconv -f UTF-16 -t UTF-8 {name} > problems.jsonl"),
    (codecs.BOM_UTF16_BE, "UTF-16 text, not UTF-8", "iconv -f UTF-16 -t UTF-8 {name} > problems.jsonl"),
)
_ENDINGS = {
    ".csv": ("a csv file (comma-separated)", _PANDAS.format(reader="read_csv", name="{name}")),
    ".tsv": (
        "a tsv file (tab-separated)",
        "pandas.read_table('{name}').to_json('problems.jsonl', orient='records', lines=True)",
    ),
    ".yaml": ("a yaml file", "yaml.safe_load and json.dumps"),
    ".yml": ("a yaml file", "yaml.safe_load and json.dumps"),
    ".xml": ("an xml file", "pandas.read_xml('{name}').to_json('problems.jsonl', orient='records', lines=True)"),
    ".html": ("an html file", "copy its problems into a jsonl file"),
    ".txt": ("a text file", 'write each problem as {{"problem": "..."}} on a separate line'),
    ".md": ("a text file", 'write each problem as {{"problem": "..."}} on a separate line'),
}


def refuse_other_formats(path: Path, name: str) -> None:
    """Raise :class:`InputError` if a file that exists is known to be of another format than jsonl or JSON.

    Args:
        path: The file.
        name: What the user typed, for the message.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except (OSError, ValueError):
        return  # the caller says why it cannot be read
    found = _format(head, path)
    if found is not None:
        kind, how = found
        short = name if len(name) <= 60 else f"...{name[-57:]}"
        raise InputError(f"{short} is {kind}; what is read is {_READ}. Convert it: {how.format(name=path.name[-40:])}")


def refuse_encoding(error: InputError, data: bytes, name: str) -> None:
    """Raise the error of a file that is not UTF-8 again, with its probable encoding and how to convert it.

    Args:
        error: What reading it raised.
        data: The content of the file.
        name: What the user typed.
    """
    if sum(byte < 9 for byte in data[:4096]) or not isinstance(error.__cause__, UnicodeDecodeError):
        return
    said = str(error).partition(";")[0]
    guess = next(code for code, name_of in _ENCODINGS.items() if _reads(data, name_of))
    raise InputError(
        f"{said}, perhaps {guess}. Convert it: iconv -f {guess} -t UTF-8 {name[-40:]} > problems.jsonl"
    ) from error


_ENCODINGS = {
    "GB18030": "gb18030",
    "SHIFT_JIS": "shift_jis",
    "EUC-KR": "euc_kr",
    "WINDOWS-1252": "cp1252",
    "LATIN1": "latin1",
}


def _reads(data: bytes, code: str) -> bool:
    """Whether bytes are text of an encoding, and not a single accented letter of a Western one."""
    try:
        text = data.decode(code)
    except UnicodeDecodeError:
        return False
    foreign = [char for char in text if ord(char) > 127]
    common = [
        char
        for char in foreign
        if "\u4e00" <= char <= "\u9fff" or "\u3040" <= char <= "\u30ff" or "\uac00" <= char <= "\ud7af"
    ]
    return code in ("cp1252", "latin1") or len(common) > max(3, 0.8 * len(foreign))


def _format(head: bytes, path: Path) -> tuple[str, str] | None:
    """The format and how to convert it; ``None`` for JSON and what is not known."""
    for start, kind, how in _MAGIC:
        if head.startswith(start):
            return kind, how
    if head.startswith(b"PK\x03\x04"):
        if path.suffix.lower() in (".xlsx", ".xlsm") or b"xl/" in head or b"[Content_Types].xml" in head:
            return "an xlsx file (Excel)", _PANDAS.format(reader="read_excel", name="{name}")
        return "a zip archive", "unzip {name}"
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if not text or text[:1] in b"{[":
        return None
    if b"\0" in head[:200]:
        wide = head[1::2].count(0) > len(head) // 4 or head[::2].count(0) > len(head) // 4
        return ("UTF-16 text, not UTF-8", "iconv -f UTF-16LE -t UTF-8 {name} > problems.jsonl") if wide else None
    first = text.split(b"\n", 1)[0]
    named = _ENDINGS.get(path.suffix.lower())
    if named is not None:
        return named
    if b"," in first and b"{" not in first and b"problem" in first.lower() + b"problem" * (first.count(b",") > 1):
        return _ENDINGS[".csv"]
    return _ENDINGS[".tsv"] if b"\t" in first and b"{" not in first else None
