"""The interface of rollout engines, which write the completions of a round, and the types they exchange."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_serl.errors import check_range
from lightning_serl.policy.policy import Policy
from lightning_serl.types import Completion

# Longest completion where the user gives none, and the tokens that it should leave for a prompt.
_MAX_TOKENS, _PROMPT_ROOM = 1024, 256

Who = Literal["policy", "reference", "teacher"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Args:
        max_tokens: Longest completion, in tokens; null for 1,024, or for half of the context of model and engine where
            1,024 would leave too little room for prompts.
        temperature: Divides the logits; 0 takes the most likely token.
        top_p: Probability mass of the nucleus; 1 keeps every token.
        top_k: Number of most likely tokens kept; 0 keeps every token.
        stop: Strings that end a completion; its text ends before them.
        presence_penalty: Subtracted from the logit of every token that the completion already contains, before the
            temperature is applied; between -2 and 2.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0

    def __post_init__(self) -> None:
        check_range("data.writing.sampling.max_tokens", self.max_tokens, at_least=1)
        check_range("data.writing.sampling.temperature", self.temperature, at_least=0)
        check_range("data.writing.sampling.top_p", self.top_p, above=0, at_most=1)
        check_range("data.writing.sampling.top_k", self.top_k, at_least=0)
        check_range("data.writing.sampling.presence_penalty", self.presence_penalty, at_least=-2, at_most=2)

    @property
    def longest(self) -> int:
        """The longest completion, in tokens."""
        return _MAX_TOKENS if self.max_tokens is None else self.max_tokens

    def fitted(self, context: int | None) -> Sampling:
        """A copy with a number of tokens: the given one, else one that fits a context of so many tokens."""
        if self.max_tokens is not None or context is None or context - _MAX_TOKENS >= _PROMPT_ROOM:
            return replace(self, max_tokens=self.longest)
        return replace(self, max_tokens=max(1, context // 2))

    def with_stop(self, stop: Sequence[str]) -> Sampling:
        """A copy with these stop strings added."""
        return replace(self, stop=tuple(dict.fromkeys((*self.stop, *stop))))

    def before_stop(self, text: str) -> str | None:
        """The text before the first stop string in it; ``None`` if it contains none."""
        places = [place for s in self.stop if (place := text.find(s)) >= 0]
        return text[: min(places)] if places else None

    def special_stop_ids(self, tokenizer: Any) -> list[int]:
        """Ids of the stop strings that are special tokens: decoding skips these, so they must be matched by id."""
        added = tokenizer.added_tokens_decoder.items()
        return [i for i, token in added if token.special and token.content in self.stop]


@dataclass(frozen=True)
class Request:
    """One prompt and the completions wanted for it.

    Attributes:
        prompt_ids: Token ids of the prompt, so that the engine does not tokenize it a second time.
        seeds: One seed per completion; a completion depends on its seed and not on the rest of the batch.
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
        tensors: Returns an iterator over (name, tensor) pairs, made one at a time.
        version: ``Policy.version`` of these weights.
        meta: The adapter's peft configuration.
    """

    kind: Literal["full", "adapter"]
    tensors: Callable[[], Iterator[tuple[str, Tensor]]]
    version: int
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Receipt:
    """What an engine received with one push, counted on the receiving side and never copied from the update.

    Attributes:
        version: The version the engine now samples from.
        names: Names of the tensors that arrived, as in the update.
        bytes: Their total size as they arrived.
    """

    version: int
    names: frozenset[str] = frozenset()
    bytes: int = 0


class RolloutEngine(ABC):
    """Writes completions for token prompts with the weights of one policy version.

    Call :meth:`start` once, :meth:`push` and :meth:`generate` any number of times, then :meth:`close`. A closed engine
    can be started again.
    """

    #: False for an engine that replays recordings: it needs no policy, and its version never changes.
    samples_policy: bool = True
    #: Whether it keeps writing while its caller works between two results of :meth:`generate`.
    overlaps: bool = False
    #: Whether it can be called from another thread while its policy is being trained.
    concurrent: bool = False
    #: Tokens written and completions finished so far, for the display of progress. An engine with ``counts_tokens``
    #: counts them while it writes; for others the caller counts the results of :meth:`generate`.
    tokens_written: int = 0
    completions_written: int = 0
    counts_tokens: bool = False

    def __init__(self) -> None:
        #: Called often while the engine waits; raises when the run should stop.
        self.poll: Callable[[], None] = lambda: None
        #: Folder for log files; the datamodule sets it to the run folder before :meth:`start`.
        self.folder = Path()
        #: Set by ``RolloutRefresh`` once a canary showed that pushed weights are the ones sampled from; cleared by
        #: :meth:`start`.
        self.proven = False

    @property
    @abstractmethod
    def version(self) -> int:
        """The policy version whose weights the engine samples from; -1 while it holds no version of the policy."""

    @property
    def needs_base(self) -> bool:
        """Whether full weights must be pushed before an adapter can be."""
        return False

    @property
    def dtype(self) -> torch.dtype | None:
        """Dtype of the engine's weights, which limits how closely log-probs can agree; ``None``: the policy's."""
        return None

    @property
    def context_length(self) -> int | None:
        """Most tokens of prompt and completion together; ``None`` if unknown or unlimited."""
        return None

    def shared_context(self, policy: Policy) -> int | None:
        """Most tokens of prompt and completion together that both policy and engine accept; ``None``: no limit."""
        return min((n for n in (policy.context_length, self.context_length) if n is not None), default=None)

    @abstractmethod
    def start(self, policy: Policy | None, ranks: Any) -> None:
        """Prepare for :meth:`generate`; called before the first request, after the process group exists.

        Args:
            policy: The live policy; ``None`` where only recordings are used.
            ranks: The :class:`~lightning_serl.distributed.ranks.Ranks` of this process.

        Raises:
            EngineFailure: if the engine cannot run here, with the remedy.
        """

    @abstractmethod
    def generate(self, requests: Sequence[Request], who: Who = "policy") -> Iterator[tuple[int, list[Completion]]]:
        """Yield ``(index of the request, its completions)`` of every request, in the order in which they finish."""

    @abstractmethod
    def score(self, token_ids: Sequence[Sequence[int]], who: Who = "policy") -> list[Tensor]:
        """Log-probability of each token given the tokens before it, as a (len - 1,) float32 tensor per row.

        The temperature is 1 whatever the policy's: it describes how completions are drawn, and scored text was not.
        """

    def score_from(self, rows: Sequence[tuple[Sequence[int], int]], who: Who = "policy") -> list[Tensor]:
        """Log-probs as :meth:`score` gives them, from each row's ``start`` (at least 1) on: (len - start,) each.

        Texts are often compared after one prompt, which an engine need not compute for each of them.
        """
        return [logp[start - 1 :] for logp, (_, start) in zip(self.score([r[0] for r in rows], who), rows, strict=True)]

    @abstractmethod
    def push(self, update: WeightUpdate) -> Receipt:
        """Load new weights, drop every cached prefix, and return what arrived.

        Full weights are the whole model and replace every adapter; an adapter is applied to the full weights pushed
        last. An engine that samples from the live policy loads nothing and returns an empty receipt with the policy's
        version.

        Raises:
            PushMismatch: if the engine itself finds that it does not hold what was sent.
            EngineFailure: if the engine has died.
        """

    def takes_adapter(self, config: Mapping[str, Any]) -> bool:
        """Whether adapters of this peft configuration can be pushed; others are merged and pushed as full weights."""
        return False

    def sleep(self) -> None:  # noqa: B027 - most engines have nothing to do here
        """Free accelerator memory while the trainer works; most engines have nothing to free."""

    def wake(self) -> None:  # noqa: B027
        """Undo :meth:`sleep`."""

    def close(self) -> None:  # noqa: B027
        """Release all resources; calling it twice is harmless."""
