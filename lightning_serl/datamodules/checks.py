"""Checks before the first rollout. Each raises an :class:`InputError` that names the option."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, cast

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_serl import rewards
from lightning_serl.callbacks.probe_signs import LEAST_PROMPTS
from lightning_serl.datamodules.rounds.health_probe import Probe
from lightning_serl.datamodules.rounds.setup import RoundOptions
from lightning_serl.datamodules.sources.base import InstructionSource
from lightning_serl.engines.base import RolloutEngine, Sampling
from lightning_serl.errors import InputError, check_range, short
from lightning_serl.policy.policy import Policy
from lightning_serl.prompts.chat import unread_options
from lightning_serl.prompts.encoding import PromptTemplate
from lightning_serl.prompts.few_shot import InstructionTemplate
from lightning_serl.prompts.solve import SolveTemplate
from lightning_serl.protocols import module_of
from lightning_serl.types import Instruction


class ChecksTrainer(Protocol):
    """A module or datamodule that checks the Trainer; its ``setup`` calls the same method."""

    def check_trainer(self, trainer: pl.Trainer, stage: str) -> None:
        """Refuse a Trainer that cannot be used in a stage; nothing is loaded."""


def check_fit(trainer: pl.Trainer, module: ChecksTrainer, data: ChecksTrainer) -> None:
    """Run all checks of ``fit`` that need no model, for callers that load or evaluate before they call it."""
    trainer.strategy.connect(cast(pl.LightningModule, module))  # checks read trainer.lightning_module
    data.check_trainer(trainer, "fit")
    module.check_trainer(trainer, "fit")


def check_module(trainer: pl.Trainer, stage: str) -> None:
    """Run the module's checks of a stage, if it has any, before problems and memory are reported."""
    check = getattr(trainer.lightning_module, "check_trainer", None)
    if check is not None:
        check(trainer, stage)


def check_schedule(trainer: pl.Trainer, rounds_per_epoch: int) -> None:
    """Refuse what would cut an optimizer step, whose gradient would lack micro-batches, and impossible intervals."""
    limit, accumulate = trainer.limit_train_batches, trainer.accumulate_grad_batches
    every, between = trainer.check_val_every_n_epoch, trainer.val_check_interval
    check_range("trainer.accumulate_grad_batches", accumulate, at_least=1)
    check_range("trainer.check_val_every_n_epoch", every, at_least=1)
    # a negative limit would turn the gradient around
    check_range("trainer.gradient_clip_val", trainer.gradient_clip_val, at_least=0)
    length = rounds_per_epoch * module_of(trainer).steps_per_round * accumulate
    batches = limit if isinstance(limit, int) else int(limit * length)
    if batches % accumulate and not trainer.fast_dev_run:
        which = f"({limit})" if isinstance(limit, int) else f"({limit}, which is {batches} micro-batches)"
        raise InputError(
            f"trainer.limit_train_batches {which} must be a multiple of trainer.accumulate_grad_batches "
            f"({accumulate}), or the last optimizer step would be cut"
        )
    if isinstance(between, int) and batches and trainer.limit_val_batches:
        # without check_val_every_n_epoch the interval may be longer than an epoch
        most = None if every is None else min(batches, length)
        hint = "the upper limit is the number of micro-batches of an epoch"
        check_range("trainer.val_check_interval", between, at_least=1, at_most=most, hint=hint if most else "")


def check_staleness(trainer: pl.Trainer, staleness: int, options: RoundOptions, engine: RolloutEngine) -> None:
    """Refuse ``data.max_staleness`` without the importance weights for older groups, or where none can be carried."""
    if not staleness:
        return
    objective = module_of(trainer).objective
    if getattr(objective, "correction", None) == "none":  # a foreign module may have an objective of another kind
        raise InputError(
            f"data.max_staleness is {staleness} but model.objective.correction is none: groups of older weights need "
            "the importance weights; set it to token_truncate, or data.max_staleness to 0"
        )
    if options.published:
        why = "data.round.style is serl, which normalises each attempt separately and carries nothing"
        raise InputError(f"data.max_staleness is {staleness} but {why}; change one of them")
    if not engine.samples_policy:
        why = "data.engine replays recordings, whose weights have no age"
        raise InputError(f"data.max_staleness is {staleness} but {why}; set it to 0")


def check_probe(trainer: pl.Trainer, probe: Probe, seeds: int, engine: RolloutEngine) -> None:
    """Refuse a callback that acts on the health probe, such as ``KeepBest``, where there is none or too small a one.

    ``seeds`` is their number.
    """
    acting = [type(c).__name__ for c in trainer.callbacks if getattr(c, "asks_probe", False)]
    if not acting:
        return
    if probe.every == 0:
        why = "data.probe.every is 0; leave it out, or give the rounds between two probes"
    elif seeds < LEAST_PROMPTS:
        why = f"it is made of data.seeds, which has {seeds} problems; give {LEAST_PROMPTS} or more"
    elif probe.prompts is not None and probe.prompts < LEAST_PROMPTS:
        why = f"data.probe.prompts is {probe.prompts}; give {LEAST_PROMPTS} or more"
    elif probe.samples is not None and probe.samples < 4:
        why = f"data.probe.samples is {probe.samples}; give 4 or more, since each half of them votes"
    elif not engine.samples_policy:
        why = "data.engine replays recordings; use another engine"
    else:
        return
    raise InputError(f"trainer.callbacks: {acting[0]} acts on the health probe, but {why}, or remove the callback")


def check_minibatches(trainer: pl.Trainer, options: RoundOptions) -> None:
    """Refuse optimizer steps without a response, in which only momentum would move the weights, and empty windows."""
    parts, most = module_of(trainer).minibatches, options.prompts_per_round * options.samples_per_prompt
    if not options.max_waves and parts > most:  # the number of follow-ups is not known beforehand
        raise InputError(
            f"model.minibatches is {parts} but a round has only {most} responses (data.round.prompts_per_round x "
            "samples_per_prompt); lower it, or make the round larger"
        )
    accumulate, rows = trainer.accumulate_grad_batches, -(-most // parts)
    if not options.max_waves and accumulate > rows:
        raise InputError(
            f"trainer.accumulate_grad_batches is {accumulate} but an optimizer step has only {rows} responses "
            "(data.round.prompts_per_round x samples_per_prompt / model.minibatches), so that micro-batches would be "
            "empty; lower it"
        )


def check_chat_templates(
    policy: Policy | None, solve: Mapping[str, SolveTemplate], few_shot: InstructionTemplate | None
) -> None:
    """Refuse ``chat: true`` for a tokenizer without a chat template, and misspelled names in ``chat_kwargs``.

    Replay, without a policy, needs no tokens.
    """
    if policy is None:
        return
    templates: dict[str, PromptTemplate] = {
        "data.solve" if role == "solve" else f"data.templates.{role}": one for role, one in solve.items()
    }
    if few_shot is not None:
        templates["data.writing.template"] = few_shot
    has_one = bool(getattr(policy.tokenizer, "chat_template", None))
    name = str(getattr(policy.tokenizer, "name_or_path", ""))[-100:]
    for option, template in templates.items():
        if template.chat and not has_one:
            said = f"{option}.chat is true but the tokenizer {name!r} has no chat template"
            raise InputError(f"{said}; set it to false or use a model that has one")
        if has_one and template.uses_chat(policy.tokenizer):
            _check_chat_kwargs(f"{option}.chat_kwargs", template, policy.tokenizer)


def _check_chat_kwargs(option: str, template: PromptTemplate, tokenizer: Any) -> None:
    """Refuse names that resemble one of the chat template, and warn of others that it never reads."""
    for name, near in unread_options(tokenizer, template.chat_kwargs or {}).items():
        said = f"{option} names {short(name)}, which the model's chat template never reads"
        if near is not None:
            raise InputError(f"{said}; did you mean {near!r}?")
        rank_zero_warn(f"{said}, so that it changes nothing; remove it or see the template for the name")


def check_lengths(policy: Policy | None, engine: RolloutEngine, answers: Sampling, writing: Sampling | None) -> None:
    """Refuse answers or written problems that alone would fill the context of model or engine."""
    for name, sampling, whose, context in _lengths(policy, engine, answers, writing):
        if sampling.max_tokens is not None and sampling.max_tokens >= context:
            said = f"{name} is {sampling.max_tokens} but the {whose}'s context holds {context} tokens, prompt included"
            raise InputError(f"{said}; lower it")


def announce_lengths(
    policy: Policy | None, engine: RolloutEngine, answers: Sampling, writing: Sampling | None, buffer: float
) -> None:
    """Log the lengths that were left open and fit the context of model or engine by being less than usual.

    Refuses a ``data.round.overlong_buffer`` longer than the answers have become.
    """
    for name, sampling, whose, context in _lengths(policy, engine, answers, writing):
        fitted = sampling.fitted(context).longest
        if fitted == sampling.longest:
            continue
        if sampling is answers:
            hint = f"the upper limit is data.max_tokens, half of the {whose}'s context"
            check_range("data.round.overlong_buffer", buffer, at_most=fitted, hint=hint)
        rank_zero_info(f"{name}: {fitted}, half of the {context} tokens that the {whose}'s context holds")


def _lengths(
    policy: Policy | None, engine: RolloutEngine, answers: Sampling, writing: Sampling | None
) -> list[tuple[str, Sampling, str, int]]:
    """Option, sampling, whose context limits it and to how many tokens; empty without a limit."""
    if policy is None or (context := engine.shared_context(policy)) is None:
        return []
    whose = "model" if context == policy.context_length else "engine"
    both = (("data.max_tokens", answers), ("data.writing.sampling.max_tokens", writing))
    return [(name, sampling, whose, context) for name, sampling in both if sampling is not None]


def check_documents(
    source: object, follow_ups: InstructionSource | None, mix_ratio: float, engine: RolloutEngine
) -> None:
    """Refuse ``data.documents`` beside a source that would not read them, or recordings in place of a policy."""
    other = follow_ups if follow_ups is not None else source if isinstance(source, InstructionSource) else None
    if other is not None or mix_ratio == 1:
        name = "seeds" if other is None else type(other).__name__
        raise InputError(
            f"data.documents and data.source {name} do not go together: that source does not read documents; leave "
            "data.source out, or set it to mix:RATIO for a share of problems from data.seeds"
        )
    if not engine.samples_policy:
        raise InputError(
            "data.documents needs a policy that reads them, and data.engine replays recordings; change one"
        )


def warn_of_votes(name: str | None, reward: object) -> None:
    """Warn of a reward of this package that votes on the answers without the passage in place of reading the label."""
    own = name or (type(reward).__name__ if type(reward).__module__.startswith(rewards.__name__) else None)
    if own is not None and own not in _READ_LABELS:
        rank_zero_warn(
            f"data.reward {own} reads no labels, so answers without a passage are not compared with those with it; "
            "leave data.reward out to train on documents"
        )


# Controls compare with nothing; a mixture has what its parts have.
_READ_LABELS = ("LabelElseVote", "VerifiableReward", "RuleReward", "Mix", "RandomReward", "FormatReward")


def check_source(
    source: InstructionSource, seeds: Sequence[Instruction], options: RoundOptions, roles: Collection[str]
) -> None:
    """Refuse what a source cannot work with: its seeds, too few follow-ups, and roles that no reward scores."""
    source.check(seeds)
    name = type(source).__name__
    if options.max_waves < source.waves:
        raise InputError(
            f"data.source {name} follows up on answered groups, but data.round.max_waves is {options.max_waves}; set "
            f"it to {source.waves} or more, and data.round.max_derived to {max(1, source.follow_ups)}"
        )
    if options.max_derived < source.follow_ups:
        raise InputError(
            f"data.round.max_derived is {options.max_derived} but data.source {name} makes {source.follow_ups} "
            "follow-ups of a group; raise it, or lower the source's own number"
        )
    for role in (one for one in source.roles if one not in roles):
        raise InputError(
            f"data.source {name} brings groups of role {role!r}, which no reward scores; set data.role_rewards.{role}, "
            "as in preset:method-sqlm"
        )


def check_subjects(seeds: Sequence[Instruction]) -> None:
    """Refuse few-shot prompts by subject if no seed has a subject."""
    if not any(seed.meta.get("subject") for seed in seeds):
        said = "data.writing.by_subject is on but no seed has a subject"
        raise InputError(f"{said}; name its field with --data.fields.subject")


def check_labels(seeds: Sequence[Instruction], trained: bool) -> None:
    """Refuse a reward that scores against labels if no problem to train on can have one; ``trained``: seeds are."""
    if seeds and not (trained and any(p.label is not None for p in seeds)):
        what = "no seed has one (data.fields.answer)" if trained else "problems that the policy writes have none"
        raise InputError(f"data.reward needs labels, but {what}; use --data.source seeds, or MajorityVote")
