"""Which instructions are rolled out and which groups are trained on."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from lightning.pytorch import Callback

from lightning_serl.answers import split_choices
from lightning_serl.errors import InputError
from lightning_serl.pool import InstructionPool
from lightning_serl.prompts import STYLES, has_solution
from lightning_serl.published import filters as published
from lightning_serl.types import Group, Instruction, Verdict
from lightning_serl.words import count_words

# float32 scores, summed: shares of n responses that differ at all differ by far more.
_ROUNDING = 1e-6


class InstructionFilter(Callback, ABC):
    """Judges a proposed instruction before it is rolled out.

    Filters are asked in the order they are listed; the first reason given rejects the instruction.
    """

    @abstractmethod
    def reject(self, instruction: Instruction | str, pool: InstructionPool | None) -> str | None:
        """Why not to use an instruction.

        Args:
            instruction: The proposal.
            pool: All instructions accepted so far, seeds included; ``None`` if there is no pool.

        Returns:
            One of ``lightning_serl.reasons.REASONS``, or ``None`` to let it pass.
        """


class GroupFilter(Callback, ABC):
    """Judges rolled-out and rewarded groups before they are trained on."""

    @abstractmethod
    def weigh(self, groups: Sequence[Group], verdicts: Sequence[Verdict]) -> tuple[list[float], list[str | None]]:
        """How much each group counts.

        Args:
            groups: The groups of a round.
            verdicts: What the reward said of each.

        Returns:
            A weight per group, 0 to drop it, and a reason per group: one of ``lightning_serl.reasons.REASONS`` for
            those dropped, ``None`` for the others.
        """


class QualityFilter(InstructionFilter):
    """Rejects proposals that are no usable problem: nothing in them, too short or long, unsolvable from their text.

    Proposals that the parser marked as cut off (``meta["truncated"]``) are rejected as such. The style ``default``
    takes problems of any language and with leading formulas; ``serl`` applies the rules of SeRL's published code.

    Args:
        style: ``default`` or ``serl``.
        min_words: The fewest words of a problem (characters in scripts without spaces).
        max_words: The most words of a problem; by default 600, in the style ``serl`` 150.
        keywords: Words and phrases that reject a problem; by default those that point to a picture which a text
            cannot show, in the style ``serl`` SeRL's list.
        require_choices: Reject problems without options; by default if all seeds have some.

    Raises:
        InputError: for an unknown style, length bounds out of order or an empty keyword.
    """

    def __init__(
        self,
        style: Literal["default", "serl"] = "default",
        min_words: int = 4,
        max_words: int | None = None,
        keywords: list[str] | None = None,
        require_choices: bool | None = None,
    ) -> None:
        super().__init__()
        if style not in STYLES:
            raise InputError(f"QualityFilter: unknown style {style!r}; use default or serl")
        self.style = style
        self.min_words = min_words
        self.max_words = _MAX_WORDS[style] if max_words is None else max_words
        if not 0 <= self.min_words <= self.max_words:
            raise InputError(
                f"QualityFilter: min_words {self.min_words} and max_words {self.max_words} are out of order; "
                "min_words must be at least 0 and at most max_words"
            )
        if isinstance(keywords, str) or any(not k.strip() for k in keywords or ()):
            raise InputError(f"QualityFilter: keywords must be a list of words, not {keywords!r}; use [] for none")
        self.keywords = keywords
        self.require_choices = require_choices
        chosen = keywords if keywords is not None else published.KEYWORDS if style == "serl" else None
        self._keyword = _MISSING_PICTURE if chosen is None else _phrases(chosen)

    @property
    def state_key(self) -> str:
        """Tells filters of one class apart by their options."""
        return self._generate_state_key(
            style=self.style,
            min_words=self.min_words,
            max_words=self.max_words,
            keywords=self.keywords,
            require_choices=self.require_choices,
        )

    def reject(self, instruction: Instruction | str, pool: InstructionPool | None = None) -> str | None:
        """Why a proposal is no usable problem.

        Args:
            instruction: The proposal; in a plain text options are looked for.
            pool: Tells whether the seeds have options.

        Returns:
            A reason or ``None``.
        """
        text = instruction if isinstance(instruction, str) else instruction.prompt
        reason = self._reject_serl(text) if self.style == "serl" else self._reject_default(instruction)
        if reason is None and self._lacks_choices(instruction, pool):
            return "no_choices"
        return reason

    def _reject_default(self, instruction: Instruction | str) -> str | None:
        if isinstance(instruction, str):
            text, options = split_choices(instruction)[0], instruction
        else:
            text = instruction.prompt
            if instruction.meta.get("truncated"):
                return "truncated_item"
            # What follows the last option, "Answer: B", is found there.
            options = "\n".join([text, *map(str, instruction.meta.get("choices") or ())])
        words = count_words(text)
        if not text.strip():
            return "empty"
        if not words:
            return "punctuation"
        if words < self.min_words:
            return "too_short"
        if words > self.max_words:
            return "too_long"
        if self._keyword.search(text):
            return "keyword"
        # A program is no answer that votes could agree on.
        if text.lstrip().lower().startswith("write a program"):
            return "write_a_program"
        return "solution_leak" if _leaks(options) else None

    def _reject_serl(self, text: str) -> str | None:
        return published.reject(text, self.min_words, self.max_words, self._keyword)

    def _lacks_choices(self, instruction: Instruction | str, pool: InstructionPool | None) -> bool:
        required = self.require_choices
        if required is None:
            # SeRL's code has no such rule.
            required = self.style == "default" and pool is not None and pool.multiple_choice
        if not required:
            return False
        found = split_choices(instruction)[1] if isinstance(instruction, str) else instruction.meta.get("choices")
        return len(found or ()) < 2


class NoveltyFilter(InstructionFilter):
    """Rejects proposals that repeat an earlier problem.

    Args:
        threshold: The largest ROUGE-L F with any earlier problem that still passes, above 0 and at most 1.
        style: ``default`` compares with the seeds and everything that was ever accepted; ``serl`` with the seeds and
            what waits to be answered, as SeRL's published code does, which forgets everything else.
        max_alike: Reject a problem that already resembles this many of the policy's own: a policy tends to end up with
            a few stories and other numbers in them. By default there is no such limit.
        alike: ROUGE-L F above which two problems resemble each other, at most ``threshold``.

    Raises:
        InputError: for a number out of range or an unknown style.
    """

    def __init__(
        self,
        threshold: float = 0.7,
        style: Literal["default", "serl"] = "default",
        max_alike: int | None = None,
        alike: float = 0.5,
    ) -> None:
        super().__init__()
        if not 0 < threshold <= 1:
            raise InputError(f"NoveltyFilter: threshold {threshold} is out of range; it must be above 0 and at most 1")
        if style not in STYLES:
            raise InputError(f"NoveltyFilter: unknown style {style!r}; use default or serl")
        if max_alike is not None and max_alike < 1:
            raise InputError(f"NoveltyFilter: max_alike is {max_alike}; it must be at least 1, or null for no limit")
        if max_alike is not None and not 0 < alike <= threshold:
            raise InputError(
                f"NoveltyFilter: alike {alike} is out of range; it must be above 0 and at most {threshold}"
            )
        self.threshold, self.style, self.max_alike, self.alike = threshold, style, max_alike, alike

    @property
    def state_key(self) -> str:
        """Tells filters of one class apart by their options."""
        return self._generate_state_key(
            threshold=self.threshold, style=self.style, max_alike=self.max_alike, alike=self.alike
        )

    def reject(self, instruction: Instruction | str, pool: InstructionPool | None) -> str | None:
        """Why a proposal is not new.

        Args:
            instruction: The proposal.
            pool: What it is compared with.

        Returns:
            ``duplicate`` or ``None``.
        """
        if pool is None:
            return None
        among = ("seed", "accepted") if self.style == "serl" else None
        if pool.similar(instruction, self.threshold, among) is not None:
            return "duplicate"
        limit = self.max_alike
        return "duplicate" if limit is not None and pool.alike(instruction, self.alike, limit) >= limit else None


class DifficultyFilter(GroupFilter):
    """Drops groups that nearly all or hardly any responses solve.

    The mean score of the responses that count (weight above 0) must lie in the band, bounds included. Only problems
    (role ``solve``) whose scores are shares, between 0 and 1, are judged: a mean log-prob or the score of a proposal
    says nothing of difficulty. Groups whose scores are advantages already are left alone.

    Args:
        low: The smallest mean score that is trained on.
        high: The largest mean score that is trained on.
        style: ``default`` takes the bounds as the numbers they are written as (4 of 5 is 0.8); ``serl`` compares the
            float32 mean as SeRL's published code does (4 of 5 is above 0.8).

    Raises:
        InputError: if ``low`` is above ``high``, or for an unknown style.
    """

    def __init__(self, low: float = 0.2, high: float = 0.8, style: Literal["default", "serl"] = "default") -> None:
        super().__init__()
        if not low <= high:
            raise InputError(f"DifficultyFilter: low {low} is above high {high}; low must be at most high")
        if style not in STYLES:
            raise InputError(f"DifficultyFilter: unknown style {style!r}; use default or serl")
        self.low, self.high, self.style = low, high, style

    @property
    def state_key(self) -> str:
        """Tells filters of one class apart by their options."""
        return self._generate_state_key(low=self.low, high=self.high, style=self.style)

    def weigh(self, groups: Sequence[Group], verdicts: Sequence[Verdict]) -> tuple[list[float], list[str | None]]:
        """Weight 0 and ``too_hard``, ``too_easy`` or ``no_answer`` for groups outside the band.

        Args:
            groups: The groups of a round.
            verdicts: What the reward said of each.

        Returns:
            Weights and reasons.
        """
        return _weights([self._judge(g, v) for g, v in zip(groups, verdicts, strict=True)])

    def _judge(self, group: Group, verdict: Verdict) -> str | None:
        if verdict.centred or group.instruction.role != "solve":
            return None
        live = bool((verdict.weight > 0).any())
        # the published code knows no answer as a case of its own: its mean says it all
        if not live or (self.style == "default" and _unanswered(verdict)):
            return "no_answer"
        scores = verdict.scores[verdict.weight > 0]
        if bool((scores < 0).any()) or bool((scores > 1).any()):
            return None
        if self.style == "serl":
            mean, slack = published.mean_score(scores), 0.0
        else:
            mean, slack = math.fsum(scores.tolist()) / len(scores), _ROUNDING
        if mean < self.low - slack:
            return "too_hard"
        return "too_easy" if mean > self.high + slack else None


class ZeroSpread(GroupFilter):
    """Drops groups whose responses all score the same: they teach nothing, and under batch baselines they lock in.

    Responses of weight 0 do not count. Groups with scores per token, or whose scores are advantages already, are left
    alone.
    """

    def weigh(self, groups: Sequence[Group], verdicts: Sequence[Verdict]) -> tuple[list[float], list[str | None]]:
        """Weight 0 and ``no_spread`` or ``no_answer`` for groups without a difference.

        Args:
            groups: The groups of a round.
            verdicts: What the reward said of each.

        Returns:
            Weights and reasons.
        """
        return _weights([self._judge(verdict) for verdict in verdicts])

    def _judge(self, verdict: Verdict) -> str | None:
        if verdict.centred:
            return None
        if _unanswered(verdict):
            return "no_answer"
        scores = verdict.scores[verdict.weight > 0]
        equal = bool((scores == scores[0]).all())
        return "no_spread" if equal and verdict.token_scores is None else None


def _unanswered(verdict: Verdict) -> bool:
    """Whether no response counts, or the reward says that none of them holds an answer."""
    return not bool((verdict.weight > 0).any()) or verdict.info.get("no_answer", 0) == len(verdict.scores)


def _weights(reasons: list[str | None]) -> tuple[list[float], list[str | None]]:
    return [1.0 if reason is None else 0.0 for reason in reasons], reasons


def _phrases(phrases: Sequence[str]) -> re.Pattern[str]:
    """Finds any of the phrases as whole words; in scripts without spaces, anywhere."""
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


_MAX_WORDS = {"default": 600, "serl": published.MAX_WORDS}

# "The graph of y = x" and "the image of a point" are plain mathematics: only references to something shown count. A
# figure can be a number, a chart a patient's, and evidence shows something, too.
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
# The same in the other languages whose solutions are known (prompts.has_solution): what points to a picture, never the
# word for one alone, which may be a shape, a mapping, a person or a face.
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
_MISSING_PICTURE = re.compile(rf"{_ENGLISH}|{_ELSEWHERE}|\[asy\]|\\includegraphics", re.IGNORECASE)

# "Solution: 0.1 mol HCl in 1 L" is given, not an answer, as long as nothing was asked yet.
_ASKED = re.compile(
    r"[?？]|\b(?:what|which|how|find|calculate|compute|determine|solve|evaluate|state|give)\b", re.IGNORECASE
)
_SUBSTANCE = re.compile(
    r"(?:^|(?<=[.;]))[ \t]{0,20}solutions?:[ \t]{0,20}(?=\d[\d.,]{0,20} ?(?:[mµ]?mol|[mµ]?M|[mµk]?g|m?L|cm|N|%))",
    re.IGNORECASE | re.MULTILINE,
)


def _leaks(text: str) -> bool:
    """Whether a problem brings its solution along, which a solution in the chemist's sense is not."""
    if not has_solution(text):
        return False
    asked = _ASKED.search(text)
    head = len(text) if asked is None else asked.start()
    return has_solution(_SUBSTANCE.sub(" ", text[:head]) + text[head:])
