"""Where the instructions of a round come from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Literal

from lightning_serl.answers import split_choices
from lightning_serl.datamodules.rounds.context import Context
from lightning_serl.datamodules.sources.base import InstructionSource
from lightning_serl.distributed.seeding import rng_for
from lightning_serl.engines.base import Request, Sampling
from lightning_serl.errors import InputError
from lightning_serl.pool.pool import InstructionPool
from lightning_serl.prompts import serl as published
from lightning_serl.prompts.few_shot import InstructionTemplate
from lightning_serl.prompts.proposals import split_items
from lightning_serl.types import STYLES, Completion, Instruction


@dataclass(frozen=True)
class Writing:
    """How the policy writes new instructions.

    Args:
        exemplars: Problems shown in each few-shot prompt.
        from_kept: At most this many of them come from the policy's own kept problems.
        prompts_per_call: Few-shot prompts sent at a time.
        by_subject: Show problems of one subject in each few-shot prompt, drawn by its number of seeds; what is written
            belongs to that subject. Where a subject has too few seeds, others fill the prompt up.
        template: Wording of the few-shot prompt.
        sampling: How instructions are drawn; independent of how answers are.
        style: ``serl`` shows exemplars, cuts few-shot prompts and reads lists as SeRL's published code does.
    """

    exemplars: int = 8
    from_kept: int = 2
    prompts_per_call: int = 8
    by_subject: bool = False
    template: InstructionTemplate = field(default_factory=InstructionTemplate)
    sampling: Sampling = field(default_factory=lambda: Sampling(max_tokens=1024, temperature=0.8, top_p=0.95))
    style: Literal["default", "serl"] = "default"

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ValueError(f"writing.style must be default or serl, got {self.style!r}")
        if self.exemplars < 1:
            raise ValueError(f"writing.exemplars must be at least 1, got {self.exemplars}")
        if not 0 <= self.from_kept <= self.exemplars:
            raise ValueError(
                f"writing.from_kept must lie between 0 and exemplars ({self.exemplars}), got {self.from_kept}"
            )
        if self.prompts_per_call < 1:
            raise ValueError(f"writing.prompts_per_call must be at least 1, got {self.prompts_per_call}")


class FewShotSelfInstruction(InstructionSource):
    """The policy writes new problems after few-shot exemplars from the pool (SeRL, 2505.20347, section 3.1).

    Args:
        pool: Exemplars come from its seeds and its kept problems.
        writing: Options.

    Raises:
        InputError: if more exemplars are asked for than there are seeds.
    """

    def __init__(self, pool: InstructionPool, writing: Writing | None = None) -> None:
        self.pool = pool
        self.writing = writing or Writing()
        seeds = len(pool.seeds)
        if self.writing.exemplars > seeds:
            raise InputError(
                f"writing.exemplars is {self.writing.exemplars} but there are only {seeds} seeds; "
                f"set --data.writing.exemplars to at most {seeds} or add seeds"
            )
        self._calls = 0

    def propose(self, k: int, ctx: Context) -> list[Instruction]:
        """One call of ``prompts_per_call`` few-shot prompts; how many problems come of it is up to the policy."""
        requests, facts, call = [], [], self._calls
        self._calls += 1
        seeds, kept = self.pool.seeds, self.pool.kept
        for number in range(self.writing.prompts_per_call):
            shown, subject = self._exemplars(seeds, kept, rng_for(ctx.seed, "exemplars", call, number))
            request = self._request(shown, ctx.seeds(f"instruction {call} {number}", 1), ctx)
            if request is not None:
                requests.append(request)
                facts.append((self.writing.template.first_number(shown), subject))
        out: list[Instruction] = []
        for (first, subject), completions in zip(facts, ctx.complete(requests), strict=True):
            for completion in completions:  # none, if a recording has run out
                # text without any problem is entered in the ledger too
                out += self._read(completion, first, subject) or [Instruction("", "", meta={"origin": "self"})]
        return out

    def _exemplars(
        self, seeds: list[Instruction], kept: list[Instruction], rng: Random
    ) -> tuple[list[Instruction], str | None]:
        """The problems of one few-shot prompt, and their subject if it is to be one."""
        subject = rng.choice(seeds).meta.get("subject") if self.writing.by_subject else None
        fillers: list[Instruction] = []
        if subject is not None:
            kept = [i for i in kept if i.meta.get("subject") == subject]
            fillers = [i for i in seeds if i.meta.get("subject") != subject]
            seeds = [i for i in seeds if i.meta.get("subject") == subject]
        own = rng.sample(kept, min(self.writing.from_kept, len(kept)))
        wanted = self.writing.exemplars - len(own)
        shown = own + rng.sample(seeds, min(wanted, len(seeds)))
        shown += rng.sample(fillers, wanted - min(wanted, len(seeds)))
        rng.shuffle(shown)
        if fillers and subject is not None:  # the subject's own stand last, where the list goes on
            shown.sort(key=lambda i: i.meta.get("subject") == subject)
        return shown, subject

    def _request(self, shown: list[Instruction], seeds: tuple[int, ...], ctx: Context) -> Request | None:
        """The few-shot prompt; exemplars too long for the model's context are left out of it (and of ``shown``)."""
        template, sampling = self.writing.template, self.writing.sampling
        if ctx.policy is None:
            return Request((), seeds, sampling)
        context = ctx.engine.shared_context(ctx.policy)
        sampling = sampling.with_stop(template.stop_strings(ctx.policy.tokenizer))
        if self.writing.style == "serl":
            shown = [replace(i, prompt=published.exemplar(i.prompt)) for i in shown]
            room = min(published.PROMPT_TOKENS, (context or 10**9) - sampling.max_tokens)
            return Request(tuple(template.encode(ctx.policy.tokenizer, shown)[:room]), seeds, sampling)
        while shown:
            ids = tuple(template.encode(ctx.policy.tokenizer, shown))
            if context is None or len(ids) + sampling.max_tokens <= context:
                return Request(ids, seeds, sampling)
            shown.remove(max(shown, key=lambda i: len(i.prompt)))
        return None

    def _read(self, completion: Completion, first: int | None, subject: str | None) -> list[Instruction]:
        """The problems in one completion."""
        out = []
        for item in split_items(completion.text, self.writing.style, first, completion.finished):
            meta: dict[str, Any] = {"origin": "self"}
            problem = item.text
            if subject is not None:
                meta["subject"] = subject
            if item.truncated:
                meta["truncated"] = True
            if self.pool.multiple_choice:
                problem, options = split_choices(item.text)
                if options:
                    meta["choices"] = options
            out.append(Instruction(prompt=problem, uid="", meta=meta))
        return out

    def state_dict(self) -> dict[str, Any]:
        """The number of calls so far: it keys every random choice."""
        return {"calls": self._calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        self._calls = state["calls"]
