"""Base of the prompt templates: fills places, applies the chat template and returns token ids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any

from lightning_serl.errors import InputError
from lightning_serl.prompts.chat import chat_text, open_thought, turn_end, turn_end_id
from lightning_serl.types import Instruction


@dataclass(frozen=True)
class PromptTemplate:
    """Encodes a prompt as a chat turn or as plain text.

    Args:
        chat: Use the tokenizer's chat template; by default whenever it has one.
        system: System prompt; without a chat template it becomes the first paragraph.
        chat_kwargs: More arguments for the chat template, for example ``enable_thinking``.
        stop: Strings that end a completion; under a chat template by default none, or the letters that end its turns
            where the tokenizer has no token for them.
    """

    chat: bool | None = None
    system: str | None = None
    chat_kwargs: dict[str, Any] | None = field(default_factory=dict)
    stop: list[str] | None = None

    def uses_chat(self, tokenizer: Any) -> bool:
        """Whether the prompt goes through the tokenizer's chat template; ``chat`` without one is an error."""
        available = bool(getattr(tokenizer, "chat_template", None))
        if self.chat and not available:
            raise InputError(
                f"chat is true but the tokenizer {getattr(tokenizer, 'name_or_path', '')!r} has no chat template; "
                "set chat to false or use a model that has one"
            )
        return available if self.chat is None else self.chat

    def stop_strings(self, tokenizer: Any) -> list[str]:
        """The strings that end a completion; a chat ends by its end-of-turn token, see ``Policy.end_ids``."""
        if self.stop is not None:
            return list(self.stop)
        if not self.uses_chat(tokenizer):
            return [self._plain_stop()]
        end = turn_end(tokenizer)
        return [end] if end and turn_end_id(tokenizer) is None else []

    def opening(self, tokenizer: Any) -> str:
        """The tag of a section of thoughts that the prompt opens, which belongs before the completion's text."""
        return open_thought(tokenizer, self.chat_kwargs or {}) if self.uses_chat(tokenizer) else ""

    def _plain_stop(self) -> str:
        """The default stop string of a prompt without a chat template."""
        return "\n\n\n"

    def _encode(self, tokenizer: Any, user: str) -> list[int]:
        """Token ids of a user turn, with at most one beginning-of-sequence token.

        Raises:
            InputError: if ``chat`` is true and there is no chat template, or the template refuses the turn.
        """
        user = _without_surrogates(user)
        if self.uses_chat(tokenizer):
            text = chat_text(tokenizer, user, self.system, self.chat_kwargs or {})
            begin = tokenizer.bos_token
            if begin and text.lstrip().startswith(begin):
                text = text.lstrip()
            ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
            opening = list(tokenizer("")["input_ids"])[:1]
            if opening == [tokenizer.bos_token_id] != ids[:1]:
                ids = opening + ids
        else:
            text = user if self.system is None else f"{self.system}\n\n{user}"
            ids = list(tokenizer(text)["input_ids"])
            own = list(tokenizer(text, add_special_tokens=False)["input_ids"])
            if ids[-1:] == [tokenizer.eos_token_id] != own[-1:]:
                # Some tokenizers append an end token to every text, after which the model would answer nothing.
                ids.pop()
        if tokenizer.bos_token_id is not None:
            while ids[:2] == [tokenizer.bos_token_id] * 2:
                ids.pop(0)
        return ids


def check_places(what: str, template: str, needed: Sequence[str], allowed: Sequence[str]) -> None:
    """Refuse a template that would omit the problem or print an unknown place."""
    # After a letter braces belong to LaTeX, as in \boxed{answer}.
    unknown = [name for name in re.findall(r"(?<!\w)\{([A-Za-z_]\w*)\}", template) if name not in (*needed, *allowed)]
    known = ", ".join(f"{{{name}}}" for name in (*needed, *allowed))
    if unknown:
        raise InputError(f"{what} has the unknown place {{{unknown[0]}}} in {template!r}; the known ones are {known}")
    for name in needed:
        if f"{{{name}}}" not in template:
            raise InputError(f"{what} has no place {{{name}}} in {template!r}; write {{{name}}} where it belongs")


def check_stop(what: str, stop: Sequence[str] | None) -> None:
    """Refuse stop strings that would end every response at once: an empty one, or one string instead of a list."""
    if isinstance(stop, str) or any(not s for s in stop or ()):
        raise InputError(f"{what} must be a list of non-empty strings, not {stop!r}; use [] for no stop strings")


def fill(template: str, **values: str) -> str:
    """Fill all places in one pass, so that braces inside the values (LaTeX) stay as they are."""
    return re.sub(r"\{(" + "|".join(values) + r")\}", lambda place: values[place[1]], template)


def one_line(text: str) -> str:
    """The text with each run of white space replaced by one space."""
    return " ".join(text.split())


def with_options(problem: str, instruction: Instruction) -> str:
    """The problem, followed by its lettered options, one per line; more options than letters are refused."""
    choices = instruction.meta.get("choices") or ()
    if len(choices) > len(ascii_uppercase):
        raise InputError(
            f"problem {instruction.uid!r} has {len(choices)} options; a prompt can list at most {len(ascii_uppercase)} "
            "options"
        )
    lines = (f"{letter}. {one_line(str(choice))}" for letter, choice in zip(ascii_uppercase, choices, strict=False))
    return "\n".join([problem, *lines])


def _without_surrogates(text: str) -> str:
    """The text with lone surrogates replaced: JSON allows them, tokenizers refuse them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
