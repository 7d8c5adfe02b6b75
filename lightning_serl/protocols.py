"""What module, datamodule and callbacks read from each other, with defaults for those of the user that lack it.

Our datamodule trains any LightningModule that offers ``policy`` and ``experience``, and our callbacks run beside any
datamodule. :func:`module_of` and :func:`data_of` give either of them as if it had every member of
:class:`TrainsOnGroups` and :class:`PlaysRounds`. :class:`LoadsPolicy` and :class:`SelfPlay` are the options of ours:
``isinstance`` tells whether a module or datamodule has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from lightning_serl.types import Group, Instruction, RolloutBatch, Verdict

if TYPE_CHECKING:
    import lightning.pytorch as pl
    import torch

    from lightning_serl.answers import AnswerGrader
    from lightning_serl.engines.base import RolloutEngine, Sampling
    from lightning_serl.objectives.options import Objective
    from lightning_serl.policy.lora import LoraOptions
    from lightning_serl.policy.policy import Policy

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class TrainsOnGroups(Protocol):
    """A LightningModule that trains on graded groups. ``policy`` and ``experience`` are required.

    Attributes:
        policy: The policy that writes completions and is trained.
        has_policy: Whether there is a policy, ``True`` if absent; recordings can be evaluated without one.
        objective: Its objective; ``None`` if absent.
        minibatches: Optimizer steps of one pass over a round; 1 if absent.
        steps_per_round: Optimizer steps per round; 1 if absent.
        step_metrics: Metrics of the last optimizer step, under TRL's names; empty if absent.
        updating: Whether the optimizer is writing weights, so that no checkpoint may be saved; ``False`` if absent.
        evaluated_at: Optimizer step of the last complete evaluation inside ``fit``; ``None`` if absent.
        last_results: Figures of the last evaluation by set; empty if absent.
        last_report: The same with intervals and strata; empty if absent.
        evaluation_items: Graded problems of the last ``validate`` or ``test`` by set; empty if absent.
        model_name_or_path: Where the policy is loaded from; ``None`` if absent.
        lora: Options of the adapter that is trained; ``None`` if absent.
    """

    policy: Policy
    has_policy: bool
    objective: Objective | None
    minibatches: int
    steps_per_round: int
    step_metrics: dict[str, float]
    updating: bool
    evaluated_at: int | None
    last_results: Mapping[str, Mapping[str, Any]]
    last_report: Mapping[str, Mapping[str, Any]]
    evaluation_items: Mapping[str, Sequence[Any]]
    model_name_or_path: str | None
    lora: LoraOptions | None

    def experience(self, groups: Sequence[Group], verdicts: Sequence[Verdict]) -> list[RolloutBatch]:
        """Turn graded groups into this rank's micro-batches."""


class PlaysRounds(Protocol):
    """A LightningDataModule that plays rounds of self-play.

    Attributes:
        engine: The rollout engine; ``None`` if absent.
        needs: What rewards and sources use beyond the policy (``reference``, ``teacher`` ...); empty if absent.
        rounds: Rounds played so far; 0 if absent.
        playing: Whether a round was begun and is not committed; ``False`` if absent.
        grader: What reads and compares answers; required of a datamodule that votes on a health probe.
    """

    engine: RolloutEngine | None
    needs: frozenset[str]
    rounds: int
    playing: bool
    grader: AnswerGrader


@runtime_checkable
class LoadsPolicy(Protocol):
    """A module that loads its policy from options. ``SeRLModule`` documents them."""

    model_name_or_path: str | None
    objective: Objective
    lora: LoraOptions | None
    quantize: str | None
    offload_frozen: bool
    minibatches: int
    load_options: dict[str, Any]

    def check_optimizer(self) -> torch.optim.Optimizer:
        """Make the optimizer on a small parameter."""


@runtime_checkable
class SelfPlay(Protocol):
    """A datamodule with the options of ``SelfPlayDataModule``, which documents them."""

    engine: RolloutEngine
    round_options: Any
    sampling: Sampling
    source: object
    mix_ratio: float  # share of each round that comes from the seeds
    rewards: Mapping[str, object]
    reward_name: str | None  # if it was given by name
    seed_problems: Sequence[Instruction]
    grader_name: str


@runtime_checkable
class Reports(Protocol):
    """A stream that reports what was made of it."""

    def last_line(self) -> str:
        """The report, one line for the terminal."""


_OF_MODULE = {
    "has_policy": True,
    "objective": None,
    "minibatches": 1,
    "steps_per_round": 1,
    "step_metrics": _NOTHING,
    "updating": False,
    "evaluated_at": None,
    "last_results": _NOTHING,
    "last_report": _NOTHING,
    "evaluation_items": _NOTHING,
    "model_name_or_path": None,
    "lora": None,
}
_OF_DATA = {"engine": None, "needs": frozenset[str](), "rounds": 0, "playing": False}


class _WithDefaults:
    """Reads the members of another object, or a default where it has none."""

    def __init__(self, target: Any, defaults: Mapping[str, Any]) -> None:
        self._target, self._defaults = target, defaults

    def __getattr__(self, name: str) -> Any:
        if name in self._defaults:
            return getattr(self._target, name, self._defaults[name])
        return getattr(self._target, name)


def module_of(trainer: pl.Trainer) -> TrainsOnGroups:
    """The Trainer's LightningModule, with defaults for missing members."""
    return cast(TrainsOnGroups, _WithDefaults(trainer.lightning_module, _OF_MODULE))


def data_of(trainer: pl.Trainer | None) -> PlaysRounds:
    """The Trainer's datamodule, with defaults for missing members; without a datamodule all are defaults."""
    return cast(PlaysRounds, _WithDefaults(getattr(trainer, "datamodule", None), _OF_DATA))


def moved_copies(trainer: pl.Trainer | None) -> set[str]:
    """The frozen copies that callbacks of the Trainer move, such as ``ReferenceSync``: their ``moves``."""
    return {who for callback in getattr(trainer, "callbacks", ()) for who in getattr(callback, "moves", ())}
