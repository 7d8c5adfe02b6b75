"""Token ids of prompts: chat templates, special tokens and stop strings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from jinja2 import TemplateError

from lightning_serl.errors import InputError
from lightning_serl.types import Instruction


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
