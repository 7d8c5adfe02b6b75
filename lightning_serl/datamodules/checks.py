"""What is looked at, and said, before the first rollout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import lightning.pytorch as pl
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from lightning_serl.engines.base import RolloutEngine, Sampling
from lightning_serl.errors import InputError
from lightning_serl.types import Instruction

if TYPE_CHECKING:
    from lightning_serl.datamodules.rounds.options import RoundOptions
    from lightning_serl.policy.policy import Policy


def check_exemplars(name: str | None, seeds: int, exemplars: int) -> None:
    """A few-shot prompt cannot show more problems than there are.

    Raises:
        InputError: if it would have to.
    """
    if exemplars > seeds:
        raise InputError(
            f"data.writing.exemplars is {exemplars} but {name} holds only {seeds} problems; "
            f"set --data.writing.exemplars to at most {seeds} or add seeds"
        )


def check_subjects(seeds: Sequence[Instruction]) -> None:
    """Exemplars of one subject need seeds that say theirs.

    Raises:
        InputError: if none does.
    """
    if not any(seed.meta.get("subject") for seed in seeds):
        raise InputError(
            "data.writing.by_subject is on but no seed has a subject; name its field with --data.fields.subject"
        )


def check_trainer(trainer: pl.Trainer, length: int) -> None:
    """Whole optimizer steps only: a step whose last micro-batches are missing would have the wrong gradient.

    Args:
        trainer: The Trainer of the fit.
        length: Micro-batches of an epoch.

    Raises:
        InputError: if limits or schedules would cut an accumulation window.
    """
    limit, accumulate = trainer.limit_train_batches, trainer.accumulate_grad_batches
    batches = limit if isinstance(limit, int) else int(limit * length)
    if batches % accumulate and not trainer.fast_dev_run:
        which = f"({limit})" if isinstance(limit, int) else f"({limit}, which is {batches} micro-batches)"
        raise InputError(
            f"trainer.limit_train_batches {which} must be a multiple of accumulate_grad_batches "
            f"({accumulate}), or the last optimizer step would be cut"
        )
    if any(isinstance(c, GradientAccumulationScheduler) for c in trainer.callbacks):
        raise InputError(
            "GradientAccumulationScheduler does not work here: a round is cut into a fixed number of micro-batches"
        )


def check_staleness(module: object, staleness: int, style: str, engine: RolloutEngine) -> None:
    """Groups of older weights can be trained on only with what corrects for them.

    Args:
        module: The module that is fitted; one of another kind is left to itself.
        staleness: ``data.max_staleness``.
        style: ``data.round.style``.
        engine: Writes the groups.

    Raises:
        InputError: if the correction is off, or nothing could be carried.
    """
    if not staleness:
        return
    if getattr(getattr(module, "objective", None), "correction", None) == "none":
        raise InputError(
            f"data.max_staleness is {staleness} but model.objective.correction is none: groups of older weights need "
            "the importance weights; choose token_truncate, or data.max_staleness 0"
        )
    if style == "serl":
        raise InputError(
            f"data.max_staleness is {staleness} but data.round.style is serl, which normalises every attempt by itself "
            "and carries nothing; set one of them back"
        )
    if not engine.samples_policy:
        raise InputError(f"data.max_staleness is {staleness} but the engine replays recordings, which have no age")


def check_minibatches(module: object, options: RoundOptions) -> None:
    """An optimizer step without a single response would move the weights by the optimizer's momentum alone.

    Args:
        module: The module that is fitted; one of another kind is left to itself.
        options: The size of a round; follow-ups bring more responses than can be told beforehand.

    Raises:
        InputError: if a full round has too few responses.
    """
    parts, most = getattr(module, "minibatches", 1), options.prompts_per_round * options.samples_per_prompt
    if not options.max_waves and parts > most:
        raise InputError(
            f"model.minibatches is {parts} but a round has only {most} responses (data.round.prompts_per_round x "
            "samples_per_prompt); lower it, or make the round larger"
        )


def check_chat(policy: Policy | None, templates: Mapping[str, bool | None]) -> None:
    """A chat template that is asked for must be there, which is seen before anything is generated.

    Args:
        policy: The live policy; ``None`` under replay, which needs no tokens.
        templates: ``chat`` of each template, by its option.

    Raises:
        InputError: naming the option.
    """
    if policy is None or getattr(policy.tokenizer, "chat_template", None):
        return
    for option, chat in templates.items():
        if chat:
            name = str(getattr(policy.tokenizer, "name_or_path", ""))[-100:]
            raise InputError(
                f"{option} is true but the tokenizer {name!r} has no chat template; set it to false or use a model "
                "that has one"
            )


def check_lengths(policy: Policy | None, engine: RolloutEngine, answers: Sampling, writing: Sampling | None) -> None:
    """What cannot fit the context of model or engine is refused before anything is generated.

    Args:
        policy: The live policy; ``None`` under replay.
        engine: Which may have room for less than the policy.
        answers: How answers are drawn.
        writing: How problems are written; ``None`` if none are.

    Raises:
        InputError: if completions alone would fill the context.
    """
    if policy is None or (context := engine.shared_context(policy)) is None:
        return
    whose = "model" if context == policy.context_length else "engine"
    for name, sampling in (("data.max_tokens", answers), ("data.writing.sampling.max_tokens", writing)):
        if sampling is not None and sampling.max_tokens >= context:
            raise InputError(
                f"{name} is {sampling.max_tokens} but the {whose}'s context holds {context} tokens, prompt included; "
                "lower it"
            )


def check_labels(seeds: Sequence[Instruction], trained: bool) -> None:
    """A reward that scores against labels needs some.

    Args:
        seeds: The seeds; empty if the user's own source brings problems.
        trained: Whether seeds are trained on at all; problems the policy writes carry no label.

    Raises:
        InputError: if no label can ever be seen.
    """
    if seeds and not (trained and any(p.label is not None for p in seeds)):
        what = "no seed carries one (data.fields.answer)" if trained else "problems that the policy writes carry none"
        raise InputError(f"data.reward needs labels, but {what}; use --data.source seeds, or MajorityVote")
