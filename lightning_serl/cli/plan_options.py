"""The options ``--plan.*`` of ``lightning-serl plan``: where the run would work, and what it is taken to write."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from lightning_serl.errors import InputError, check_range, check_target

#: Printed by ``lightning-serl plan --help``.
HELP = """usage: lightning-serl plan [options of fit] [--plan.OPTION VALUE ...]

Foresees what `lightning-serl fit` with the same options takes: memory by part, seconds of each part of a round, days
and card hours of the run, and what to change. Nothing is loaded: of the model a directory with config.json suffices.

  --plan.device NAME          where it would run: cpu (measured here), or a card by its data sheet: {cards}
                              (default: this machine's, a GPU if there is one and trainer.accelerator is not cpu)
  --plan.nodes N              nodes that train (default: trainer.num_nodes)
  --plan.gpus N               devices of each node (default: trainer.devices, where that is a number, else 1)
  --plan.servers N            vLLM servers on other cards of the same kind, one card each
  --plan.answer_tokens N      mean tokens of an answer (default: 60 % of data.max_tokens)
  --plan.problem_tokens N     mean tokens of a text of new problems (default: as many problems as it was shown)
  --plan.kept SHARE           answered problems that are trained on (default: 0.7)
  --plan.accepted SHARE       written problems that pass the filters (default: 0.75)
  --plan.like RUN             run folder to take answer_tokens, kept and accepted from
  --plan.json FILE            write the plan there too

`lightning-serl fit --help` explains the other options."""


@dataclass
class PlanOptions:
    """The options of a plan; ``None`` where a default depends on the run."""

    device: str | None = None
    nodes: int | None = None
    gpus: int | None = None
    servers: int = 0
    answer_tokens: float | None = None
    problem_tokens: float | None = None
    kept: float | None = None
    accepted: float | None = None
    like: str | None = None
    json: str | None = None

    def __post_init__(self) -> None:
        for name in ("nodes", "gpus", "answer_tokens", "problem_tokens"):
            check_range(f"plan.{name}", getattr(self, name), at_least=1)
        check_range("plan.servers", self.servers, at_least=0)
        for name in ("kept", "accepted"):
            check_range(f"plan.{name}", getattr(self, name), above=0, at_most=1)
        if self.like is not None:
            self._take_from(Path(self.like))
        if self.json is not None:
            check_target("plan.json", Path(self.json).expanduser())

    def _take_from(self, run: Path) -> None:
        """Fill what is open with the means of a run."""
        try:
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise InputError(
                f"plan.like {run}: there is no metrics.jsonl that can be read; name a run folder"
            ) from error
        names = {
            "answer_tokens": "completions/mean_length",
            "kept": "serl/filter/yield",
            "accepted": "serl/filter/accepted_rate",
        }
        for option, metric in names.items():
            found = [row[metric] for row in rows if row.get(metric)]
            if getattr(self, option) is None and found:
                mean = fmean(found)
                setattr(self, option, mean if option == "answer_tokens" else min(1.0, mean))


X = TypeVar("X")


def split_options(arguments: Sequence[str]) -> tuple[PlanOptions, list[str]]:
    """The options of a plan, and the other arguments; an InputError for an unknown one or a bad value."""
    return split_own(arguments, "plan", PlanOptions)


def split_own(arguments: Sequence[str], command: str, kind: type[X]) -> tuple[X, list[str]]:
    """The options ``--COMMAND.*`` as an object of a dataclass, and the other arguments.

    Raises an InputError for an option that is no field of ``kind``, and for a value that is not of the field's type.
    """
    kinds = {field.name: str(field.type) for field in fields(kind)}  # type: ignore[arg-type]  # any dataclass
    given: dict[str, Any] = {}
    rest, waiting = [], list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if not argument.startswith(f"--{command}."):
            rest.append(argument)
            continue
        name, equals, value = argument.removeprefix(f"--{command}.").partition("=")
        name = name.replace("-", "_")
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, n=1)
            known = f"did you mean --{command}.{near[0]}?" if near else f"known are {', '.join(kinds)}"
            raise InputError(f"there is no option --{command}.{name}; {known}")
        if not equals:
            if not waiting:
                raise InputError(f"{command}.{name} needs a value")
            value = waiting.pop(0)
        given[name] = _value(f"{command}.{name}", kinds[name], value)
    return kind(**given), rest


def _value(option: str, kind: str, text: str) -> Any:
    if kind.startswith("str"):
        return text
    try:
        return int(text) if kind.startswith("int") else float(text)
    except ValueError:
        raise InputError(f"{option} must be a {'whole ' * kind.startswith('int')}number, got {text!r}") from None
