"""Every code block of the pages: Python is run, commands and configurations are read by the real parser."""

import contextlib
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from helpers.command_line import cli, problems, write_rows
from lightning.pytorch.cli import LightningCLI

from lightning_serl import tiny
from lightning_serl.callbacks.publishing.data_set import write_data_set
from lightning_serl.cli.compare import read_request
from lightning_serl.datamodules.problems.files import read_problems
from lightning_serl.datamodules.problems.rows import Fields

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
#: Python blocks that another test runs, by page: their numbers, and the file of the test.
ELSEWHERE = {
    "README.md": ((0, 1, 2), "test_readme.py"),
    "docs/compare.md": ((0,), "test_compare.py"),
    "docs/domains.md": ((0,), "test_domains.py"),
    "docs/guides/lightning-project.md": ((0, 1, 2), "test_pages.py"),
    "docs/own-projects.md": ((1,), "test_own_projects.py"),
}
#: The first word of lines of bash blocks that belong to other tools.
OTHERS = {"pip", "git", "source"}
_NOWHERE = ("report: ", "merge: ", "there is no run folder RUN")


def blocks(*languages):
    """Page, number among the page's blocks of these languages, and text."""
    for page in PAGES:
        found = [text for language, text in FENCE.findall(page.read_text("utf-8")) if language in languages]
        for number, text in enumerate(found):
            yield f"{page.relative_to(ROOT)}", number, text


def lines():
    """Every line of the bash blocks: page and words, without variables set in front."""
    for page, _, block in blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = [word for word in shlex.split(line, comments=True) if word != "..."]
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words.pop(0)
            if words:
                yield page, words


def command(words):
    """The arguments of ``lightning-serl`` in a line, or ``None``; options alone are those of a ``fit``."""
    if words[0].startswith("--"):
        return ["fit", "-c", "preset:quickstart", *words]
    if words[0] in OTHERS:
        return None
    starts = [n for n, word in enumerate(words) if word in ("lightning-serl", "lightning_serl")]
    return words[starts[0] + 1 :] if starts else None


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with the files that the pages name; parsers are made once, which takes most of the time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_parts", raising=False)  # another test's, of the same page
    for name in ("examples", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("problems.jsonl", "labelled.jsonl"):
        write_rows(tmp_path / name, problems(4))
    (tmp_path / "my.yaml").write_text("data: {seeds: problems.jsonl}\n")
    parts, mine = (
        next(text for page, _, text in blocks(kind) if page == "docs/compare.md") for kind in ("python", "yaml")
    )
    (tmp_path / "my_parts.py").write_text(f"{parts}\n\nMine = ClearMajority\n", "utf-8")
    (tmp_path / "mine.yaml").write_text(mine, "utf-8")
    made, make = {}, LightningCLI.setup_parser

    def setup_parser(self, *arguments):
        key = type(self), *self.subcommands()
        if key not in made:
            make(self, *arguments)
            made[key] = self.parser, self._subcommand_parsers, self._subcommand_method_arguments
        self.parser, self._subcommand_parsers, self._subcommand_method_arguments = made[key]

    monkeypatch.setattr(LightningCLI, "setup_parser", setup_parser)
    yield tmp_path
    sys.modules.pop("my_parts", None)


def parsed(words):
    """What the real parser says against a command, or nothing."""
    if words[0] == "compare":
        request = read_request(words[1:])
        runs = [["fit", *method.arguments(request.common)] for method in request.methods]
    elif words[0] in ("report", "merge", "push"):  # they read their arguments, and then look for the run
        ended = cli(*words)
        return (
            "" if ended.status == 2 and ended.error.startswith(_NOWHERE) and "option" not in ended.error else ended.err
        )
    else:
        runs = [words]
    for run in runs:
        ended = cli(*run, "--print_config")
        if ended.status:
            return ended.error
    return ""


def test_every_command_is_accepted(here):
    seen, refused = set(), []
    for page, words in lines():
        arguments = command(words)
        if arguments is not None and tuple(arguments) not in seen:
            seen.add(tuple(arguments))
            if said := parsed(arguments):
                refused.append(f"{page}: {' '.join(arguments)}: {said}")
    assert len(seen) > 55
    assert {words[0] for words in seen} == {
        "fit", "validate", "predict", "plan", "probe", "compare", "report", "merge", "push",
    }  # fmt: skip
    assert refused == []


def test_every_other_line_names_what_there_is():
    """Scripts have the options that are given to them, and make has the targets."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    wrong = []
    for page, words in lines():
        if command(words) is not None or words[0] in OTHERS:
            continue
        if words[0] == "make":
            fine = words[1] in targets
        elif words[0].endswith("python") and words[1] == "-c":
            exec(words[2].partition(";")[0])
            fine = True
        elif words[0].endswith("python") and words[1:2] == ["-m"]:
            script = ROOT / f"{words[2].replace('.', '/')}.py"
            fine = words[2].startswith("vllm.") or has_options(script, words[3:])
        else:
            fine = words[0].endswith("python") and has_options(ROOT / words[1], words[2:])
        if not fine:
            wrong.append(f"{page}: {' '.join(words)}")
    assert wrong == []


def has_options(script, words):
    text = script.read_text("utf-8") if script.is_file() else ""
    return bool(text) and all(f'"{word}"' in text for word in words if word.startswith("--"))


def test_every_configuration_is_accepted(here):
    seen = 0
    for page, _, text in blocks("yaml"):
        seen += 1
        (here / "block.yaml").write_text(text, "utf-8")
        ended = cli("fit", "-c", "block.yaml", "--print_config")
        assert not ended.status, f"{page}: {ended.err}"
    assert seen >= 3


def test_problems_of_the_pages_are_read(tmp_path):
    read = [text for _, _, text in blocks("json") if text.startswith('{"problem"')]
    assert len(read) == 4
    for text in read:
        file = tmp_path / "problems.jsonl"
        file.write_text(text, "utf-8")
        assert len(read_problems(str(file), Fields(), "seed")) == len(text.splitlines())


def test_every_python_block_is_run(here, monkeypatch, capsys):
    """Those that no other test runs, in this process, with what their pages have made before."""
    shutil.copytree(tiny.path("base"), here / "runs" / "mine" / "export")
    write_data_set(here / "new", [{"problem": "Compute 3 + 4.", "answer": "7", "confidence": 1.0, "round": 0}])
    monkeypatch.setattr("sys.argv", ["train.py", "fit", "-c", "preset:quickstart", "--print_config"])
    names, run = {}, 0
    for page, number, text in blocks("python"):
        numbers, test = ELSEWHERE.get(page, ((), ""))
        if number in numbers:
            assert Path(page).stem in (Path(__file__).parent / test).read_text("utf-8")
        elif "# TRL" not in text:  # which shows the other library's code
            names["__name__"] = "__main__"
            with pytest.raises(SystemExit, match=r"^0$") if "PresetCLI" in text else contextlib.nullcontext():
                exec(compile(text, page, "exec"), names)
            run += 1
    assert run == 4
    assert "model_name_or_path: tiny:base" in capsys.readouterr().out  # of PresetCLI
    assert [type(one).__name__ for one in names["callbacks"]] == ["Summary", "Export", "Checkpoints", "ReportPage"]
    assert names["rows"][0]["answer"] == "7"
