"""The head of an export's model card, as the hub reads it: base, licence, data sets and results with intervals."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.repocard import metadata_load

from lightning_serl.policy.export import CARD, Form, file_of_model

_HUB = "hub:"
_LICENCE = ("license", "license_name", "license_link")
#: The licence of the packaged base, which is that of this package.
_OURS = {"license": "apache-2.0"}
_TAGS = ["serl", "self-play", "reinforcement-learning", "lightning-serl"]


class Measured(NamedTuple):
    """One figure of an evaluation set: shares before and after training, and the 95 % interval of the latter."""

    set_name: str
    figure: str
    before: float | None
    after: float
    interval: tuple[float, float] | None
    problems: int
    source: str = ""  # file, or data set of the hub

    @property
    def hub_name(self) -> str | None:
        """The data set's name on the hub, where it came from there by its full name."""
        name = self.source.removeprefix(_HUB).partition("@")[0]
        parts = name.split("/")
        return "/".join(parts[:2]) if self.source.startswith(_HUB) and len(parts) > 1 and all(parts) else None


class Base(NamedTuple):
    """What is known of the model that was trained: its name for readers, on the hub if it is there, and its licence."""

    shown: str | None
    on_hub: str | list[str] | None
    licence: Mapping[str, Any]


@cache
def base_of(name: str | None) -> Base:
    """Read the base's own model card, beside its weights or on the hub; of a local path only the last part is shown."""
    if name is None:
        return Base(None, None, {})
    if name.startswith("tiny:"):
        return Base(name, None, _OURS)
    local = os.path.isdir(os.path.expanduser(name))
    facts: Mapping[str, Any] = {}
    found = file_of_model(name, CARD)
    with suppress(OSError, ValueError, yaml.YAMLError):  # a card of others may have any form
        facts = (None if found is None else metadata_load(found)) or {}
    licence = {key: facts[key] for key in _LICENCE if isinstance(facts.get(key), (str, list))}
    if not local:
        return Base(name, name, licence)
    parent = facts.get("base_model")
    return Base(Path(name).expanduser().absolute().name, parent if isinstance(parent, (str, list)) else None, licence)


def head(base: Base, form: Form, measured: Iterable[Measured]) -> list[str]:
    """The lines of the YAML head, with the lines ``---`` around it."""
    results = [_result(one) for one in measured]
    data = ModelCardData(
        base_model=base.on_hub,
        library_name="peft" if form == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=_TAGS,
        eval_results=results or None,
        model_name=f"{base.shown or 'model'} after self-play" if results else None,
        **base.licence,
    )
    values = data.to_dict()
    return ["---", *yaml.safe_dump(values, sort_keys=False, allow_unicode=True).splitlines(), "---"]


def _result(one: Measured) -> EvalResult:
    """A figure for the head's ``model-index``, in per cent."""
    labelled = one.figure not in ("agreement", "no_answer")
    facts: dict[str, Any] = {"problems": one.problems}
    if one.before is not None:
        facts["before"] = _percent(one.before)
    if one.interval is not None:
        facts["interval_95"] = [_percent(end) for end in one.interval]
    return EvalResult(
        task_type="text-generation",
        dataset_type=one.hub_name or one.set_name,
        dataset_name=one.set_name,
        metric_type="accuracy" if labelled else one.figure,
        metric_name=f"{'greedy ' * (one.figure == 'pass@1')}{one.figure}, %",
        metric_value=_percent(one.after),
        metric_args=facts,
    )


def _percent(share: float) -> float:
    return round(100 * share, 2)
