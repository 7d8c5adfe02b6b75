"""The rollout engine: what a round asks of whatever writes its completions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lightning_serl.types import Completion

if TYPE_CHECKING:
    from lightning_serl.policy.policy import Policy

Who = Literal["policy", "reference", "teacher"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Args:
        max_tokens: Longest completion, in tokens.
        temperature: Divides the logits; 0 takes the most likely token.
        top_p: Nucleus share; 1 keeps everything.
        top_k: Number of most likely tokens kept; 0 keeps everything.
        stop: Strings that end a completion; they are not part of its text.
        presence_penalty: Taken off the logit of every token that the completion already holds, before the temperature;
            between -2 and 2.
    """

    max_tokens: int = 1024
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"sampling.max_tokens must be at least 1, got {self.max_tokens}")
        if not self.temperature >= 0:
            raise ValueError(f"sampling.temperature must be 0 or above, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"sampling.top_p must lie in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"sampling.top_k must be 0 or above, got {self.top_k}")
        if not -2 <= self.presence_penalty <= 2:
            raise ValueError(f"sampling.presence_penalty must lie between -2 and 2, got {self.presence_penalty}")

    def with_stop(self, stop: Sequence[str]) -> Sampling:
        """The same sampling with these stop strings added."""
        return replace(self, stop=tuple(dict.fromkeys((*self.stop, *stop))))


@dataclass(frozen=True)
class Request:
    """One prompt and the completions wanted for it.

    Attributes:
        prompt_ids: Token ids, never text: nothing is encoded twice.
        seeds: One seed per completion; each completion depends on its own seed, not on its neighbours.
        sampling: How to draw.
        prompt: The same prompt as text, for engines that look completions up instead of sampling them.
    """

    prompt_ids: tuple[int, ...]
    seeds: tuple[int, ...]
    sampling: Sampling
    prompt: str = ""

    @property
    def n(self) -> int:
        """Number of completions."""
        return len(self.seeds)


@dataclass(frozen=True)
class WeightUpdate:
    """New weights for an engine.

    Attributes:
        kind: ``full`` weights under the names of the Hugging Face model, or a LoRA ``adapter``.
        tensors: (name, tensor) pairs, streamed one at a time.
        version: ``Policy.version`` of these weights.
        meta: The adapter's configuration.
    """

    kind: Literal["full", "adapter"]
    tensors: Callable[[], Iterator[tuple[str, Tensor]]]
    version: int
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Receipt:
    """What an engine took in with one push, told by the receiving side and never copied from the update.

    Attributes:
        version: The version the engine now samples from.
        names: Names of the tensors that arrived, as in the update.
        bytes: Their size as they arrived.
    """

    version: int
    names: frozenset[str] = frozenset()
    bytes: int = 0


class RolloutEngine(ABC):
    """Writes completions for token prompts, with the weights of one policy version.

    The life of an engine: :meth:`start` once, then any number of :meth:`push` and :meth:`generate`, then
    :meth:`close`. An engine that was closed can be started again.
    """

    #: False for an engine that replays recordings: it needs no policy, and its version never changes.
    samples_policy: bool = True
    #: Whether it goes on writing while its caller works between two results of :meth:`generate`.
    overlaps: bool = False
    #: Whether it can write, called from another thread, while its policy is being trained.
    concurrent: bool = False

    def __init__(self) -> None:
        self.poll: Callable[[], None] = _never_interrupted
        #: Where an engine leaves files such as logs; the stream names the run folder here before :meth:`start`.
        self.folder = Path()
        #: Set by ``RolloutRefresh`` once a canary showed that a push reaches what is sampled; cleared by a new start.
        self.proven = False

    @property
    @abstractmethod
    def version(self) -> int:
        """The policy version whose weights the engine samples from; -1 while it has none of the policy's."""

    @property
    def needs_base(self) -> bool:
        """Whether an adapter cannot be pushed before the full weights it sits on."""
        return False

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the engine's weights, which bounds how well its log-probs can agree with the policy's; None: the same."""
        return None

    @property
    def context_length(self) -> int | None:
        """Most tokens of prompt and completion together, as far as it is known; ``None`` without a limit of its own."""
        return None

    def room(self, policy: Policy) -> int | None:
        """Tokens of prompt and completion together that both the policy and this engine take; ``None``: any number."""
        return min((n for n in (policy.context_length, self.context_length) if n is not None), default=None)

    @abstractmethod
    def start(self, policy: Policy | None, ranks: Any) -> None:
        """Get ready to generate; called before the first request, after the process group exists.

        Raises:
            EngineFailure: if the engine cannot run here, with the remedy.
        """

    @abstractmethod
    def generate(self, requests: Sequence[Request], who: Who = "policy") -> Iterator[tuple[int, list[Completion]]]:
        """Complete every request.

        Yields:
            ``(index of the request, its completions)`` in the order in which requests finish. ``self.poll()`` is
            called often in between: it raises when the run should stop.
        """

    @abstractmethod
    def score(self, token_ids: Sequence[Sequence[int]], who: Who = "policy") -> list[Tensor]:
        """Log-probability of each token given those before it, at temperature 1: per row a (len - 1,) float32 tensor.

        Temperature is how completions are drawn; a text that is scored was not drawn.
        """

    @abstractmethod
    def push(self, update: WeightUpdate) -> Receipt:
        """Take new weights, forget every cached prefix, and say what arrived.

        Full weights are the whole model and replace every adapter; an adapter sits on the full weights that were
        pushed last. An engine that samples from the live policy takes nothing and says so: an empty receipt with the
        policy's version.

        Raises:
            PushMismatch: if the engine finds by itself that it cannot hold what was sent.
            EngineFailure: if the engine is gone.
        """

    def takes_adapter(self, config: Mapping[str, Any]) -> bool:
        """Whether adapters of this peft configuration can be pushed; otherwise they arrive merged, as full weights."""
        return False

    def sleep(self) -> None:  # noqa: B027 - most engines have nothing to do here
        """Give accelerator memory back while the trainer works; nothing to do for most engines."""

    def wake(self) -> None:  # noqa: B027
        """Undo :meth:`sleep`."""

    def close(self) -> None:  # noqa: B027
        """Release everything; calling it twice is harmless."""


def before_stop(text: str, stop: Sequence[str]) -> str | None:
    """The text before the first stop string in it; ``None`` if it holds none."""
    places = [place for s in stop if (place := text.find(s)) >= 0]
    return text[: min(places)] if places else None


def special_stop_ids(tokenizer: Any, stop: Sequence[str]) -> list[int]:
    """Ids of stop strings that are special tokens: these are not decoded, so they can only be met by their ids."""
    return [i for i, token in tokenizer.added_tokens_decoder.items() if token.special and token.content in stop]


def _never_interrupted() -> None:
    """The default of :attr:`RolloutEngine.poll`."""
