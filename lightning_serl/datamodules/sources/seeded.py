"""Base of the sources that have a name: they start from the seeds of the run, and write with ``data.writing``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lightning_serl.datamodules.rounds.context import Context
from lightning_serl.datamodules.sources.base import InstructionSource
from lightning_serl.datamodules.sources.few_shot import FewShotSelfInstruction, written_after
from lightning_serl.datamodules.sources.prompt_set import PromptSet
from lightning_serl.datamodules.sources.writing import Writing
from lightning_serl.errors import InputError
from lightning_serl.pool.pool import InstructionPool
from lightning_serl.types import Instruction


class SeededSource(InstructionSource):
    """A source that the command line makes by its name. It draws seeds and has the policy write problems after others.

    Subclasses that write set ``writes``, and ``header``, the request above the problems that a prompt shows, where
    it differs from that of ``data.writing``. Written problems pass the instruction filters; seeds do not.
    """

    header: str | None = None

    def check(self, seeds: Sequence[Instruction]) -> None:
        """Refuse a run without seeds."""
        if not seeds:
            name = type(self).__name__
            raise InputError(f"data.source {name} starts from problems; set --data.seeds to a jsonl file of them")

    def begin(self, seeds: Sequence[Instruction], pool: InstructionPool, writing: Writing) -> None:
        """Take the run's seeds and options; the state is that before the first round."""
        self.calls = 0
        self._order = PromptSet(seeds) if seeds else None  # an evaluation, which proposes nothing, reads no seeds
        if seeds and self.writes:
            if self.header is not None:
                writing = replace(writing, template=replace(writing.template, header=self.header))
            self.writer = FewShotSelfInstruction(pool, writing)

    @property
    def seeds(self) -> PromptSet:
        """The seeds in their order."""
        assert self._order is not None, "check refuses a run without seeds"
        return self._order

    def write(
        self,
        shown: Sequence[tuple[str, Sequence[Instruction]]],
        most: int,
        ctx: Context,
        temperature: float | None = None,
    ) -> list[list[Instruction]]:
        """Up to ``most`` whole problems that the policy writes after each list of problems, one completion each.

        Args:
            shown: Key of the sampling seed, unique in the run, and the problems of the prompt.
            most: Further problems of a completion are left out.
            ctx: The round's.
            temperature: In place of ``data.writing.sampling.temperature``.
        """
        asked = []
        template = self.writer.writing.template
        for place, (key, problems) in enumerate(shown):
            kept = list(problems)
            request = self.writer.request(kept, ctx.seeds(key, 1), ctx)
            if request is not None:
                if temperature is not None:
                    request = replace(request, sampling=replace(request.sampling, temperature=temperature))
                asked.append((place, template.first_number(kept), request, kept))
        out: list[list[Instruction]] = [[] for _ in shown]
        opening = "" if ctx.policy is None else template.opening(ctx.policy.tokenizer)
        completions = ctx.complete([request for _, _, request, _ in asked])
        for (place, first, _, after), written in zip(asked, completions, strict=True):
            for completion in written:
                found = self.writer.read(replace(completion, text=opening + completion.text), first, None)
                whole = [one for one in found if one.prompt and not one.meta.get("truncated")]
                out[place] += [written_after(one, after) for one in whole]
            out[place] = out[place][:most]
        return out

    def state_dict(self) -> dict[str, Any]:
        """Place in the order of the seeds, and the number of calls, which keys every random choice."""
        return {"seeds": {} if self._order is None else self._order.state_dict(), "calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        self.seeds.load_state_dict(state["seeds"])
        self.calls = state["calls"]


def inheriting(problem: Instruction, parent: Instruction) -> Instruction:
    """A written problem with the category of the one that it was written after."""
    found = {name: parent.meta[name] for name in ("subject", "level", "group") if name in parent.meta}
    return replace(problem, meta={**found, **problem.meta})
