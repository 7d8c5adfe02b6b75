"""Removal of thinking, in the tags of all model families, and the content of answer tags."""

import time

import pytest

from lightning_serl.answers import strip_thinking
from lightning_serl.answers.reading.answer_tag import last_answer_tag


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("plain", "plain"),
        ("<think>a</think>b", "b"),
        ("a<think>b</think>c<think>d", "ac"),
        ("a</think>b", "b"),
        ("<think>only", ""),
        ("<think>a<think>b</think>c", "c"),
        ("a</think>b</think>c", "c"),
        ("a<think>b</think>c<think>d</think>e", "ace"),
        ("a<think>b", "a"),
        ("<thinking>a</thinking>b", "b"),
        ("<Thinking>\na\n</Thinking>\nb", "\nb"),
        ("<thinking>a</think>b", "b"),
        ("<thought>a</thought>b", "b"),
        ("<thoughts>a", ""),
        ("<reasoning>\na \\boxed{1}\n</reasoning>\nb", "\nb"),
        ("<reasoning>\na", ""),
        ("a</reasoning>b", "b"),
        ('<reasoning effort="high">a</reasoning>b', "b"),
        ("a <reflection>hm</reflection> b", "a  b"),
        ("<thinking>a<reflection>b</reflection>c</thinking>d", "d"),
        ("a</reflection>b", "ab"),
        ("<scratchpad>a</scratchpad>b", "b"),
        ("[THINK]a[/THINK]b", "b"),
        ("[THINK]a", ""),
        ("a[/THINK]b", "b"),
        ("<seed:think>a</seed:think>b", "b"),
        ("<seed:think>a<seed:cot_budget_reflect>b", ""),
        ("◁think▷a◁/think▷b", "b"),
        ("a◁/think▷b", "b"),
        ("◁think▷a", ""),
        ("<|begin_of_thought|>a<|end_of_thought|>b", "b"),
        ("<|START_THINKING|>a<|END_THINKING|>b", "b"),
        ("<|channel>thought\na<channel|>b", "b"),
        ("<|channel>thought\na", ""),
        ("<unused94>thought\na<unused95>b", "b"),
        ("<|im_start|>think\na<|im_start|>answer\nb", "\nb"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>", "b"),
        ("<|channel|>analysis<|message|>a \\boxed{1}", ""),
        ("<|channel|>analysis<|message|>a<|end|>", ""),
        ("<|start|>assistant<|channel|>final<|message|>b", "b"),
        ("<|channel|>commentary to=f <|constrain|>json<|message|>{}<|call|><|channel|>final<|message|>b", "b"),
        ("a<|end|><|start|>assistant<|channel|>final<|message|>b", "b"),
        ("analysisWe add 2 and 3.assistantfinalIt is 5.", "It is 5."),
        ("analysisWe add 2 and", ""),
        ("analysis of variance gives 5", "analysis of variance gives 5"),
        ("Think: what is the reasoning behind [1]?", "Think: what is the reasoning behind [1]?"),
        ("What does `<think>` do in a prompt?", "What does `<think>` do in a prompt?"),
        ("Which tag is right, <reasoning> or <p>?", "Which tag is right, <reasoning> or <p>?"),
        ("[Reasoning]\n2 + 3\n[Answer] 5", "[Reasoning]\n2 + 3\n[Answer] 5"),
        ("A reflection (thought of as a map) is linear.", "A reflection (thought of as a map) is linear."),
        ("Is <thinker> a tag?", "Is <thinker> a tag?"),
    ],
)
def test_thinking_is_no_answer(text, rest):
    assert strip_thinking(text) == rest


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("<answer>12</answer>", "12"),
        ("so <answer> 12 </answer>.", "12"),
        ("<answer>\n12\n</answer>", "12"),
        ("<answer>**12**</answer>", "12"),
        ("<answer>`B`</answer>", "B"),
        ("<answer><b>12</b></answer>", "12"),
        ("<Answer>New York</Answer>", "New York"),
        ("<ANSWER>12</answer>", "12"),
        ('<answer type="int">12</answer>', "12"),
        (r"<answer>$\boxed{12}$</answer>", "12"),
        ("<answer>1</answer> no, <answer>2</answer>", "2"),
        ("<final_answer>12</final_answer>", "12"),
        ("<final answer>12</final answer>", "12"),
        ("[ANSWER]12[/ANSWER]", "12"),
        ("<|begin_of_box|>12<|end_of_box|>", "12"),
        ("<|begin_of_solution|>12<|end_of_solution|>", "12"),
        ("<response>12</response>", "12"),
        ("<output>12</output>", "12"),
        ("<respuesta>12</respuesta>", "12"),
        ("<answer>12", "12"),
        ("I put it into <answer> </answer> tags: <answer>12</answer>", "12"),
        ("<answer>12</answer> as in <answer>your answer here</answer>", "12"),
        ("<answer>...</answer>", None),
        ("<answer></answer>", None),
        ("Which <response> is right?", None),
        ("Close the `<answer>` tag", None),
        ("no tag, x < 5 and y > 3", None),
        ("", None),
    ],
)
def test_the_last_answer_tag(text, content):
    assert last_answer_tag(text) == content


def test_an_answer_tag_of_a_truncated_text_must_be_closed():
    assert last_answer_tag("<answer>12", finished=False) is None
    assert last_answer_tag("<answer>12</answer> and", finished=False) == "12"


def test_megabytes_of_tags_take_linear_time():
    units = ["<think>", "</think>", "x <reasoning> ", "<answer>", "</answer>", "[THINK]", "<|channel|>", "analysis"]
    units += ["<|channel|>final<|message|>", "<", "`<think>`", "<answer> ", "assistantfinal", " <|", "<answer x"]
    for unit in units:
        text = unit * (2**17 // len(unit))
        started = time.process_time()
        strip_thinking(text)
        last_answer_tag(text)
        assert time.process_time() - started < 1, unit
