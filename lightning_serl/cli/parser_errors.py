"""Turns the messages of the command-line parser into one sentence that names the option."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable
from dataclasses import is_dataclass
from pkgutil import resolve_name
from typing import Any

from lightning_serl.cli import conventions
from lightning_serl.cli.class_names import advice_on, classes_of
from lightning_serl.cli.own_code import import_trouble
from lightning_serl.errors import did_you_mean, short

_KEY = re.compile(r'[Pp]arser key "([^"]+)":?')
_ARGUMENTS = re.compile(r"[Uu]nrecognized arguments: (.+)")
_NO_VALUE = re.compile(r"argument (?:-\w+/)?(--[\w.+]+): expected one argument")
_NO_FILE = re.compile(r"(File does not exist|Path is not a file): '(.*)'")
_OPTION = re.compile(r"(?:(?:Subcommand|Group) '[\w.]+' does not accept option|Option) '([^']+)'")
_EXPECTED = re.compile(r"[Ee]xpected an? (?:<class '([\w.]+)'>|typing\.Literal\[(.*?)\])(?:\.|$)")
# Alternatives of a union that say nothing about the value: "nothing at all", or "a whole mapping".
_IDLE = re.compile(
    r"^(Expected a <class '(NoneType|dict|list)'>|Not a valid subclass|Not of type|Expected an instantiatable)"
)
_INACCESSIBLE = "either not accessible or invalid"  # the value is no file of options either
_PROTOCOL = re.compile(r"Import path (\S+) does not implement protocol (\w+)")
_NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
_CLASS = re.compile(r"Problem with given class_path '([\w.]+)'")
_GIVEN = re.compile(r"^\s*Given value: (.*)$", re.MULTILINE)
_NESTED = re.compile(r"NestedArg\(key='([^']*)', val=(.*)\)")
_HEADINGS = ("Subtypes:", "Given value", "Errors:", "Does not validate against any", "Unable to load config")
# The parser's advice on class paths, line by line.
_ADVICE = ("Subclass types expect one of", "a class path (str)", "a dict with", "a dict without")
_NAMES = {"NoneType": "null", "str": "a string", "int": "a whole number", "float": "a number", "bool": "true or false"}
_NAMES |= {"dict": "a mapping", "list": "a list"}
# Options that take a class or several, or true or false, which any word but these two is meant as a class at.
_LISTS = ("trainer.callbacks", "trainer.logger")
# Options that take a function of the weights or of the optimizer, with a class for an example. Without a class the
# parser takes the base class, of which it then says that it has no such option.
_FACTORIES = {"model.optimizer": "AdamW", "model.lr_scheduler": "StepLR"}
_IMPLIED = re.compile(r"there is no option '(\w+)'.*Namespace\(class_path='(?:torch\.optim\.Optimizer|typing\.Union)'")
# What users of other trainers call an option of this one.
_ALIASES = {"lr": "model.lr", "learning_rate": "model.lr"}
_PREFIX = {"data.grader": "lightning_serl.answers.", "data.reward": "lightning_serl.rewards."}


class ParserRefusal(Exception):
    """The parser refused the command line or a configuration file; the message is for the user.

    It is no ValueError, so that the parser does not catch it and add text around it.
    """


def refusal(text: str, options: Iterable[str] = ()) -> str:
    """The parser's message, often many lines, as one sentence: the option, and the reason that matters.

    ``options`` are all known option names, to suggest the nearest for a mistyped one.
    """
    if (said_ambiguous := conventions.ambiguous(text)) is not None:
        return said_ambiguous
    if bare := _NO_VALUE.search(text):
        return f"{bare[1]} has no value; a value that begins with - is given as {bare[1]}=VALUE"
    if arguments := _ARGUMENTS.search(text):
        said = arguments[1].split()
        name = next((one for one in said if one.startswith("-")), said[0]).split("=")[0].rstrip(";")
        if (other := conventions.meant(name, options)) is not None:
            return f"unrecognized arguments: {name}; did you mean {other}?"
        return f"unrecognized arguments: {name}{_nearest(name, options) or '; --help lists the options of a command'}"
    if no_file := _NO_FILE.fullmatch(text.strip()):
        what = "does not exist" if "exist" in no_file[1] else "is no file"
        return f"--config: {short(no_file[2])} {what}; give a yaml file of options, or preset:NAME"
    keys = [key for key in _KEY.findall(text) if key]
    where = f"{keys[0]}: " if keys else ""
    if unknown := _OPTION.search(text):
        name = unknown[1]
        said_nearest = _nearest("--" + name, options).replace("--", "") if "." in name or not keys else ""
        return f"{where}there is no option {name!r}{said_nearest}"
    reasons = _reasons(_KEY.sub("", text))
    if keys and (convention := _by_convention(keys[0], text)) is not None:
        return convention
    if keys and (classless := _without_class(keys[0], text, reasons) or _in_class(keys[0], text, reasons)):
        return " ".join(classless.split())
    reason = _reason(keys[0] if keys else "", _KEY.sub("", text), reasons)
    if untyped := _PROTOCOL.search(text):
        reason = f"the methods of {untyped[1]} lack the types that {untyped[2]} has; give them, or its bare path"
    given = _GIVEN.search(text)
    if given and reason.startswith("expected") and "but got" not in reason:
        nested = _NESTED.match(given[1])
        reason = f"{reason}, but got {_cut(nested[2].strip(chr(39)) if nested else given[1])}"
    if reason.startswith("expected a whole number") and keys and f"--{keys[0]}s" in options:
        reason += f"; did you mean --{keys[0]}s?"  # data.seed, where data.seeds was meant
    return " ".join((where + reason).split())


def _by_convention(option: str, text: str) -> str | None:
    """The refusal of what other command lines take at this option; ``None`` if the text is about something else."""
    if (several := conventions.several_classes(text)) is not None:
        return f"{option}: {several}"
    if unloaded := re.search(r"Unable to load config ['\"](.*)['\"]", text):
        return conventions.group_refusal(option, unloaded[1])
    nested = _NESTED.search(text)
    implied = nested and re.search(
        r"class_path='(torch\.optim\.Optimizer|typing\.Union)'|must include a class_path", text
    )
    return conventions.without_class(option, nested[1], nested[2].strip("'\"")) if nested and implied else None


def construction_refusal(text: str, options: Any) -> str | None:
    """What a class refused in its ``__init__``, in one sentence with the option that the class was given to.

    ``text`` has the parser's words around the message of the class, else the result is ``None``; ``options`` is the
    Namespace of the command.
    """
    if "Union subtypes" not in text:
        return None
    said = refusal(text)
    given = _GIVEN.search(text)
    option = next((name for name, value in _classes(options) if given and str(value) == given[1]), None)
    if option is None or said.startswith(option):
        return said
    parameter = re.match(r"\w+", said)
    if parameter and parameter[0] in (options[option].get("init_args") or ()):
        return f"{option}.{said}"
    given_class = str(options[option].class_path)
    ours = given_class.startswith("lightning_serl.")  # whose messages name the option
    return said if ours else f"{option}: {given_class.rpartition('.')[2]}: {said}"


def _classes(options: Any) -> Iterable[tuple[str, Any]]:
    """Options that hold a class path, with their values."""
    for name, value in options.items(branches=True):
        if not isinstance(value, (str, list)) and hasattr(value, "get") and value.get("class_path"):
            yield name, value


def _reasons(text: str) -> list[str]:
    """The parser's reasons, one for each kind of value that an option takes, without headings and advice."""
    lines = [re.sub(r"^\s*(- )?", "", line).strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith(_ADVICE)]
    reasons = [line for line in lines if not line.startswith(_HEADINGS) and _INACCESSIBLE not in line]
    return list(dict.fromkeys(reasons)) or lines


def _without_class(option: str, text: str, reasons: list[str]) -> str:
    """The refusal of a class's option where no class was given; empty if the text is about something else."""
    nested = _NESTED.search(text)
    if nested and option in _FACTORIES and _IMPLIED.search(text):
        given, example = f"--{option}.{nested[1]} {_cut(nested[2].strip(chr(39)), 40)}", _FACTORIES[option]
        rate = "; --model.lr sets the rate alone" if (option, nested[1]) == ("model.optimizer", "lr") else ""
        return f"{option}.{nested[1]}: {option} needs a class first, as in --{option} {example} {given}{rate}"
    if not (nested and _is_implied(reasons[0], text)) and not all(
        _IDLE.match(r) or _NO_CLASS.match(r) or _EXPECTED.match(r) for r in reasons
    ):
        return ""
    if nested:
        key, value = nested[1], nested[2].strip("'\"")
        names = [m[1] for m in map(_NO_CLASS.match, reasons) if m and m[1] != value]
        if names and names[0][0].isupper() and (meant := did_you_mean(names[0], classes_of(option))):
            return f"{option}: there is no {names[0]!r}{meant}"
        had = f"{option} {names[0]!r} takes no options; give a class" if names else f"{option} needs a class first"
        example = f"--{option} {_class_with(option, key, *names)} --{option}.{key} {_cut(value, 40)}"
        return f"{option}.{key}: {had}, as in {example}"
    mapping = re.search(r"^\s*Given value: \{'(init_args': \{')?(\w+)'", text, re.MULTILINE)
    if mapping and mapping[2] != "class_path" and any("instantiatable" in r or "Not a valid" in r for r in reasons):
        example = f"{{class_path: {_class_with(option, mapping[2])}, init_args: {{{mapping[2]}: ...}}}}"
        return f"{option} needs a class_path, as in {option}: {example}"
    return ""


def _is_implied(reason: str, text: str) -> bool:
    """Whether the parser took the base class of an option, such as Callback, because no class was given."""
    kind = _CLASS.match(reason)
    if kind is None or import_trouble(kind[1]) or is_dataclass(resolve_name(kind[1])):
        return False
    bases = "".join(re.findall(r"Subtypes: (.*)", text))
    return re.search(rf"\.{kind[1].rpartition('.')[2]}\b", bases) is not None


def _class_with(option: str, parameter: str, named: str = "") -> str:
    """A class for an example: the one that was named, or the simplest of the option's package with the parameter."""
    taken = {name: inspect.signature(part).parameters for name, part in classes_of(option).items()}
    having = sorted((n for n in taken if parameter in taken[n]), key=lambda n: (n != named, len(taken[n])))
    return "package.module.Name" if not having else _PREFIX.get(option, "") + having[0]


def _in_class(option: str, text: str, reasons: list[str]) -> str:
    """The refusal of an option of a class that was given; empty if the text is about something else."""
    first = next((place for place, one in enumerate(reasons) if _CLASS.match(one)), 0)
    kind = _CLASS.match(reasons[first])
    if kind is None and (given := re.search(r"'class_path': '([\w.]+)'", text)) and "." in given[1]:
        trouble = import_trouble(given[1])
        return f"{option}: {trouble}" if trouble else ""
    if kind is None or len(reasons) < first + 2:
        return ""
    name, reason = kind[1].rpartition(".")[2], reasons[first + 1]
    one_of_many = re.search(r"^\s*Given value: \[", text, re.MULTILINE)
    if reason.startswith("there is no option"):
        return f"{option}: {name} has no option{reason.removeprefix('there is no option')}"
    if option == "data.source":
        from lightning_serl.datamodules.option_values import made_by_the_run  # imports torch

        if said := made_by_the_run(name):
            return said
    if required := re.match(r"the following arguments are required: (\w+)", reason):
        return f"{option}: {name} needs {required[1]}" + ("" if one_of_many else f"; give --{option}.{required[1]}")
    if re.match(r"[\w.]+: ", reason):
        return f"{option}: {name}.{reason}" if one_of_many else f"{option}.{reason}"
    trouble = import_trouble(kind[1]) if "." in kind[1] else None
    return f"{option}: {trouble or f'{name}: {reason}'}"


def _reason(option: str, text: str, reasons: list[str]) -> str:
    """Of the reasons for each kind of value that an option takes, the one that the user most likely meant."""
    reasons = [r for r in reasons if not _IDLE.match(r)] or reasons
    if len(reasons) > 1 and _CLASS.match(reasons[0]):
        reasons = reasons[1:]  # what the class said stands below its name
    reason = reasons[0]
    if reason.startswith(("Unexpected config", "Problems parsing config")):
        return _no_configuration(text, reason)
    if unloaded := re.match(r"Unable to load config ['\"](.*)['\"]", reason):
        return f"expected options by name, but got {_cut(unloaded[1])}"
    if refused := re.search(r"expects a function or a callable class: (.*?)\.* Got value: ", reason):
        return refused[1]
    missing = next((m for m in map(_NO_CLASS.match, reasons) if m), None)
    simple = [m for m in map(_EXPECTED.match, reasons) if m]
    # a value that looks like a class is meant as one
    named = missing is not None and (missing[1][0].isupper() or "." in missing[1] or option in _LISTS)
    if simple and not named and all(_EXPECTED.match(r) or _NO_CLASS.match(r) or _IDLE.match(r) for r in reasons):
        kinds = " or ".join(dict.fromkeys(_NAMES.get(m[1], m[1]) if m[1] else f"one of {m[2]}" for m in simple))
        got = re.search(r"Got value: (.*)$", reason)
        return f"expected {kinds}" + (f", but got {_cut(got[1])}" if got else "")
    if missing:
        return f"there is no {_cut(missing[1])!r}{advice_on(option, missing[1])}"
    return reason.replace("Got value:", "but got")


def _no_configuration(text: str, reason: str) -> str:
    """A configuration that is no YAML, or YAML without options."""
    line = re.search(r"^\s*in .*?, (line \d+)", text, re.MULTILINE)
    said = _cut(" ".join(reason.partition(":")[2].split()).rstrip("."))
    if reason.startswith("Problems") or line:
        return f"not YAML ({said}{f', {line[1]}' if line else ''}); correct or replace it"
    return f"a configuration must hold options by name (model, data, trainer), but this one is {said or 'empty'}"


def _cut(value: str, most: int = 80) -> str:
    return value if len(value) <= most else f"{value[: most - 3]}..."


def _nearest(name: str, options: Iterable[str]) -> str:
    """The option a mistyped one may have meant: of the same group if one there is similar, else of all."""
    known = list(options)
    parent, _, leaf = name.rpartition(".")
    if (alias := _ALIASES.get((leaf or name).lstrip("-").lower())) and f"--{alias}" in known:
        return f"; did you mean --{alias}?"
    group = {one.rpartition(".")[2]: one for one in known if one.rpartition(".")[0] == parent} if parent else {}
    siblings = difflib.get_close_matches(leaf.lower(), group, n=1, cutoff=0.45)
    found = [group[siblings[0]]] if siblings else difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.7)
    return f"; did you mean {found[0]}?" if found else ""
