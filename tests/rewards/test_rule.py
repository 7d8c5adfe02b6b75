"""The published rule reward: which text it reads, which labels it understands, and the recorded verdicts."""

import json

import pytest

from lightning_serl.answers.verifier.client import shared_client
from lightning_serl.rewards import VerifiableReward, check_reward
from lightning_serl.rewards.serl import RuleReward
from lightning_serl.types import Group


def scores(prompt, texts, label, **options):
    return RuleReward(**options)([Group.from_texts(prompt, texts, label=label)], None)[0]


def test_it_is_a_reward():
    reward = RuleReward()
    assert check_reward(reward) is reward
    assert reward([], None) == []
    empty = reward([Group.from_texts("p", [], label="1")], None)[0]
    assert (empty.scores.tolist(), empty.confidence) == ([], 0.0)


def test_prompt_and_response_are_one_text():
    texts = ["so \\boxed{4}", "I do not know", "the answer is 5", "\\boxed{4} or not"]
    verdict = scores("What is 2 + 2, if 9 is odd?", texts, "4")
    assert verdict.scores.tolist() == [1, 0, 0, 1]
    assert verdict.info["answers"] == ["4", "9", "5", "4"]
    assert (verdict.label, verdict.confidence, verdict.info["no_answer"]) == ("4", 0.5, 0)
    assert scores("What is 2 + 2, if 9 is odd?", texts, "9").scores.tolist() == [0, 1, 0, 0]


def test_either_direction():
    # math-verify alone finds an equation right against its side, not the side against the equation
    assert scores("?", ["\\boxed{x=5}", "\\boxed{5}"], "5").scores.tolist() == [1, 1]
    assert scores("?", ["\\boxed{x=5}", "\\boxed{5}"], "x=5").scores.tolist() == [1, 1]


def test_cut_off_responses_count_like_others():
    group = Group.from_texts("?", ["so 4", "so \\boxed{4}"], label="4", finished=[False, False])
    assert RuleReward()([group], None)[0].scores.tolist() == [1, 1]
    assert VerifiableReward()([group], None)[0].scores.tolist() == [0, 1]
    assert group.answers is not None  # by the default rule; the published one leaves them alone


@pytest.mark.parametrize(
    ("label", "text", "boxed", "bare"),
    [
        ("7", "\\boxed{7}", 1, 1),
        ("\\frac{1}{2}", "\\boxed{0.5}", 1, 1),
        ("\\boxed{\\frac{\\pi}{2}}", "\\boxed{\\pi/2}", 1, 1),  # boxed already
        ("So $x$ is \\boxed{3}, not 4.", "\\boxed{3}", 1, 1),  # a whole solution
        ("\\frac{\\pi}{2}", "\\boxed{\\frac{\\pi}{2}}", 1, 0),  # bare LaTeX is not understood
        ("32 \\pi", "\\boxed{32}", 0, 1),  # or understood as something else
    ],
)
def test_labels_boxed_and_bare(label, text, boxed, bare):
    assert scores("?", [text], label).scores.tolist() == [boxed]
    assert scores("?", [text], label, boxed=False).scores.tolist() == [bare]


def test_what_cannot_be_read_is_wrong():
    verdict = scores("Who?", ["nobody", "\\boxed{7}"], "7")
    assert verdict.scores.tolist() == [0, 1]
    assert (verdict.info["no_answer"], verdict.info["answers"][0]) == (1, None)
    assert scores("Who?", ["nobody", "\\boxed{7}"], "", boxed=False).scores.tolist() == [0, 0]


def test_without_a_label_nothing_counts():
    verdict = scores("?", ["\\boxed{1}"], None)
    assert (verdict.scores.tolist(), verdict.weight.tolist()) == ([0], [0])
    assert "no label" in verdict.info["reason"]


def test_a_match_that_cannot_be_printed_is_wrong(monkeypatch):
    """The published code prints what it extracted inside the same ``try``."""
    client = shared_client()
    real = client.ask

    def ask(op, limit, **fields):
        reply = real(op, limit, **fields)
        return {**reply, "printable": False} if op == "read" and "unprintable" in fields["text"] else reply

    monkeypatch.setattr(client, "ask", ask)
    assert scores("?", ["\\boxed{3}", "unprintable \\boxed{3}"], "3").scores.tolist() == [1, 0]


@pytest.mark.golden
@pytest.mark.parametrize("name", ["math_qwen_8x", "gsm8k_10x", "addsub_chatgpt_10x"])
def test_the_recorded_verdicts(golden_dir, name):
    reward = RuleReward()
    for line in (golden_dir / f"responses_{name}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        group = Group.from_texts(row["problem"], [r["text"] for r in row["responses"]], label=str(row["gold"]))
        assert reward([group], None)[0].scores.tolist() == row["ref090"]["rule"], row["id"]


@pytest.mark.golden
def test_bare_labels_of_the_seeds_are_misread_as_published(golden_dir):
    """Bare labels lose 90 of 500 problems for good: no answer to them can be right."""
    rows = [json.loads(s) for s in (golden_dir / "serl_seed_500.jsonl").read_text(encoding="utf-8").splitlines()]
    groups = [Group.from_texts("?", ["\\boxed{" + row["answer"] + "}"], label=row["answer"]) for row in rows]
    right = [int(verdict.scores[0]) for verdict in RuleReward(boxed=False)(groups, None)]
    assert sum(v.scores[0] == 1 for v in RuleReward()(groups, None)) >= 499
    assert sum(right) == 410
