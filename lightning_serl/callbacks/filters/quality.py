"""Rejects proposals that are no usable problem, among them references to missing pictures and leaked solutions."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

from lightning_serl.answers import split_choices
from lightning_serl.callbacks.filters import serl as published
from lightning_serl.callbacks.rollout_hooks import InstructionFilter
from lightning_serl.distributed.lightning_internals import callback_state_key
from lightning_serl.errors import InputError, check_choice
from lightning_serl.pool.pool import InstructionPool
from lightning_serl.pool.words import count_words
from lightning_serl.prompts.asking import asks, asks_several, lacks_context, language_known
from lightning_serl.prompts.proposals import has_solution
from lightning_serl.types import STYLES, Instruction, Reason

_MIN_WORDS = 4
_MAX_WORDS = {"default": 600, "serl": published.MAX_WORDS}


class QualityFilter(InstructionFilter):
    """Rejects proposals that are empty, too short or long, cut off, or cannot be solved from their text.

    The style ``default`` accepts problems in any language and with leading formulas; ``serl`` applies the rules of
    SeRL's published code. ``default`` also rejects a text that asks nothing (``no_question``), asks for several answers
    (``several_questions``) or leans on a story that is not there (``no_context``), in the languages whose questions it
    knows. These three do not apply where more than a tenth of the seeds would be rejected so.

    Args:
        style: ``default`` or ``serl``.
        min_words: Fewest words of a problem (characters in scripts without spaces); by default 4, in the style
            ``default`` without a limit where more than a tenth of the seeds are shorter.
        max_words: Most words of a problem; by default 600, in the style ``serl`` 150.
        keywords: Words and phrases that reject a problem; by default references to a picture, which a text cannot
            show, in the style ``serl`` SeRL's list.
        require_choices: Reject problems without options, or with the same one twice (``no_choices``); by default if all
            seeds have options.

    Raises:
        InputError: for an unknown style, length bounds out of order or an empty keyword.
    """

    def __init__(
        self,
        style: Literal["default", "serl"] = "default",
        min_words: int | None = None,
        max_words: int | None = None,
        keywords: list[str] | None = None,
        require_choices: bool | None = None,
    ) -> None:
        super().__init__()
        check_choice("QualityFilter.style", style, STYLES)
        self.style, self.keywords, self.require_choices = style, keywords, require_choices
        self.min_words = _MIN_WORDS if min_words is None else min_words
        self._seeds_may_be_short = min_words is None
        self.max_words = _MAX_WORDS[style] if max_words is None else max_words
        if not 0 <= self.min_words <= self.max_words:
            raise InputError(
                "QualityFilter.min_words must be at least 0 and at most QualityFilter.max_words, got "
                f"{self.min_words} and {self.max_words}"
            )
        if isinstance(keywords, str) or any(not k.strip() for k in keywords or ()):
            raise InputError(f"QualityFilter.keywords must be a list of words, got {keywords!r}; use [] for none")
        chosen = keywords if keywords is not None else published.KEYWORDS if style == "serl" else None
        self._keyword = _MISSING_PICTURE if chosen is None else _phrase_pattern(chosen)

    @property
    def state_key(self) -> str:
        """A key that tells filters of this class with other options apart."""
        return callback_state_key(self, "style", "min_words", "max_words", "keywords", "require_choices")

    def reject(self, instruction: Instruction | str, pool: InstructionPool | None = None) -> Reason | None:
        """Why a proposal is no usable problem; ``None`` if it is.

        Args:
            instruction: The proposal; options are read from its text if it is a plain string.
            pool: Tells whether all seeds have options.
        """
        if self.style == "serl":
            text = instruction if isinstance(instruction, str) else instruction.prompt
            reason = published.reject(text, self.min_words, self.max_words, self._keyword)
        else:
            reason = self._reject_default(instruction, pool) or _unlike_seeds(instruction, pool)
        return "no_choices" if reason is None and self._lacks_choices(instruction, pool) else reason

    def _reject_default(self, instruction: Instruction | str, pool: InstructionPool | None) -> Reason | None:
        if isinstance(instruction, str):
            text, options = split_choices(instruction)[0], instruction
        else:
            text = instruction.prompt
            if instruction.meta.get("truncated"):
                return "truncated_item"
            # "Answer: B" after the last option is part of that option
            options = "\n".join([text, *map(str, instruction.meta.get("choices") or ())])
        words = count_words(text)
        if not text.strip():
            return "empty"
        if not words:
            return "punctuation"
        if words < self.min_words and not (self._seeds_may_be_short and _usual(self._is_short, pool)):
            return "too_short"
        if words > self.max_words:
            return "too_long"
        if self._keyword.search(text):
            return "keyword"
        # votes cannot agree on a program
        if text.lstrip().lower().startswith("write a program"):
            return "write_a_program"
        return "solution_leak" if _leaks_solution(options) else None

    def _is_short(self, text: str) -> bool:
        return count_words(text) < self.min_words

    def _lacks_choices(self, instruction: Instruction | str, pool: InstructionPool | None) -> bool:
        required = self.require_choices
        if required is None:
            # SeRL's published code has no such rule
            required = self.style == "default" and pool is not None and pool.multiple_choice
        if not required:
            return False
        found = split_choices(instruction)[1] if isinstance(instruction, str) else instruction.meta.get("choices")
        different = {" ".join(str(option).casefold().split()) for option in found or ()}
        return len(different) < 2 or (self.style == "default" and len(different) < len(found or ()))


# At most this many seeds show whether a form of problem is usual among them, and it is if more than this share has it.
_SEEDS_READ, _USUAL = 100, 0.1


def _unlike_seeds(instruction: Instruction | str, pool: InstructionPool | None) -> Reason | None:
    """The first fault in what a problem asks, unless seeds have it too."""
    text = instruction if isinstance(instruction, str) else instruction.prompt
    choices = not isinstance(instruction, str) and bool(instruction.meta.get("choices"))
    faults: tuple[tuple[Reason, Callable[[str], bool]], ...] = (
        ("no_question", lambda problem: not asks(problem)),
        ("several_questions", asks_several),
        ("no_context", lacks_context),
    )
    for reason, has in faults:
        if not has(text) or (choices and reason == "no_question"):
            continue
        # seeds that ask show that their language is known; without seeds there is only the text to judge it by
        unknown = reason == "no_question" and (pool is None or not len(pool)) and not language_known(text)
        if not unknown and not _usual(has, pool):
            return reason
    return None


def _usual(has: Callable[[str], bool], pool: InstructionPool | None) -> bool:
    """Whether more than a tenth of the seeds have a fault, so that it is none."""
    seeds = [] if pool is None else pool.seeds
    shown = [seed.prompt for seed in seeds[:: max(1, len(seeds) // _SEEDS_READ)]]
    return sum(map(has, shown)) > _USUAL * len(shown)


def _phrase_pattern(phrases: Sequence[str]) -> re.Pattern[str]:
    """A pattern that matches any of the phrases as whole words, in scripts without spaces anywhere."""
    if not phrases:
        return re.compile(r"(?!)")
    edged = []
    for phrase in phrases:
        words = phrase.split()
        left = r"\b" if _is_ascii_word(words[0][0]) else ""
        right = r"\b" if _is_ascii_word(words[-1][-1]) else ""
        edged.append(left + r"\s+".join(map(re.escape, words)) + right)
    return re.compile("|".join(edged), re.IGNORECASE)


def _is_ascii_word(char: str) -> bool:
    return char.isascii() and char.isalnum()


# "The graph of y = x" and "the image of a point" are mathematics, a figure can be a number and a chart a patient's:
# only references to something shown count.
_DRAWN = "diagram|illustration|sketch"
_SEEN = f"figure|{_DRAWN}|picture|image|photo|photograph|graph|chart|plot(?! of land)|map|drawing"
_PARTS = "area|perimeter|circumference|volume|sides?|vertices|angles?|parts?|portion|fraction|squares|triangles"
_ENGLISH = (
    rf"\b(?:the|this) (?:{_DRAWN})\b"
    r"|\b(?:in|from|see) (?:the|this) figure\b(?! of)|\bfigure \d+(?:\.\d+)? (?:shows|below|above)\b"
    r"|\b(?:the|this) figure (?:shows|represents|depicts|illustrates|consists|contains|to the (?:left|right))\b"
    r"|\b(?:the|this) figure is (?:made|composed|formed|divided|drawn|not drawn|not to scale)\b"
    rf"|\b(?:{_PARTS}) (?:of|in) (?:the|this) (?:\w+ )?figure\b"
    r"|\b(?:in|from) (?:the|this) (?:picture|photo|photograph|drawing|(?:bar|pie|line) chart)\b"
    r"|\b(?:from|see|using|based on|according to|(?:shown|given|data|information) (?:in|on)) (?:the|this) chart\b"
    rf"|\b(?:following|accompanying|attached|given|adjoining|adjacent) (?:{_SEEN})\b"
    rf"|\b(?:{_SEEN})s? (?:is |are )?(?:shown|below|above|provided)\b"
    rf"|\b(?:shown|pictured|depicted|illustrated) (?:in|on|by) (?:the|this) (?:{_SEEN})\b"
    rf"|\b(?:below|above|here) (?:is|are) (?:the|a) (?:{_SEEN})s?\b"
    r"|\bas (?:shown|pictured|depicted|illustrated)\b(?! (?:by|in|from)\b)"
    r"|\bas (?:shown|pictured|depicted|illustrated) in (?:figure|fig\.)|\bgraphed (?:below|above|here)\b"
)
# The same in the other languages that `has_solution` knows. The word for a picture alone does not count: it can also
# mean a shape, a mapping, a person or a face.
_ELSEWHERE = (
    # 例如图书馆 is "for example the library", 以下图书 "the books below", 地图中 "on the map"
    r"(?<![例比假譬诸諸])如[上下左右]?[图圖](?![书書])|(?<!低)[下附右左][图圖](?![书書形])|见[图圖]|(?<![地试試企意画畫])[图圖]中"
    r"|[下上右左次]の図(?![形書])|図のよう|図に示|図において"
    r"|그림과 같|그림에서 보|(?:아래|다음|위|오른쪽|왼쪽)의? ?그림"
    r"|\b(?:en|según) (?:la|esta) figura\b(?! (?:del?|jurídica|legal|histórica)\b)"
    r"|\b(?:figura|gráfica|gráfico|imagen|dibujo) (?:adjunt[oa]|de abajo|de arriba|de la (?:derecha|izquierda))\b"
    r"|\bsiguiente (?:figura|gráfic[oa]|imagen|dibujo)\b|\bla figura m(?:uestra|ostra)\b"
    r"|\bcomo se (?:muestra|ve|observa) en (?:la|el) (?:figura|gráfic[oa]|imagen|dibujo|diagrama)\b"
    r"|\b(?:na|conforme a|da) figura (?:abaixo|acima|ao lado|a seguir|seguinte)\b|\bfigura (?:abaixo|ao lado)\b"
    r"|\bna figura\b(?! d[eoa]\b)|\b(?:gráfico|imagem|diagrama) (?:abaixo|ao lado)\b"
    r"|\b(?:figure|schéma|diagramme|graphique|dessin|image|photo) ci-(?:dessous|dessus|contre|après|jointe?)\b"
    r"|\b(?:dans|sur) (?:la|cette) figure suivante\b|\bdans (?:la|cette) figure\b|\bcomme (?:le )?montre la figure\b"
    r"|\b(?:in der|siehe|wie in der) Abbildung\b(?! (?:\$|\\|\w\b))|\bAbbildung (?:zeigt|unten|oben|rechts|links)\b"
    r"|\b(?:neben|unten)stehende[nrms]? (?:Abbildung|Figur|Skizze|Grafik|Zeichnung|Bild|Diagramm)\b"
    r"|\bfolgende[nrs]? (?:Grafik|Skizze|Figur)\b"
    r"|\bwie (?:unten |oben )?(?:abgebildet|skizziert)\b|\bin der (?:Skizze|Grafik|Zeichnung)\b"
    r"|\b(?:nella|in) figura\b(?! d[ie]\b)|\bfigura (?:a lato|a fianco|sottostante|qui sotto)\b"
    r"|\b(?:на|см\.|по) (?:рис\.|рисунк[еу]|чертеж[еу])"
    r"|الشكل (?:المجاور|المقابل|أدناه|الموضح|المبين)|في الشكل (?:التالي|الآتي)|الصورة (?:المجاورة|أدناه)"
    r"|الرسم (?:البياني )?(?:المجاور|أدناه)"
    r"|(?:चित्र|आकृति) में|(?:दिए गए|दी गई|निम्न|नीचे के) (?:चित्र|आकृति)"
)
# Matches references to a picture that a text cannot show.
_MISSING_PICTURE = re.compile(rf"{_ENGLISH}|{_ELSEWHERE}|\[asy\]|\\includegraphics", re.IGNORECASE)

# "Solution: 0.1 mol HCl in 1 L" before the question describes a substance.
_ASKED = re.compile(
    r"[?？]|\b(?:what|which|how|find|calculate|compute|determine|solve|evaluate|state|give)\b", re.IGNORECASE
)
_SUBSTANCE = re.compile(
    r"(?:^|(?<=[.;]))[ \t]{0,20}solutions?:[ \t]{0,20}(?=\d[\d.,]{0,20} ?(?:[mµ]?mol|[mµ]?M|[mµk]?g|m?L|cm|N|%))",
    re.IGNORECASE | re.MULTILINE,
)


def _leaks_solution(text: str) -> bool:
    """Whether a problem contains its own solution; solutions of substances do not count."""
    if not has_solution(text):
        return False
    asked = _ASKED.search(text)
    head = len(text) if asked is None else asked.start()
    return has_solution(_SUBSTANCE.sub(" ", text[:head]) + text[head:])
