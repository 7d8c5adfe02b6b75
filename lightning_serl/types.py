"""Data types of a round: instructions, completions, groups, verdicts, rounds and micro-batches.

Notation used everywhere: ``n`` completions of one group, ``B`` rows of a micro-batch, ``T`` tokens of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

#: ``default`` rules, or ``serl`` for those of SeRL's published code.
Style = Literal["default", "serl"]
STYLES: tuple[str, ...] = get_args(Style)

#: Why an instruction or a group was left out, as ledger, summary and filters name it.
Reason = Literal[
    "empty", "too_short", "too_long", "keyword", "write_a_program", "punctuation", "non_ascii", "duplicate",
    "truncated_item", "solution_leak", "no_choices", "too_easy", "too_hard", "no_spread", "no_answer",
    "over_long_prompt", "stale", "no_room", "no_question", "several_questions", "no_context",
    "low_consensus", "no_view", "no_grade", "no_evaluation", "needs_passage", "answer_in_problem",
]  # fmt: skip

#: Role of a problem that is answered with its passage in view; ``solve`` is the role of answers without it.
OPEN_BOOK = "open_book"

#: One row of ``ledger.jsonl``.
Event: TypeAlias = dict[str, Any]

#: The most common answer, ``None`` if no answer is more common than all others, and its share of the responses.
Vote: TypeAlias = tuple[str | None, float]


class Probed(NamedTuple):
    """The responses to one problem of the health probe."""

    answers: tuple[str | None, ...]  # of each response, one text for all equal answers; None if none can be read
    tokens: int  # of all responses
    cut: int  # responses that were cut off by length


class Link(NamedTuple):
    """Origin of a derived instruction: its ``relation`` to response ``index`` of the instruction ``parent`` (a uid)."""

    relation: str
    parent: str
    index: int | None = None  # type: ignore[assignment]  # hides tuple.index, which has no use here


@dataclass(frozen=True)
class Instruction:
    """One problem to be answered.

    Attributes:
        prompt: The problem as the user or the policy wrote it, without a template.
        uid: Unique within a run; made from counters, so that equal runs give equal uids.
        role: Which reward and which solve template apply; ``"solve"`` for ordinary problems.
        label: Gold answer, if one is known; never in a prompt.
        link: Set on follow-ups made by ``InstructionSource.derive``.
        train: ``False`` keeps the group out of the loss; it is still answered and scored.
        meta: Further facts, primitives only, since they are in checkpoints. The package reads ``choices`` (the options
            of a multiple-choice problem, in order), ``subject``, ``level`` and ``group`` (names that results are
            divided by; ``subject`` also chooses exemplars), ``origin`` (``self`` for what the policy wrote, or
            ``seed``), ``round`` (in which it was written), ``truncated``, ``passage`` (file and character offsets of
            the text that it was written from) and ``again`` (asked in an earlier round); other keys are yours.
    """

    prompt: str
    uid: str
    role: str = "solve"
    label: str | None = None
    link: Link | None = None
    train: bool = True
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Completion:
    """One sampled continuation.

    Attributes:
        token_ids: Sampled ids, the end-of-sequence token included when it was sampled.
        text: The decoded ids, without special tokens and without the stop string that ended the completion.
        logprobs: The sampler's log-probability of each token, finite (same length as ``token_ids``), or ``None``.
        finished: ``True`` if an end token or stop string ended it, ``False`` if it reached the maximal length.
        version: ``Policy.version`` of the weights that wrote it; -1 for recorded text.
    """

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...] | None = None
    finished: bool = True
    version: int = -1


@dataclass
class Group:
    """One instruction and its ``n`` completions.

    Attributes:
        instruction: The problem.
        prompt_ids: The tokens of the prompt; empty for recorded text.
        completions: The ``n`` responses.
        answers: The answer of each response, ``None`` where it has none; set once by ``answers.cluster``.
        cluster: Class of equal answers of each response, -1 for no answer; numbered by the canonical order of answers.
        stats: Per-token statistics of the policy (``"entropy"``, ``"certainty"``): ``n`` float tensors of the
            completions' lengths; only those that a reward ``needs``.
        links: Related groups of the same round, by ``(relation, response index or None)``.
        read_by: Kind of grader that read ``answers``, see ``rewards.base.fill_answers``; ``None`` if none did.
    """

    instruction: Instruction
    prompt_ids: tuple[int, ...]
    completions: list[Completion]
    answers: list[str | None] | None = None
    cluster: list[int] | None = None
    stats: dict[str, list[Tensor]] = field(default_factory=dict)
    links: dict[tuple[str, int | None], list[Group]] = field(default_factory=dict)
    read_by: object = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.completions)

    @property
    def texts(self) -> list[str]:
        """The ``n`` response texts."""
        return [c.text for c in self.completions]

    @classmethod
    def from_texts(
        cls,
        prompt: str,
        texts: Sequence[str],
        label: str | None = None,
        finished: Sequence[bool] | None = None,
        choices: Sequence[str] | None = None,
    ) -> Group:
        """Build a group from recorded responses, to vote on them without a model.

        Args:
            prompt: The problem.
            texts: Its ``n`` responses.
            label: Gold answer, where one is known.
            finished: ``n`` flags, ``False`` for responses cut off by length; all finished if absent.
            choices: The options of a multiple-choice problem, in order.

        Raises:
            ValueError: if ``finished`` and ``texts`` differ in length.
        """
        if finished is not None and len(finished) != len(texts):
            raise ValueError(f"finished has {len(finished)} entries for {len(texts)} texts; give one flag per text")
        flags = [True] * len(texts) if finished is None else [bool(f) for f in finished]
        meta = {"choices": list(choices)} if choices is not None else {}
        instruction = Instruction(prompt=prompt, uid="recorded", label=label, meta=meta)
        return cls(instruction, (), [Completion((), t, None, f) for t, f in zip(texts, flags, strict=True)])


@dataclass
class Verdict:
    """The result of a reward for one group.

    Attributes:
        scores: (n,) float32, one score per response.
        label: The pseudo-label (or gold label) that the responses were scored against, if there is one.
        confidence: In [0, 1]; for votes the share of responses that agree with the label.
        weight: (n,) float32; 0 leaves a response out of the loss and all its statistics.
        token_scores: Per-token scores, ``n`` float tensors of the completions' lengths, added to the advantage.
        centred: The scores are advantages already: no baseline is subtracted and they are not scaled.
        info: Facts for the log (``"tie"``, ``"unique_answers"`` ...).
        dropped: Whether a group filter dropped this group: it is not trained on, but counts in the batch statistics
            of the advantages.
        attempt: Groups of one attempt share batch statistics.
    """

    scores: Tensor
    label: str | None = None
    confidence: float = 1.0
    weight: Tensor = None  # type: ignore[assignment]  # filled in __post_init__
    token_scores: list[Tensor] | None = None
    centred: bool = False
    info: dict[str, Any] = field(default_factory=dict)
    dropped: bool = False
    attempt: int = 0

    def __post_init__(self) -> None:
        self.scores = _float32(self.scores)
        weight = torch.ones_like(self.scores) if self.weight is None else self.weight
        self.confidence = float(self.confidence)
        self.weight = _float32(weight)
        if self.weight.shape != self.scores.shape:
            shapes = tuple(self.weight.shape), tuple(self.scores.shape)
            raise ValueError(f"weight has shape {shapes[0]}, scores {shapes[1]}; both must be (n,)")

    def scaled(self, factor: float) -> Verdict:
        """The same verdict with its weights multiplied by ``factor``, the weight that a group filter gave."""
        return self if factor == 1.0 else replace(self, weight=self.weight * factor)


def _float32(numbers: Any) -> Tensor:
    """A float32 tensor of numbers; those too large for it become infinite, which a round refuses by name."""
    tensor = numbers if isinstance(numbers, Tensor) else torch.as_tensor(numbers, dtype=torch.float64)
    return tensor.to(torch.float32)


class TokenStats(NamedTuple):
    """Result of ``Policy.forward``, each (B, T) float32 and 0 outside the completion mask."""

    logp: Tensor
    entropy: Tensor | None = None
    certainty: Tensor | None = None


class RolloutBatch:
    """One micro-batch of an optimizer step.

    A plain class, because under ``bf16-true`` Lightning rounds the floats of dicts and dataclasses.
    All tensors are right-padded and aligned with their token: ``logp[b, t]`` belongs to ``input_ids[b, t]``.

    Attributes:
        input_ids: (B, T) int64, prompt then completion then padding.
        attention_mask: (B, T) int64, 1 on real tokens.
        position_ids: (B, T) int64.
        mask: (B, T) bool, True on completion tokens that enter the loss.
        advantages: (B, T) float32.
        old_logp: (B, T) float32 of the policy at the start of the round, or ``None`` if the round is a single step.
        ref_logp: (B, T) float32 of the reference policy, or ``None`` without a KL term.
        sampler_logp: (B, T) float32 as the engine reported them, NaN where it did not; ``None`` if it did for no row.
        num_tokens: Loss tokens of the whole optimizer step, over all ranks and micro-batches.
        num_sequences: Responses of the whole optimizer step with at least one loss token.
        uids: Instruction uid of each row; empty for an empty slot.
        positions: Positions that the decoder computed; set by ``Policy.forward``.
        padding: How many of them are padding; set by ``Policy.forward``.
        kl_in_reward: Sum over these rows of the divergence that was subtracted from their reward, else 0.
        stale: Whether older weights than those at the start of the round wrote any of these rows.
        fault: The first value of these rows that is not finite, in words; empty if all are finite.
    """

    _SAVED = (
        "input_ids", "attention_mask", "position_ids", "mask", "advantages", "old_logp", "ref_logp", "sampler_logp",
        "num_tokens", "num_sequences", "kl_in_reward", "stale",
    )  # fmt: skip

    def __init__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        mask: Tensor,
        advantages: Tensor,
        old_logp: Tensor | None = None,
        ref_logp: Tensor | None = None,
        sampler_logp: Tensor | None = None,
        num_tokens: int = 1,
        num_sequences: int = 1,
        uids: Sequence[str] = (),
        kl_in_reward: float = 0.0,
        stale: bool = False,
        fault: str = "",
    ) -> None:
        self.input_ids, self.attention_mask = input_ids, attention_mask
        self.position_ids, self.mask = position_ids, mask
        self.advantages, self.old_logp, self.ref_logp, self.sampler_logp = advantages, old_logp, ref_logp, sampler_logp
        self.num_tokens, self.num_sequences, self.uids = num_tokens, num_sequences, tuple(uids)
        self.kl_in_reward, self.stale, self.fault = kl_in_reward, stale, fault
        self.positions = self.padding = 0

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> RolloutBatch:
        """A copy with every tensor on ``device``; dtypes stay as they are."""
        held = self.state_dict()
        tensors = {k: v.to(device, non_blocking=non_blocking) for k, v in held.items() if isinstance(v, Tensor)}
        return RolloutBatch(**{**held, **tensors})

    def split(self, parts: int) -> list[RolloutBatch]:
        """The same rows in ``parts`` micro-batches, in order; those without rows hold one row that is masked.

        ``kl_in_reward``, a sum over rows, stays with the first.
        """
        out, held = [], self.state_dict()
        size = -(-len(self) // parts)
        for start in range(0, parts * size, size):
            rows = slice(start, start + size) if start < len(self) else slice(0, 1)
            width = max(2, int(self.attention_mask[rows].sum(-1).max()))
            tensors = {k: v[rows, :width].clone() for k, v in held.items() if isinstance(v, Tensor)}
            part = RolloutBatch(**{**held, **tensors, "uids": self.uids[start : start + size]})
            if start >= len(self):
                part.mask = torch.zeros_like(part.mask)
            part.kl_in_reward = 0.0 if start else self.kl_in_reward
            out.append(part)
        return out

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives only, for a checkpoint read with ``weights_only=True``."""
        state = {**{k: getattr(self, k) for k in self._SAVED}, "uids": list(self.uids)}
        return state | {"fault": self.fault} if self.fault else state

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> RolloutBatch:
        """The inverse of :meth:`state_dict`."""
        return cls(**state)


@dataclass
class Round:
    """The result of a round, numbered from 0; equal on all ranks.

    Attributes:
        groups: The groups to train on (linked follow-ups included), in the order of their instructions.
        verdicts: Their verdicts, with the weights that group filters gave.
        dropped: Under ``style="serl"`` the groups that filters dropped, marked in their verdicts: they count in the
            statistics of their attempt and nowhere else.
        events: The ledger's rows, in order.
        stats: Numbers for the log.
        samples: A few groups with their verdicts, dropped ones included.
        answered: Every answered group with its verdict, before the group filters.
        probe: The responses to the health probe just before the round, by uid; empty where there was none.
        oldest: Optimizer step whose weights wrote the oldest group to train on.
        taken: Proposals that are seeds.
        given: Proposals of a source of the user's own, unless ``meta["origin"]`` is ``"self"``: the policy wrote those.
    """

    number: int
    groups: list[Group] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    dropped: list[tuple[Group, Verdict]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    stats: dict[str, float] = field(default_factory=dict)
    samples: list[tuple[Group, Verdict]] = field(default_factory=list)
    answered: list[tuple[Group, Verdict]] = field(default_factory=list)
    probe: dict[str, Probed] = field(default_factory=dict)
    oldest: int = 0
    taken: int = 0
    given: int = 0


def pad_rows(rows: Sequence[Sequence[int]], starts: Sequence[int], pad_id: int) -> RolloutBatch:
    """Right-pad B rows of token ids into a batch whose mask is True from each row's start to its end, advantages 0.

    The tensors are (B, T), T the longest row and at least 2. No rows give a batch of one unmasked row of fillers.
    """
    length = max([2, *(len(r) for r in rows)])
    input_ids = torch.full((max(1, len(rows)), length), pad_id, dtype=torch.long)
    attention = torch.zeros_like(input_ids)
    mask = torch.zeros_like(input_ids, dtype=torch.bool)
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        input_ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        attention[i, : len(row)] = 1
        mask[i, start : len(row)] = True
    if not rows:
        attention[:, :] = 1  # an empty slot still runs a forward pass, over fillers
    positions = torch.arange(length).expand_as(input_ids).contiguous()
    return RolloutBatch(input_ids, attention, positions, mask, torch.zeros(input_ids.shape))
