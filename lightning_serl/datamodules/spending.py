"""What a run writes besides the answers that it trains on, in words, before it begins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sized

import lightning.pytorch as pl

from lightning_serl.datamodules.rounds.health_probe import Probe
from lightning_serl.datamodules.rounds.setup import RoundOptions
from lightning_serl.datamodules.streams.evaluation import EvaluationOptions
from lightning_serl.protocols import module_of


def planned_rounds(trainer: pl.Trainer, rounds_per_epoch: int) -> float:
    """Rounds of a whole fit by the Trainer's limits; infinite without any."""
    steps, limit = module_of(trainer).steps_per_round, trainer.limit_train_batches
    each = rounds_per_epoch * steps * trainer.accumulate_grad_batches
    batches = min(each, limit) if isinstance(limit, int) else int(each * limit)
    epochs = math.inf if trainer.max_epochs is None or trainer.max_epochs < 0 else trainer.max_epochs
    whole = epochs * batches / (steps * trainer.accumulate_grad_batches) if batches else 0.0
    return whole if trainer.max_steps < 0 else min(whole, trainer.max_steps / steps)


def probe_sentence(probe: Probe, seeds: int, rounds: float, options: RoundOptions, longest: int) -> str:
    """What the health probe of a fit will write; ``probe`` has no number open."""
    if not probe.every:
        return "health probe: none, since two probes would be more than 3 % of this run's answers (data.probe.every)"
    prompts, samples = min(probe.prompts or 0, seeds), probe.samples or 0
    answers = options.prompts_per_round * options.samples_per_prompt
    times = rounds / probe.every if math.isinf(rounds) else math.ceil(rounds / probe.every)
    share = prompts * samples * (1 / probe.every if math.isinf(rounds) else times / max(1, rounds)) / answers
    return (
        f"health probe: {prompts} seeds with {samples} answers each, before the first round and every {probe.every} "
        f"rounds: {prompts * samples:,} completions of together at most {prompts * samples * longest:,} tokens, "
        f"{100 * share:.1f} % of the run's answers"
    )


def evaluation_sentence(sets: Mapping[str, Sized], options: EvaluationOptions, longest: int) -> str:
    """What an evaluation will write."""
    named = ", ".join(f"{len(problems)} problems of {name}" for name, problems in sets.items())
    completions = sum(map(len, sets.values())) * (options.samples + 1)
    return (
        f"evaluation: {named}, each answered once greedily and {options.samples} times sampled: {completions:,} "
        f"completions of together at most {completions * longest:,} tokens"
    )
