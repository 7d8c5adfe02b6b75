"""SeRL's published rules for few-shot exemplars and for reading the policy's list."""

from __future__ import annotations

import re

#: The published code truncates few-shot prompts to this length, including the number at their end.
PROMPT_TOKENS = 1024

# Equivalent to the published `\d+\.\s+(.*?)(?=\n\d+\.\s+|$)`, but linear in a long run of digits.
_ITEM = re.compile(r"(?<!\d)\d++\.\s+(.*?)(?=\n\d++\.\s+|$)", re.DOTALL)


def exemplar(problem: str) -> str:
    """A problem as the few-shot prompt shows it: on one line, without trailing colons."""
    return " ".join(problem.split()).rstrip(":")


def read_list(text: str) -> list[str]:
    """The problems in a sampled list.

    A number counts anywhere ("Tom is 12. How old" yields "How old"), text before the first number is lost, and the last
    item extends to the end, truncated or not.
    """
    return [normalise(found) for found in _ITEM.findall(text)]


def normalise(text: str) -> str:
    """The problem on one line, its first letter in upper case and all others in lower case."""
    return " ".join(text.split()).capitalize()
