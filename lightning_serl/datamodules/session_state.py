"""What a checkpoint keeps of a run's rounds, and how a run continues from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_serl.checkpoints.serialize import instruction_state, load_instruction, load_pair, pair_state
from lightning_serl.datamodules.rounds.prefetch import RolloutCache
from lightning_serl.datamodules.rounds.setup import Carried, RoundSetup, RoundState
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.protocols import module_of
from lightning_serl.types import RolloutBatch


@dataclass
class Progress:
    """How far the rounds of a run are."""

    rounds: int = 0  # that were played
    first_step: int | None = None  # optimizer step at which the training stream began; None before it did
    first_round: int = 0  # the round that it began with
    pending: list[list[RolloutBatch]] = field(default_factory=list)  # micro-batches of the last round, by rank
    #: Completions of the next round that were written before the checkpoint which the run continues from.
    cache: RolloutCache | None = None

    def steps_done(self, trainer: pl.Trainer) -> int:
        """Optimizer steps since the stream began. All positions in the stream are derived from this number."""
        return trainer.global_step - (self.first_step or 0)

    def pending_state(self, trainer: pl.Trainer) -> list[Any]:
        """The micro-batches by rank if the last round is not trained to its end, else none."""
        steps = (self.rounds - self.first_round) * module_of(trainer).steps_per_round
        return [] if self.steps_done(trainer) >= steps else [[b.state_dict() for b in one] for one in self.pending]


def save_state(
    progress: Progress, setup: RoundSetup, state: RoundState, source_kind: str | None, trainer: pl.Trainer
) -> dict[str, Any]:
    """The state of a run between two rounds: primitives and tensors only; makes no collective call."""
    return {
        "seed": setup.seed,
        "rounds": progress.rounds,
        "steps_per_round": module_of(trainer).steps_per_round,
        "first_step": progress.first_step,
        "first_round": progress.first_round,
        "ranks": Ranks.of(trainer).size,
        "engine": type(setup.engine).__name__,
        "pool": state.pool.state_dict(),
        "source": {} if setup.source is None else setup.source.state_dict(),
        "source_kind": source_kind,
        "queue": [instruction_state(i) for i in state.queue],
        "pending": progress.pending_state(trainer),
        "carried": [
            {"round": c.round, "step": c.step, "pairs": [pair_state(g, v) for g, v in c.pairs]} for c in state.carried
        ],
        "ahead": None if progress.cache is None else progress.cache.state_dict(),
    }


def without_batches(saved: dict[str, Any]) -> dict[str, Any]:
    """The state for a fit by another Trainer, whose steps are counted from 0: only pool, queue and source go on."""
    return saved | {"pending": [], "first_step": None, "first_round": saved["rounds"], "ahead": None, "carried": []}


def restore(saved: Mapping[str, Any], setup: RoundSetup, state: RoundState, trainer: pl.Trainer) -> Progress:
    """Overwrite source and state by what :func:`save_state` returned, and return how far the rounds are.

    Micro-batches are divided further if this run has a multiple of their number. Those that do not fit its number of
    ranks or size of a step are left out, with a warning; then the stream begins with the next round.
    """
    ranks = Ranks.of(trainer)
    _warn_of_differences(saved, setup, ranks)
    given = [i.prompt for i in state.pool.seeds]
    restore_problems(saved, setup, state)
    if given != [i.prompt for i in state.pool.seeds]:
        rank_zero_warn(
            "the problems of data.seeds are not those of the checkpoint's run; the run continues with the "
            "checkpoint's; start a new run to change them"
        )
    carried = saved.get("carried", ())
    state.carried[:] = [Carried([load_pair(p) for p in c["pairs"]], c["round"], c["step"]) for c in carried]
    pending = [[RolloutBatch.from_state_dict(b) for b in one] for one in saved["pending"]]
    steps = module_of(trainer).steps_per_round
    pending = _divided(pending, steps * trainer.accumulate_grad_batches)
    cache = None if saved.get("ahead") is None else RolloutCache.from_state_dict(saved["ahead"])
    progress = Progress(saved["rounds"], saved["first_step"], saved["first_round"], pending, cache)
    sizes = [steps * trainer.accumulate_grad_batches] * ranks.size
    if saved["steps_per_round"] != steps or (pending and [len(one) for one in pending] != sizes):
        if pending:
            rank_zero_warn(
                "the checkpoint was made in the middle of a round with another number of processes, or other "
                "accumulate_grad_batches, inner_epochs or minibatches; the rest of that round is skipped"
            )
        progress.pending, progress.first_step, progress.first_round = [], trainer.global_step, progress.rounds
    return progress


def restore_problems(saved: Mapping[str, Any], setup: RoundSetup, state: RoundState) -> None:
    """Overwrite pool, queue and source by those of a saved state."""
    state.pool.load_state_dict(saved["pool"])
    if setup.source is not None:
        setup.source.load_state_dict(saved["source"])
    state.queue[:] = map(load_instruction, saved["queue"])


def _divided(pending: list[list[RolloutBatch]], wanted: int) -> list[list[RolloutBatch]]:
    """The micro-batches of each rank, divided further if their wanted number is a multiple of what it is."""
    times = [wanted // len(one) if one and wanted % len(one) == 0 else 1 for one in pending]
    return [
        one if parts == 1 else [part for batch in one for part in batch.split(parts)]
        for one, parts in zip(pending, times, strict=True)
    ]


def _warn_of_differences(saved: Mapping[str, Any], setup: RoundSetup, ranks: Ranks) -> None:
    """Warn of what makes the rounds to come differ from those of the checkpoint's run."""
    if saved["seed"] != setup.seed:
        rank_zero_warn(
            f"data.seed is {setup.seed} but the checkpoint was made with {saved['seed']}; new rounds use the new seed"
        )
    here = {"ranks": ranks.size, "engine": type(setup.engine).__name__}
    for name, value in here.items():
        if saved.get(name, value) != value:
            rank_zero_warn(
                f"{name}: {value} here, {saved[name]} in the checkpoint's run; from here on the results equal those of "
                "an uninterrupted run only up to rounding and what is sampled from it"
            )
