"""The services of a round for sources and rewards: completions, log-probs, equality of answers, random numbers."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from lightning_serl.answers import AnswerGrader
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.distributed.seeding import rng_for, seed_for
from lightning_serl.engines.base import Request, RolloutEngine, Sampling, Who
from lightning_serl.errors import EngineFailure
from lightning_serl.policy.policy import Policy
from lightning_serl.prompts.solve import SolveTemplate
from lightning_serl.types import Completion, Group, Instruction, Verdict

#: The role of a plain string given to :meth:`Context.generate`.
TEXT = "text"
#: The template of roles that have none: the bare prompt.
VERBATIM = SolveTemplate(text="{problem}", plain="{problem}", answer_format="")


@dataclass
class Context:
    """The services of one round.

    A source gets a context that splits its completions over all ranks: it runs alike on every rank, as if there were
    one process. A reward gets one that works on the groups of its rank, without collective calls.
    """

    engine: RolloutEngine
    policy: Policy | None  # the live one; None when rollouts are replayed
    ranks: Ranks
    seed: int  # the run's
    round: int  # from 0
    stage: str  # part of the key of all sampling seeds of :meth:`generate`
    sampling: Sampling  # how :meth:`generate` samples by default
    templates: Mapping[str, SolveTemplate]  # by role
    grader_name: str  # selects the answer-format sentence of solve prompts
    grader: AnswerGrader  # decides which answers are equal
    spread: bool = False  # whether :meth:`complete` splits its work over the ranks
    verdicts: dict[str, Verdict] = field(default_factory=dict)  # by uid, of the roles that were rewarded before
    tick: Callable[[int], None] = lambda done: None  # called with the number of completions when some are finished
    #: Called with each finished group of :meth:`generate`, if the engine keeps writing the others meanwhile.
    arrived: Callable[[Group], None] | None = None
    _calls: int = 0

    @property
    def rng(self) -> random.Random:
        """A new generator for this round, equal on all ranks; every access returns one with another seed."""
        self._calls += 1
        return rng_for(self.seed, "context", self.round, self._calls)

    def extract(self, text: str, problem: Instruction | None = None) -> str | None:
        """The answer in a finished response as the run's grader reads it, ``None`` if it finds none.

        Some graders read the answers to a ``problem`` by its kind or its options.
        """
        return self._grader_for(problem).extract(text)

    def same(self, a: str, b: str, problem: Instruction | None = None) -> bool:
        """Whether two answers are equal for the run's grader."""
        return self._grader_for(problem).same(a, b)

    def _grader_for(self, problem: Instruction | None) -> AnswerGrader:
        for_problem = getattr(self.grader, "for_problem", None)
        if problem is None or for_problem is None:
            return self.grader
        grader: AnswerGrader = for_problem(problem.prompt, problem.meta.get("choices"))
        return grader

    def encode(self, instruction: Instruction) -> tuple[int, ...]:
        """Token ids of an instruction's solve prompt; empty when rollouts are replayed."""
        if self.policy is None:
            return ()
        template = self.templates.get(instruction.role) or VERBATIM
        return tuple(template.encode(self.policy.tokenizer, instruction, self.grader_name))

    def stops(self, role: str) -> Sequence[str]:
        """Stop strings of a role's template."""
        if self.policy is None:
            return ()
        return (self.templates.get(role) or VERBATIM).stop_strings(self.policy.tokenizer)

    def opening(self, role: str) -> str:
        """See :meth:`.SolveTemplate.opening`; "" when rollouts are replayed, whose texts are complete."""
        if self.policy is None:
            return ""
        return (self.templates.get(role) or VERBATIM).opening(self.policy.tokenizer)

    def generate(
        self, instructions: Sequence[Instruction | str], n: int = 1, who: Who = "policy", **sampling: Any
    ) -> list[Group]:
        """Roll out ``n`` completions of each instruction with the weights of ``who``: one group for each, in order.

        Args:
            instructions: What to answer. An :class:`Instruction` is put to the policy by the template of its role, and
                its uid keys the sampling seeds. A plain string is put to it as it is, as one user turn where the
                tokenizer has a chat template; the same string in the same round gets the same completions.
            n: Completions of each.
            who: Which weights write them: ``policy``, or ``reference`` or ``teacher`` if ``needs`` lists it.
            sampling: Fields of :class:`Sampling` that differ from the round's: ``max_tokens``, ``temperature``,
                ``top_p``, ``top_k``, ``stop``.

        Raises:
            ValueError: if two instructions share a uid or one has none, because completions of a uid share their seeds.
        """
        instructions = _instructions(instructions)
        uids = [i.uid for i in instructions]
        if len(set(uids)) < len(uids) or "" in uids:
            raise ValueError(
                "the instructions given to ctx.generate need unique uids, because uids key their sampling seeds"
            )
        how = replace(self.sampling, **sampling)
        prompts = [self.encode(i) for i in instructions]
        # a teacher that still equals the policy must not repeat the policy's responses
        draws = "" if who == "policy" else f"{who} "
        requests = [
            Request(ids, self.seeds(draws + i.uid, n), how.with_stop(self.stops(i.role)), i.prompt)
            for i, ids in zip(instructions, prompts, strict=True)
        ]
        groups = [Group(i, ids, []) for i, ids in zip(instructions, prompts, strict=True)]
        openings = {role: self.opening(role) for role in {i.role for i in instructions}}

        def fill(group: Group, completions: list[Completion]) -> None:
            start = openings[group.instruction.role]
            group.completions = [replace(c, text=start + c.text) for c in completions] if start else completions

        def arrived(index: int, completions: list[Completion]) -> None:
            if self.arrived is not None and self.engine.overlaps:
                fill(groups[index], completions)
                self.arrived(groups[index])

        for group, completions in zip(groups, self.complete(requests, who, arrived), strict=True):
            fill(group, completions)
        return groups

    def seeds(self, uid: str, n: int) -> tuple[int, ...]:
        """The sampling seeds of one instruction: they depend on its uid and the stage, not on rank or batch."""
        word = int.from_bytes(hashlib.blake2b(uid.encode(), digest_size=4).digest(), "little")
        return tuple(seed_for(self.seed, self.stage, self.round, word, k) for k in range(n))

    def complete(
        self,
        requests: Sequence[Request],
        who: Who = "policy",
        arrived: Callable[[int, list[Completion]], None] = lambda index, completions: None,
    ) -> list[list[Completion]]:
        """The completions of each request, in order.

        ``arrived`` gets index and completions of each request when it is finished, unless the work is split over ranks.
        Raises :class:`EngineFailure` if the engine leaves a request unanswered.
        """
        mine = self.ranks.share(list(requests)) if self.spread else list(requests)
        out: list[list[Completion] | None] = [None] * len(mine)

        def run() -> None:
            for index, completions in self.engine.generate(mine, who):
                out[index] = completions
                if not self.engine.counts_tokens:
                    self.engine.tokens_written += sum(len(c.token_ids) for c in completions)
                    self.engine.completions_written += len(completions)
                self.tick(len(completions))
                if not self.spread:
                    arrived(index, completions)
            missing = sum(c is None for c in out)
            if missing:
                raise EngineFailure(f"the engine returned no completions for {missing} of {len(mine)} prompts")

        if not self.spread:
            run()
            return out  # type: ignore[return-value]
        with self.ranks.stage("writing completions"):
            run()
        return self.ranks.interleave(out)  # type: ignore[arg-type]

    def score(self, prefixes: Sequence[str], texts: Sequence[str], who: Who = "policy") -> list[Tensor]:
        """Per-token log-probs of each text given its prefix, as (t_i,) float32 tensors.

        Prefix and text are encoded separately, so that a text's tokens do not depend on its prefix.
        """
        if self.policy is None:
            raise EngineFailure("ctx.score needs a model, and a replayed round has none; use another data.engine")
        encode = self.policy.tokenizer.encode
        rows = []
        for prefix, text in zip(prefixes, texts, strict=True):
            head = encode(prefix) or [self.policy.tokenizer.eos_token_id]
            rows.append((head + encode(text, add_special_tokens=False), len(head)))
        return self.engine.score_from(rows, who)


def _instructions(given: Sequence[Instruction | str]) -> list[Instruction]:
    """The instructions, made of the strings among them; their uids depend on the text and on equal ones before it."""
    seen: Counter[str] = Counter()
    out = []
    for one in given:
        if isinstance(one, str):
            seen[one] += 1
            key = hashlib.blake2b(one.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
            one = Instruction(one, f"{TEXT}-{key}-{seen[one]}", role=TEXT)
        out.append(one)
    return out
