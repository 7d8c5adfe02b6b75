"""One round of self-play without a Trainer; training, prediction, benchmarks and tests share it."""

from __future__ import annotations

from math import ceil

from lightning_serl.datamodules.rounds.answer import answer
from lightning_serl.datamodules.rounds.propose import Proposals
from lightning_serl.datamodules.rounds.report import RoundLog, agreed, statistics, why_empty
from lightning_serl.datamodules.rounds.select import select, take_carried
from lightning_serl.datamodules.rounds.setup import RoundSetup, RoundState
from lightning_serl.errors import EmptyRound
from lightning_serl.types import Round


def play_round(setup: RoundSetup, state: RoundState, number: int) -> Round:
    """Propose, filter, answer, reward and filter again until ``prompts_per_round`` root groups survive.

    The source of ``setup`` and the ``state`` change; ``number`` keys all random draws.

    Raises:
        EmptyRound: on all ranks, if nothing survives ``max_attempts`` attempts or no instruction can be had.
        ValueError: if there is no source, or a reward or source returns what it must not.
        RankFailure: on all ranks, if a stage failed on one of them.
    """
    source, options = setup.source, setup.options
    if source is None:
        raise ValueError("a round needs a source of instructions")
    log = RoundLog(number, setup.step)
    proposals = Proposals(setup, state, source, log)
    tried = attempts = 0
    survived = carried = take_carried(setup, state, log)
    seen = log.round.answered
    while survived < options.prompts_per_round and attempts < options.max_attempts:
        missing = options.prompts_per_round - survived
        # the round's yield so far tells how many prompts the missing groups will take
        fresh = max(1, survived - carried)
        want = missing if not tried else min(options.prompts_per_round, ceil(missing * tried / fresh))
        roots = proposals.take(options.prompts_per_round if options.published else want)
        if not roots:
            break
        attempts += 1
        answered = answer(setup, source, roots, log)
        seen.extend(answered)
        tried += len(roots)
        survived += select(setup, state, log, answered, missing, attempts)
    if options.published:
        proposals.forget_queue()
    source.observe([g for g, _ in seen], [v for _, v in seen])
    kept = {g.instruction.uid for g in log.round.groups}
    log.round.samples = seen[:2] + [pair for pair in seen[2:] if pair[0].instruction.uid in kept][:2]
    if not survived:
        raise EmptyRound(why_empty(setup, log, attempts, tried), log.round, agreed(log))
    log.round.stats = statistics(setup, state, log, attempts, tried, survived, survived - carried)
    return log.round
