"""Few-shot self-instruction: the policy writes new problems after examples from the pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

from lightning_serl.answers import split_choices
from lightning_serl.datamodules.rounds.context import Context
from lightning_serl.datamodules.sources.base import InstructionSource
from lightning_serl.datamodules.sources.writing import Writing, check_exemplars
from lightning_serl.distributed.seeding import rng_for
from lightning_serl.engines.base import Request
from lightning_serl.pool.pool import InstructionPool
from lightning_serl.prompts import serl as published
from lightning_serl.prompts.proposals import split_items
from lightning_serl.types import Completion, Instruction


def written_after(problem: Instruction, shown: Sequence[Instruction]) -> Instruction:
    """A written problem with the exemplars of its prompt, which ``samples.jsonl`` names."""
    return replace(problem, meta={**problem.meta, "exemplars": [one.prompt for one in shown]})


class FewShotSelfInstruction(InstructionSource):
    """The policy writes new problems after few-shot exemplars from the pool (SeRL, 2505.20347, section 3.1).

    Args:
        pool: Exemplars come from its seeds and its kept problems.
        writing: Options.

    Raises:
        InputError: if a few-shot prompt needs more exemplars than there are seeds.
    """

    def __init__(self, pool: InstructionPool, writing: Writing | None = None) -> None:
        self.pool = pool
        self.writing = writing or Writing()
        check_exemplars(self.writing.exemplars, len(pool.seeds), "data.seeds")
        self._calls = 0

    def propose(self, k: int, ctx: Context) -> list[Instruction]:
        """Send ``prompts_per_call`` few-shot prompts; the policy decides how many problems it writes after each."""
        requests, facts, call = [], [], self._calls
        self._calls += 1
        seeds, kept = self.pool.seeds, self.pool.kept
        for number in range(self.writing.prompts_per_call):
            shown, subject = self.exemplars(seeds, kept, rng_for(ctx.seed, "exemplars", call, number))
            request = self.request(shown, ctx.seeds(f"instruction {call} {number}", 1), ctx)
            if request is not None:
                requests.append(request)
                facts.append((self.writing.template.first_number(shown), subject, shown))
        out: list[Instruction] = []
        opening = "" if ctx.policy is None else self.writing.template.opening(ctx.policy.tokenizer)
        for (first, subject, shown), completions in zip(facts, ctx.complete(requests), strict=True):
            for completion in completions:  # none if a recording has no more
                # text without any problem becomes an empty proposal, so that the ledger counts it
                written = replace(completion, text=opening + completion.text) if opening else completion
                found = self.read(written, first, subject) or [Instruction("", "", meta={"origin": "self"})]
                out += [written_after(one, shown) for one in found]
        return out

    def exemplars(
        self, seeds: list[Instruction], kept: list[Instruction], rng: Random
    ) -> tuple[list[Instruction], str | None]:
        """The problems of one few-shot prompt, and their subject if it shows one subject."""
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
        if fillers and subject is not None:  # those of the subject come last, next to what is written
            shown.sort(key=lambda i: i.meta.get("subject") == subject)
        return shown, subject

    def request(self, shown: list[Instruction], seeds: tuple[int, ...], ctx: Context) -> Request | None:
        """The few-shot prompt. Exemplars too long for the model's context are removed from ``shown``, in place.

        Returns:
            ``None`` if not even one exemplar fits.
        """
        template, sampling = self.writing.template, self.writing.sampling
        if ctx.policy is None:
            return Request((), seeds, sampling)
        context = ctx.engine.shared_context(ctx.policy)
        if self.writing.style == "serl" and template.chat is None:
            template = replace(template, chat=bool(getattr(ctx.policy.tokenizer, "chat_template", None)))
        sampling = sampling.fitted(context).with_stop(template.stop_strings(ctx.policy.tokenizer))
        if self.writing.style == "serl":
            shown = [replace(i, prompt=published.exemplar(i.prompt)) for i in shown]
            room = min(published.PROMPT_TOKENS, (context or 10**9) - sampling.longest)
            return Request(tuple(template.encode(ctx.policy.tokenizer, shown)[:room]), seeds, sampling)
        while shown:
            ids = tuple(template.encode(ctx.policy.tokenizer, shown))
            if context is None or len(ids) + sampling.longest <= context:
                return Request(ids, seeds, sampling)
            shown.remove(max(shown, key=lambda i: len(i.prompt)))
        return None

    def read(self, completion: Completion, first: int | None, subject: str | None) -> list[Instruction]:
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
