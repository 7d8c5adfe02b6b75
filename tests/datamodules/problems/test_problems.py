"""Problem files: what is read, and every way to be malformed, each with its line in one sentence."""

import json
import os

import pytest

from lightning_serl.datamodules import SelfPlayDataModule
from lightning_serl.datamodules.problems.files import read_problems, read_rows
from lightning_serl.datamodules.problems.rows import Fields, to_problem
from lightning_serl.errors import InputError

GOOD = b'{"problem": "1+1?", "answer": "2"}'


def read(tmp_path, content, name="p.jsonl", fields=None):
    path = tmp_path / name
    path.write_bytes(content)
    return read_problems(str(path), fields or Fields(), "x")


def test_the_plain_case(tmp_path):
    first, second = read(tmp_path, b'{"problem": " 1+1? ", "answer": " 2 "}\n{"problem": "b", "choices": ["x", 3]}\n')
    assert (first.prompt, first.label, first.uid, first.role, first.train) == (" 1+1? ", "2", "x-00001", "solve", True)
    assert (second.prompt, second.label, second.meta) == ("b", None, {"choices": ["x", "3"]})


@pytest.mark.parametrize(
    ("content", "prompts", "uids"),
    [
        (b"\xef\xbb\xbf" + GOOD, ["1+1?"], ["x-00001"]),
        (b"\n\n" + GOOD + b"\r\n \n" + GOOD, ["1+1?"] * 2, ["x-00003", "x-00005"]),
        ('{"problem": "a\u2028b\x85c"}'.encode(), ["a\u2028b\x85c"], ["x-00001"]),
        (b'{"question": "q"}\n{"prompt": "p"}', ["q", "p"], ["x-00001", "x-00002"]),
        (b'{"instruction": "i", "text": "t"}', ["i"], ["x-00001"]),
        (b'[{"problem": "a"}, {"problem": "b"}]', ["a", "b"], ["x-00001", "x-00002"]),
        (b'\n [\n{"problem": "a"}\n,\n{"problem": "b"}\n]\n\n', ["a", "b"], ["x-00001", "x-00002"]),
        (b'{"problem": "a", "score": NaN, "big": 1' + b"0" * 400 + b"}", ["a"], ["x-00001"]),
        (b'{"problem": "\\ud83d\\ude00"}', ["\U0001f600"], ["x-00001"]),
        (b'{"problem": "nul \\u0000 inside"}', ["nul \0 inside"], ["x-00001"]),
    ],
)
def test_odd_but_good_files(tmp_path, content, prompts, uids):
    out = read(tmp_path, content)
    assert [p.prompt for p in out] == prompts
    assert [p.uid for p in out] == uids


@pytest.mark.parametrize(
    ("answer", "label"),
    [(b"4", "4"), (b"4.5", "4.5"), (b'"x"', "x"), (b"null", None), (b'"  "', None), (b'""', None), (b"0", "0")],
)
def test_labels(tmp_path, answer, label):
    assert read(tmp_path, b'{"problem": "a", "answer": ' + answer + b"}")[0].label == label


def test_fields_are_options(tmp_path):
    content = b'{"problem": "wrong", "q": "right", "gold": "b", "answer": "8", "opts": ["a", "b"]}'
    (out,) = read(tmp_path, content, fields=Fields("q", "gold", "opts"))
    assert (out.prompt, out.label, out.meta["choices"]) == ("right", "B", ["a", "b"])
    assert read(tmp_path, content, fields=Fields(answer=None))[0].label is None


def test_a_file_can_be_a_path_object(tmp_path):
    (tmp_path / "p.jsonl").write_bytes(GOOD)
    data = SelfPlayDataModule(seeds=tmp_path / "p.jsonl", pool_from=tmp_path)
    assert (data.seeds, data.pool_from) == (str(tmp_path / "p.jsonl"), [str(tmp_path)])
    assert data.writes


def test_embedded_files():
    assert len(read_problems("tiny:seeds", Fields(), "seed")) == 64
    held_out = read_problems("tiny:held_out", Fields(), "h")
    assert len(held_out) == 200
    assert all(p.label is not None for p in held_out)
    with pytest.raises(InputError, match="tiny:held_out"):
        read_problems("tiny:nothing", Fields(), "x")


MALFORMED = {
    "empty": (b"", None, "holds no problems"),
    "blank lines": (b"\n  \n\t\n", None, "holds no problems"),
    "empty list": (b" [ ] ", None, "holds no problems"),
    "latin-1": (GOOD + b"\n" + '{"problem": "é"}'.encode("latin-1"), 2, "not UTF-8"),
    "binary": (b"\x89PNG\r\n\x1a\n\0\0", 1, "not UTF-8"),
    "truncated": (GOOD + b"\n\n" + GOOD[:-3], 3, "not JSON"),
    "two on a line": (GOOD + b"\n" + GOOD + GOOD, 2, "more than one JSON value"),
    "single quotes": (b"{'problem': 'a'}", 1, "not JSON"),
    "strings": (b'"a"\n"b"', 1, "holds a string, not an object"),
    "list of strings": (b'["a", "b"]', 1, "holds a string, not an object"),
    "list of strings, second": (b'[\n{"problem": "a"},\n"b"]', 3, "holds a string, not an object"),
    "lists": (b'["a"]\n["b"]', 1, "holds a list, not an object"),
    "list of lists": (b'[["a"]]', 1, "holds a list, not an object"),
    "truncated list": (b'[\n{"problem": "a"},\n{"problem": "b"', 3, "not JSON"),
    "list without end": (b'[\n{"problem": "a"}\n', 3, "has neither a comma nor the end"),
    "list without comma": (b'[\n{"problem": "a"}\n{"problem": "b"}]', 3, "has neither a comma nor the end"),
    "list with more": (b'[\n{"problem": "a"}\n]\n{"problem": "b"}', 4, "has more text after the end"),
    "trailing comma": (b'[{"problem": "a"},\n]', 2, "not JSON"),
    "number": (GOOD + b"\n7", 2, "holds a number, not an object"),
    "null": (b"null", 1, "holds null, not an object"),
    "true": (b"true", 1, "holds true or false, not an object"),
    "no field": (GOOD + b'\n{"b": 1, "a": 2}', 2, "has no field 'problem' (it has a, b); set --data.fields.problem"),
    "no fields": (b"{}", 1, "has no field 'problem' (it has no fields)"),
    "problem null": (b'{"problem": null}', 1, "field 'problem' holds null, not a string"),
    "problem number": (b'{"problem": 7}', 1, "field 'problem' holds a number, not a string"),
    "problem list": (b'{"problem": ["a"]}', 1, "field 'problem' holds a list, not a string"),
    "problem object": (b'{"problem": {"text": null}}', 1, "field 'problem' holds an object, not a string"),
    "question null": (b'{"question": null}', 1, "field 'question' holds null"),
    "problem blank": (GOOD + b'\n{"problem": " \\n "}', 2, "field 'problem' is empty"),
    "problem surrogate": (b'{"problem": "a \\ud800 b"}', 1, "'problem' holds half of a surrogate pair"),
    "answer surrogate": (b'{"problem": "a", "answer": "\\udc00"}', 1, "'answer' holds half of a surrogate pair"),
    "choice surrogate": (b'{"problem": "a", "choices": ["b", "\\ud800"]}', 1, "'choices' holds half of a surrogate"),
    "answer list": (b'{"problem": "a", "answer": [null]}', 1, "'answer' must be a string or a number, got a list"),
    "answer true": (b'{"problem": "a", "answer": true}', 1, "'answer' must be a string or a number, got true or false"),
    "answer NaN": (b'{"problem": "a", "answer": NaN}', 1, "field 'answer' holds nan"),
    "answer infinite": (b'{"problem": "a", "answer": -Infinity}', 1, "field 'answer' holds -inf"),
    "answer overflows": (b'{"problem": "a", "answer": 1e999}', 1, "field 'answer' holds inf"),
    "huge int": (GOOD + b'\n{"problem": "a", "answer": ' + b"9" * 10000 + b"}", 2, "not JSON that can be read"),
    "deep nesting": (GOOD + b'\n{"problem": ' + b"[" * 100000 + b"]" * 100000 + b"}", 2, "not JSON that can be read"),
    "deep list": (b"[" * 100000, 1, "not JSON that can be read"),
    "twice": (b'{"problem": "a", "problem": "b"}', 1, "field 'problem' is there twice"),
    "twice inside": (GOOD + b'\n{"problem": "a", "meta": {"k": 1, "k": 2}}', 2, "field 'k' is there twice"),
    "choices string": (b'{"problem": "a", "choices": "A) x B) y"}', 1, "must be a list of strings, got a string"),
    "choices object": (b'{"problem": "a", "choices": {"A": "x"}}', 1, "must be a list of strings, got an object"),
    "choices by digit": (b'{"problem": "a", "choices": {"1": "x", "2": "y"}}', 1, "list of strings, got an object"),
    "choices out of order": (b'{"problem": "a", "choices": {"B": "x", "A": "y"}}', 1, "list of strings, got an object"),
    "options one": (b'{"problem": "a", "options": ["x"]}', 1, "field 'options' must hold 2 to 10 options, got 1"),
    "conversation": (b'{"messages": [{"role": "user", "content": "a"}]}', 1, "field 'messages' holds a conversation"),
    "prompt of turns": (b'{"prompt": [{"role": "user", "content": "a"}]}', 1, "'prompt' holds a conversation; write"),
    "choices null": (b'{"problem": "a", "choices": ["x", null]}', 1, "must be a list of strings, one is null"),
    "choices nested": (b'{"problem": "a", "choices": ["x", ["y"]]}', 1, "must be a list of strings, one is a list"),
    "choices true": (b'{"problem": "a", "choices": [true, false]}', 1, "list of strings, one is true or false"),
    "choices one": (b'{"problem": "a", "choices": ["x"]}', 1, "must hold 2 to 10 options, got 1"),
    "choices many": (b'{"problem": "a", "choices": [' + b",".join([b"1"] * 11) + b"]}", 1, "2 to 10 options, got 11"),
    "long names": (b'{"' + b"k" * 5000 + b'": 1, "' + b"l" * 5000 + b'": 2}', 1, "has no field 'problem'"),
}


@pytest.mark.parametrize(
    "row",
    [
        {"options": ["x", "y"]},
        {"choices": {"A": "x", "B": "y"}},
        {"choices": {"text": ["x", "y"], "label": ["A", "B"]}},
        {"choices": ["x", "y"], "options": "not read"},
    ],
)
def test_options_in_other_forms(tmp_path, row):
    (problem,) = read(tmp_path, json.dumps({"problem": "Which?", "answer": "B"} | row).encode())
    assert problem.meta["choices"] == ["x", "y"]
    assert problem.label == "B"


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files(tmp_path, name):
    content, line, said = MALFORMED[name]
    with pytest.raises(InputError) as caught:
        read(tmp_path, content)
    message = str(caught.value)
    path = str(tmp_path / "p.jsonl")
    assert said in message
    assert "\n" not in message
    assert message.startswith(f"{path} " if line is None else f"{path}:{line}")
    if line is not None:
        assert message[len(f"{path}:{line}")] in " :"
    assert len(message.replace(path, "p.jsonl")) < 300
    message.encode()


@pytest.mark.parametrize("name", ["missing.jsonl", "no/such/folder.jsonl"])
def test_missing_files(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"problem file {name} does not exist"):
        read_problems(name, Fields(), "x")


@pytest.mark.parametrize("name", ["a\0b", "c" * 5000, "p.jsonl/below"])
def test_paths_that_cannot_be(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_bytes(GOOD)
    with pytest.raises(InputError, match="cannot be read") as caught:
        read_problems(name, Fields(), "x")
    assert len(str(caught.value)) < 300


def test_a_directory(tmp_path):
    with pytest.raises(InputError, match="is a directory"):
        read_problems(str(tmp_path), Fields(), "x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_one_may_not_read(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(GOOD)
    path.chmod(0)
    with pytest.raises(InputError, match="cannot be read"):
        read_problems(str(path), Fields(), "x")


def test_lines_of_a_pretty_printed_list(tmp_path):
    rows = [{"problem": f"p{i}", "meta": {"a": [1, 2]}} for i in range(5)]
    rows[3] = {"other": 1}
    text = json.dumps(rows, indent=2)
    line = text[: text.index('"other"')].rindex("{")
    with pytest.raises(InputError, match=f":{text.count(chr(10), 0, line) + 1} has no field"):
        read(tmp_path, text.encode())


@pytest.mark.parametrize(
    ("answer", "label"),
    [("B", "B"), ("(b)", "B"), ("blue", "B"), ("Blue ", "B"), (7, "C"), ("D", None), ("green", None), (1, None)],
)
def test_a_choice_label_is_a_letter_or_an_options_text(tmp_path, answer, label):
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"problem": "Which?", "choices": ["red", "blue", 7], "answer": answer}))
    if label is None:
        with pytest.raises(InputError, match=r"p.jsonl:1: field 'answer' must be one of the letters ABC or the text"):
            read_problems(str(file), Fields(), "p")
    else:
        assert read_problems(str(file), Fields(), "p")[0].label == label


def test_rows_know_where_they_stand(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\n" + GOOD + b"\n7\n")
    assert read_rows(str(path), Fields()) == [
        (2, f"{path}:2", {"problem": "1+1?", "answer": "2"}),
        (3, f"{path}:3", 7),
    ]
    path.write_bytes(b'[\n{"problem": "a"}\n]')
    assert read_rows(str(path), Fields()) == [(1, f"{path}:2", {"problem": "a"})]


@pytest.mark.parametrize(
    "row", [{"q": "a"}, {"problem": "a", "choices": ["x", "y"], "answer": "z"}], ids=["no problem", "no such option"]
)
def test_messages_name_the_option_of_their_fields(row):
    for options, named in (((), "--data.fields"), (("--data.evaluation.fields",), "--data.evaluation.fields")):
        with pytest.raises(InputError, match=rf"here.* {named}\."):
            to_problem(row, Fields(), "here", "u", *options)


def test_training_does_not_take_solutions_along(tmp_path):
    """Labels come from the answer field alone: a file without it stays unlabelled, whatever else is in it."""
    row = b'{"problem": "a", "solution": "so \\\\boxed{4}", "level": 5, "subject": "s"}'
    (problem,) = read(tmp_path, row)
    assert (problem.label, problem.meta) == (None, {"subject": "s", "level": "5"})


MISNAMED = [
    (Fields(answer="gould"), "p.jsonl has no field 'gould' (it has a, gold, opts, problem, did you mean gold?); set "),
    (Fields(choices="optz"), "has no field 'optz' (it has a, gold, opts, problem, did you mean opts?); set --data"),
    (Fields(subject="faculty"), "has no field 'faculty' (it has a, gold, opts, problem); set --data.fields.subject"),
    (Fields(level="x" * 500), "xx' (it has a, gold, opts, problem); set --data.fields.level"),
]


@pytest.mark.parametrize(("fields", "said"), MISNAMED)
def test_a_mistyped_field_is_refused_not_read_as_absent(tmp_path, fields, said):
    rows = b'{"problem": "1+1?", "gold": "2"}\n{"problem": "b", "a": 1, "opts": ["x", "y"]}'
    with pytest.raises(InputError) as caught:
        read(tmp_path, rows, fields=fields)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_a_field_that_some_rows_lack_is_there(tmp_path):
    rows = b'{"problem": "1+1?", "gold": "2"}\n{"problem": "b", "topic": "law"}'
    first, second = read(tmp_path, rows, fields=Fields(answer="gold", subject="topic"))
    assert (first.label, second.label, second.meta["subject"]) == ("2", None, "law")


def test_subject_and_level_of_seeds_are_in_their_meta(tmp_path):
    rows = [{"problem": "a?", "type": "law", "level": "Level 3"}, {"problem": "b?", "grade": 2.0}, {"problem": "c?"}]
    path = tmp_path / "seeds.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    metas = [dict(one.meta) for one in read_problems(str(path), Fields(), "seed")]
    assert metas == [{"subject": "law", "level": "3"}, {"level": "2"}, {}]
