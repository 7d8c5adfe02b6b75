"""Chooses a grader from the user's problems and states the evidence in one sentence.

The two possible mistakes do not weigh the same: the math grader reads letters as factors and finds NaCl equal to ClNa,
while the text grader only misses that 1/2 is 0.5. So math needs clear evidence, and text is the fallback.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from lightning_serl.answers.choices_in_text import split_choices
from lightning_serl.answers.math.normal_form import ascii_digits
from lightning_serl.answers.math.quantities import quantity

_MOST = 0.8
_HALF = 0.5

_LATEX = re.compile(
    r"\\(?:[dtc]?frac|sqrt|pi|infty|cdot|times|cup|cap|leq?|geq?|begin|text|log|ln|sin|cos|tan|circ|theta|pm|in|left|%)"
)
_QUANTITY = re.compile(r"[-+]?[$€£¥]?\s*[-+]?(?:\d[\d,. ]*|\.\d+)(?:/\d+)?\s*(?:%|\\%|[a-zA-Z°]{0,12})")
# Digits, operators, brackets and single letters: 3x+2, (1, 2), x=5. Two letters in a row are a word or a compound.
_FORMULA = re.compile(r"(?:\d|[-+*/^=<>()\[\]{}.,;!|_ $']|(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z]))+")
_COMPOUND = re.compile(r"\\ce\b|\b(?:[A-Z][a-z]?\d*){2,}\b")
_LETTER = re.compile(r"\(?[A-J]\)?\.?")

_MATH_MARK = re.compile(r"\$[^$\n]*[\\^_=+\d][^$\n]*\$|\\(?:[dt]?frac|sqrt|\(|\[)|\d\s*[-+*/^=×÷]\s*[\d(]")
_MATH_WORD = re.compile(
    r"(?i)\bhow (?:many|much|far|long|old|tall)\b|\b(?:calculate|compute|evaluate|simplify|solve|find|determine) |"
    r"\b(?:sum|product|average|probability|percent(?:age)?|area|perimeter|equation|integer|remainder|divisible)\b|"
    r"多少|求|计算|几个|cuánt|calcul|combien|wie ?viele?|сколько|найдите|quant[oi]s?\b|いくつ|몇"
)
_CHEMISTRY = re.compile(
    r"\\ce\{|\b(?=[A-Za-z0-9]*[a-z0-9])(?:(?:Na|K|Ca|Mg|Al|Fe|Cu|Zn|Ag|H|C|N|O|S|P|F|Cl|Br|I|Si|Mn|Pb|Ba|Li)\d*){2,}\b|"
    r"\b(?:mol|molar|reagent|compound|oxidation|isomer|catalyst|titration|anion|cation|covalent)\w*\b"
)
_DIGIT = re.compile(r"\d")


def detect_grader(
    prompts: Sequence[str],
    labels: Sequence[str | None] = (),
    choices: Sequence[Sequence[str] | None] = (),
) -> tuple[str, str]:
    """``"math"``, ``"choice"`` or ``"text"``, and a line with the evidence and the option that overrides the choice.

    ``labels`` and ``choices`` hold ``None`` for problems without them, or are empty.
    """
    name, evidence = _detect(prompts, [str(x) for x in labels if x is not None and str(x).strip()], choices)
    return name, f"grader: {name} ({evidence}); set --data.grader to change it"


def _detect(prompts: Sequence[str], labels: Sequence[str], choices: Sequence[Sequence[str] | None]) -> tuple[str, str]:
    total = len(prompts)
    with_choices = sum(1 for c in choices if c)
    if with_choices and with_choices >= _HALF * max(total, len(choices)):
        return "choice", f"{with_choices} of {max(total, len(choices))} problems come with choices"
    listed = _count(prompts, lambda p: split_choices(p)[1] is not None)
    if labels:
        letters = _count(labels, lambda x: _LETTER.fullmatch(x.strip()) is not None)
        if letters >= _MOST * len(labels) and (listed >= _HALF * total or letters == len(labels) > 1):
            return "choice", f"{letters} of {len(labels)} labels are single letters"
        math = _count(labels, _is_math_label)
        share = f"{math} of {len(labels)} labels are numbers or LaTeX expressions"
        return ("math", share) if math >= _MOST * len(labels) else ("text", f"only {share}")
    if not total:
        return "text", "there are no problems to look at"
    if listed >= _HALF * total:
        return "choice", f"{listed} of {total} problems list lettered choices and none has a label"
    chemistry = _count(prompts, lambda p: _CHEMISTRY.search(p) is not None)
    if chemistry >= 0.2 * total:
        return "text", f"{chemistry} of {total} problems speak of chemistry and none has a label"
    math = _count(prompts, _is_math_prompt)
    evidence = f"{math} of {total} problems ask for a number or contain formulas and none has a label"
    return ("math", evidence) if math >= _MOST * total else ("text", f"only {evidence}")


def _count(items: Sequence[str], test: Callable[[str], bool]) -> int:
    return sum(1 for item in items if test(item[:5000]))


def _is_math_label(label: str) -> bool:
    """A number with or without a unit, a formula, LaTeX, or a worked solution that ends in a box."""
    label = ascii_digits(label.strip())
    if "\\boxed" in label or _QUANTITY.fullmatch(label.strip("$")) is not None or quantity(label) is not None:
        return True
    bare = re.sub(r"\\text\s*\{[^{}]*\}", "", label)
    if _COMPOUND.search(bare.replace("\\", " \\")) is not None and _LATEX.search(label) is None:
        return False
    return "\\ce" not in label and (_LATEX.search(label) is not None or _FORMULA.fullmatch(label) is not None)


def _is_math_prompt(prompt: str) -> bool:
    """Formulas, or digits together with the words of arithmetic."""
    if _MATH_MARK.search(prompt) is not None:
        return True
    return _DIGIT.search(prompt) is not None and _MATH_WORD.search(prompt) is not None
