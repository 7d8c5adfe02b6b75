"""The parser of proposed problems."""

import json
import re
from pathlib import Path

import pytest

from lightning_serl.answers import split_choices
from lightning_serl.prompts import (
    Item,
    has_solution,
    parse_instructions,
    split_items,
)

PARSED = [
    ("1. First one?\n2. Second one?\n", ["First one?", "Second one?"]),
    ("9) Keep The CASE of $\\Delta ABC$\n10) Next", ["Keep The CASE of $\\Delta ABC$", "Next"]),
    ("Sure, here are some:\n\n1. Tom is 12. How old\nis Ann?\n\n2. B", ["Tom is 12. How old\nis Ann?", "B"]),
    ("  3. indented\n\t4.\ttabbed", ["indented", "tabbed"]),
    ("1. a\n2. \n3. b\n4.", ["a", "b"]),
    ("**1.** bold\n### 2. heading", ["bold", "heading"]),
    ("1、苹果几个\n2.梨\n3. 桃", ["苹果几个\n2.梨", "桃"]),
    ("A rate of\n3.5 meters and 2.\nthen", []),
    ("<think>1. no\n2. no</think>1. yes", ["yes"]),
    ("thoughts\n1. no</think>\n1. yes", ["yes"]),
    ("1. yes\n<think>2. no", ["yes"]),
    ("", []),
    ("9" * 5000 + ". big", []),
]


@pytest.mark.parametrize(("text", "problems"), PARSED)
def test_default_parser(text: str, problems: list[str]) -> None:
    assert parse_instructions(text) == problems


def test_problems_as_chat_models_write_them() -> None:
    """Marks of every kind, containers, chatter before and after, whole problems, parts of a problem."""
    lines = Path(__file__).with_name("proposals.jsonl").read_text(encoding="utf-8").splitlines()
    wrong = []
    for case in map(json.loads, lines):
        got = parse_instructions(case["text"], first=case.get("first"), finished=case.get("finished", True))
        if got != case["items"]:
            wrong.append((case["text"], got))
    assert len(lines) > 160
    assert not wrong


@pytest.mark.parametrize(
    ("text", "first", "problems"),
    [
        (" A train leaves.\n10. Next", 9, ["A train leaves.", "Next"]),
        (" A train leaves.\n10. Next", None, ["Next"]),
        (" Only this one?", 9, ["Only this one?"]),
        (" Only this one?", None, []),
        ("Here they are:\n9. A\n10. B", 9, ["A", "B"]),
        ("Here they are:\n1. A\n2. B", 9, ["A", "B"]),
        ("9. A\n10. B", 9, ["A", "B"]),
        ("\n10. B", 9, ["B"]),
        ("", 9, []),
    ],
)
def test_text_before_the_first_number(text: str, first: int | None, problems: list[str]) -> None:
    assert parse_instructions(text, first=first) == problems


def test_what_is_cut_off_is_marked_and_left_out() -> None:
    text = " a\n10. \n11. b and"
    assert split_items(text, first=9, finished=False) == [Item("a"), Item(""), Item("b and", truncated=True)]
    assert parse_instructions(text, first=9, finished=False) == ["a"]
    assert parse_instructions(text, first=9) == ["a", "b and"]
    assert split_items("<think> still", finished=False) == []
    with pytest.raises(ValueError, match="style 'x'"):
        split_items(text, style="x")


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("1. find X in ABC.\n2. What IS\n $\\Delta$?", ["Find x in abc.", "What is $\\delta$?"]),
        (" a first question\n10. second", ["Second"]),
        ("Tom is 12. How old is Ann?", ["How old is ann?"]),
        ("1. one 2. two\n3. three", ["One 2. two", "Three"]),
        ("1.\n2. x", ["2. x"]),
        ("12.x 7. y\n", ["Y"]),
        ("1) no", []),
        ("1. cut off and", ["Cut off and"]),
        ("1. a\n\n2. b\n  3. c", ["A", "B 3. c"]),
        ("3.   ", [""]),
    ],
)
def test_serl_parser(text: str, problems: list[str]) -> None:
    assert parse_instructions(text, "serl") == problems
    published = re.findall(r"\d+\.\s+(.*?)(?=\n\d+\.\s+|$)", text, re.DOTALL)
    assert [" ".join(p.strip().split()).capitalize() for p in published] == problems
    assert parse_instructions(text, "serl", first=9, finished=False) == problems


def test_solutions_are_noticed() -> None:
    assert has_solution("Q?\nSolution: 5")
    assert has_solution("Q? The answer: 5")
    assert has_solution("Q? \\boxed{5}")
    assert has_solution("सवाल क्या है? उत्तर: पाँच")
    assert not has_solution("Answer the question: what is a salt solution?")
    assert not has_solution("Mix a solution: salt and water. Which answer is right?")


def test_hostile_texts_cost_little() -> None:
    for text in (
        "1" * 1_000_000,
        "\n" * 1_000_000,
        "1. " * 300_000,
        "<think>" * 100_000,
        "A. " * 300_000,
        "A. a B. " * 100_000,
        "a) x\n" * 200_000,
        "Which? " + "(" * 1_000_000,
        "Which?" + " " * 1_000_000 + "\na) x\nb) y",
        " " * 1_000_000,
    ):
        assert isinstance(parse_instructions(text), list)
        assert isinstance(split_choices(text), tuple)
        has_solution(text)
    assert parse_instructions("1" * 1_000_000, "serl") == []
