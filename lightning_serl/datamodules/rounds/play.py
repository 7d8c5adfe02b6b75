"""One round of self-play, free of the Trainer: training, validation, predict, benchmarks and tests share it.

Propose, filter, roll out, follow up, reward, filter again: until ``prompts_per_round`` groups survive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from typing import Any

import torch

from lightning_serl.datamodules.rounds.context import Context
from lightning_serl.datamodules.rounds.setup import Carried, Table
from lightning_serl.datamodules.sources.base import InstructionSource
from lightning_serl.errors import EmptyRound
from lightning_serl.objectives.advantages import overlong_penalty
from lightning_serl.pool.variety import unique_ngrams
from lightning_serl.pool.words import count_words
from lightning_serl.rewards.base import fill_answers
from lightning_serl.types import Event, Group, Instruction, Reason, Round, Verdict

# A proposal stage may yield nothing; after this many calls in a row without one accepted instruction it is given up.
_BARREN_CALLS = 8
# Written problems that the measures of variety look back on.
_LATEST = 200


def play_round(table: Table, number: int) -> Round:
    """Play one round.

    Args:
        table: The run's parts; its pool, queue and source move on.
        number: The round's number, which keys all its random draws.

    Returns:
        The round, with at most ``prompts_per_round`` root groups.

    Raises:
        EmptyRound: on all ranks, if nothing survives ``max_attempts`` attempts or no instruction can be had.
        ValueError: if the table has no source.
        RankFailure: on all ranks, if a stage failed on one of them.
    """
    if table.source is None:
        raise ValueError("a round needs a source of instructions")
    return _Play(table, table.source, number).run()


class _Play:
    """The state of one round while it is played."""

    def __init__(self, table: Table, source: InstructionSource, number: int) -> None:
        self.table, self.source, self.number = table, source, number
        self.round = Round(number, oldest=table.step)
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.next_uid = 0
        self.nearest: list[float] = []
        self.published = table.options.style == "serl"

    def run(self) -> Round:
        options = self.table.options
        tried = attempts = 0
        survived = carried = self.take_carried()
        seen = self.round.answered
        while survived < options.prompts_per_round and attempts < options.max_attempts:
            missing = options.prompts_per_round - survived
            # what this round has yielded so far says how many prompts the missing groups will take
            fresh = max(1, survived - carried)
            want = missing if not tried else min(options.prompts_per_round, ceil(missing * tried / fresh))
            if self.published:
                want = options.prompts_per_round
            roots = self.take(want)
            if not roots:
                break
            attempts += 1
            groups, verdicts = self.answer(roots)
            seen.extend(zip(groups, verdicts, strict=True))
            tried += len(roots)
            survived += self.keep(groups, verdicts, missing, attempts)
        if self.published:
            self.forget()
        self.source.observe([g for g, _ in seen], [v for _, v in seen])
        kept = {g.instruction.uid for g in self.round.groups}
        self.round.samples = seen[:2] + [pair for pair in seen[2:] if pair[0].instruction.uid in kept][:2]
        if not survived:
            raise EmptyRound(self.explain(attempts, tried), self.round)
        self.round.stats = self.statistics(seen, attempts, tried, survived, survived - carried)
        return self.round

    def take_carried(self) -> int:
        """Begin with the groups that an earlier round had no room for; those that waited too long are dropped."""
        table = self.table
        waiting, table.carried[:] = list(table.carried), []
        taken = 0
        for family in waiting:
            if self.number - family.round > table.max_staleness or taken == table.options.prompts_per_round:
                for group, _ in family.pairs:
                    self.event(group.instruction.uid, "dropped", reason="stale")
                continue
            taken += 1
            self.round.oldest = min(self.round.oldest, family.step)
            for group, verdict in family.pairs:
                self.enter(group, verdict)
        return taken

    def enter(self, group: Group, verdict: Verdict) -> None:
        """A group that the round trains on."""
        uid = group.instruction.uid
        self.event(uid, "kept")
        if uid in self.table.pool:
            self.table.pool.mark_kept(uid)
        self.round.groups.append(group)
        self.round.verdicts.append(verdict)

    # -- writing -------------------------------------------------------------------------------------------------

    def take(self, want: int) -> list[Instruction | Group]:
        """Up to ``want`` roots; a mixture's two sources each bring their share."""
        lanes = self.source.lanes(want)
        return [root for source, count in lanes for root in self.draw(source, count, alone=len(lanes) == 1)]

    def draw(self, source: InstructionSource, want: int, alone: bool) -> list[Instruction | Group]:
        """Up to ``want`` roots of one source from the queue, which is filled up by its bounded calls."""
        table = self.table

        def waiting() -> list[Instruction]:
            return [i for i in table.queue if alone or (i.meta.get("origin") == "seed") != source.filtered]

        ready: list[Instruction | Group] = []
        barren = 0
        while len(waiting()) + len(ready) < want and barren < _BARREN_CALLS:
            missing = want - len(waiting()) - len(ready)
            with table.phase("writing problems", missing) as tick:
                # a source's completions count for nothing until they pass; the bar moves by accepted instructions
                proposals = source.propose(missing, table.context(self.number, "instruction", spread=True))
                before = len(waiting()) + len(ready)
                for proposal in proposals:
                    if isinstance(proposal, Group):
                        ready.append(self.named(proposal))
                    else:
                        self.consider(proposal)
                gained = len(waiting()) + len(ready) - before
                tick(min(gained, missing))
            barren = 0 if gained else barren + 1
        taken = waiting()[: max(0, want - len(ready))]
        leaving = {t.uid for t in taken}
        table.queue[:] = [i for i in table.queue if i.uid not in leaving]
        table.pool.mark_spent(leaving)
        return [*ready, *taken]

    def forget(self) -> None:
        """Give up what was accepted and not answered."""
        for instruction in self.table.queue:
            self.event(instruction.uid, "dropped", reason="stale")
        self.table.pool.mark_spent(i.uid for i in self.table.queue)
        self.table.queue.clear()

    def named(self, group: Group) -> Group:
        instruction = group.instruction if group.instruction.uid else replace(group.instruction, uid=self.uid())
        self.event(instruction.uid, "proposed", **_written(instruction))
        self.event(instruction.uid, "accepted")
        return replace(group, instruction=instruction)

    def uid(self) -> str:
        self.next_uid += 1
        return f"r{self.number:05d}-{self.next_uid:05d}"

    def consider(self, instruction: Instruction) -> None:
        """Put one proposal through the filters and, if it passes, into pool and queue."""
        table = self.table
        if not instruction.uid:
            instruction = replace(instruction, uid=self.uid())
        self.event(instruction.uid, "proposed", **_written(instruction))
        seed = instruction.meta.get("origin") == "seed"
        self.round.taken += seed
        made = self.source.filtered and instruction.role == "solve" and not seed
        reason = "truncated_item" if instruction.meta.get("truncated") else None
        if reason is None and made:
            for rule in table.instruction_filters:
                reason = rule.reject(instruction, table.pool)
                if reason is not None:
                    break
        if reason is None and table.too_long(instruction):
            reason = "over_long_prompt"
        if reason is not None:
            self.event(instruction.uid, "rejected", reason=reason)
            return
        self.event(instruction.uid, "accepted")
        if made:
            self.nearest.append(table.pool.nearest(instruction)[0])
            instruction = replace(instruction, meta={**instruction.meta, "round": self.number})
            table.pool.add(instruction, "accepted")
        table.queue.append(instruction)

    # -- answering and voting --------------------------------------------------------------------------------------

    def answer(self, roots: Sequence[Instruction | Group]) -> tuple[list[Group], list[Verdict]]:
        """Roll out, follow up and reward; every rank does its share, then all hold everything."""
        table, options = self.table, self.table.options
        mine = table.ranks.share(list(roots))
        followed: list[tuple[str, Event]] = []
        with table.phase("answering", len(mine) * options.samples_per_prompt) as tick, table.ranks.stage("answering"):
            ctx = table.context(self.number, "rollout", tick=tick)
            ctx.arrived = self.read
            fresh = [i for i in mine if isinstance(i, Instruction)]
            rolled = dict(zip((i.uid for i in fresh), ctx.generate(fresh, options.samples_per_prompt), strict=True))
            groups = [i if isinstance(i, Group) else rolled[i.uid] for i in mine]
            everyone, wave = {g.instruction.uid: g for g in groups}, groups
            root_of = {uid: uid for uid in everyone}
            for _ in range(options.max_waves):
                wave = self.follow_up(wave, ctx, everyone, root_of, followed)
                if not wave:
                    break
            self.measure(list(everyone.values()))
        with table.phase("voting", len(mine)) as tick, table.ranks.stage("voting"):
            verdicts = self.reward(list(everyone.values()), table.context(self.number, "reward"))
            # for the signs of health, where the reward had no need of the answers
            unread = [g for g in everyone.values() if g.instruction.role == "solve" and g.answers is None]
            fill_answers(unread, table.grader)
            tick(len(mine))
        # a family is a root with all that was derived from it; families travel whole, in the order of their roots
        families: dict[str, tuple[list[Event], list[tuple[Group, Verdict]]]] = {
            g.instruction.uid: ([], []) for g in groups
        }
        for root, event in followed:
            families[root][0].append(event)
        for uid, group in everyone.items():
            families[root_of[uid]][1].append((group, verdicts[uid]))
        gathered: list[tuple[Group, Verdict]] = []
        for events, pairs in table.ranks.interleave(list(families.values())):
            for event in events:
                self.event(**event)
            gathered += pairs
        for group, verdict in gathered:
            self.event(
                group.instruction.uid,
                "voted",
                label=verdict.label,
                confidence=round(verdict.confidence, 6),
                scores=[round(s, 6) for s in verdict.scores.tolist()],
            )
        return [g for g, _ in gathered], [v for _, v in gathered]

    def read(self, group: Group) -> None:
        """Read a group's answers while the engine writes the next ones; the reward finds them read."""
        if group.instruction.role == "solve":
            fill_answers([group], self.table.grader)

    def follow_up(
        self,
        wave: list[Group],
        ctx: Context,
        everyone: dict[str, Group],
        root_of: dict[str, str],
        followed: list[tuple[str, Event]],
    ) -> list[Group]:
        """Roll out what the source derives from a wave, and link it to its parents."""
        taken: Counter[str] = Counter()
        children: list[Instruction] = []
        for child in self.source.derive(wave, self.gate(wave, ctx), ctx):
            if child.link is None or child.link.parent not in everyone:
                raise ValueError(
                    "an instruction from derive() must carry a link to the uid of one of the groups it was given"
                )
            parent = child.link.parent
            taken[parent] += 1
            if taken[parent] > self.table.options.max_derived:
                continue
            child = replace(child, uid=child.uid or f"{parent}.{child.link.relation}{taken[parent]}")
            root = root_of[child.uid] = root_of[parent]
            followed.append((root, {"uid": child.uid, "event": "proposed", **_written(child)}))
            if self.table.too_long(child):
                followed.append((root, {"uid": child.uid, "event": "rejected", "reason": "over_long_prompt"}))
                continue
            followed.append((root, {"uid": child.uid, "event": "accepted"}))
            children.append(child)
        fresh = ctx.generate(children, self.table.options.samples_per_prompt)
        for group in fresh:
            link = group.instruction.link
            assert link is not None
            everyone[group.instruction.uid] = group
            everyone[link.parent].links.setdefault((link.relation, link.index), []).append(group)
        return fresh

    def gate(self, wave: list[Group], ctx: Context) -> list[Verdict]:
        """The free verdict on problems; other roles (proposals, say) answer nothing that could be compared."""
        solved = iter(self.table.gate([g for g in wave if g.instruction.role == "solve"], ctx))
        return [
            next(solved) if g.instruction.role == "solve" else Verdict(torch.zeros(len(g)), confidence=0.0)
            for g in wave
        ]

    def measure(self, groups: list[Group]) -> None:
        """Fill in the token statistics that some reward needs."""
        needs = frozenset[str]().union(*(getattr(r, "needs", frozenset()) for r in self.table.rewards.values()))
        if not needs & {"entropy", "certainty"} or self.table.policy is None:
            return
        rows = [(g.prompt_ids + c.token_ids, len(g.prompt_ids)) for g in groups for c in g.completions]
        stats = iter(self.table.policy.stats(rows, certainty="certainty" in needs))
        for group in groups:
            mine = [next(stats) for _ in group.completions]
            for name in sorted(needs & {"entropy", "certainty"}):
                group.stats[name] = [getattr(s, name) for s in mine]

    def reward(self, groups: list[Group], ctx: Context) -> dict[str, Verdict]:
        """Ask the reward of each role, in declared order; later ones see the verdicts of earlier ones."""
        rewards = self.table.rewards
        for group in groups:
            if group.instruction.role not in rewards:
                raise ValueError(
                    f"no reward is declared for role {group.instruction.role!r}; declared: {', '.join(rewards)}"
                )
        for role, reward in rewards.items():
            chosen = [g for g in groups if g.instruction.role == role]
            verdicts = reward(chosen, ctx)
            if not (isinstance(verdicts, (list, tuple)) and all(isinstance(v, Verdict) for v in verdicts)):
                raise ValueError(f"the reward of role {role!r} must return a list with a Verdict for each group")
            if len(verdicts) != len(chosen):
                raise ValueError(
                    f"the reward of role {role!r} returned {len(verdicts)} verdicts for {len(chosen)} groups"
                )
            for group, verdict in zip(chosen, verdicts, strict=True):
                if len(verdict.scores) != len(group):
                    raise ValueError(
                        f"the reward of role {role!r} gave {len(verdict.scores)} scores to {len(group)} responses"
                    )
                numbers = [verdict.scores[verdict.weight > 0], verdict.weight, *(verdict.token_scores or ())]
                if not all(bool(torch.isfinite(n).all()) for n in numbers):
                    raise ValueError(f"the reward of role {role!r} gave a score or weight that is not a finite number")
                ctx.verdicts[group.instruction.uid] = verdict
        if self.table.options.mask_truncated:
            for group in groups:
                uid = group.instruction.uid
                ctx.verdicts[uid] = _without_truncated(group, ctx.verdicts[uid])
        return ctx.verdicts

    # -- filtering -------------------------------------------------------------------------------------------------

    def keep(self, groups: list[Group], verdicts: list[Verdict], room: int, attempt: int) -> int:
        """Weigh all groups and keep the survivors; returns how many families survived, ``room`` at most."""
        table = self.table
        weights = [1.0] * len(groups)
        reasons: list[Reason | None] = [None] * len(groups)
        for rule in table.group_filters:
            given, why = rule.weigh(groups, verdicts)
            for i, (weight, reason) in enumerate(zip(given, why, strict=True)):
                weights[i] *= weight
                if weight == 0 and reasons[i] is None:
                    reasons[i] = reason
        # a family survives if anything in it is left to train on; derived groups follow their parents in the list
        family_of: dict[str, int] = {}
        for group in groups:
            uid, link = group.instruction.uid, group.instruction.link
            family_of[uid] = family_of[link.parent] if link is not None else len(family_of)
        alive: dict[int, bool] = {}
        for group, weight in zip(groups, weights, strict=True):
            family = family_of[group.instruction.uid]
            alive[family] = alive.get(family, False) or (weight > 0 and group.instruction.train)
        living = [family for family, left in alive.items() if left]
        chosen = living[:room]
        waiting = living[room:] if table.age < table.max_staleness else []
        carried: dict[int, list[tuple[Group, Verdict]]] = {family: [] for family in waiting}
        for group, verdict, weight, reason in zip(groups, verdicts, weights, reasons, strict=True):
            uid = group.instruction.uid
            if self.published and weight > 0 and uid in table.pool:
                table.pool.mark_kept(uid)  # before it is known whether there is room for it
            if weight > 0 and family_of[uid] in carried:
                carried[family_of[uid]].append((group, self.shape(group, verdict, attempt).scaled(weight)))
                self.event(uid, "carried")
                continue
            if weight > 0 and family_of[uid] not in chosen:
                # a surplus group would be too old when its turn came
                weight, reason = 0.0, "stale" if alive[family_of[uid]] else "no_spread"
            shaped = self.shape(group, verdict, attempt)
            if weight == 0:
                self.event(uid, "dropped", reason=reason or "no_spread")
                if self.published:
                    self.round.dropped.append((group, replace(shaped, dropped=True)))
                continue
            self.enter(group, shaped.scaled(weight))
        table.carried += [Carried(pairs, self.number - table.age, table.step) for pairs in carried.values()]
        return len(chosen)

    def shape(self, group: Group, verdict: Verdict, attempt: int) -> Verdict:
        """What the loss sees of a verdict, after the filters saw all of it."""
        options = self.table.options
        if self.published:
            verdict = replace(verdict, attempt=attempt)
        if not options.overlong_buffer or verdict.centred:
            return verdict
        lengths = torch.tensor([len(c.token_ids) for c in group.completions])
        penalty = overlong_penalty(lengths, self.table.sampling.max_tokens, options.overlong_buffer)
        return replace(verdict, scores=verdict.scores + penalty)

    # -- accounts ----------------------------------------------------------------------------------------------------

    def event(self, uid: str, event: str, **facts: Any) -> None:
        self.counts[event] += 1
        if facts.get("reason"):
            self.reasons[facts["reason"]] += 1
        self.round.events.append({"uid": uid, "event": event, "round": self.number, **facts})

    def explain(self, attempts: int, tried: int) -> str:
        """Why nothing is left to train on, and what to do about what did most of it."""
        common = ", ".join(f"{reason} {count}" for reason, count in self.reasons.most_common(4)) or "none"
        leads = next(iter(self.reasons.most_common(1)), ("", 0))[0]
        written = self.counts["proposed"]
        if not tried and not written:
            if not self.table.engine.samples_policy:
                return (
                    f"round {self.number}: the recording holds no proposals (rows without a problem) that were not used"
                    " yet; add some, or set --data.source seeds"
                )
            return (
                f"round {self.number}: no problem was proposed, not even one to reject; raise "
                "data.writing.sampling.max_tokens, or change data.writing.template or your own source"
            )
        if not tried:
            advice = "look at ledger.jsonl, then loosen that filter or change data.writing"
            if leads == "over_long_prompt":
                advice = (
                    "lower data.max_tokens, which they share the context with, or raise data.round.max_prompt_tokens"
                )
            said = f"{written} problems were proposed and none could be used (rejected: {common})"
            return f"round {self.number}: {said}; {advice}"
        dropped = Counter(e["reason"] for e in self.round.events if e["event"] == "dropped")
        if dropped and dropped.most_common(1)[0][0] == "no_answer":
            advice = (
                f"look at samples.jsonl, then at data.grader ({self.table.grader_name}), at the answer format that "
                "data.solve asks for, and at data.max_tokens"
            )
        else:
            # a list of filters in trainer.callbacks replaces the default ones
            beside = " and ".join(dict.fromkeys(type(f).__name__ for f in self.table.instruction_filters))
            kept = f" (list {beside} beside it to keep them)" if beside else ""
            advice = f"look at samples.jsonl, then widen the DifficultyFilter{kept} or raise data.round.max_attempts"
        return (
            f"round {self.number}: none of {tried} groups survived {attempts} attempts (dropped or rejected: {common});"
            f" {advice}"
        )

    def statistics(
        self, seen: list[tuple[Group, Verdict]], attempts: int, tried: int, survived: int, fresh: int
    ) -> dict[str, float]:
        """Numbers of the round, under TRL's names where TRL has one."""
        lengths = [len(c.token_ids) for g, _ in seen for c in g.completions]
        finished = [c.finished for g, _ in seen for c in g.completions]
        scores = [s for _, v in seen for s in v.scores.tolist()]
        spreads = [float(v.scores.std()) if len(v.scores) > 1 else 0.0 for _, v in seen]
        responses = max(1, len(finished))
        proposed = self.counts["proposed"]
        out = {
            "reward": sum(scores) / max(1, len(scores)),
            "reward_std": sum(spreads) / max(1, len(spreads)),
            "frac_reward_zero_std": sum(s == 0 for s in spreads) / max(1, len(spreads)),
            "completions/mean_length": sum(lengths) / max(1, len(lengths)),
            "completions/min_length": float(min(lengths, default=0)),
            "completions/max_length": float(max(lengths, default=0)),
            "completions/clipped_ratio": finished.count(False) / responses,
            "serl/vote/agreement_mean": sum(v.confidence for _, v in seen) / max(1, len(seen)),
            "serl/vote/no_answer_frac": sum(v.info.get("no_answer", 0) for _, v in seen) / responses,
            "serl/vote/unique_answers": sum(v.info.get("unique_answers", 0) for _, v in seen) / max(1, len(seen)),
            "serl/filter/proposed": float(proposed),
            "serl/filter/accepted_rate": self.counts["accepted"] / max(1, proposed),
            "serl/filter/yield": fresh / max(1, tried),
            "serl/round/attempts": float(attempts),
            "serl/round/groups": float(survived),
            "serl/pool/size": float(len(self.table.pool)),
            "serl/pool/queue": float(len(self.table.queue)),
        }
        if self.table.max_staleness:
            out["serl/round/carried"] = float(survived - fresh)
        roles = dict.fromkeys(g.instruction.role for g, _ in seen)
        for role in roles if len(roles) > 1 else ():
            means = [float(v.scores.mean()) for g, v in seen if g.instruction.role == role and len(g)]
            out[f"serl/role/{role}/reward"] = sum(means) / max(1, len(means))
        out |= self.variety()
        for reason, count in sorted(self.reasons.items()):
            out[f"serl/reason/{reason}"] = float(count)
        return out

    def variety(self) -> dict[str, float]:
        """How new and how varied the written problems are; nothing where none is written."""
        pool = self.table.pool
        latest = [t for t, status in zip(pool.texts, pool.statuses, strict=True) if status != "seed"][-_LATEST:]
        if not latest:
            return {}
        out = {
            "serl/pool/unique_4grams": unique_ngrams(latest),
            "serl/pool/words_mean": sum(map(count_words, latest)) / len(latest),
        }
        if self.nearest:
            out["serl/pool/nearest_mean"] = sum(self.nearest) / len(self.nearest)
        ages = [self.number - i.meta["round"] for i in pool.kept if "round" in i.meta]
        return out | ({"serl/pool/exemplar_age": sum(ages) / len(ages)} if ages else {})


def _written(instruction: Instruction) -> Event:
    """What the ledger says of a proposal: enough to offer it to another run."""
    choices, role = instruction.meta.get("choices"), instruction.role
    facts: Event = {"prompt": instruction.prompt}
    return facts | ({"choices": list(choices)} if choices else {}) | ({"role": role} if role != "solve" else {})


def _without_truncated(group: Group, verdict: Verdict) -> Verdict:
    """The verdict with weight 0 for responses that were cut off."""
    finished = torch.tensor([float(c.finished) for c in group.completions])
    return replace(verdict, weight=verdict.weight * finished)
