"""A proposer that is trained: each problem is a response to a few-shot prompt, paid by how its own answers score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from lightning_serl.datamodules.rounds.context import Context
from lightning_serl.datamodules.sources.base import InstructionSource
from lightning_serl.datamodules.sources.prompt_set import share_of
from lightning_serl.datamodules.sources.seeded import SeededSource
from lightning_serl.datamodules.sources.writing import Writing
from lightning_serl.distributed.seeding import rng_for
from lightning_serl.errors import check_range
from lightning_serl.pool.pool import InstructionPool
from lightning_serl.prompts.encoding import fill
from lightning_serl.types import Group, Instruction, Link, Verdict


class Proposer(SeededSource):
    """The policy writes problems as responses of role ``propose``; each problem is then answered and trained on too.

    The loop that SQLM (arXiv 2508.03682), R-Zero (2508.05004), SPELL (2509.23863), LSP (2509.07414) and Absolute Zero
    (2505.03335) have in common; they differ in what a problem earns, which is ``ChildReward`` in
    ``data.role_rewards.propose``. A prompt is a few-shot prompt of ``data.writing`` over seeds, and a response ends
    with its first problem. The problem is linked to the response as ``("problem", index)``. A response that holds no
    whole problem has no such link. These problems are not judged by the instruction filters: the reward judges them.

    Proposer and solver are one policy, as in SQLM, SPELL, LSP and Absolute Zero; R-Zero trains two models in turn.
    Absolute Zero's code tasks, which execute what the policy writes, are left out: there is no sandbox here.

    Args:
        proposals: Problems that are written after each few-shot prompt, the group of their baseline; SQLM has 4.
        every: Proposals are trained on in every so many rounds, beginning with the first; SQLM has 5.
        seeds_share: Share of each round's root groups that are seeds themselves, with their labels where they have one,
            in place of proposals: the mixed training of R-Few (arXiv 2512.02472).

    Raises:
        InputError: for fewer than 2 proposals, ``every`` below 1, or a share outside [0, 1).
    """

    writes = True
    roles = ("propose",)
    waves = 1

    def __init__(self, proposals: int = 4, every: int = 1, seeds_share: float = 0.0) -> None:
        hint = "a problem is compared with the others of its prompt"
        check_range("data.source.proposals", proposals, at_least=2, hint=hint)
        check_range("data.source.every", every, at_least=1)
        check_range(
            "data.source.seeds_share", seeds_share, at_least=0, below=1, hint="data.source seeds has seeds alone"
        )
        self.proposals, self.every, self.seeds_share = proposals, every, seeds_share
        self.follow_ups = proposals

    def begin(self, seeds: Sequence[Instruction], pool: InstructionPool, writing: Writing) -> None:
        """No seed is owed to the mixture yet."""
        super().begin(seeds, pool, writing)
        self._owed = 0.0

    def lanes(self, want: int) -> list[tuple[InstructionSource, int]]:
        """The seeds' share of ``want``, and this source for the rest; the rounding error is carried over."""
        if not self.seeds_share:
            return super().lanes(want)
        count, self._owed = share_of(want, self.seeds_share, self._owed)
        return [(self.seeds, count), (self, want - count)]

    def propose(self, k: int, ctx: Context) -> list[Instruction | Group]:
        """Return ``k`` groups of proposals."""
        requests, prompts = [], []
        writer, template = self.writer, self.writer.writing.template
        for _ in range(k):
            number, self.calls = self.calls, self.calls + 1
            shown, subject = writer.exemplars(writer.pool.seeds, writer.pool.kept, rng_for(ctx.seed, "source", number))
            request = writer.request(shown, ctx.seeds(f"propose {number}", self.proposals), ctx)
            if request is None:
                continue
            first = template.first_number(shown)
            meta = {"origin": "self", "first": first, "subject": subject}
            text, train = template.render(shown), ctx.round % self.every == 0
            if first is not None:  # the next item of the list would be another problem
                stop = "\n" + fill(template.item.partition("{problem}")[0], i=str(first + 1)).strip()
                request = replace(request, sampling=request.sampling.with_stop([stop]))
            requests.append(request)
            prompts.append(Instruction(text, "", role="propose", train=train, meta=meta))
        written = zip(prompts, requests, ctx.complete(requests), strict=True)
        return [Group(prompt, request.prompt_ids, completions) for prompt, request, completions in written]

    def derive(self, groups: Sequence[Group], verdicts: Sequence[Verdict], ctx: Context) -> Iterator[Instruction]:
        """Yield the first problem of each proposal."""
        opening = "" if ctx.policy is None else self.writer.writing.template.opening(ctx.policy.tokenizer)
        for group in groups:
            if group.instruction.role != "propose":
                continue
            first, subject = group.instruction.meta["first"], group.instruction.meta["subject"]
            for index, completion in enumerate(group.completions):
                found = self.writer.read(replace(completion, text=opening + completion.text), first, subject)[:1]
                for problem in found:
                    if problem.prompt and not problem.meta.get("truncated"):
                        yield replace(problem, link=Link("problem", group.instruction.uid, index))

    def state_dict(self) -> dict[str, Any]:
        """Seeds and counter, and with a mixture its rounding error."""
        return super().state_dict() | ({"owed": self._owed} if self.seeds_share else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        super().load_state_dict(state)
        self._owed = state.get("owed", 0.0)
