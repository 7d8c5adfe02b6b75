"""Files of other formats and encodings are named with their conversion; fields beside the problem are joined to it."""

import bz2
import gzip
import io
import json
import lzma
import zipfile
from pathlib import Path

import pytest

from lightning_serl.datamodules.problems.files import read_problems
from lightning_serl.datamodules.problems.rows import LONGEST_PROBLEM, Fields
from lightning_serl.errors import InputError

ROW = b'{"problem": "a"}\n'


def zipped(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, ROW)
    return out.getvalue()


OTHERS = [
    ("p.csv", b"problem,answer\nWhat is 1+1?,2\n", "csv", "read_csv"),
    ("p.csv", b'\xef\xbb\xbf"question","answer"\n"a, b","2"\n', "csv", "read_csv"),
    ("p.jsonl", b"problem,answer\na,b\n", "csv", "read_csv"),
    ("p.csv", b"problem;answer\na;b\n", "csv", "read_csv"),
    ("p.tsv", b"problem\tanswer\na\tb\n", "tab-separated", "read_table"),
    ("p", b"id\tproblem\n1\ta\n", "tab-separated", "read_table"),
    ("p.parquet", b"PAR1\x15\x04PAR1", "parquet", "read_parquet"),
    (
        "p.jsonl",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n",
        "a pointer of Git LFS",
        "git lfs pull",
    ),
    ("p.jsonl", b"PAR1\x15\x04PAR1", "parquet", "read_parquet"),
    ("p.arrow", b"ARROW1\0\0", "arrow", "read_feather"),
    ("p.jsonl.gz", gzip.compress(ROW), "gzip", "gunzip"),
    ("p.bz2", bz2.compress(ROW), "bzip2", "bunzip2"),
    ("p.xz", lzma.compress(ROW), "xz", "unxz"),
    ("p.zip", zipped("p.jsonl"), "zip", "unzip"),
    ("p.xlsx", zipped("[Content_Types].xml", "xl/workbook.xml"), "xlsx", "read_excel"),
    ("p.xls", b"\xd0\xcf\x11\xe0\xa1\xb1", "xls", "read_excel"),
    ("p.txt", b"What is 1+1?\nWhat is 2+2?\n", "text file", '{"problem": "..."}'),
    ("p.yaml", b"- problem: a\n", "yaml", "json.dumps"),
    ("p.xml", b"<problems/>", "xml", "read_xml"),
    ("p.jsonl", ROW.decode().encode("utf-16"), "UTF-16", "iconv -f UTF-16"),
    ("p.jsonl", ROW.decode().encode("utf-32"), "UTF-32", "iconv -f UTF-32"),
    ("p.jsonl", '{"problem": "¿Cuánto es la mitad?"}'.encode("latin-1"), "not UTF-8", "iconv -f WINDOWS-1252"),
    ("p.jsonl", '{"problem": "小明有五个苹果一共有几个"}'.encode("gb18030"), "not UTF-8", "iconv -f GB18030"),
    ("p.sqlite", b"SQLite format 3\0", "SQLite", "read_sql"),
]


def test_other_formats_are_named_with_what_is_read_and_how_to_convert(tmp_path: Path) -> None:
    for name, content, kind, how in OTHERS:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            read_problems(str(path), Fields(), "seed")
        said = str(caught.value)
        assert kind in said, name
        assert how in said, name
        assert "\n" not in said
        assert len(said) <= 300


def test_a_hub_name_where_only_files_are_read() -> None:
    for name, said in (
        ("hub:gsm8k", r"hub:gsm8k: seeds are read from files only.*data\.evaluation\.sets.*to_json"),
        ("openai/gsm8k", r"openai/gsm8k does not exist.*hub:openai/gsm8k among data\.evaluation\.sets.*to_json"),
    ):
        with pytest.raises(InputError, match=said):
            read_problems(name, Fields(), "seed")


def read_one(folder: Path, row: dict, **fields: str) -> str:
    (folder / "p.jsonl").write_text(json.dumps(row), encoding="utf-8")
    return read_problems(str(folder / "p.jsonl"), Fields(**fields), "seed")[0].prompt


def test_fields_beside_the_problem_are_joined_to_it(tmp_path: Path) -> None:
    alpaca = {"instruction": "Compute the sum.", "input": "3 and 4", "output": "7"}
    assert (
        read_one(tmp_path, alpaca) == read_one(tmp_path, alpaca, problem="instruction") == "Compute the sum.\n3 and 4"
    )
    assert read_one(tmp_path, alpaca | {"input": " "}) == "Compute the sum."
    assert read_one(tmp_path, alpaca | {"input": None}) == "Compute the sum."
    asked = {"question": "How many are left?", "context": "Ann has 5 figs and eats 2."}
    assert read_one(tmp_path, asked) == "Ann has 5 figs and eats 2.\nHow many are left?"
    assert read_one(tmp_path, {"body": "Ann has 5.", "question": "Ann has 5. How many?"}) == "Ann has 5. How many?"
    assert read_one(tmp_path, {"problem": "a", "input": "b"}) == "a", "only an instruction has an input"


def test_a_problem_of_megabytes_is_refused_before_it_is_tokenised(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"p\.jsonl:1: field 'problem' has 4,000,000 characters, .* at most 200,000"):
        read_one(tmp_path, {"problem": "ab c" * 1_000_000})
    assert len(read_one(tmp_path, {"problem": "x" * LONGEST_PROBLEM})) == LONGEST_PROBLEM
