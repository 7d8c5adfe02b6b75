"""From instructions to prompts and back: solve templates, few-shot instruction prompts and the parser of proposals."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any, Literal

from jinja2 import TemplateError

from lightning_serl.answers import strip_thinking
from lightning_serl.errors import InputError
from lightning_serl.published import writing as published
from lightning_serl.types import Instruction

_ANSWER_FORMATS = {
    "math": r"Reason step by step and put the final answer in \boxed{}.",
    "choice": r"Reason step by step and put the letter of the right option in \boxed{}.",
    "text": r"Reason step by step and put a short final answer in \boxed{}.",
}
# For a grader of the user's own.
_ANY_ANSWER_FORMAT = r"Reason step by step and put the final answer in \boxed{}."


# --- templates -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SolveTemplate:
    r"""How a problem is put to the policy.

    Args:
        chat: Use the tokenizer's chat template; by default whenever it has one.
        system: System prompt; without a chat template it becomes the first paragraph.
        chat_kwargs: More arguments for the chat template, for example ``enable_thinking``.
        text: The user turn under a chat template, with the places ``{problem}`` and ``{answer_format}``.
        plain: The prompt of a base model, with the same places.
        answer_format: The sentence that asks for the form the grader reads; by default the one that fits the grader,
            "" for none.
        stop: Strings that end a response; by default none under a chat template, and for a base model the words that
            would open the next problem.
        bos: Begin with the tokenizer's beginning-of-sequence token where it adds one by itself; SeRL's published
            rollouts go without.

    Raises:
        InputError: if a template lacks ``{problem}`` or names an unknown place, or a stop string is empty.
    """

    chat: bool | None = None
    system: str | None = None
    chat_kwargs: dict[str, Any] = field(default_factory=dict)
    text: str = "{problem}\n{answer_format}"
    plain: str = "Question: {problem}\n{answer_format}\nSolution:"
    answer_format: str | None = None
    stop: list[str] | None = None
    bos: bool = True

    def __post_init__(self) -> None:
        for name in ("text", "plain"):
            _check_places(f"solve template {name!r}", getattr(self, name), ("problem",), ("answer_format",))
        _check_stop(self.stop)

    def render(self, instruction: Instruction, grader_name: str, chat: bool) -> str:
        """The user turn (``chat``) or the whole prompt of a base model, before any tokenizer sees it.

        Args:
            instruction: The problem; options under ``meta["choices"]`` are listed below it.
            grader_name: ``math``, ``choice``, ``text`` or any other name; decides the answer-format sentence.
            chat: Which of the two templates to fill.
        """
        asked = self.answer_format
        if asked is None:
            asked = _ANSWER_FORMATS.get(grader_name, _ANY_ANSWER_FORMAT)
        template = self.text if chat else self.plain
        if not asked:
            # The white space that set the sentence off goes with it.
            template = re.sub(r"^\{answer_format\}\s*|\s*\{answer_format\}", "", template)
        return _fill(template, problem=_with_options(instruction.prompt, instruction), answer_format=asked)

    def encode(self, tokenizer: Any, instruction: Instruction, grader_name: str) -> list[int]:
        """The prompt's token ids, with one beginning-of-sequence token if the tokenizer adds one.

        Args:
            tokenizer: A transformers tokenizer.
            instruction: The problem.
            grader_name: See :meth:`render`.

        Raises:
            InputError: if a chat template is asked for and there is none, or it cannot be filled.
        """
        chat = _uses_chat(tokenizer, self.chat)
        ids = _encode(tokenizer, self.render(instruction, grader_name, chat), self.system, chat, self.chat_kwargs)
        if not self.bos and tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]:
            del ids[0]
        return ids

    def stop_strings(self, tokenizer: Any) -> list[str]:
        """The strings that end a response.

        Args:
            tokenizer: A transformers tokenizer; tells whether the prompt is a chat.

        Raises:
            InputError: if a chat template is asked for and there is none.
        """
        if self.stop is not None:
            return list(self.stop)
        if _uses_chat(tokenizer, self.chat):
            return []
        opening = self.plain.partition("{problem}")[0].rpartition("\n")[2].strip()
        return ["\n" + opening] if opening else ["\n\n\n"]


@dataclass(frozen=True)
class InstructionTemplate:
    """How the policy is asked for new problems: a numbered list of examples that it continues.

    Args:
        header: What is asked for, above the list.
        system: System prompt; without a chat template it becomes the first paragraph.
        chat: Use the tokenizer's chat template; by default whenever it has one.
        chat_kwargs: More arguments for the chat template, for example ``enable_thinking``.
        item: One example, with the places ``{i}`` and ``{problem}``.
        dangling: End the list with the next number, so that the policy goes on with a problem.
        stop: Strings that end a list; by default none under a chat template, and for a base model two blank lines,
            after which it would leave the list.

    Raises:
        InputError: if ``item`` lacks a place or names an unknown one, or a stop string is empty.
    """

    header: str = (
        "Continue this numbered list with new problems of the same kind and level, each different from all the others. "
        "Every problem must be complete in itself, need nothing but its own text, and have one short answer that can "
        "be checked. Write down the problems only; do not solve them."
    )
    system: str | None = None
    chat: bool | None = None
    chat_kwargs: dict[str, Any] = field(default_factory=dict)
    item: str = "{i}. {problem}\n"
    dangling: bool = True
    stop: list[str] | None = None

    def __post_init__(self) -> None:
        _check_places("instruction template 'item'", self.item, ("i", "problem"), ())
        _check_stop(self.stop)

    def render(self, exemplars: Sequence[Instruction]) -> str:
        """The user turn, or the whole prompt of a base model, before any tokenizer sees it.

        Args:
            exemplars: The problems to show, in order; options under ``meta["choices"]`` are listed in the item.
        """
        parts = [self.header + "\n"] if self.header else []
        for i, exemplar in enumerate(exemplars, 1):
            parts.append(_fill(self.item, i=str(i), problem=_with_options(_one_line(exemplar.prompt), exemplar)))
        if self.dangling:
            # A trailing space would be half of the next word's token.
            parts.append(_fill(self.item.partition("{problem}")[0], i=str(len(exemplars) + 1)).rstrip())
        text = "".join(parts)
        return text if self.dangling else text.rstrip("\n")

    def first_number(self, exemplars: Sequence[Instruction]) -> int | None:
        """The number a completion goes on from without repeating it, for :func:`split_items`; ``None`` if none dangles.

        Args:
            exemplars: What :meth:`render` was given.
        """
        return len(exemplars) + 1 if self.dangling else None

    def encode(self, tokenizer: Any, exemplars: Sequence[Instruction]) -> list[int]:
        """The prompt's token ids, with one beginning-of-sequence token if the tokenizer adds one.

        Args:
            tokenizer: A transformers tokenizer.
            exemplars: The problems to show.

        Raises:
            InputError: if a chat template is asked for and there is none, or it cannot be filled.
        """
        chat = _uses_chat(tokenizer, self.chat)
        return _encode(tokenizer, self.render(exemplars), self.system, chat, self.chat_kwargs)

    def stop_strings(self, tokenizer: Any) -> list[str]:
        """The strings that end a list.

        Args:
            tokenizer: A transformers tokenizer; tells whether the prompt is a chat.

        Raises:
            InputError: if a chat template is asked for and there is none.
        """
        if self.stop is not None:
            return list(self.stop)
        return [] if _uses_chat(tokenizer, self.chat) else ["\n\n\n"]


def _check_places(what: str, template: str, needed: Sequence[str], allowed: Sequence[str]) -> None:
    """Refuse a template that would drop the problem or print a place nobody fills.

    Raises:
        InputError: naming the missing or unknown place.
    """
    # After a letter braces belong to LaTeX, as in \boxed{answer}.
    unknown = [name for name in re.findall(r"(?<!\w)\{([A-Za-z_]\w*)\}", template) if name not in (*needed, *allowed)]
    known = ", ".join(f"{{{name}}}" for name in (*needed, *allowed))
    if unknown:
        raise InputError(f"{what} has the unknown place {{{unknown[0]}}} in {template!r}; the known ones are {known}")
    for name in needed:
        if f"{{{name}}}" not in template:
            raise InputError(f"{what} has no place {{{name}}} in {template!r}; write {{{name}}} where it belongs")


def _check_stop(stop: Sequence[str] | None) -> None:
    """Refuse stop strings that would end every response at once.

    Raises:
        InputError: for an empty string, or one string where a list is meant.
    """
    if isinstance(stop, str) or any(not s for s in stop or ()):
        raise InputError(f"stop must be a list of non-empty strings, not {stop!r}; use [] for no stop strings")


def _fill(template: str, **values: str) -> str:
    """Fill the places in one pass, so that braces inside the values (LaTeX) stay as they are."""
    return re.sub(r"\{(" + "|".join(values) + r")\}", lambda place: values[place[1]], template)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _with_options(problem: str, instruction: Instruction) -> str:
    """The problem and, on lines of their own, its lettered options.

    Raises:
        InputError: if there are more options than letters.
    """
    choices = instruction.meta.get("choices") or ()
    if len(choices) > len(ascii_uppercase):
        raise InputError(
            f"problem {instruction.uid!r} has {len(choices)} options; letters reach for {len(ascii_uppercase)}"
        )
    lines = (f"{letter}. {_one_line(str(choice))}" for letter, choice in zip(ascii_uppercase, choices, strict=False))
    return "\n".join([problem, *lines])


# --- tokens ----------------------------------------------------------------------------------------------------------


def _uses_chat(tokenizer: Any, chat: bool | None) -> bool:
    """Whether the prompt goes through the tokenizer's chat template.

    Raises:
        InputError: if it must and there is none.
    """
    available = bool(getattr(tokenizer, "chat_template", None))
    if chat and not available:
        raise InputError(
            f"chat is true but the tokenizer {getattr(tokenizer, 'name_or_path', '')!r} has no chat template; "
            "set chat to false or use a model that has one"
        )
    return available if chat is None else chat


def _encode(tokenizer: Any, user: str, system: str | None, chat: bool, chat_kwargs: Mapping[str, Any]) -> list[int]:
    """Token ids of a prompt, with what the tokenizer puts in front of a text and never with two of it."""
    user = _whole_characters(user)
    if chat:
        ids = list(tokenizer(_chat_text(tokenizer, user, system, chat_kwargs), add_special_tokens=False)["input_ids"])
        opening = list(tokenizer("")["input_ids"])[:1]
        if opening == [tokenizer.bos_token_id] != ids[:1]:
            ids = opening + ids
    else:
        text = user if system is None else f"{system}\n\n{user}"
        ids = list(tokenizer(text)["input_ids"])
        own = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if ids[-1:] == [tokenizer.eos_token_id] != own[-1:]:
            # Some tokenizers close every text; a closed prompt would be answered by silence.
            ids.pop()
    if tokenizer.bos_token_id is not None:
        while ids[:2] == [tokenizer.bos_token_id] * 2:
            ids.pop(0)
    return ids


def _whole_characters(text: str) -> str:
    """The text with half characters (lone surrogates, which JSON allows and tokenizers refuse) replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _chat_text(tokenizer: Any, user: str, system: str | None, chat_kwargs: Mapping[str, Any]) -> str:
    """The chat template filled with one user turn.

    Raises:
        InputError: if the template refuses the turn.
    """
    turns = [{"role": "user", "content": user}]
    if system is not None:
        try:
            return _apply(tokenizer, [{"role": "system", "content": system}, *turns], chat_kwargs)
        except TemplateError:
            # Some templates know no system role; their models were trained with such text in the user turn.
            turns = [{"role": "user", "content": f"{system}\n\n{user}"}]
    try:
        return _apply(tokenizer, turns, chat_kwargs)
    except (TemplateError, TypeError) as error:
        raise InputError(
            f"the chat template of {getattr(tokenizer, 'name_or_path', '')!r} cannot be filled "
            f"({_one_line(str(error))}); check chat_kwargs or set chat to false"
        ) from error


def _apply(tokenizer: Any, turns: list[dict[str, str]], chat_kwargs: Mapping[str, Any]) -> str:
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **chat_kwargs)
    return str(text)


# --- proposals -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """One proposed problem as it stood in the policy's text.

    Attributes:
        text: The problem without its number.
        truncated: The text ended in the middle of it.
    """

    text: str
    truncated: bool = False


#: The default rules, and those of SeRL's published code.
STYLES = ("default", "serl")
_NUMBER = re.compile(r"^[ \t]*(?:\*\*|#+[ \t]+)?(\d{1,4})(?:[.)](?:\*\*)?(?:\s+|$)|[、．）][ \t]*)", re.MULTILINE)

# Words that open a solution, where a line or sentence begins; the colon keeps "Answer the question" out.
_SOLUTION_WORDS = (
    "solutions?|(?:the )?(?:final |correct |right )?answers?|explanation|"
    "解|解答|解析|答|答案|参考答案|正解|정답|풀이|soluci[oó]n|respuesta|solução|resposta|réponse|lösung|antwort|"
    "soluzione|risposta|решение|ответ|الحل|الجواب|الإجابة|हल|उत्तर|समाधान"
)
# Repetitions are bounded: model text may be a megabyte of blank lines.
_SOLUTION = re.compile(
    rf"\\boxed\b|(?:^|[.?!。？！؟।;])[ \t\u3000*_#]{{0,20}}+(?:{_SOLUTION_WORDS})[*_]{{0,3}}\s{{0,3}}[:：]",
    re.IGNORECASE | re.MULTILINE,
)


def split_items(
    text: str,
    style: Literal["default", "serl"] = "default",
    first: int | None = None,
    finished: bool = True,
) -> list[Item]:
    """Cut the policy's list into problems, keeping also those that are cut off or empty, so that they can be counted.

    Args:
        text: The sampled text.
        style: ``default`` reads numbers at line starts and leaves the problems as they are written; ``serl`` follows
            SeRL's published code, which finds numbers anywhere and capitalises.
        first: The number that the prompt ended in. Text before the next number then is that problem; without it, or
            when the text starts to count afresh, it is a preamble.
        finished: ``False`` if the text was cut off by length.

    Raises:
        ValueError: for an unknown style.
    """
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}; use one of {', '.join(STYLES)}")
    if style == "serl":
        return [Item(found) for found in published.read_list(text)]
    text = strip_thinking(text)
    numbers = list(_NUMBER.finditer(text))
    lead = text[: numbers[0].start()] if numbers else text
    goes_on = first is not None and (not numbers or int(numbers[0][1]) == first + 1)
    found = [lead] if goes_on and lead.strip() else []
    ends = [*(n.start() for n in numbers[1:]), len(text)]
    found += [text[n.end() : end] for n, end in zip(numbers, ends, strict=False)]
    return [Item(t.strip(), not finished and i == len(found) - 1) for i, t in enumerate(found)]


def parse_instructions(
    text: str,
    style: Literal["default", "serl"] = "default",
    first: int | None = None,
    finished: bool = True,
) -> list[str]:
    """The problems in the policy's list; in the default style without empty ones and without one that is cut off.

    Args:
        text: The sampled text.
        style: See :func:`split_items`.
        first: See :func:`split_items`.
        finished: See :func:`split_items`.

    Raises:
        ValueError: for an unknown style.
    """
    items = split_items(text, style, first, finished)
    return [item.text for item in items if style == "serl" or (item.text and not item.truncated)]


def has_solution(text: str) -> bool:
    r"""Whether a problem brings its solution along: a box, or a sentence that opens with ``Answer:`` and such."""
    return _SOLUTION.search(text) is not None
