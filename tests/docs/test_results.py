"""The figures of ``docs/results.md``: each is on the page that it links, and tables of means follow from their runs."""

import importlib.util
import re
from pathlib import Path
from statistics import mean, stdev

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results.md"
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
CHANGE = re.compile(r"([\d.]+)[^|→]*→ ([\d.]+)")


def numbers(text):
    return {number.rstrip(",") for number in NUMBER.findall(text)}


def test_every_figure_is_on_the_page_that_it_links():
    text = PAGE.read_text("utf-8")
    measured = [line for line in text.splitlines() if line.startswith("| [")]
    assert len(measured) > 30
    wrong = []
    for line in measured:
        claim, figures, *rest = line.strip("|").split(" | ")
        target = re.search(r"\]\(([^)#]+)", claim)[1]
        missing = numbers(figures) - numbers((PAGE.parent / target).read_text("utf-8"))
        if missing or not re.search(r"\b20\d\d-\d\d-\d\d\b", " ".join(rest)):
            wrong.append(f"{claim}: {missing or 'no date'}")
    assert wrong == []


def test_every_script_is_listed():
    listed = set(re.findall(r"benchmarks/(\w+)\.py", PAGE.read_text("utf-8")))
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text("utf-8")}
    assert listed == scripts - {"real_model"}, "real_model only fetches a model"


def figures(line):
    """The figures of a row of runs or means: before and after of three metrics."""
    return [tuple(float(value) for value in pair) for pair in CHANGE.findall(line)]


def test_the_quickstart_s_means_are_those_of_its_runs():
    text = (ROOT / "docs" / "quickstart.md").read_text("utf-8")
    spec = importlib.util.spec_from_file_location("quickstart", ROOT / "benchmarks" / "quickstart.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    readme = (ROOT / "README.md").read_text("utf-8")
    for arm, shown in (("vote", "majority vote, no labels"), ("true labels", "true labels"), ("random", "random")):
        runs = [figures(line) for line in re.findall(rf"^\| {arm} \| \d \|[^±\n]*$", text, re.MULTILINE)]
        stated = [re.findall(rf"^\| {shown} \| \d+ \|.*±.*$", one, re.MULTILINE) for one in (text, readme)]
        assert [len(lines) for lines in stated] == [1, 1]
        for metric in range(3):
            changes = [run[metric][1] - run[metric][0] for run in runs]
            middle, half = mean(changes), script.QUANTILES[len(changes) - 2] * stdev(changes) / len(changes) ** 0.5
            for (line,) in stated:
                change = [tuple(map(float, pair)) for pair in re.findall(r"([+-]?[\d.]+) ± ([\d.]+)", line)][metric]
                assert change == pytest.approx((middle, half), abs=0.1)
            before, after = figures(stated[1][0])[metric]
            assert (before, after) == pytest.approx([mean(run[metric][i] for run in runs) for i in (0, 1)], abs=0.06)


def test_the_readme_s_rows_of_a_real_model_are_means_of_the_page_s():
    page = (ROOT / "docs" / "real-model.md").read_text("utf-8")
    readme = (ROOT / "README.md").read_text("utf-8")
    for shown, task in (("opposites of words", "opposites"), ("sums of one-digit numbers", "sums"),
                        ("first letters of words", "letters")):  # fmt: skip
        runs = [figures(line) for line in re.findall(rf"^\| {task} \| vote \| lora \| seeds \|.*$", page, re.MULTILINE)]
        (line,) = re.findall(rf"^\| {shown} \| vote \|.*$", readme, re.MULTILINE)
        assert len(runs) == 3
        for metric, stated in enumerate(figures(line)):
            assert stated == pytest.approx([mean(run[metric][i] for run in runs) for i in (0, 1)], abs=0.51)
