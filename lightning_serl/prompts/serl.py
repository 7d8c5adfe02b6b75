"""How SeRL's published code shows problems to the policy and reads what it writes."""

from __future__ import annotations

import re

#: Its few-shot prompts are cut off on the right here, the number that the policy should go on from included.
PROMPT_TOKENS = 1024

# Finds what `\d+\.\s+(.*?)(?=\n\d+\.\s+|$)` finds, without trying every start in a long run of digits.
_ITEM = re.compile(r"(?<!\d)\d++\.\s+(.*?)(?=\n\d++\.\s+|$)", re.DOTALL)


def exemplar(problem: str) -> str:
    """A problem as the few-shot prompt shows it: on one line, without colons at its end."""
    return " ".join(problem.split()).rstrip(":")


def read_list(text: str) -> list[str]:
    """The problems in a sampled list.

    A number counts wherever it stands ("Tom is 12. How old" yields "How old"), text before the first number is lost,
    and the last item runs to the end, cut off or not.
    """
    return [normalise(found) for found in _ITEM.findall(text)]


def normalise(text: str) -> str:
    """What becomes of a problem: one line, the first letter large, every other letter small."""
    return " ".join(text.split()).capitalize()
