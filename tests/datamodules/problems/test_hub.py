"""Evaluation sets in every layout they come in, from files and from directories as the hub has them; no network."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from helpers.command_line import cli, environment, rows, write_rows
from helpers.small_hub import small_hub
from pyarrow import csv, parquet

from lightning_serl.answers import resolve_grader
from lightning_serl.datamodules.problems.hub import BENCHMARKS, Benchmark, read_set
from lightning_serl.datamodules.problems.layouts import MMLU_PRO_GROUPS
from lightning_serl.datamodules.problems.rows import Fields
from lightning_serl.datamodules.streams.evaluation import strata_of
from lightning_serl.errors import InputError
from lightning_serl.evaluation.grading import SetGrader, set_graders

RUN = SetGrader(resolve_grader("math"), "math")

# One row of each known benchmark as the hub has it, and the problem that SeRL evaluates.
UPSTREAM = {
    "math-500": (
        {"problem": "P?", "solution": "so \\boxed{p - q}", "answer": "p - q", "subject": "Geometry", "level": 2,
         "unique_id": "test/geometry/1.json"},
        ("P?", "p - q", {"level": "2", "subject": "Geometry"}),
    ),
    "math-hard": (
        {"problem": "P?", "level": "Level 5", "type": "Algebra", "solution": "Three and $4$ make \\boxed{7}."},
        ("P?", "Three and $4$ make \\boxed{7}.", {"level": "5", "subject": "Algebra"}),
    ),
    "gsm8k": (
        {"question": "Q?", "answer": "He has 2 * 500 = <<2*500=1000>>1,000 apples.\n#### 1,000"},
        ("Q?", "1000", {}),
    ),
    "asdiv": (
        {"body": "Seven red apples and two green apples. ", "question": " How many?", "solution_type": "Addition",
         "answer": "9 (apples)", "formula": "7+2=9"},
        ("Seven red apples and two green apples. How many?", "9", {}),
    ),
    "college-math": (
        {"data_source": "college_math.Calculus", "question_number": "exercise.1.2", "question": "Q?",
         "answer": "$x=1$ or $x=2$", "license": "CC", "data_topic": "college_math.calculus"},
        ("Q?", "x=1 or x=2", {"subject": "college_math.calculus"}),
    ),
    "aime24": (
        {"id": 60, "problem": "P?", "solution": "... \\boxed{204}", "answer": "204", "url": "u", "year": "2024"},
        ("P?", "204", {}),
    ),
    "amc23": ({"id": 0, "question": "Q?", "answer": 27.0, "url": "u"}, ("Q?", "27.0", {})),
    "mmlu-pro": (
        {"question_id": 70, "question": "Q?", "options": ["x", "y", "z", "N/A"], "answer": "B", "answer_index": 1,
         "cot_content": "", "category": "computer science", "src": "ori"},
        ("Q?", "B", {"choices": ["x", "y", "z"], "subject": "computer science", "group": "STEM"}),
    ),
}  # fmt: skip


def read(spec, fields=None, name="set"):
    return read_set(str(spec), fields or Fields(), name)


def facts(problem):
    return problem.prompt, problem.label, problem.meta


def as_jsonl(folder, row):
    write_rows(folder / "test.jsonl", [row])


def as_json_list(folder, row):
    (folder / "test.json").write_text(json.dumps([row]))


def as_parquet(folder, row):
    (folder / "data").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist([row]), folder / "data" / "test-00000-of-00001.parquet")


def as_parquet_with_card(folder, row):
    """As ``push_to_hub`` writes it; the card counts more problems than were copied."""
    as_parquet(folder, row)
    splits = "  splits:\n  - name: test\n    num_bytes: 9999\n    num_examples: 500\n"
    files = "configs:\n- config_name: default\n  data_files:\n  - split: test\n    path: data/test-*\n"
    (folder / "README.md").write_text(f"---\ndataset_info:\n{splits}{files}---\n# A card\n")


def as_csv(folder, row):
    csv.write_csv(pyarrow.Table.from_pylist([row]), folder / "test.csv")


FORMS = [as_jsonl, as_json_list, as_parquet, as_parquet_with_card, as_csv]
# a csv file holds no lists
FORMS_OF = [(name, form) for name in UPSTREAM for form in FORMS if (name, form) != ("mmlu-pro", as_csv)]


@pytest.mark.parametrize(("name", "form"), FORMS_OF)
def test_directories_as_the_hub_has_them(tmp_path, name, form):
    row, expected = UPSTREAM[name]
    if form is as_csv:
        expected = (expected[0], expected[1].replace("27.0", "27"), expected[2])  # a number has one spelling there
    form(tmp_path, row)
    for spec in (tmp_path, f"{tmp_path}@test", f"hub:{tmp_path}", f"hub:{tmp_path}@test"):
        (problem,) = read(spec)
        assert facts(problem) == expected
        assert problem.uid == "set-00001"


@pytest.mark.parametrize("name", UPSTREAM)
def test_files_in_the_same_layouts(tmp_path, name):
    row, expected = UPSTREAM[name]
    path = write_rows(tmp_path / "file.jsonl", [row])
    assert [facts(p) for p in read(path)] == [expected]


def test_every_known_benchmark_has_a_row_here_and_is_complete():
    assert set(UPSTREAM) == set(BENCHMARKS)
    for one in BENCHMARKS.values():
        assert one.path.count("/") == 1
        assert one.split
        assert one.problems > 0


@pytest.mark.parametrize("name", UPSTREAM)
def test_labels_are_read_by_the_sets_grader(tmp_path, name):
    row, _ = UPSTREAM[name]
    problems = read(write_rows(tmp_path / "file.jsonl", [row] * 3))
    answers = {"math-500": "p - q", "math-hard": "7", "gsm8k": "1000", "asdiv": "9", "college-math": "x=1 or x=2",
               "aime24": "204", "amc23": "27", "mmlu-pro": "B"}  # fmt: skip
    ((_, grader),) = set_graders({"set": problems}, RUN)[0].items()
    chosen = grader.grader if name != "college-math" else resolve_grader("math")
    assert chosen.same(chosen.label(problems[0].label), chosen.extract("\\boxed{" + answers[name] + "}"))


def test_problems_with_several_answers_are_left_out_and_counted(tmp_path, caplog):
    row = UPSTREAM["asdiv"][0]
    path = write_rows(tmp_path / "asdiv.jsonl", [row, {**row, "answer": "2 (red); 3 (green)"}, {**row, "answer": "8"}])
    with caplog.at_level("INFO"):
        problems = read(path)
    assert [(p.uid, p.label) for p in problems] == [("set-00001", "9"), ("set-00003", "8")]
    assert "set: 1 of 3 problems have several answers and are left out" in caplog.text


@pytest.mark.parametrize("row", [None, 7, [], "x"])
def test_rows_that_are_no_objects_are_refused_and_not_left_out(tmp_path, row):
    path = write_rows(tmp_path / "a.jsonl", [{"problem": "P?"}, row])
    with pytest.raises(InputError, match=r"a.jsonl:2 holds .* not an object"):
        read(path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"body": None, "question": "Q?", "answer": ["x"], "solution_type": {}},
            "'answer' must be a string or a number",
        ),
        ({"body": None, "question": 3, "answer": "4", "solution_type": ""}, "'question' holds a number, not a string"),
        ({"question": "Q?", "answer": {"text": "#### 3"}}, "'answer' must be a string or a number"),
        ({"question": "Q?", "answer": ["$3$"], "data_topic": "t"}, "'answer' must be a string or a number"),
        ({"question": "Q?", "options": ["N/A"]}, "must hold 2 to 10 options, got 0"),
        ({"question": "Q?", "options": ["a", "b"], "answer": "C"}, "must be one of the letters AB"),
        ({"question": "Q?", "options": ["1", "2", "3"], "answer": 2}, "the text of option B and the index of option C"),
    ],
)
def test_known_layouts_with_odd_values_are_refused(tmp_path, row, said):
    path = write_rows(tmp_path / "a.jsonl", [row])
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:1")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        {"body": None, "question": "Q?", "answer": "4", "solution_type": ""},
        {"question": "Q?", "answer": 4, "data_topic": None},
        {"question": "Q?", "answer": "4", "options": {"a": 1}},
        {"problem": "Q?", "solution": ["\\boxed{1}"], "answer": 4},
    ],
)
def test_known_layouts_with_odd_values_beside_are_read_as_they_are(tmp_path, row):
    assert facts(read(write_rows(tmp_path / "a.jsonl", [row]))[0]) == ("Q?", "4", {})


def test_a_layout_is_read_only_where_it_is_meant(tmp_path):
    """Named fields, and answers beside a solution, win."""
    row = {"problem": "P?", "solution": "\\boxed{1}", "answer": "2", "options": "none", "question": "other #### 3"}
    (problem,) = read(write_rows(tmp_path / "a.jsonl", [row]))
    assert facts(problem) == ("P?", "2", {})
    row = {"q": "Q?", "question": "not this", "gold": "5 #### 6", "answer": "x #### 7", "choices": None}
    (problem,) = read(write_rows(tmp_path / "b.jsonl", [row]), Fields("q", "gold"))
    assert facts(problem) == ("Q?", "5 #### 6", {})
    row = {"problem": "P?", "solution": "no box", "answer": None}
    assert read(write_rows(tmp_path / "c.jsonl", [row]))[0].label is None
    row = {"question": "Q?", "options": {"A": "4", "B": "5"}, "answer": "B"}
    assert facts(read(write_rows(tmp_path / "e.jsonl", [row]))[0]) == ("Q?", "B", {"choices": ["4", "5"]})
    row = {"question": "Q?", "options": ["a", "b"], "choices": ["c", "d"], "answer": "A"}
    assert read(write_rows(tmp_path / "d.jsonl", [row]))[0].meta == {"choices": ["c", "d"]}


@pytest.mark.parametrize(
    ("row", "level", "subject"),
    [
        ({"level": 3}, "3", None),
        ({"level": 3.0}, "3", None),
        ({"level": "level 4"}, "4", None),
        ({"level": "Level ?"}, "?", None),
        ({"level": "Level "}, "Level", None),
        ({"level": "hard", "grade": 8}, "hard", None),
        ({"level": None, "grade": 8}, "8", None),
        ({"level": [1], "subject": {"a": 1}, "type": True}, None, None),
        ({"level": "  ", "category": "law"}, None, "law"),
        ({"type": "Algebra", "category": "x"}, None, "Algebra"),
        ({"subject": "S", "type": "T"}, None, "S"),
    ],
)
def test_levels_and_subjects(tmp_path, row, level, subject):
    (problem,) = read(write_rows(tmp_path / "a.jsonl", [{"problem": "P?", **row}]))
    assert (problem.meta.get("level"), problem.meta.get("subject")) == (level, subject)
    assert "group" not in problem.meta


def test_levels_and_subjects_of_other_names(tmp_path):
    row = {"problem": "P?", "level": 1, "difficulty": "B2", "topic": "Sets"}
    (problem,) = read(write_rows(tmp_path / "a.jsonl", [row]), Fields(level="difficulty", subject="topic"))
    assert problem.meta == {"level": "B2", "subject": "Sets"}


def test_groups_of_mmlu_pro_are_the_papers():
    sizes = {group: len(categories) for group, categories in MMLU_PRO_GROUPS.items()}
    assert sizes == {"STEM": 6, "Humanities": 3, "Social": 4, "Other": 1}


# --- SeRL's own files ------------------------------------------------------------------------------------------------


def golden(golden_dir, name):
    return golden_dir / f"eval_{name}.jsonl", rows(golden_dir / f"eval_{name}.jsonl")


@pytest.mark.golden
@pytest.mark.parametrize(
    ("name", "levels", "subjects"),
    [
        ("math_500", list("12345"), 7),
        ("math_hard", ["5"], 7),
        ("gsm8k", None, 0),
        ("asdiv", None, 0),
        ("college_math", None, 7),
        ("aime24", None, 0),
        ("amc23", None, 0),
        ("tabmwp", list("12345678"), 0),
    ],
)
def test_the_papers_files(golden_dir, name, levels, subjects):
    path, theirs = golden(golden_dir, name)
    problems = read(path)
    assert [p.label for p in problems] == [row["answer"].strip() for row in theirs]
    assert [p.prompt for p in problems] == [row.get("problem") or row["question"] for row in theirs]
    strata = strata_of(problems)
    assert strata.get("by_level") == levels
    assert len(strata.get("by_subject", [])) == subjects
    assert set_graders({name: problems}, RUN)[0][name].name == "math"
    grader = resolve_grader("math")
    assert sum(grader.label(p.label) is None for p in problems) == 0


def unboxed(text):
    assert text.startswith("\\boxed{")
    return text[7:-1]


# What the hub's rows looked like, from SeRL's: the same text must come out again.
UNDONE = {
    "math_500": lambda r: {**r, "answer": unboxed(r["answer"]), "solution": "... " + r["answer"]},
    "math_hard": lambda r: {k: v for k, v in r.items() if k != "answer"} | {"solution": r["answer"]},
    "gsm8k": lambda r: {"question": r["question"], "answer": f"Some\nsteps.\n#### {int(unboxed(r['answer'])):,}"},
    "asdiv": lambda r: {**r, "question": r["question"].removeprefix(r["body"] + " "),
                        "answer": unboxed(r["answer"]) + " (apples)"},
    "college_math": lambda r: {**r, "answer": f"${unboxed(r['answer'])}$"},
    "aime24": lambda r: {**r, "answer": unboxed(r["answer"])},
    "amc23": lambda r: {**r, "answer": float(unboxed(r["answer"]))},
}  # fmt: skip


@pytest.mark.golden
@pytest.mark.parametrize("name", UNDONE)
def test_the_same_text_comes_out_of_the_upstream_layout(golden_dir, tmp_path, name):
    path, theirs = golden(golden_dir, name)
    upstream = [{k: v for k, v in UNDONE[name](row).items() if k != "idx"} for row in theirs]
    write_rows(tmp_path / "test.jsonl", upstream)
    ours, recorded = read(tmp_path), read(path)
    assert [p.prompt for p in ours] == [p.prompt for p in recorded]
    wrapped = [p.label if "\\boxed" in p.label else "\\boxed{" + p.label + "}" for p in ours]
    assert wrapped == [p.label for p in recorded]
    assert [p.meta for p in ours] == [p.meta for p in recorded]
    assert set_graders({name: ours}, RUN)[0][name].name == "math"


# --- names, splits, configurations -----------------------------------------------------------------------------------


def splits(folder, *names):
    for i, name in enumerate(names):
        write_rows(folder / f"{name}.jsonl", [{"problem": f"{name}?", "answer": i}])
    return folder


def test_the_split_is_the_one_named_else_test_else_the_only_one(tmp_path):
    (tmp_path / "a").mkdir()
    folder = splits(tmp_path / "a", "train", "test")
    assert read(folder)[0].prompt == "test?"
    assert read(f"{folder}@train")[0].prompt == "train?"
    (tmp_path / "b").mkdir()
    assert read(splits(tmp_path / "b", "validation"))[0].prompt == "validation?"
    (tmp_path / "c").mkdir()
    folder = splits(tmp_path / "c", "train", "validation")
    with pytest.raises(InputError, match=r"has no split test; name one of its splits \(train, validation\)"):
        read(folder)
    with pytest.raises(InputError, match="has no split 'tets'; its splits are train, validation"):
        read(f"{folder}@tets")


def test_a_directory_whose_name_holds_an_at_sign(tmp_path):
    (tmp_path / "a@b").mkdir()
    assert read(splits(tmp_path / "a@b", "test"))[0].prompt == "test?"
    assert read(f"{splits(tmp_path / 'a@b', 'train')}@train")[0].prompt == "train?"


def test_a_directory_with_configurations(tmp_path):
    card = "---\nconfigs:\n"
    for name in ("main", "socratic"):
        (tmp_path / name).mkdir()
        splits(tmp_path / name, "test")
        card += f"- config_name: {name}\n  data_files:\n  - split: test\n    path: {name}/test*\n"
    (tmp_path / "README.md").write_text(card + "---\n")
    with pytest.raises(InputError, match=r"needs a configuration; name the directory of one: \['main', 'socratic'\]"):
        read(tmp_path)
    assert len(read(tmp_path / "main")) == 1


def test_a_file_that_changed_is_read_again(tmp_path):
    write_rows(tmp_path / "test.jsonl", [{"problem": "a", "answer": 1}])
    assert read(tmp_path)[0].label == "1"
    write_rows(tmp_path / "test.jsonl", [{"problem": "a", "answer": 2}])
    assert read(tmp_path)[0].label == "2"


def test_known_benchmarks_have_fields_of_their_own_and_their_number_is_watched(tmp_path, monkeypatch):
    """A directory stands in for the hub; what is done with its rows is the same."""
    as_jsonl(tmp_path, UPSTREAM["gsm8k"][0])
    monkeypatch.setitem(BENCHMARKS, "gsm8k", Benchmark(str(tmp_path), "test", 1319))
    with pytest.warns(UserWarning, match="hub:gsm8k has 1 problems, not 1319"):
        (problem,) = read("hub:gsm8k", Fields(problem="q", answer="gold"))
    assert facts(problem) == ("Q?", "1000", {})
    monkeypatch.setitem(BENCHMARKS, "gsm8k", Benchmark(str(tmp_path), "train", 1))
    with pytest.raises(InputError, match="hub:gsm8k has no split 'train'; its splits are test"):
        read("hub:gsm8k")
    assert len(read("hub:gsm8k@test")) == 1
    # a directory of that name does not stand in the way
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gsm8k").mkdir()
    assert len(read("hub:gsm8k@test")) == 1


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("hub:gsm9k", "there is no benchmark 'gsm9k'; the known ones are math-500, math-hard, gsm8k, asdiv"),
        ("hub:", "there is no benchmark ''"),
        ("hub:a//b", "names no dataset"),
        ("hub:a/b/c/d", "names no dataset"),
        ("hub:./nowhere", "there is no directory ./nowhere"),
        ("hub:/no/where@test", "there is no directory /no/where"),
        ("nowhere.jsonl", "problem file nowhere.jsonl does not exist"),
    ],
)
def test_names_that_lead_nowhere(spec, said):
    with pytest.raises(InputError) as caught:
        read(spec)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 290


def test_directories_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="give intact jsonl, json, csv or parquet files"):
        read(tmp_path)
    (tmp_path / "test.jsonl").write_text('{"problem": "a"}\n{nope\n')
    with pytest.raises(InputError, match="cannot be read as a dataset"):
        read(tmp_path)
    (tmp_path / "test.jsonl").unlink()
    (tmp_path / "test.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="cannot be read as a dataset"):
        read(tmp_path)


def test_fields_that_are_not_there(tmp_path):
    as_jsonl(tmp_path, {"task": "T?", "final": "3"})
    with pytest.raises(
        InputError, match=r"no field 'answer' \(it has final, task\); set --data.evaluation.fields.answer"
    ):
        read(tmp_path)
    with pytest.raises(InputError, match=r"row 1\) has no field 'problem' .* set --data.evaluation.fields.problem"):
        read(tmp_path, Fields(answer="final"))
    assert facts(read(tmp_path, Fields("task", "final"))[0]) == ("T?", "3", {})
    assert facts(read(tmp_path, Fields("task", None))[0]) == ("T?", None, {})
    with pytest.raises(InputError, match="no field 'topic'"):
        read(tmp_path, Fields("task", "final", subject="topic"))
    with pytest.raises(InputError, match="no field 'gold'"):
        read(tmp_path / "test.jsonl", Fields("task", "gold"))
    options = write_rows(tmp_path / "options.jsonl", [{"problem": "p", "opts": ["a", "b"]}])
    with pytest.raises(InputError, match=r"'optz' \(it has opts, problem, did you mean opts\?\); set .*fields.choices"):
        read(options, Fields(choices="optz"))
    assert read(options, Fields(choices="opts"))[0].meta["choices"] == ["a", "b"]
    # the names are those of all sets: one without options may stand beside one that has some
    assert read(write_rows(tmp_path / "open.jsonl", [{"problem": "p"}]), Fields(choices="opts"))[0].meta == {}
    # a file without labels is measured without them
    assert read(write_rows(tmp_path / "plain.jsonl", [{"problem": "p"}]))[0].label is None


# --- without the package, without the network ------------------------------------------------------------------------


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"datasets, which is not installed; pip install 'datasets>=4.0'"):
        read("hub:gsm8k")
    assert len(read("tiny:held_out")) == 200  # files need no package


def test_without_the_network(monkeypatch):
    importlib.import_module("datasets")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError) as caught:
        read("hub:nobody-here/no-such-set")
    said = "hub:nobody-here/no-such-set: the hub cannot be reached; give a directory with a copy of"
    assert str(caught.value).startswith(said)


FETCH = """
import json, sys
from lightning_serl.datamodules.problems.hub import read_set
from lightning_serl.datamodules.problems.rows import Fields
for spec in sys.argv[1:]:
    try:
        print(json.dumps([[p.prompt, p.label] for p in read_set(spec, Fields(), "set")]))
    except ValueError as error:
        print(json.dumps(str(error)))
"""


def fetch(home, address, *specs, **more):
    """Read sets in another process, whose hub is at that address."""
    env = environment(HF_ENDPOINT=address, HF_HOME=str(home), HF_HUB_DISABLE_XET="1", **more)
    ended = subprocess.run(
        [sys.executable, "-c", FETCH, *specs], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()], ended.stderr


def test_sets_are_fetched_from_the_hub_and_kept(tmp_path):
    name = "openai/gsm8k"
    with small_hub() as address:
        specs = ("hub:gsm8k", f"hub:{name}/main@train", f"hub:{name}/socratic", f"hub:{name}", f"hub:{name}/main@nope")
        found, said = fetch(tmp_path, address, *specs, "hub:nobody/nothing")
    assert found[:3] == [[["Q?", "1000"]], [["T?", "2"]], [["S?", "3"]]]
    assert "needs a configuration; name one as in hub:ORGANISATION/NAME/CONFIGURATION: ['main', 'socratic']" in found[3]
    assert found[4] == f"hub:{name}/main@nope has no split 'nope'; its splits are train, test"
    assert found[5].startswith("hub:nobody/nothing: the hub has no dataset nobody/nothing")
    assert "hub:gsm8k has 1 problems, not 1319" in said
    # what was fetched once needs no hub any more
    assert fetch(tmp_path, address, "hub:gsm8k", HF_HUB_OFFLINE="1")[0] == found[:1]


@pytest.mark.parametrize(
    ("spec", "said"),
    [("hub:nonsense", "there is no benchmark 'nonsense'"), ("hub:nobody-here/set", "the hub cannot be reached")],
)
def test_the_command_line_refuses_before_any_model_loads(tmp_path, monkeypatch, spec, said):
    from huggingface_hub import constants

    def load_policy(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("lightning_serl.module.load_policy", load_policy)
    command = ["fit", "-c", "preset:quickstart", "--trainer.default_root_dir", tmp_path / "run"]
    options = ["--data.evaluation.sets", json.dumps({"x": spec}), "--model.model_name_or_path", "tiny:base"]
    ended = cli(*command, *options)
    assert ended.status == 2, ended.err
    assert said in ended.error
    assert not (tmp_path / "run").exists()


def test_a_directory_on_the_command_line(tmp_path):
    (tmp_path / "set").mkdir()
    as_parquet_with_card(tmp_path / "set", UPSTREAM["mmlu-pro"][0])
    recordings = write_rows(
        tmp_path / "r.jsonl", [{"problem": "Q?", "responses": ["It is (B).", "The answer is (A)."]}]
    )
    ended = cli(
        "validate", "--trainer.default_root_dir", tmp_path / "run", "--trainer.accelerator", "cpu",
        "--data.engine", "ReplayEngine", "--data.engine.recordings", recordings, "--data.grader", "math",
        "--data.evaluation.sets.mmlu", f"hub:{tmp_path / 'set'}@test", "--data.evaluation.samples", 2,
    )  # fmt: skip
    assert ended.status == 0, ended.err
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())["mmlu"]
    assert (result["n"], result["correct"], result["no_answer"]) == (1, 1, 0)
    assert {k: list(result[k]) for k in ("by_subject", "by_group")} == {
        "by_subject": ["computer science"],
        "by_group": ["STEM"],
    }


def test_the_documents_table_is_that_of_the_code():
    document = (Path(__file__).resolve().parents[3] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for name, one in BENCHMARKS.items():
        (line,) = [line for line in document.splitlines() if line.startswith(f"| `hub:{name}`")]
        for part in (one.path, one.split, f"{one.problems:,}", *([one.config] if one.config else [])):
            assert part in line, (name, part)
