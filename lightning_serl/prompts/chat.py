"""Fills the chat templates of tokenizers, and finds out how each of them takes and ends a turn.

Templates differ: some have no system role and raise or leave the turn out, some take the content of a turn as a list of
parts and print nothing for a string, and many end a turn with another token than the tokenizer's end token. A template
is a program, so it is tried on marked turns instead of read.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from jinja2 import TemplateError

from lightning_serl.errors import InputError, reason, short

# What a template may raise on a form of content that it was not written for.
_REFUSALS = (TemplateError, TypeError, ValueError, AttributeError, LookupError)
# Words that mark the turns of a trial; a template may change their case.
_SYSTEM, _USER, _REPLY = "qsystemturnq", "quserturnq", "qreplyturnq"
# The end of a turn that is spelled in letters: a tag in angle or square brackets.
_TAG = re.compile(r"\s*(<[^<>\s]{1,40}>|\[/?[A-Z_]{2,20}\])")
# A tag that opens a section of thoughts, as the last part of a prompt.
_OPEN_THOUGHT = re.compile(
    r"(?:<\|?(?!end)[a-z_:]*(?:think|thought|reason)[a-z_:]*\|?>|\[THINK\]|◁think▷)\s*\Z", re.IGNORECASE
)
# The statements and expressions of a template, and the strings in them.
_CODE = re.compile(r"\{[{%].*?[%}]\}", re.DOTALL)
_STRING = re.compile(r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'""", re.DOTALL)


class _Form(NamedTuple):
    """How the turns are given: as ``text`` or ``parts``; the system prompt also inside the ``user`` turn."""

    system: str
    user: str


# In the order of preference; without a system prompt its column does not matter.
_FORMS = [
    _Form("text", "text"), _Form("parts", "parts"), _Form("text", "parts"), _Form("parts", "text"),
    _Form("user", "text"), _Form("user", "parts"),
]  # fmt: skip


def chat_text(tokenizer: Any, user: str, system: str | None, options: Mapping[str, Any]) -> str:
    """The chat template filled with one user turn and, if there is one, a system prompt.

    A system prompt goes into the user turn where the template has no system role: models of such templates were trained
    with it there. ``options`` are further arguments of the template.

    Raises:
        InputError: if the template refuses the turns, or prints no user turn in any form.
    """
    first: Exception | None = None
    for form in _FORMS:
        if system is None and form.system != "text":
            continue
        try:
            given = None if system is None else _SYSTEM
            if _prints(_fill(tokenizer, form, _USER, given, options), given):
                return _fill(tokenizer, form, user, system, options)
        except _REFUSALS as error:
            first = first or error
    name = short(str(getattr(tokenizer, "name_or_path", "")))
    if first is not None:
        said = f"cannot be filled ({reason(first)}); check chat_kwargs or set chat to false"
    else:
        said = "does not print the user's turn, so the model would be asked nothing; set chat to false"
    raise InputError(f"the chat template of {name} {said}") from first


def turn_end(tokenizer: Any) -> str:
    """What the chat template writes after a reply, without white space: one added token, or a tag in letters.

    It is "" without a chat template, where nothing follows a reply, and where the template takes no replies.
    """
    if not getattr(tokenizer, "chat_template", None):
        return ""
    for later in ([], [_USER]):
        for content in (str, _parts):
            turns = [("user", _USER), ("assistant", _REPLY), *(("user", text) for text in later)]
            try:
                said = _apply(tokenizer, [{"role": r, "content": content(t)} for r, t in turns], {}, False)
            except _REFUSALS:
                continue
            _, found, after = said.rpartition(_REPLY)
            if found and (end := _first_mark(tokenizer, after)):
                return end
    return ""


def turn_end_id(tokenizer: Any) -> int | None:
    """The id of :func:`turn_end` if it is one added token, else ``None``."""
    end = turn_end(tokenizer)
    return next((i for i, token in tokenizer.added_tokens_decoder.items() if token.content == end), None)


def open_thought(tokenizer: Any, options: Mapping[str, Any]) -> str:
    """The tag with which the chat template's prompt opens a section of thoughts, with the white space after it.

    It is "" for most templates. What the model then writes begins inside of the section.
    """
    try:
        prompt = chat_text(tokenizer, _USER, None, options)
    except InputError:
        return ""
    found = _OPEN_THOUGHT.search(prompt.rpartition(_USER)[2])
    return found[0] if found else ""


def unread_options(tokenizer: Any, options: Mapping[str, Any]) -> dict[str, str | None]:
    """The names that the chat template never reads, each with the name in the template that it resembles, if any.

    Jinja takes every name, so that one which the template does not read changes nothing and raises nothing. Arguments
    of ``apply_chat_template``, such as ``tools``, are not looked for in the template.
    """
    template = options.get("chat_template") or tokenizer.chat_template
    texts = template.values() if isinstance(template, Mapping) else [template]
    code = [_STRING.sub(" ", part) for text in texts for part in _CODE.findall(str(text))]
    names = {name for part in code for name in re.findall(r"[A-Za-z_]\w*", part)}
    known = names | set(inspect.signature(tokenizer.apply_chat_template).parameters)
    unread = [str(name) for name in options if name not in known]
    return {name: next(iter(difflib.get_close_matches(name, sorted(names), n=1)), None) for name in unread}


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _fill(tokenizer: Any, form: _Form, user: str, system: str | None, options: Mapping[str, Any]) -> str:
    turns = []
    if system is not None and form.system == "user":
        user = f"{system}\n\n{user}"
    elif system is not None:
        turns.append({"role": "system", "content": _parts(system) if form.system == "parts" else system})
    turns.append({"role": "user", "content": _parts(user) if form.user == "parts" else user})
    return _apply(tokenizer, turns, options, True)


def _apply(tokenizer: Any, turns: list[dict[str, Any]], options: Mapping[str, Any], prompt: bool) -> str:
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt, **options))


def _prints(text: str, system: str | None) -> bool:
    """Whether a trial's turns are in the text, as themselves and not as a printed list of parts."""
    text = text.lower()
    words = [_USER] if system is None else [_SYSTEM, _USER]
    return all(word in text for word in words) and not re.search(r"""["']text["']: *["']q(?:system|user)turnq""", text)


def _first_mark(tokenizer: Any, text: str) -> str:
    """The added token or tag that a text begins with, else ""."""
    start = text.lstrip()
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.content.strip()}
    fits = [token for token in added if start.startswith(token)]
    if fits:
        return max(fits, key=len)
    tag = _TAG.match(start)
    return tag[1] if tag else ""
