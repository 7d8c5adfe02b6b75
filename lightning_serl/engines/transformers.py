"""Rollouts by the live policy itself, for any transformers model, without a second copy of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple
from itertools import count, groupby
from typing import Any

import torch
from torch import Tensor

from lightning_serl.engines.base import Receipt, Request, RolloutEngine, Sampling, WeightUpdate, Who
from lightning_serl.engines.decoding_attention import decoding_attention
from lightning_serl.engines.drafts import Drafts
from lightning_serl.engines.token_choice import choose_tokens
from lightning_serl.errors import EngineFailure, check_range
from lightning_serl.policy.decoding_batch import decoding_batch
from lightning_serl.policy.policy import Policy
from lightning_serl.types import Completion

# Finished requests are handed out after at least so many tokens, since switching the adapter takes time.
_BURST = 4
# Completions written at one time where memory allows it.
_ROWS = 256


class TransformersEngine(RolloutEngine):
    """Samples from the policy's own weights.

    Each distinct prompt is run once and its key/value cache is repeated for its completions; the next prompt takes the
    place of a finished row. A completion depends on its seed alone: each token takes one uniform number, which is
    looked up in the cumulative distribution; other rows, batch size and rank do not matter, except for rounding.

    Call :meth:`generate` and :meth:`score` inside ``Policy.gathered``.

    Args:
        max_rows: Completions written at one time; null for 256, or as many as fit the memory by :class:`MemoryPlan`.
    """

    counts_tokens = True

    def __init__(self, max_rows: int | None = None) -> None:
        super().__init__()
        check_range("data.engine.max_rows", max_rows, at_least=1)
        #: As it was given; where it is ``None``, :attr:`max_rows` may be lowered.
        self.given_rows = max_rows
        self.max_rows = _ROWS if max_rows is None else max_rows
        self._policy: Policy | None = None

    @property
    def version(self) -> int:
        """The live policy's version: the engine is never stale."""
        return self.policy.version

    @property
    def policy(self) -> Policy:
        """The policy it samples from; EngineFailure before :meth:`start`."""
        if self._policy is None:
            raise EngineFailure("the transformers engine was asked to work before it was started")
        return self._policy

    def start(self, policy: Policy | None, ranks: Any = None) -> None:
        """Remember the policy."""
        if policy is None:
            raise EngineFailure("the transformers engine needs a policy; use ReplayEngine for recordings")
        self._policy = policy

    def push(self, update: WeightUpdate) -> Receipt:
        """Do nothing: the engine reads the live weights."""
        return Receipt(self.version)

    def close(self) -> None:
        """Forget the policy."""
        self._policy = None

    def score(self, token_ids: Sequence[Sequence[int]], who: Who = "policy") -> list[Tensor]:
        """See :meth:`RolloutEngine.score`."""
        return self.score_from([(ids, 1) for ids in token_ids], who)

    def score_from(self, rows: Sequence[tuple[Sequence[int], int]], who: Who = "policy") -> list[Tensor]:
        """See :meth:`RolloutEngine.score_from`; equal beginnings are computed once if the model can be packed."""
        with self.policy.at_temperature(1.0):
            return [s.logp for s in self.policy.stats(rows, who)]

    def generate(self, requests: Sequence[Request], who: Who = "policy") -> Iterator[tuple[int, list[Completion]]]:
        """See :meth:`RolloutEngine.generate`."""
        yield from ((i, []) for i in range(len(requests)) if not requests[i].n)
        # Long prompts first: those that begin later fit into the columns of the cache. The order of work does not
        # change what is sampled.
        order = sorted(
            (i for i in range(len(requests)) if requests[i].n),
            key=lambda i: (astuple(requests[i].sampling), -len(requests[i].prompt_ids)),
        )
        for sampling, alike in groupby(order, key=lambda i: requests[i].sampling):
            yield from self._write([(i, requests[i]) for i in alike], sampling, who)

    def _write(
        self, requests: list[tuple[int, Request]], sampling: Sampling, who: Who
    ) -> Iterator[tuple[int, list[Completion]]]:
        """The completions of numbered requests with equal sampling, as the requests are finished."""
        prompts = [request.prompt_ids for _, request in requests for _ in request.seeds]
        drafts = Drafts(self.policy, [seed for _, request in requests for seed in request.seeds], sampling)
        owners = [k for k, (_, request) in enumerate(requests) for _ in request.seeds]
        missing = [request.n for _, request in requests]
        writer = _Writer(self, prompts, drafts, sampling)
        while writer.works:
            # must end before the yield: the caller would find the policy with its adapter switched off
            with (
                self.policy.acting_as(who) as actor,
                actor.without_autocast(),
                decoding_attention(actor.causal_lm),
            ):
                finished = []
                for step in count(1):
                    for row in writer.step(actor):
                        missing[owners[row]] -= 1
                        if not missing[owners[row]]:
                            finished.append(owners[row])
                    if not writer.works or (finished and step >= _BURST):
                        break
            for k in finished:
                first = owners.index(k)
                yield requests[k][0], drafts.completions(range(first, first + requests[k][1].n))


class _Writer:
    """Writes completions of equal sampling; a row that is finished makes room for the next prompt."""

    def __init__(
        self, engine: TransformersEngine, prompts: list[tuple[int, ...]], drafts: Drafts, sampling: Sampling
    ) -> None:
        self._engine, self._prompts, self._drafts, self._sampling = engine, prompts, drafts, sampling
        self._batch = decoding_batch(engine.policy, min(engine.max_rows, len(prompts)))
        self._begun = 0
        self._used: Tensor | None = None  # (rows, V) bool, tokens that a row holds, for the presence penalty

    @property
    def works(self) -> bool:
        """Whether a completion is not finished yet."""
        return self._begun < len(self._prompts) or self._batch.rows > 0

    def step(self, actor: Policy) -> list[int]:
        """Write one token of every row; returns the completions that are finished now."""
        self._engine.poll()
        if taken := self._batch.takes(len(self._prompts) - self._begun):
            first, self._begun = self._begun, self._begun + taken
            self._batch.add(actor, self._prompts[first : self._begun])
            self._drafts.begin(first, self._begun)
        chosen, logp = self._choose(actor)
        self._engine.tokens_written += len(chosen)
        done = self._drafts.append(chosen, logp)
        finished: list[int] = self._drafts.live[done].tolist()
        self._engine.completions_written += len(finished)
        if finished:
            order = self._batch.drop(done)
            self._drafts.keep(order)
            chosen = chosen[order]
            self._used = None if self._used is None else self._used[order.to(self._used.device)]
        if len(chosen):
            self._batch.append(actor, chosen)
        return finished

    def _choose(self, actor: Policy) -> tuple[Tensor, Tensor]:
        """The next token of each row, (rows,) int64, and its log-prob, (rows,), on the CPU."""
        draws, chosen, logps, done = self._drafts.uniforms(actor.device), [], [], 0
        # logits of a part of the rows at a time: a large table is slow to allocate, and to read from memory again
        for hidden in torch.split(self._batch.hidden, _logit_rows(actor)):
            logits, part = actor.head(hidden), slice(done, done := done + len(hidden))
            if self._sampling.presence_penalty:
                logits = logits - self._sampling.presence_penalty * self._seen(part, logits)
            tokens, logp = choose_tokens(logits, self._sampling, None if draws is None else draws[part])
            if self._used is not None:
                self._used[part].scatter_(1, tokens[:, None], True)
            chosen.append(tokens)
            logps.append(logp)
        return torch.cat(chosen).cpu(), torch.cat(logps).cpu()

    def _seen(self, part: slice, logits: Tensor) -> Tensor:
        """(rows, V) bool of these rows; rows that are new hold nothing."""
        rows = self._batch.rows
        if self._used is None:
            self._used = torch.zeros(rows, logits.shape[-1], dtype=torch.bool, device=logits.device)
        elif len(self._used) < rows:
            self._used = torch.cat([self._used, self._used.new_zeros(rows - len(self._used), logits.shape[-1])])
        return self._used[part]


def _logit_rows(actor: Policy) -> int:
    """Rows whose float32 logits take 24 MiB, which the allocator of a CPU keeps for reuse; 256 MiB on a GPU."""
    vocabulary = actor.causal_lm.config.get_text_config().vocab_size
    return max(1, ((24 if actor.device.type == "cpu" else 256) << 20) // (4 * vocabulary))
