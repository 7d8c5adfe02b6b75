"""From the options of a run to the tokens and seconds of a round."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from math import ceil, isfinite
from statistics import fmean
from typing import Any

from lightning_serl.callbacks.foresight import Division, Foresight
from lightning_serl.cli.plan_options import PlanOptions
from lightning_serl.policy.roofline import (
    Machine,
    Round,
    Shape,
    Steps,
    Texts,
    attempts,
    logprob_seconds,
    training_seconds,
    writing_seconds,
)

# Shares that are assumed of a run that has not been tried: tokens of an answer of the most that it may have, answered
# problems that are trained on, and written problems that are accepted.
_ANSWER, _KEPT, _ACCEPTED = 0.6, 0.7, 0.75
# Characters for each token without a tokenizer, tokens of the words around a problem, and between two problems.
_CHARACTERS, _AROUND, _BETWEEN = 3.5, 40, 6
# Entries of the smallest vocabulary that is one.
_LEAST_VOCABULARY = 128
# Seconds of grading an answer, and of the filters for a written problem.
_GRADING, _FILTERING = 5e-5, 1e-3
# Positions of padded micro-batches for each token.
_PADDED = 1.15


@dataclass(frozen=True)
class Lengths:
    """Tokens of the texts of a run."""

    prompt: float  # of a problem as it is put to the policy
    problem: float  # of a problem alone
    few_shot: float  # of the prompt that new problems are written after
    answer_limit: int
    writing_limit: int
    tokenizer: bool  # whether they were counted by the model's tokenizer


def lengths_of(data: Any, config: Any, where: str) -> Lengths:
    """Mean lengths over the seeds, by the model's tokenizer if it has one."""
    seeds = list(data.seed_problems)[:64]
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    answers = data.sampling.fitted(context).longest
    writing = data.writing.sampling.fitted(context).longest
    tokenizer = None
    with suppress(Exception):  # a directory may hold a configuration alone
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(where)
    # transformers makes one without a vocabulary where a directory has no file of it
    if tokenizer is None or len(tokenizer) < _LEAST_VOCABULARY or not seeds:
        problem = fmean([len(seed.prompt) / _CHARACTERS for seed in seeds] or [100.0])
        few_shot = data.writing.exemplars * (problem + _BETWEEN) + _AROUND
        return Lengths(problem + _AROUND, problem, few_shot, answers, writing, False)
    prompt = fmean(len(data.solve.encode(tokenizer, seed, data.grader_name)) for seed in seeds)
    problem = fmean(len(tokenizer.encode(seed.prompt)) for seed in seeds)
    shown = [seeds[i % len(seeds)] for i in range(data.writing.exemplars)]
    few_shot = float(len(data.writing.template.encode(tokenizer, shown)))
    return Lengths(prompt, problem, few_shot, answers, writing, True)


@dataclass(frozen=True)
class Work:
    """What a round writes and trains on."""

    answers: Texts  # of a whole round
    first: float  # prompts that are answered first; the others follow when it is known how many are missing
    attempts: int  # times in which they are written
    texts: Texts  # of new problems, of one call
    calls: float  # calls of a round
    proposals: float  # problems that are written in a round
    steps: Steps
    evaluation: tuple[Texts, ...] = ()  # of one evaluation
    evaluations: float = 0.0  # of the run
    probe: Texts | None = None
    probes: float = 0.0  # for each round
    assumed: tuple[str, ...] = ()


def work_of(foresight: Foresight, division: Division, given: PlanOptions, lengths: Lengths, rounds: float) -> Work:
    """The work of a round of the run that is foreseen."""
    data: Any = foresight.data
    size = data.round_options
    answer = min(given.answer_tokens or _ANSWER * lengths.answer_limit, lengths.answer_limit)
    text = given.problem_tokens or data.writing.exemplars * (lengths.problem + _BETWEEN)
    text = min(text, lengths.writing_limit)
    kept, accepted = given.kept or _KEPT, given.accepted or _ACCEPTED
    tries = attempts(kept, size.max_attempts)
    asked = min(size.prompts_per_round / kept, size.max_attempts * size.prompts_per_round)
    answers = Texts(asked, lengths.prompt, size.samples_per_prompt, answer, lengths.answer_limit)
    texts = Texts(data.writing.prompts_per_call, lengths.few_shot, 1, text, lengths.writing_limit)
    # a text that reaches its limit ends inside of a problem, which is rejected
    items = max(1.0, text / (lengths.problem + _BETWEEN) - (text >= lengths.writing_limit))
    gained = data.writing.prompts_per_call * items * accepted
    calls = asked * (1 - data.mix_ratio) / gained if data.writes else 0.0
    if isfinite(rounds) and rounds >= 1:  # what a call brings beyond a round is answered in the next one
        calls = ceil(calls * rounds) / rounds
    evaluation, evaluations = _evaluations(foresight, lengths, answer, rounds)
    answered = size.prompts_per_round * size.samples_per_prompt
    acted_on = any(getattr(c, "asks_probe", False) for c in foresight.trainer.callbacks)
    probe = data.probe.fitted(rounds, answered, len(data.seed_problems), acted_on)
    probed = None
    if probe.every:
        probed = Texts(min(probe.prompts, len(data.seed_problems)), lengths.prompt, probe.samples, answer,
                       lengths.answer_limit)  # fmt: skip
    return Work(
        answers,
        size.prompts_per_round,
        tries,
        texts,
        calls,
        calls * gained / accepted,
        _steps(foresight, division, lengths, answer, packs=foresight.packs),
        evaluation,
        evaluations,
        probed,
        1 / probe.every if probe.every else 0.0,
        _assumptions(given, lengths, answer, text, kept, accepted, bool(calls)),
    )


def _steps(foresight: Foresight, division: Division, lengths: Lengths, answer: float, packs: bool) -> Steps:
    module, size = foresight.module, foresight.data.round_options
    rows = size.prompts_per_round * size.samples_per_prompt
    cuts = module.minibatches * (division.micro_batches - 1)  # a group that a cut divides has its prompt on both sides
    tokens = rows * answer + (size.prompts_per_round + cuts) * lengths.prompt
    if not packs:
        tokens = _PADDED * rows * (answer + lengths.prompt)
    return Steps(
        count=module.steps_per_round,
        micro_batches=division.micro_batches,
        tokens=tokens,
        scored=rows * answer,
        context=lengths.prompt + answer / 2,
        full=module.lora is None,
        checkpointing=module.load_options["gradient_checkpointing"],
        state=foresight.work.state,
        reference=module.objective.beta > 0,
        old=module.steps_per_round > 1,
        rows_passes=ceil(rows / foresight.place.ranks / max(1, division.scored)),
        passes=getattr(module, "inner_epochs", 1),
    )


def _evaluations(
    foresight: Foresight, lengths: Lengths, answer: float, rounds: float
) -> tuple[tuple[Texts, ...], float]:
    """The texts of one evaluation, in batches, and the number of evaluations in and around a fit."""
    trainer, data = foresight.trainer, foresight.data
    options, sets = data.evaluation, getattr(data, "evaluation_problems", {})
    out = []
    for problems in sets.values():
        prompt = (
            lengths.prompt
            - lengths.problem
            + fmean(len(p.prompt) for p in problems)
            * (lengths.problem / max(1.0, fmean(len(p.prompt) for p in data.seed_problems or problems)))
        )
        mine = ceil(len(problems) / foresight.place.ranks)
        for first in range(0, mine, options.batch_size):
            now = min(options.batch_size, mine - first)
            for each in filter(None, (options.samples, 1)):
                out.append(Texts(now, prompt, each, answer, lengths.answer_limit))
    epochs = rounds / max(1, getattr(data, "rounds_per_epoch", 1))
    every = trainer.check_val_every_n_epoch or 1
    inside = epochs // every if isfinite(epochs) else 0.0
    return tuple(out), (1 + max(1.0, inside)) if out else 0.0


def _assumptions(
    given: PlanOptions, lengths: Lengths, answer: float, text: float, kept: float, accepted: float, writes: bool
) -> tuple[str, ...]:
    """What is assumed rather than given, with the option that would give it."""
    said = [f"answers of {answer:.0f} tokens on average (plan.answer_tokens)"] if given.answer_tokens is None else []
    if given.kept is None:
        said.append(f"{100 * kept:.0f} % of the answered problems trained on (plan.kept)")
    if writes and given.problem_tokens is None:
        said.append(f"texts of new problems of {text:.0f} tokens (plan.problem_tokens)")
    if writes and given.accepted is None:
        said.append(f"{100 * accepted:.0f} % of the written problems accepted (plan.accepted)")
    if not lengths.tokenizer:
        said.append(f"{_CHARACTERS} characters for each token, since the model has no tokenizer")
    return tuple(said)


@dataclass(frozen=True)
class Fleet:
    """The devices of a run."""

    trainer: Machine
    writer: Machine
    shape: Shape  # while training
    written: Shape  # while writing, which may be in another dtype
    ranks: int  # devices that train
    writers: int  # devices that write
    rows: int  # completions that each writes at one time
    push_bytes: int  # of a push; 0 where the policy itself writes
    sharded: bool = False
    ahead: bool = False


def round_of(fleet: Fleet, work: Work) -> Round:
    """Seconds of the parts of a round on these devices."""

    def written(texts: Texts) -> float:
        return writing_seconds(fleet.writer, fleet.written, texts, fleet.rows, fleet.writers)

    first = replace(work.answers, prompts=min(work.answers.prompts, work.first))
    rest = replace(work.answers, prompts=(work.answers.prompts - first.prompts) / max(1, work.attempts - 1))
    answering = written(first) + (work.attempts - 1) * written(rest)
    parts = {
        "writing": work.calls * written(work.texts),
        "filtering": _FILTERING * work.proposals,
        "answering": answering,
        "grading": _GRADING * work.answers.prompts * work.answers.each / fleet.ranks,
        "probing": 0.0 if work.probe is None else work.probes * written(work.probe),
        "logprobs": logprob_seconds(fleet.trainer, fleet.shape, work.steps, fleet.ranks),
        "training": training_seconds(fleet.trainer, fleet.shape, work.steps, fleet.ranks, fleet.sharded),
        "sync": fleet.push_bytes / fleet.trainer.push,
    }
    parts = {name: seconds for name, seconds in parts.items() if seconds > 0}
    evaluation = sum(written(replace(t, prompts=t.prompts * fleet.ranks)) for t in work.evaluation)
    return Round(parts, fleet.ahead, evaluation)
