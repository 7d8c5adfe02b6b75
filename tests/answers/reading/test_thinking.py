"""Removal of thinking."""

import pytest

from lightning_serl.answers import strip_thinking


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
    ],
)
def test_thinking_is_no_answer(text, rest):
    assert strip_thinking(text) == rest
