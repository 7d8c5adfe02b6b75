"""The second part of a round: roll out the instructions, follow up on the answers, and reward them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from lightning_serl.datamodules.rounds.context import Context
from lightning_serl.datamodules.rounds.report import RoundLog, proposal_facts
from lightning_serl.datamodules.rounds.setup import RoundSetup, Score, needs_of
from lightning_serl.datamodules.sources.base import InstructionSource
from lightning_serl.engines.base import Who
from lightning_serl.rewards.base import fill_answers
from lightning_serl.types import Event, Group, Instruction, Verdict

# The squares of a batch's scores, summed for a standard deviation, must fit into float32.
_LARGEST_SCORE = 1e16


def answer(
    setup: RoundSetup, source: InstructionSource, roots: Sequence[Instruction | Group], log: RoundLog
) -> list[tuple[Group, Verdict]]:
    """Roll out ``roots``, follow up and reward: returns all groups with verdicts, each root before its derived groups.

    Every rank does its share, then all ranks hold everything. Roots keep their order.
    """
    number, options = log.round.number, setup.options
    mine = setup.ranks.share(list(roots))

    def read(group: Group) -> None:
        """Read a group's answers, if possible while the engine writes the next ones; every reward finds them."""
        fill_answers([group], setup.grader)

    with setup.phase("answering", len(mine) * options.samples_per_prompt) as tick, setup.ranks.stage("answering"):
        ctx = setup.context(number, "rollout", tick=tick)
        ctx.arrived = read
        fresh = [i for i in mine if isinstance(i, Instruction)]
        rolled = _rolled_out(setup, fresh, ctx)
        families = _Families([i if isinstance(i, Group) else rolled[i.uid] for i in mine])
        wave = list(families.groups.values())
        for _ in range(options.max_waves):
            wave = _follow_up(setup, source, wave, ctx, families)
            if not wave:
                break
        _measure(setup, list(families.groups.values()))
    with setup.phase("voting", len(mine)) as tick, setup.ranks.stage("voting"):
        groups = list(families.groups.values())
        for group in groups:
            read(group)
        verdicts = _reward(setup, groups, setup.context(number, "reward"))
        tick(len(mine))
    answered: list[tuple[Group, Verdict]] = []
    for events, pairs in setup.ranks.interleave(families.by_root(verdicts)):
        for event in events:
            log.event(**event)
        answered += pairs
    for group, verdict in answered:
        scores = [round(s, 6) for s in verdict.scores.tolist()]
        facts = {"label": verdict.label, "confidence": round(verdict.confidence, 6), "scores": scores}
        log.event(group.instruction.uid, "voted", **facts)
    return answered


def _rolled_out(setup: RoundSetup, fresh: Sequence[Instruction], ctx: Context) -> dict[str, Group]:
    """The groups of instructions by uid; the reward of a role may name the reference to write them."""
    parts: dict[Who, list[Instruction]] = {}
    for one in fresh:
        parts.setdefault(getattr(setup.rewards.get(one.role), "answered_by", "policy"), []).append(one)
    groups = [g for who, some in parts.items() for g in ctx.generate(some, setup.options.samples_per_prompt, who)]
    return {group.instruction.uid: group for group in groups}


@dataclass
class _Families:
    """Root groups of this rank with the groups derived from them; a family stays together."""

    roots: list[Group]
    groups: dict[str, Group] = field(init=False)  # all, by uid
    root_of: dict[str, str] = field(init=False)  # uid by uid
    events: list[tuple[str, Event]] = field(default_factory=list)  # of derived instructions, by the root's uid

    def __post_init__(self) -> None:
        self.groups = {g.instruction.uid: g for g in self.roots}
        self.root_of = {uid: uid for uid in self.groups}

    def by_root(self, verdicts: dict[str, Verdict]) -> list[tuple[list[Event], list[tuple[Group, Verdict]]]]:
        """Events and groups of each family, in the order of the roots."""
        families: dict[str, tuple[list[Event], list[tuple[Group, Verdict]]]] = {
            g.instruction.uid: ([], []) for g in self.roots
        }
        for root, event in self.events:
            families[root][0].append(event)
        for uid, group in self.groups.items():
            families[self.root_of[uid]][1].append((group, verdicts[uid]))
        return list(families.values())


def _follow_up(
    setup: RoundSetup, source: InstructionSource, wave: list[Group], ctx: Context, families: _Families
) -> list[Group]:
    """Roll out what the source derives from a wave of groups, and link it to its parents."""
    taken: Counter[str] = Counter()
    children: list[Instruction] = []
    for child in source.derive(wave, _gate(setup.gate, wave, ctx), ctx):
        if child.link is None or child.link.parent not in families.groups:
            raise ValueError("an instruction from derive() must carry a link to the uid of a group it was given")
        parent = child.link.parent
        taken[parent] += 1
        if taken[parent] > setup.options.max_derived:
            continue
        child = replace(child, uid=child.uid or f"{parent}.{child.link.relation}{taken[parent]}")
        root = families.root_of[child.uid] = families.root_of[parent]
        families.events.append((root, {"uid": child.uid, "event": "proposed", **proposal_facts(child)}))
        if setup.too_long(child):
            families.events.append((root, {"uid": child.uid, "event": "rejected", "reason": "over_long_prompt"}))
            continue
        families.events.append((root, {"uid": child.uid, "event": "accepted"}))
        children.append(child)
    fresh = ctx.generate(children, setup.options.samples_per_prompt)
    for group in fresh:
        link = group.instruction.link
        assert link is not None
        families.groups[group.instruction.uid] = group
        families.groups[link.parent].links.setdefault((link.relation, link.index), []).append(group)
    return fresh


def _gate(gate: Score, wave: list[Group], ctx: Context) -> list[Verdict]:
    """The gate's verdicts on groups of role ``solve``; other roles have no answers that could be compared."""
    solved = iter(gate([g for g in wave if g.instruction.role == "solve"], ctx))
    return [
        next(solved) if g.instruction.role == "solve" else Verdict(torch.zeros(len(g)), confidence=0.0) for g in wave
    ]


def _measure(setup: RoundSetup, groups: list[Group]) -> None:
    """Fill in the token statistics that some reward needs."""
    needs = needs_of(*setup.rewards.values())
    if not needs & {"entropy", "certainty"} or setup.policy is None:
        return
    rows = [(g.prompt_ids + c.token_ids, len(g.prompt_ids)) for g in groups for c in g.completions]
    with setup.phase("scoring", len(groups)):
        stats = iter(setup.policy.stats(rows, certainty="certainty" in needs))
    for group in groups:
        mine = [next(stats) for _ in group.completions]
        for name in sorted(needs & {"entropy", "certainty"}):
            group.stats[name] = [getattr(s, name) for s in mine]


def _reward(setup: RoundSetup, groups: list[Group], ctx: Context) -> dict[str, Verdict]:
    """Verdicts by uid: the reward of each role is called in declared order, and sees the verdicts of earlier ones."""
    for role in (g.instruction.role for g in groups):
        if role not in setup.rewards:
            raise ValueError(f"no reward is declared for role {role!r}; declared: {', '.join(setup.rewards)}")
    for role, reward in setup.rewards.items():
        chosen = [g for g in groups if g.instruction.role == role]
        verdicts = reward(chosen, ctx)
        _check_verdicts(role, reward, chosen, verdicts)
        ctx.verdicts |= {g.instruction.uid: v for g, v in zip(chosen, verdicts, strict=True)}
    for group in groups if setup.options.mask_truncated else ():
        finished = torch.tensor([float(c.finished) for c in group.completions])
        verdict = ctx.verdicts[group.instruction.uid]
        ctx.verdicts[group.instruction.uid] = replace(verdict, weight=verdict.weight * finished)
    return ctx.verdicts


def _check_verdicts(role: str, reward: object, groups: list[Group], verdicts: object) -> None:
    """Refuse what a reward must not return."""
    whose = f"the reward {getattr(reward, '__name__', type(reward).__name__)} of role {role!r}"
    if not (isinstance(verdicts, (list, tuple)) and all(isinstance(v, Verdict) for v in verdicts)):
        raise ValueError(f"{whose} must return a list with a Verdict for each group")
    if len(verdicts) != len(groups):
        raise ValueError(f"{whose} returned {len(verdicts)} verdicts for {len(groups)} groups")
    for group, verdict in zip(groups, verdicts, strict=True):
        if len(verdict.scores) != len(group):
            raise ValueError(f"{whose} gave {len(verdict.scores)} scores to {len(group)} responses")
        numbers = [verdict.scores[verdict.weight > 0], verdict.weight, *(verdict.token_scores or ())]
        if not all(bool(torch.isfinite(n).all()) for n in numbers):
            raise ValueError(
                f"{whose} gave a score or weight that is not a finite number in float32, to problem "
                f"{group.instruction.uid}"
            )
        largest = max((float(n.abs().max()) for n in numbers if n.numel()), default=0.0)
        if largest > _LARGEST_SCORE:
            raise ValueError(
                f"{whose} gave a score or weight of {largest:.3g}, to problem {group.instruction.uid}; at most "
                f"{_LARGEST_SCORE:g} can be used, since squares of scores are summed in float32"
            )
