"""An engine that writes what it was told, for runs through the command line without a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lightning_serl.engines.base import Receipt, Request, RolloutEngine, WeightUpdate, Who
from lightning_serl.types import Completion


class Scripted(RolloutEngine):
    """Answers every few-shot prompt with the next list, every problem with the same responses, in turn.

    Args:
        lists: What is written in place of new problems, one text per few-shot prompt; afterwards nothing.
        responses: What is answered to any problem.
    """

    samples_policy = False

    def __init__(self, lists: list[str], responses: list[str]) -> None:
        super().__init__()
        self.lists, self.responses = list(lists), list(responses)

    @property
    def version(self) -> int:
        return -1

    def start(self, policy, ranks=None) -> None:
        pass

    def push(self, update: WeightUpdate) -> Receipt:
        return Receipt(self.version)

    def score(self, token_ids, who: Who = "policy"):
        raise NotImplementedError

    def generate(self, requests: Sequence[Request], who: Who = "policy") -> Iterator[tuple[int, list[Completion]]]:
        for index, request in enumerate(requests):
            if request.prompt:
                texts = [self.responses[k % len(self.responses)] for k in range(request.n)]
            else:
                texts = [self.lists.pop(0) if self.lists else "" for _ in range(request.n)]
            yield index, [Completion((), text) for text in texts]
