"""Sources that train on the seeds themselves, or mix them with written instructions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from lightning_serl.datamodules.rounds.context import Context
from lightning_serl.datamodules.sources.base import InstructionSource
from lightning_serl.distributed.seeding import rng_for
from lightning_serl.errors import InputError
from lightning_serl.types import Group, Instruction, Reason, Verdict


class PromptSet(InstructionSource):
    """A fixed set of prompts, in another random order in every pass; they keep their labels.

    Args:
        prompts: At least one instruction.
    """

    filtered = False

    def __init__(self, prompts: Sequence[Instruction]) -> None:
        if not prompts:
            raise InputError("PromptSet needs at least one prompt; check data.seeds")
        self.prompts = list(prompts)
        self._position = 0

    def propose(self, k: int, ctx: Context) -> list[Instruction]:
        """Return the next ``k`` prompts."""
        out = []
        for _ in range(k):
            number, place = divmod(self._position, len(self.prompts))
            order = list(range(len(self.prompts)))
            rng_for(ctx.seed, "order", number).shuffle(order)
            prompt = self.prompts[order[place]]
            out.append(replace(prompt, uid="", meta={**prompt.meta, "origin": "seed"}))
            self._position += 1
        return out

    def state_dict(self) -> dict[str, Any]:
        """The number of prompts returned so far."""
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        self._position = state["position"]


def share_of(want: int, ratio: float, owed: float) -> tuple[int, float]:
    """The whole number that is ``ratio`` of ``want``, and the rounding error, ``owed`` from the time before."""
    owed += want * ratio
    count = min(want, int(owed + 1e-9))  # 0.3 x 10 must count as 3, not as 2.9999
    return count, owed - count


class Mixture(InstructionSource):
    """A mixture of written instructions and prompts of a fixed set.

    Args:
        made: Writes new instructions.
        fixed: The fixed set.
        ratio: Share of each round that comes from the fixed set, in (0, 1).
    """

    def __init__(self, made: InstructionSource, fixed: PromptSet, ratio: float) -> None:
        self.made, self.fixed, self.ratio = made, fixed, ratio
        self._owed = 0.0

    def lanes(self, want: int) -> list[tuple[InstructionSource, int]]:
        """``ratio`` of ``want`` come from the fixed set, the rest is written; the rounding error is carried over."""
        count, self._owed = share_of(want, self.ratio, self._owed)
        return [(self.fixed, count), (self.made, want - count)]

    def propose(self, k: int, ctx: Context) -> list[Instruction | Group]:
        """Return the proposals of both; a round calls each of them itself, see :meth:`lanes`."""
        return [p for source, count in self.lanes(k) for p in source.propose(count, ctx)]

    def reject(self, instruction: Instruction) -> Reason | None:
        """Passed on to the source that writes."""
        return self.made.reject(instruction)

    def derive(self, groups: Sequence[Group], verdicts: Sequence[Verdict], ctx: Context) -> Iterable[Instruction]:
        """The follow-ups of the source that writes."""
        return self.made.derive(groups, verdicts, ctx)

    def observe(self, groups: Sequence[Group], verdicts: Sequence[Verdict]) -> None:
        """Pass all groups on to both sources."""
        self.made.observe(groups, verdicts)
        self.fixed.observe(groups, verdicts)

    def state_dict(self) -> dict[str, Any]:
        """The states of both sources and the rounding error."""
        return {"made": self.made.state_dict(), "fixed": self.fixed.state_dict(), "owed": self._owed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        self.made.load_state_dict(state["made"])
        self.fixed.load_state_dict(state["fixed"])
        self._owed = state["owed"]
