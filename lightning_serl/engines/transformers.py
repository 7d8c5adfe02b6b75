"""Rollouts by the live policy itself: any transformers model, no second copy of the weights, nothing to refresh."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lightning_serl.distributed.seeding import uniforms
from lightning_serl.engines.base import (
    Receipt,
    Request,
    RolloutEngine,
    Sampling,
    WeightUpdate,
    Who,
    before_stop,
    special_stop_ids,
)
from lightning_serl.errors import EngineFailure
from lightning_serl.types import Completion

if TYPE_CHECKING:
    from lightning_serl.policy.policy import Policy

# A stop string is looked for in the text of at least this many latest tokens.
_TAIL = 24


class TransformersEngine(RolloutEngine):
    """Samples from the policy's own weights.

    Each distinct prompt is run once and its key/value cache repeated for its completions; finished rows leave the
    batch. A completion depends on its own seed only: one uniform number per token, inverted through the
    distribution's cumulative sum, so that neighbours, batch size and rank do not matter (up to rounding).

    The stream calls it inside ``Policy.gathered``.

    Args:
        max_rows: Completions in flight at one time.
    """

    def __init__(self, max_rows: int = 256) -> None:
        super().__init__()
        if max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {max_rows}")
        self.max_rows = max_rows
        self._policy: Policy | None = None

    @property
    def version(self) -> int:
        """The live policy's own version: it is never stale."""
        return self.policy.version

    @property
    def policy(self) -> Policy:
        """The policy it samples from.

        Raises:
            EngineFailure: before :meth:`start`.
        """
        if self._policy is None:
            raise EngineFailure("the transformers engine was asked to work before it was started")
        return self._policy

    def start(self, policy: Policy | None, ranks: Any = None) -> None:
        """Remember the policy."""
        if policy is None:
            raise EngineFailure("the transformers engine needs a policy; use ReplayEngine for recordings")
        self._policy = policy

    def push(self, update: WeightUpdate) -> Receipt:
        """Nothing moves: the engine reads the live weights."""
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
        # Similar lengths travel together; the order of work does not change what is sampled.
        keys = [(_batch_key(r.sampling), len(r.prompt_ids), i) for i, r in enumerate(requests)]
        order = [i for _, _, i in sorted(keys)]
        yield from ((i, []) for i in order if not requests[i].n)
        written: dict[int, list[Completion]] = {}
        for chunk in _chunks(order, requests, self.max_rows):
            rows = [(requests[i].prompt_ids, s) for i, first, last in chunk for s in requests[i].seeds[first:last]]
            owners = [i for i, first, last in chunk for _ in range(first, last)]
            # not around the yield: the caller must not find the policy with its adapter switched off
            with self.policy.acting_as(who) as actor, actor.without_autocast():
                completions = self._sample(actor, rows, requests[chunk[0][0]].sampling)
            for owner, completion in zip(owners, completions, strict=True):
                written.setdefault(owner, []).append(completion)
            for i, _, last in chunk:
                if last == requests[i].n:
                    yield i, written.pop(i)

    def _sample(self, actor: Policy, rows: list[tuple[tuple[int, ...], int]], sampling: Sampling) -> list[Completion]:
        """Sample one completion per (prompt ids, seed) row; rows of one prompt are adjacent."""
        device, tokenizer = actor.device, self.policy.tokenizer
        prompts = list(dict.fromkeys(ids for ids, _ in rows))
        place = {ids: k for k, ids in enumerate(prompts)}
        longest = max(map(len, prompts))
        pad = self.policy.pad_id
        ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)

        lm = actor.causal_lm
        out = lm.base_model(
            input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0), use_cache=True
        )
        cache = out.past_key_values
        repeat = torch.tensor([place[ids_] for ids_, _ in rows], device=device)
        _keep_rows(cache, repeat)
        logits, mask = actor.head(out.last_hidden_state[:, -1])[repeat], mask[repeat]
        position = mask.sum(-1)

        total, limit = len(rows), sampling.max_tokens
        draws = None
        if sampling.temperature:
            draws = torch.from_numpy(np.stack([uniforms(seed, limit) for _, seed in rows]))
        tokens = torch.full((total, limit), pad, dtype=torch.long)
        logps = torch.zeros(total, limit, dtype=torch.float32)
        lengths = torch.zeros(total, dtype=torch.long)
        ended = torch.zeros(total, dtype=torch.bool)
        texts: dict[int, str] = {}
        live = torch.arange(total)  # the row of `tokens` behind each row of the batch
        ends = torch.tensor([*self.policy.end_ids, *special_stop_ids(tokenizer, sampling.stop)])
        held = torch.zeros_like(logits, dtype=torch.bool) if sampling.presence_penalty else None
        for step in range(limit):
            self.poll()
            if held is not None:
                logits = logits - sampling.presence_penalty * held
            chosen, logp = _choose(logits, sampling, None if draws is None else draws[live, step].to(device))
            if held is not None:
                held.scatter_(1, chosen[:, None], True)
            chosen, logp = chosen.cpu(), logp.cpu()
            tokens[live, step], logps[live, step] = chosen, logp.float()
            lengths[live] = step + 1
            done = torch.isin(chosen, ends)
            if sampling.stop:
                done |= self._stopped(tokens, live, step, sampling.stop, texts, tokenizer)
            ended[live[done]] = True
            if done.all() or step == limit - 1:
                break
            if done.any():
                keep = (~done).nonzero()[:, 0]
                live, chosen = live[keep], chosen[keep]
                keep = keep.to(device)
                mask, position = mask[keep], position[keep]
                held = None if held is None else held[keep]
                _keep_rows(cache, keep)
            mask = torch.cat([mask, mask.new_ones(len(live), 1)], -1)
            out = lm.base_model(
                input_ids=chosen.to(device)[:, None],
                attention_mask=mask,
                position_ids=position[:, None],
                past_key_values=cache,
                use_cache=True,
            )
            position = position + 1
            logits = actor.head(out.last_hidden_state[:, -1])
        written = [tokens[i, : lengths[i]].tolist() for i in range(total)]
        decoded = tokenizer.batch_decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [
            Completion(
                token_ids=tuple(written[i]),
                text=texts.get(i, decoded[i]),
                logprobs=tuple(logps[i, : lengths[i]].tolist()),
                finished=bool(ended[i]),
                version=self.policy.version,
            )
            for i in range(total)
        ]

    @staticmethod
    def _stopped(
        tokens: Tensor, live: Tensor, step: int, stop: tuple[str, ...], texts: dict[int, str], tokenizer: Any
    ) -> Tensor:
        """(rows,) bool: rows whose text now holds a stop string; their text up to it is kept in ``texts``."""
        how = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        # a token holds at least one byte of text
        first = max(0, step + 1 - max(_TAIL, *(2 * len(s.encode()) for s in stop)))
        tails = tokenizer.batch_decode(tokens[live, first : step + 1].tolist(), **how)
        found = torch.zeros(len(live), dtype=torch.bool)
        for k, tail in enumerate(tails):
            if any(s in tail for s in stop):
                whole = tokenizer.decode(tokens[live[k], : step + 1].tolist(), **how)
                cut = before_stop(whole, stop)
                if cut is not None:
                    found[k] = True
                    texts[int(live[k])] = cut
        return found


def _batch_key(sampling: Sampling) -> tuple[Any, ...]:
    return astuple(sampling)


def _keep_rows(cache: Any, rows: Tensor) -> None:
    """Select rows of a cache; unlike ``batch_select_indices``, every kind of layer implements this one."""
    cache.reorder_cache(rows)


def _chunks(order: list[int], requests: Sequence[Request], max_rows: int) -> Iterator[list[tuple[int, int, int]]]:
    """Pieces ``(request, first sample, last sample)`` of at most ``max_rows`` rows with one way of sampling."""
    chunk: list[tuple[int, int, int]] = []
    rows = 0
    for i in order:
        done = 0
        while done < requests[i].n:
            other = chunk and _batch_key(requests[chunk[0][0]].sampling) != _batch_key(requests[i].sampling)
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


def _choose(logits: Tensor, sampling: Sampling, draw: Tensor | None) -> tuple[Tensor, Tensor]:
    """Next token of each row and its log-probability under the distribution it was drawn from.

    Args:
        logits: (rows, V), any float dtype.
        sampling: Temperature, top_p and top_k.
        draw: (rows,) float64 in [0, 1), or ``None`` for the most likely token.

    Returns:
        ``(rows,) int64`` and ``(rows,)`` log-probabilities.
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
        # keep the smallest set that reaches top_p: drop a token if those before it already do
        drop = ranked.cumsum(-1) - ranked >= sampling.top_p
        logits = logits.masked_fill(torch.zeros_like(drop).scatter(-1, index, drop), -torch.inf)
    logp = torch.log_softmax(logits, -1)
    # in float64: a float32 cumulative sum over a large vocabulary is off by more than rare tokens are likely
    cumulative = logp.double().exp().cumsum(-1)
    target = draw[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    return chosen, logp.gather(-1, chosen[:, None])[:, 0]
