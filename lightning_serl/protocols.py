"""What module, datamodule and callbacks read from each other, with defaults for those of the user that lack it.

Our datamodule trains any LightningModule that offers ``policy`` and ``experience``, and our callbacks run beside any
datamodule. :func:`module_of` and :func:`data_of` give either of them as if it had every member of
:class:`TrainsOnGroups` and :class:`PlaysRounds`. :class:`LoadsPolicy` and :class:`SelfPlay` are the options of ours:
``isinstance`` tells whether a module or datamodule has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from lightning_serl.types import Group, Instruction, Probed, RolloutBatch, Verdict

if TYPE_CHECKING:
    import lightning.pytorch as pl
    import torch

    from lightning_serl.answers import AnswerGrader
    from lightning_serl.engines.base import RolloutEngine, Sampling
    from lightning_serl.objectives.options import ResolvedObjective
    from lightning_serl.policy.lora import LoraOptions
    from lightning_serl.policy.policy import Policy

_NOTHING: Any = MappingProxyType({})


def _ignore(state: Mapping[str, Any]) -> None:
    """The ``rewind`` of a datamodule that has none."""


class TrainsOnGroups(Protocol):
    """A LightningModule that trains on graded groups.

    ``policy`` and ``experience`` are required. The others have the values below if the module lacks them.
    """

    policy: Policy  # writes completions and is trained
    has_policy: bool = True  # False only where recordings are evaluated without one
    objective: ResolvedObjective | None = None
    minibatches: int = 1  # optimizer steps of one pass over a round
    steps_per_round: int = 1  # optimizer steps
    step_metrics: dict[str, float] = _NOTHING  # of the last optimizer step, under TRL's names
    updating: bool = False  # whether the optimizer is writing weights, so that no checkpoint may be saved
    steps_not_taken: int = 0  # optimizer steps left out since the last one taken, because a value was not finite
    evaluated_at: int | None = None  # optimizer step of the last complete evaluation inside ``fit``
    last_results: Mapping[str, Mapping[str, Any]] = _NOTHING  # figures of the last evaluation by set
    last_report: Mapping[str, Mapping[str, Any]] = _NOTHING  # the same with intervals and strata
    evaluation_items: Mapping[str, Sequence[Any]] = _NOTHING  # graded problems of the last ``validate`` or ``test``
    model_name_or_path: str | None = None  # where the policy is loaded from
    lora: LoraOptions | None = None  # of the adapter that is trained

    def experience(self, groups: Sequence[Group], verdicts: Sequence[Verdict]) -> list[RolloutBatch]:
        """Turn graded groups into this rank's micro-batches."""


class PlaysRounds(Protocol):
    """A LightningDataModule that plays rounds of self-play; its members have the values below if it lacks them."""

    engine: RolloutEngine | None = None
    needs: frozenset[str] = frozenset()  # what rewards and sources use beyond the policy (``reference`` ...)
    rounds: int = 0  # played so far
    playing: bool = False  # whether a round was begun and is not committed
    grader: AnswerGrader  # required of a datamodule that answers a health probe
    ask_probe: Callable[[], Mapping[str, Probed]] = dict  # responses of the present weights to the health probe, by uid
    rewind: Callable[[Mapping[str, Any]], None] = _ignore  # set problems back to those in its part of a checkpoint


@runtime_checkable
class LoadsPolicy(Protocol):
    """A module that loads its policy from options. ``SeRLModule`` documents them."""

    model_name_or_path: str | None
    objective: ResolvedObjective
    lora: LoraOptions | None
    quantize: str | None
    offload_frozen: bool
    minibatches: int
    steps_per_round: int
    micro_batch: int | str  # responses of a micro-batch; auto leaves it to MemoryPlan
    load_options: dict[str, Any]

    def check_optimizer(self) -> torch.optim.Optimizer:
        """Make the optimizer on a small parameter."""


@runtime_checkable
class SelfPlay(Protocol):
    """A datamodule with the options of ``SelfPlayDataModule``, which documents them."""

    engine: RolloutEngine
    round_options: Any
    sampling: Sampling
    solve: Any
    writing: Any
    writes: bool  # whether the policy writes problems
    evaluation: Any
    source: object
    mix_ratio: float  # share of each round that comes from the seeds
    rewards: Mapping[str, object]
    reward_name: str | None  # if it was given by name
    seed_problems: Sequence[Instruction]
    passages: Sequence[object]  # of the documents that problems are written from
    grader_name: str


@runtime_checkable
class Reports(Protocol):
    """A stream that reports what was made of it."""

    def last_line(self) -> str:
        """The report, one line for the terminal."""


@runtime_checkable
class WritesDataSet(Protocol):
    """A stream that writes a data set of problems with voted answers."""

    target: Path  # its rows, jsonl
    data_set: Path  # the directory with parquet and card, complete after the last round


class _WithDefaults:
    """Reads the members of another object, or the value that a protocol gives them where it has none."""

    def __init__(self, target: Any, protocol: type) -> None:
        self._target = target
        self._defaults = {name: value for name, value in vars(protocol).items() if name in protocol.__annotations__}

    def __getattr__(self, name: str) -> Any:
        if name in self._defaults:
            return getattr(self._target, name, self._defaults[name])
        return getattr(self._target, name)


def module_of(trainer: pl.Trainer) -> TrainsOnGroups:
    """The Trainer's LightningModule, with defaults for missing members."""
    return cast(TrainsOnGroups, _WithDefaults(trainer.lightning_module, TrainsOnGroups))


def data_of(trainer: pl.Trainer | None) -> PlaysRounds:
    """The Trainer's datamodule, with defaults for missing members; without a datamodule all are defaults."""
    return cast(PlaysRounds, _WithDefaults(getattr(trainer, "datamodule", None), PlaysRounds))


def moved_copies(trainer: pl.Trainer | None) -> set[str]:
    """The frozen copies that callbacks of the Trainer move, such as ``ReferenceSync``: their ``moves``."""
    return {who for callback in getattr(trainer, "callbacks", ()) for who in getattr(callback, "moves", ())}
