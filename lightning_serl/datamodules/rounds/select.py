"""The third part of a round: group filters choose what is trained on, what waits and what is dropped."""

from __future__ import annotations

from dataclasses import replace

import torch

from lightning_serl.datamodules.rounds.report import RoundLog
from lightning_serl.datamodules.rounds.setup import Carried, RoundSetup, RoundState
from lightning_serl.objectives.advantages import overlong_penalty
from lightning_serl.types import Group, Reason, Verdict


def take_carried(setup: RoundSetup, state: RoundState, log: RoundLog) -> int:
    """Begin a round with the families that an earlier one had no room for, and return how many were taken.

    Those that waited too long are dropped.
    """
    waiting, state.carried[:] = list(state.carried), []
    taken = 0
    for family in waiting:
        too_old = log.round.number - family.round > setup.max_staleness
        if too_old or taken == setup.options.prompts_per_round:
            for group, _ in family.pairs:
                log.event(group.instruction.uid, "dropped", reason="stale")
            continue
        taken += 1
        log.round.oldest = min(log.round.oldest, family.step)
        for group, verdict in family.pairs:
            _keep(state, log, group, verdict)
    return taken


def select(
    setup: RoundSetup, state: RoundState, log: RoundLog, answered: list[tuple[Group, Verdict]], room: int, attempt: int
) -> int:
    """Weigh all groups of an attempt, keep at most ``room`` families that survive, and return how many were kept."""
    groups, verdicts = [g for g, _ in answered], [v for _, v in answered]
    with setup.phase("filtering", len(groups)):
        weights, reasons = weigh(setup, groups, verdicts)
    family_of, alive = _families(groups, weights)
    living = [family for family, left in alive.items() if left]
    chosen = living[:room]
    waiting = living[room:] if setup.age < setup.max_staleness else []
    carried: dict[int, list[tuple[Group, Verdict]]] = {family: [] for family in waiting}
    published = setup.options.published
    for group, verdict, weight, reason in zip(groups, verdicts, weights, reasons, strict=True):
        uid = group.instruction.uid
        family = family_of[uid]
        shaped = _shape(setup, group, verdict, attempt)
        if published and weight > 0 and uid in state.pool:
            state.pool.mark_kept(uid)  # whether or not the round has room for it
        if weight > 0 and family in carried:
            carried[family].append((group, shaped.scaled(weight)))
            log.event(uid, "carried")
            continue
        if weight > 0 and family not in chosen:
            # a surplus group would be too old by the time there is room for it; without staleness it never has any
            surplus: Reason = "stale" if setup.max_staleness else "no_room"
            weight, reason = 0.0, surplus if alive[family] else "no_spread"
        if weight == 0:
            log.event(uid, "dropped", reason=reason or "no_spread")
            if published:
                log.round.dropped.append((group, replace(shaped, dropped=True)))
            continue
        _keep(state, log, group, shaped.scaled(weight))
    state.carried += [Carried(pairs, log.round.number - setup.age, setup.step) for pairs in carried.values()]
    return len(chosen)


def _keep(state: RoundState, log: RoundLog, group: Group, verdict: Verdict) -> None:
    """Add a group to those that the round trains on."""
    uid = group.instruction.uid
    log.event(uid, "kept")
    if uid in state.pool:
        state.pool.mark_kept(uid)
    log.round.groups.append(group)
    log.round.verdicts.append(verdict)


def weigh(setup: RoundSetup, groups: list[Group], verdicts: list[Verdict]) -> tuple[list[float], list[Reason | None]]:
    """The product of the filters' weights for each group, and the reason of the first filter that gave 0."""
    weights = [1.0] * len(groups)
    reasons: list[Reason | None] = [None] * len(groups)
    for rule in setup.group_filters:
        for i, (weight, reason) in enumerate(zip(*rule.weigh(groups, verdicts), strict=True)):
            weights[i] *= weight
            if weight == 0 and reasons[i] is None:
                reasons[i] = reason
    return weights, reasons


def _families(groups: list[Group], weights: list[float]) -> tuple[dict[str, int], dict[int, bool]]:
    """The family of each uid, and whether anything in each family is left to train on."""
    family_of: dict[str, int] = {}
    alive: dict[int, bool] = {}
    for group, weight in zip(groups, weights, strict=True):
        uid, link = group.instruction.uid, group.instruction.link
        # derived groups follow their parents, so that the parent's family is known
        family = family_of[uid] = family_of[link.parent] if link is not None else len(family_of)
        alive[family] = alive.get(family, False) or (weight > 0 and group.instruction.train)
    return family_of, alive


def _shape(setup: RoundSetup, group: Group, verdict: Verdict, attempt: int) -> Verdict:
    """The verdict as the loss sees it. Filters judge the one before."""
    options = setup.options
    if options.published:
        verdict = replace(verdict, attempt=attempt)
    if not options.overlong_buffer or verdict.centred:
        return verdict
    lengths = torch.tensor([len(c.token_ids) for c in group.completions])
    longest = setup.sampling.longest
    penalty = overlong_penalty(lengths, longest, options.overlong_tokens(longest))
    return replace(verdict, scores=verdict.scores + penalty)
