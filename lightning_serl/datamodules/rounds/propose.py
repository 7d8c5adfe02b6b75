"""The first part of a round: sources propose instructions, filters accept or reject them."""

from __future__ import annotations

from dataclasses import replace

from lightning_serl.datamodules.rounds.report import RoundLog, proposal_facts
from lightning_serl.datamodules.rounds.setup import RoundSetup, RoundState
from lightning_serl.datamodules.sources.base import InstructionSource
from lightning_serl.types import OPEN_BOOK, Group, Instruction, Reason

# A source may propose nothing usable.
_BARREN_CALLS = 8


class Proposals:
    """The root instructions of one round; pool and queue of ``state`` change."""

    def __init__(self, setup: RoundSetup, state: RoundState, source: InstructionSource, log: RoundLog) -> None:
        self.setup, self.state, self.source, self.log = setup, state, source, log
        #: Calls in a row without an accepted instruction after which a source is given up.
        self.barren_calls = _BARREN_CALLS
        self._uids = 0
        # one for the whole round: ``ctx.rng`` counts its accesses, and a source may be asked several times in a round
        self._context = setup.context(log.round.number, "instruction", spread=True)

    def take(self, want: int) -> list[Instruction | Group]:
        """Up to ``want`` roots, fewer if the source does not bring enough; a mixture's two sources bring their shares.

        An item is a :class:`Group` if the source rolled it out itself.
        """
        lanes = self.source.lanes(want)
        return [root for source, count in lanes for root in self._draw(source, count, alone=len(lanes) == 1)]

    def _draw(self, source: InstructionSource, want: int, alone: bool) -> list[Instruction | Group]:
        """Up to ``want`` roots of one source: from the queue, which a bounded number of calls fills up."""
        setup, state = self.setup, self.state

        def waiting() -> list[Instruction]:
            return [i for i in state.queue if alone or (i.meta.get("origin") == "seed") != source.filtered]

        ready: list[Instruction | Group] = []
        barren = 0
        while len(waiting()) + len(ready) < want and barren < self.barren_calls:
            before = len(waiting()) + len(ready)
            missing = want - before
            with setup.phase("writing problems", missing) as tick:
                # progress is counted in accepted instructions, not in completions of the source
                self._context.tick = tick
                proposals = list(source.propose(missing, self._context))
                with setup.phase("filtering", len(proposals)) as judged:
                    for proposal in proposals:
                        if isinstance(proposal, Group):
                            ready.append(self._with_uid(proposal))
                        else:
                            self._consider(proposal)
                        judged(1)
                gained = len(waiting()) + len(ready) - before
                tick(min(gained, missing))
            barren = 0 if gained else barren + 1
        taken = waiting()[: max(0, want - len(ready))]
        leaving = {t.uid for t in taken}
        state.queue[:] = [i for i in state.queue if i.uid not in leaving]
        state.pool.mark_spent(leaving)
        return [*ready, *taken]

    def forget_queue(self) -> None:
        """Drop what was accepted and not answered, as SeRL's published code does."""
        for instruction in self.state.queue:
            self.log.event(instruction.uid, "dropped", reason="no_room")
        self.state.pool.mark_spent(i.uid for i in self.state.queue)
        self.state.queue.clear()

    def _with_uid(self, group: Group) -> Group:
        """A proposal that is answered already is accepted; it gets a uid if it has none."""
        instruction = group.instruction
        if not instruction.uid:
            instruction = replace(instruction, uid=self._uid())
        self.log.event(instruction.uid, "proposed", **proposal_facts(instruction))
        self.log.event(instruction.uid, "accepted")
        self.log.round.given += instruction.meta.get("origin") != "self"
        # answers that the source read are kept, whichever grader read them
        return replace(group, instruction=instruction, read_by=None)

    def _uid(self) -> str:
        self._uids += 1
        return f"r{self.log.round.number:05d}-{self._uids:05d}"

    def _consider(self, instruction: Instruction) -> None:
        """Put a proposal through the filters and, if it passes, into pool and queue."""
        state, log = self.state, self.log
        if not instruction.uid:
            instruction = replace(instruction, uid=self._uid())
        log.event(instruction.uid, "proposed", **proposal_facts(instruction))
        seed = instruction.meta.get("origin") == "seed"
        log.round.taken += seed
        log.round.given += not seed and instruction.meta.get("origin") != "self"
        new = not seed and not instruction.meta.get("again")
        written = self.source.filtered and instruction.role in ("solve", OPEN_BOOK) and new
        reason = self._reason_against(instruction, written)
        if reason is not None:
            log.event(instruction.uid, "rejected", reason=reason)
            return
        log.event(instruction.uid, "accepted")
        if written:
            log.nearest.append(state.pool.nearest(instruction)[0])
            instruction = replace(instruction, meta={**instruction.meta, "round": log.round.number})
            # the exemplars are for samples.jsonl; in the pool they would stay for the whole run
            kept = {name: value for name, value in instruction.meta.items() if name != "exemplars"}
            state.pool.add(replace(instruction, meta=kept), "accepted")
        state.queue.append(instruction)

    def _reason_against(self, instruction: Instruction, written: bool) -> Reason | None:
        """Why a proposal cannot be used; ``None`` if it can."""
        if instruction.meta.get("truncated"):
            return "truncated_item"
        for rule in self.setup.instruction_filters if written else ():
            reason = rule.reject(instruction, self.state.pool)
            if reason is not None:
                return reason
        if written and (reason := self.source.reject(instruction)) is not None:
            return reason
        return "over_long_prompt" if self.setup.too_long(instruction) else None
