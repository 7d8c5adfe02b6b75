"""Documents: which files are read, what is said of the others, and where passages begin and end."""

import json

import pytest

from lightning_serl.datamodules.problems.documents import read_documents
from lightning_serl.datamodules.problems.passages import passages_of
from lightning_serl.errors import InputError

FACT = "The Zorin bridge spans the river Lodo since 1871."
FILES = {
    "b.txt": FACT.encode(),
    "deep/er/a.md": f"# Zorin\n\n{FACT.replace('spans', 'crosses')}\n".encode(),
    "marked.txt": b"\xef\xbb\xbf" + FACT.replace("Lodo", "Mira").encode(),
    "README": FACT.replace("Zorin", "Telin").encode(),
    "copy.txt": FACT.encode(),
    "empty.txt": b" \n",
    "short.md": b"# Title\n\nToo short.\n",
    "latin.txt": "Die Brücke über den Fluss ist lang.".encode("latin-1"),
    "wide.txt": FACT.encode("utf-16"),
    "binary.txt": b"abc\0def" * 9,
    "report.pdf": b"%PDF-1.4",
    ".hidden.txt": FACT.encode(),
    ".git/config.txt": FACT.encode(),
}


def write(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return str(root)


def test_a_folder_is_searched_and_what_is_left_out_is_said(tmp_path):
    found = read_documents(write(tmp_path, FILES), 500)
    assert [one.file for one in found.passages] == ["README", "b.txt", "marked.txt", "deep/er/a.md"]
    assert found.passages[-1].text.startswith("Zorin\nThe Zorin bridge crosses")
    for one in found.passages:
        whole = (tmp_path / one.file).read_text(encoding="utf-8-sig")
        assert one.text.endswith(whole[one.start : one.end])
    assert dict(found.left_out) == {
        "hidden": 2, "of another kind": 1, "empty": 1, "without a passage of 6 words": 1, "not UTF-8": 2, "binary": 1,
    }  # fmt: skip
    assert found.repeated == 1
    first, second = found.sentences()
    assert first.startswith("documents: 4 passages from 5 files")
    assert "1 binary (binary.txt)" in second
    assert "1 passages that repeat another" in second
    single = read_documents(str(tmp_path / "deep" / "er" / "a.md"), 500)
    assert [(one.file, one.start) for one in single.passages] == [("a.md", 9)]


def test_rows_are_passages(tmp_path):
    rows = [{"text": FACT, "title": "Bridges"}, {"passage": FACT.replace("Zorin", "Mira")}, FACT.upper(), {"text": ""}]
    path = tmp_path / "p.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    found = read_documents(str(path), 500)
    assert [one.citation for one in found.passages] == [
        {"file": f"p.jsonl:{line}", "start": 0, "end": len(FACT) - (line == 3)} for line in (1, 3, 5)
    ]
    assert found.passages[0].text == f"Bridges\n{FACT}"
    assert found.left_out == {"empty": 1}


def test_documents_that_cannot_be_used(tmp_path):
    (tmp_path / "none").mkdir()
    write(tmp_path / "bad", {"x.pdf": b"%PDF", ".y.txt": FACT.encode(), **{f"{n}{'z' * 90}.txt": b"" for n in "ab"}})
    for name, rows in (("field", '{"problem": "x"}\n'), ("number", "3\n"), ("json", "{\n"), ("half", '"\\ud800 a"\n')):
        (tmp_path / f"{name}.jsonl").write_text(rows)
    for name, said in (
        ("", "data.documents is empty"),
        ("nowhere", "does not exist"),
        ("none", "has no passage: it holds no file"),
        ("bad", "2 empty"),
        (
            "field.jsonl",
            "field.jsonl:1 has no text: a row is a string, or an object with one of text, passage, content",
        ),
        ("number.jsonl", "number.jsonl:1 has no text"),
        ("json.jsonl", "json.jsonl:1 is not JSON"),
        ("half.jsonl", "half of a surrogate pair"),
    ):
        with pytest.raises(InputError, match=r"data\.documents") as refused:
            read_documents(str(tmp_path / name) if name else "", 500)
        assert said in str(refused.value), str(refused.value)
        assert len(str(refused.value)) <= 300
        assert "\n" not in str(refused.value)


def test_passages_end_at_headings_paragraphs_and_sentences():
    one, two, long = (f"{name} lives in the old tower of Lodo." for name in ("Mira", "Telin", "Zorin"))
    fenced = "```\nlines of code that stay together here\n\nafter a blank line\n```"
    text = (
        f"---\ntitle: no text\n---\n# Top\n\n{one}\n\n{two}\n\n## Below\n\n{fenced}\n\nLast\n====\n\n{long} "
        + f"{long} " * 9
    )
    found = list(passages_of(text, "a.md", 120, markdown=True))
    for passage in found:
        assert passage.text.endswith(text[passage.start : passage.end])
        assert passage.end - passage.start <= 120
    shown = [passage.text for passage in found]
    assert shown[:2] == [f"Top\n{one}\n\n{two}", f"Top > Below\n{fenced}"]
    assert shown[2:] == [f"Last\n{long} {long} {long}"] * 3 + [f"Last\n{long}"]
    plain = list(passages_of(f"# no heading\n\n{one}\r\n\r\n{two}", "a.txt", 45, markdown=False))
    assert [passage.text for passage in plain] == [one, two]
    (words,) = passages_of("word " * 24, "a.txt", 130, markdown=False)
    assert len(words.text) == 119
    unspaced = list(passages_of("桥" * 250, "a.txt", 100, markdown=False))
    assert [len(passage.text) for passage in unspaced] == [100, 100, 50]
    ended = list(passages_of("佐林桥很长。" * 30, "a.txt", 100, markdown=False))
    assert all(passage.text.endswith("。") for passage in ended)
