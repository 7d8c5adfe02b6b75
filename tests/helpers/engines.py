"""Engines that follow a script, fail or wait, and policies for the tests of real engines."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import torch

from lightning_serl.callbacks import RolloutRefresh
from lightning_serl.engines import TransformersEngine
from lightning_serl.engines.base import Receipt, Request, RolloutEngine, WeightUpdate, Who
from lightning_serl.errors import EngineFailure
from lightning_serl.policy.loading import LoraOptions, load_policy
from lightning_serl.types import Completion


class Scripted(RolloutEngine):
    """Answers every few-shot prompt with the next list, every problem with the same responses, in turn.

    Args:
        lists: What is written in place of new problems, one for each few-shot prompt, as texts or (text, finished);
            afterwards nothing.
        responses: What is answered to any problem, in the same form.
        tokens: The token ids of every completion; nothing here depends on what they say.
    """

    samples_policy = False

    def __init__(
        self,
        lists: Sequence[str | tuple[str, bool]],
        responses: Sequence[str | tuple[str, bool]],
        tokens: Sequence[int] = (40, 41, 42),
    ) -> None:
        super().__init__()
        self.lists, self.responses, self.tokens = list(lists), list(responses), tuple(tokens)

    @property
    def version(self) -> int:
        return -1

    def start(self, policy, ranks=None) -> None:
        pass

    def push(self, update: WeightUpdate) -> Receipt:
        return Receipt(self.version)

    def score(self, token_ids, who: Who = "policy"):
        raise EngineFailure("a script has no log-probabilities")

    def generate(self, requests: Sequence[Request], who: Who = "policy") -> Iterator[tuple[int, list[Completion]]]:
        for index, request in enumerate(requests):
            if request.prompt:
                texts = [self.responses[k % len(self.responses)] for k in range(request.n)]
            else:
                texts = [self.lists.pop(0) if self.lists else "" for _ in range(request.n)]
            pairs = [text if isinstance(text, tuple) else (text, True) for text in texts]
            yield index, [Completion(self.tokens, text, None, finished) for text, finished in pairs]


class FailingEngine(TransformersEngine):
    """Fails at its ``fail_at``-th request for completions (a call of ``generate``), half-way through."""

    def __init__(self, fail_at=None, error=RuntimeError, rank=None):
        super().__init__()
        self.fail_at, self.error, self.rank, self.calls, self.log = fail_at, error, rank, 0, []

    def start(self, policy, ranks=None):
        super().start(policy, ranks)
        self.here = self.rank is None or ranks.rank == self.rank

    def generate(self, requests, who="policy"):
        self.calls += 1
        self.log.append((self.calls, self.version))
        for done, one in enumerate(super().generate(requests, who)):
            if self.calls == self.fail_at and self.here and done >= len(requests) // 2:
                raise self.error("the engine is gone")
            yield one


class SlowEngine(TransformersEngine):
    """In the second round it writes nothing for a quarter of an hour, and leaves a file behind when it begins to."""

    def __init__(self, marker: str = ""):
        super().__init__()
        self.marker = Path(marker)

    def generate(self, requests, who="policy"):
        if self.policy.version:  # a step was made
            (self.marker / f"generating-{os.environ.get('LOCAL_RANK', '0')}-{os.getpid()}").touch()
            end = time.monotonic() + 900
            while time.monotonic() < end:
                self.poll()
                time.sleep(0.02)
        yield from super().generate(requests, who)


# -- real engines and their policies ---------------------------------------------------------------------------

#: Every engine that samples from the policy; each passes `test_contract.py`.
LIVE = ["transformers"]


#: The engines of a process meet many policies here, which a version must tell apart.
_versions = count(1)


def refresh(policy, engine, callback=None):
    """What a stream does before it generates."""
    callback = callback or RolloutRefresh()
    callback.on_rollout_start(None, SimpleNamespace(policy=policy), engine)
    return callback


def disturb(policy, scale=0.01, seed=0):
    """Something like a step of training: other weights, another version."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=draw) * scale
                parameter.add_(noise * max(float(parameter.std()), 0.1))
    policy.version = next(_versions)


def plain_policy():
    """``tiny:base`` with a version that no engine has seen."""
    policy = load_policy("tiny:base")
    policy.version = next(_versions)
    return policy


def adapted_policy():
    """``tiny:base`` with an adapter that changes what it writes."""
    policy = load_policy("tiny:base", lora=LoraOptions(r=4, alpha=8))
    disturb(policy, 1.0)
    return policy
