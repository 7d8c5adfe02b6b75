"""Rollouts by the live policy itself, for any transformers model, without a second copy of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_serl.distributed.seeding import uniforms
from lightning_serl.engines.base import Receipt, Request, RolloutEngine, Sampling, WeightUpdate, Who
from lightning_serl.errors import EngineFailure, check_range
from lightning_serl.policy.policy import Policy
from lightning_serl.types import Completion

# Stop strings are searched for in the text of at least this many of the latest tokens.
_TAIL = 24
_DECODING = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}


class TransformersEngine(RolloutEngine):
    """Samples from the policy's own weights.

    Each distinct prompt is run once and its key/value cache is repeated for its completions; finished rows leave the
    batch. A completion depends on its seed alone: each token takes one uniform number, which is looked up in the
    cumulative distribution, so that the other rows, the batch size and the rank do not matter (up to rounding).

    Call :meth:`generate` and :meth:`score` inside ``Policy.gathered``.

    Args:
        max_rows: Completions written at one time.
    """

    def __init__(self, max_rows: int = 256) -> None:
        super().__init__()
        check_range("data.engine.max_rows", max_rows, at_least=1)
        self.max_rows = max_rows
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
        with self.policy.at_temperature(1.0):
            return [s.logp for s in self.policy.stats([(ids, 1) for ids in token_ids], who)]

    def generate(self, requests: Sequence[Request], who: Who = "policy") -> Iterator[tuple[int, list[Completion]]]:
        """See :meth:`RolloutEngine.generate`."""
        # Prompts of similar length share a batch; the order of work does not change what is sampled.
        order = sorted(range(len(requests)), key=lambda i: (astuple(requests[i].sampling), len(requests[i].prompt_ids)))
        yield from ((i, []) for i in order if not requests[i].n)
        written: dict[int, list[Completion]] = {}
        for chunk in _chunks(order, requests, self.max_rows):
            rows = [(requests[i].prompt_ids, s) for i, first, last in chunk for s in requests[i].seeds[first:last]]
            owners = [i for i, first, last in chunk for _ in range(first, last)]
            # must end before the yield: the caller would find the policy with its adapter switched off
            with self.policy.acting_as(who) as actor, actor.without_autocast():
                completions = self._sample(actor, rows, requests[chunk[0][0]].sampling)
            for owner, completion in zip(owners, completions, strict=True):
                written.setdefault(owner, []).append(completion)
            for i, _, last in chunk:
                if last == requests[i].n:
                    yield i, written.pop(i)

    def _sample(self, actor: Policy, rows: list[tuple[tuple[int, ...], int]], sampling: Sampling) -> list[Completion]:
        """Sample one completion per (prompt ids, seed) row."""
        batch = _Batch(actor, [ids for ids, _ in rows], self.policy.pad_id)
        drafts = Drafts(self.policy, [seed for _, seed in rows], sampling)
        used = torch.zeros_like(batch.logits, dtype=torch.bool) if sampling.presence_penalty else None
        for step in range(sampling.max_tokens):
            self.poll()
            logits = batch.logits if used is None else batch.logits - sampling.presence_penalty * used
            chosen, logp = choose_tokens(logits, sampling, drafts.uniforms(step, actor.device))
            if used is not None:
                used.scatter_(1, chosen[:, None], True)
            chosen = chosen.cpu()
            done = drafts.append(step, chosen, logp.cpu())
            if done.all() or step == sampling.max_tokens - 1:
                break
            if done.any():
                kept = (~done).nonzero()[:, 0]
                chosen = chosen[kept]
                kept = kept.to(actor.device)
                used = None if used is None else used[kept]
                batch.keep(kept)
            batch.append(chosen)
        return drafts.completions()


class _Batch:
    """The model's side of a batch: its cache, and the next ``logits``, (rows, V); equal prompts are run once."""

    def __init__(self, actor: Policy, prompts: list[tuple[int, ...]], pad: int) -> None:
        distinct = list(dict.fromkeys(prompts))
        place = {ids: k for k, ids in enumerate(distinct)}
        longest, device = max(map(len, distinct)), actor.device
        ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in distinct], device=device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in distinct], device=device)
        self._actor = actor
        out = actor.causal_lm.base_model(
            input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0), use_cache=True
        )
        rows = torch.tensor([place[ids_] for ids_ in prompts], device=device)
        self._cache = out.past_key_values
        # unlike `batch_select_indices`, every kind of cache layer implements this one
        self._cache.reorder_cache(rows)
        self.logits, self._mask = actor.head(out.last_hidden_state[:, -1])[rows], mask[rows]
        self._position = self._mask.sum(-1)

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows only."""
        self._mask, self._position = self._mask[rows], self._position[rows]
        self._cache.reorder_cache(rows)

    def append(self, tokens: Tensor) -> None:
        """Run one more token of each row, (rows,) int64, which replaces :attr:`logits`."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], -1)
        out = self._actor.causal_lm.base_model(
            input_ids=tokens.to(self._actor.device)[:, None],
            attention_mask=self._mask,
            position_ids=self._position[:, None],
            past_key_values=self._cache,
            use_cache=True,
        )
        self._position = self._position + 1
        self.logits = self._actor.head(out.last_hidden_state[:, -1])


class Drafts:
    """The completions of a batch while they are written, one for each seed, as tensors on the CPU."""

    def __init__(self, policy: Policy, seeds: list[int], sampling: Sampling) -> None:
        self._policy, self._sampling = policy, sampling
        total, limit = len(seeds), sampling.max_tokens
        self._uniforms: Tensor | None = None
        if sampling.temperature:
            self._uniforms = torch.from_numpy(np.stack([uniforms(seed, limit) for seed in seeds]))
        self._tokens = torch.full((total, limit), policy.pad_id, dtype=torch.long)
        self._logps = torch.zeros(total, limit, dtype=torch.float32)
        self._lengths = torch.zeros(total, dtype=torch.long)
        self._ended = torch.zeros(total, dtype=torch.bool)
        self._cut_texts: dict[int, str] = {}  # texts that end before a stop string
        self._live = torch.arange(total)  # the completion of each row of the batch
        self._ends = torch.tensor([*policy.end_ids, *sampling.special_stop_ids(policy.tokenizer)])

    def uniforms(self, step: int, device: torch.device) -> Tensor | None:
        """(rows,) float64 numbers in [0, 1) for the next token of each row; ``None`` at temperature 0."""
        return None if self._uniforms is None else self._uniforms[self._live, step].to(device)

    def append(self, step: int, chosen: Tensor, logp: Tensor) -> Tensor:
        """Store the next token of each row; returns (rows,) bool, the rows that are finished and leave the batch."""
        live = self._live
        self._tokens[live, step], self._logps[live, step] = chosen, logp.float()
        self._lengths[live] = step + 1
        done = torch.isin(chosen, self._ends)
        if self._sampling.stop:
            done |= self._stopped(step)
        self._ended[live[done]] = True
        self._live = live[~done]
        return done

    def _stopped(self, step: int) -> Tensor:
        """(rows,) bool: rows whose text now contains a stop string; the text before it is kept."""
        tokenizer, tokens, stop = self._policy.tokenizer, self._tokens, self._sampling.stop
        # a token holds at least one byte of text
        first = max(0, step + 1 - max(_TAIL, *(2 * len(s.encode()) for s in stop)))
        tails = tokenizer.batch_decode(tokens[self._live, first : step + 1].tolist(), **_DECODING)
        found = torch.zeros(len(self._live), dtype=torch.bool)
        for k, tail in enumerate(tails):
            if any(s in tail for s in stop):
                whole = tokenizer.decode(tokens[self._live[k], : step + 1].tolist(), **_DECODING)
                if (cut := self._sampling.before_stop(whole)) is not None:
                    found[k] = True
                    self._cut_texts[int(self._live[k])] = cut
        return found

    def completions(self) -> list[Completion]:
        """All completions, in the order of the seeds."""
        written = [row[:length].tolist() for row, length in zip(self._tokens, self._lengths, strict=True)]
        decoded = self._policy.tokenizer.batch_decode(written, **_DECODING)
        return [
            Completion(
                token_ids=tuple(ids),
                text=self._cut_texts.get(i, decoded[i]),
                logprobs=tuple(self._logps[i, : len(ids)].tolist()),
                finished=bool(self._ended[i]),
                version=self._policy.version,
            )
            for i, ids in enumerate(written)
        ]


def _chunks(order: list[int], requests: Sequence[Request], max_rows: int) -> Iterator[list[tuple[int, int, int]]]:
    """Batches of ``(request, first sample, last sample)`` with at most ``max_rows`` rows and equal sampling."""
    chunk: list[tuple[int, int, int]] = []
    rows = 0
    for i in order:
        done = 0
        while done < requests[i].n:
            other = chunk and requests[chunk[0][0]].sampling != requests[i].sampling
            fits = requests[i].n - done <= max_rows - rows
            # a request is split only if it is larger than a whole batch
            if chunk and (other or rows == max_rows or (not fits and requests[i].n - done <= max_rows)):
                yield chunk
                chunk, rows = [], 0
            take = min(requests[i].n - done, max_rows - rows)
            chunk.append((i, done, done + take))
            done, rows = done + take, rows + take
    if chunk:
        yield chunk


def choose_tokens(logits: Tensor, sampling: Sampling, draw: Tensor | None) -> tuple[Tensor, Tensor]:
    """Draw the next token of each row, (rows,) int64, with its log-prob under the distribution it was drawn from.

    ``logits`` are (rows, V) of any float dtype; ``draw`` holds (rows,) float64 numbers in [0, 1), or is ``None`` for
    the most likely token.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if draw is None:
        logp = torch.log_softmax(logits, -1)
        chosen = logits.argmax(-1)
        return chosen, logp.gather(-1, chosen[:, None])[:, 0]
    logits = logits / sampling.temperature
    if sampling.top_k:
        kth = logits.topk(min(sampling.top_k, logits.shape[-1]), -1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if sampling.top_p < 1:
        ranked, index = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
        # keep the smallest set that reaches top_p: drop a token if more likely ones already reach it
        drop = ranked.cumsum(-1) - ranked >= sampling.top_p
        logits = logits.masked_fill(torch.zeros_like(drop).scatter(-1, index, drop), -torch.inf)
    logp = torch.log_softmax(logits, -1)
    # in float64: over a large vocabulary the error of a float32 sum exceeds the probability of rare tokens
    cumulative = logp.double().exp().cumsum(-1)
    target = draw[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    return chosen, logp.gather(-1, chosen[:, None])[:, 0]
