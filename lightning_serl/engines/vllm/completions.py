"""What both vLLM engines share: who answers, prompt lengths, and completions made of token ids."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from lightning_serl.engines.base import Request, Sampling, Who, before_stop
from lightning_serl.engines.transformers import TransformersEngine
from lightning_serl.types import Completion

if TYPE_CHECKING:
    from lightning_serl.policy.policy import Policy


class Session(ABC):
    """The part of a started vLLM engine that knows the policy.

    Args:
        policy: The live policy.

    Attributes:
        fallback: Answers for frozen copies of the policy, whose weights vLLM does not hold.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.fallback = TransformersEngine()
        self.fallback.start(policy)

    @property
    @abstractmethod
    def has_adapter(self) -> bool:
        """Whether vLLM holds an adapter over the policy's base weights."""

    def serves(self, who: Who) -> bool:
        """Whether vLLM holds the weights of ``who``: the policy's, and under LoRA those of the base as reference."""
        return who == "policy" or (who == "reference" and who not in self.policy.copies and self.has_adapter)

    def completion(
        self, ids: tuple[int, ...], logprobs: Sequence[float], stopped: bool, how: Sampling, version: int
    ) -> Completion:
        """A completion as vLLM returned it, with its text decoded by the policy's tokenizer.

        Args:
            ids: Token ids, the end token included.
            logprobs: One for each token.
            stopped: Whether an end token or a stop string ended it.
            how: What was asked for.
            version: ``Policy.version`` of the weights, -1 for those of the base.
        """
        text = self.policy.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if stopped:
            cut = before_stop(text, how.stop)
            text = text if cut is None else cut
        return Completion(ids, text, tuple(logprobs), stopped, version)


def by_request(
    requests: Sequence[Request], written: Iterable[tuple[tuple[int, int], Completion]]
) -> Iterator[tuple[int, list[Completion]]]:
    """Collect completions by request.

    Args:
        requests: What was asked for.
        written: ``((index of the request, index of the completion), completion)`` as they finish.

    Yields:
        ``(index of the request, its completions)`` once the last of them is finished; requests of none come first.
    """
    yield from ((i, []) for i, request in enumerate(requests) if not request.n)
    collected: dict[int, dict[int, Completion]] = {}
    for (i, k), completion in written:
        group = collected.setdefault(i, {})
        group[k] = completion
        if len(group) == requests[i].n:
            del collected[i]
            yield i, [group[j] for j in range(requests[i].n)]
