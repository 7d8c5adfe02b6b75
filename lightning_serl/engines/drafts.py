"""The completions of one call while they are written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_serl.distributed.seeding import uniforms
from lightning_serl.engines.base import Sampling
from lightning_serl.policy.policy import Policy
from lightning_serl.types import Completion

# Stop strings are searched for in the text of at least this many of the latest tokens.
_TAIL = 24


class Drafts:
    """Completions while they are written, one for each seed, as tensors on the CPU.

    Attributes:
        live: (rows,) int64, the completion that each row of the model's batch belongs to.
    """

    def __init__(self, policy: Policy, seeds: Sequence[int], sampling: Sampling) -> None:
        self._policy, self._sampling, self._seeds = policy, sampling, seeds
        total, limit = len(seeds), sampling.longest
        self._uniforms = torch.empty(total, limit if sampling.temperature else 0, dtype=torch.float64)
        self._tokens = torch.full((total, limit), policy.pad_id, dtype=torch.long)
        self._logps = torch.zeros(total, limit, dtype=torch.float32)
        self._lengths = torch.zeros(total, dtype=torch.long)
        self._ended = torch.zeros(total, dtype=torch.bool)
        self._cut_texts: dict[int, str] = {}  # texts that end before a stop string
        self.live = torch.empty(0, dtype=torch.long)
        self._ends = torch.tensor([*policy.end_ids, *sampling.special_stop_ids(policy.tokenizer)])

    def begin(self, first: int, last: int) -> None:
        """Append rows for the completions ``first`` up to but not including ``last``."""
        if self._sampling.temperature:
            drawn = np.stack([uniforms(seed, self._sampling.longest) for seed in self._seeds[first:last]])
            self._uniforms[first:last] = torch.from_numpy(drawn)
        self.live = torch.cat([self.live, torch.arange(first, last)])

    def uniforms(self, device: torch.device) -> Tensor | None:
        """(rows,) float64 numbers in [0, 1) for the next token of each row; ``None`` at temperature 0."""
        if not self._sampling.temperature:
            return None
        return self._uniforms[self.live, self._lengths[self.live]].to(device)

    def append(self, chosen: Tensor, logp: Tensor) -> Tensor:
        """Store the next token of each row; returns (rows,) bool, the rows whose completion is finished."""
        live = self.live
        steps = self._lengths[live]
        self._tokens[live, steps], self._logps[live, steps] = chosen, logp.float()
        self._lengths[live] = steps + 1
        done = torch.isin(chosen, self._ends)
        if self._sampling.stop:
            done |= self._stopped()
        self._ended[live[done]] = True
        return done | (steps + 1 == self._sampling.longest)

    def keep(self, order: Tensor) -> None:
        """The rows are now the former rows ``order``."""
        self.live = self.live[order]

    def _stopped(self) -> Tensor:
        """(rows,) bool: rows whose text now contains a stop string; the text before it is kept."""
        stop = self._sampling.stop
        # a token holds at least one byte of text
        tail = max(_TAIL, *(2 * len(s.encode()) for s in stop))
        lengths = self._lengths[self.live]
        places = (lengths[:, None] + torch.arange(-tail, 0)).clamp(min=0)
        latest = self._tokens[self.live[:, None], places].tolist()
        tails = [ids[-length:] for ids, length in zip(latest, lengths.tolist(), strict=True)]
        found = torch.zeros(len(tails), dtype=torch.bool)
        for k, text in enumerate(self._policy.texts(tails)):
            if any(s in text for s in stop):
                (whole,) = self._policy.texts([self._written(int(self.live[k]))])
                if (cut := self._sampling.before_stop(whole)) is not None:
                    found[k] = True
                    self._cut_texts[int(self.live[k])] = cut
        return found

    def _written(self, i: int) -> list[int]:
        return self._tokens[i, : self._lengths[i]].tolist()

    def completions(self, chosen: Sequence[int]) -> list[Completion]:
        """The completions of these numbers, in their order."""
        written = [self._written(i) for i in chosen]
        decoded = self._policy.texts(written)
        return [
            Completion(
                token_ids=tuple(ids),
                text=self._cut_texts.get(i, text),
                logprobs=tuple(self._logps[i, : len(ids)].tolist()),
                finished=bool(self._ended[i]),
                version=self._policy.version,
            )
            for i, ids, text in zip(chosen, written, decoded, strict=True)
        ]
