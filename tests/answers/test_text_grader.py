"""The text grader."""

import json
from pathlib import Path

import pytest

from lightning_serl.answers import TextGrader, cluster
from lightning_serl.rewards import VerifiableReward
from lightning_serl.types import Group


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It is in Europe.\nAnswer: **Paris**.", "paris"),
        (r"\boxed{\text{Acute  Appendicitis}}", "acute appendicitis"),
        ("因此，答案是：北京。", "北京"),
        ("La respuesta es: Sí.", "sí"),
        ("ответ: Москва!", "москва"),
        ("Explanation.\nＮａＣｌ", "nacl"),
        (r"\boxed{\ce{H2O}}", "h2o"),
        ("x" * 5000, None),
        ("...", None),
        ("", None),
    ],
)
def test_text_extraction(text, answer):
    assert TextGrader().extract(text) == answer


def test_text_keeps_the_order_of_letters():
    grader = TextGrader()
    assert not grader.same(grader.extract("NaCl"), grader.extract("ClNa"))


def test_phrases_typography_and_sentences_around_an_answer():
    rows = map(json.loads, (Path(__file__).parent / "text_answers.jsonl").read_text("utf-8").splitlines())
    grader, wrong = TextGrader(), []
    for row in rows:
        if row["kind"] == "score":
            group = Group.from_texts("Which one?", [row["text"]], row["label"])
            found = bool(VerifiableReward(grader)([group], None)[0].scores[0])
            right = found == row["right"]
        else:
            found = grader.extract(row["text"])
            right = found is not None and grader.same(found, row["answer"])
        if not right:
            wrong.append((row, found))
    assert wrong == []


def test_a_sentence_stands_for_the_only_short_answer_in_it():
    texts = [
        "Paris",
        "Lyon",
        "The capital of France is Paris.",
        "It is either Paris or Lyon, that is sure.",
        "Not Paris",
    ]
    answers, classes = cluster(texts, [True] * 5, TextGrader())
    assert answers[2] == "paris"
    assert classes[0] == classes[2]
    assert len({classes[0], classes[1], classes[3], classes[4]}) == 4
    # an answer inside of another answer is another answer
    assert TextGrader().settle(["iron", "iron oxide", "new york", "new york city"]) == {}
