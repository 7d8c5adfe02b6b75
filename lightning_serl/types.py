"""What travels between the stages of a round: instructions, completions, groups, verdicts and micro-batches.

Notation used everywhere: ``n`` completions of one group, ``B`` rows of a micro-batch, ``T`` tokens of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor


class Link(NamedTuple):
    """Where a derived instruction comes from: ``relation`` to the group of ``parent`` (a uid), response ``index``."""

    relation: str
    parent: str
    index: int | None = None  # type: ignore[assignment]  # hides tuple.index, which nobody asks of it


@dataclass(frozen=True)
class Instruction:
    """One problem to be answered.

    Attributes:
        prompt: The problem as the user or the policy wrote it, without any template.
        uid: Unique within a run; made from counters, so equal runs give equal uids.
        role: Which reward and which solve template apply; ``"solve"`` for ordinary problems.
        label: Gold answer, if one is known. Never shown to the policy.
        link: Set on follow-ups made by ``InstructionSource.derive``.
        train: ``False`` keeps the group out of the loss; it is still rolled out and scored.
        meta: Free-form facts (``choices``, ``subject``, ``round`` ...): primitives only, they enter checkpoints.
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
        text: The ids decoded without special tokens, and without a stop string that ended it.
        logprobs: The sampler's log-probability of each token (same length as ``token_ids``), or ``None``.
        finished: ``True`` if an end token or stop string ended it, ``False`` if it was cut off by length.
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
        instruction: What was asked.
        prompt_ids: The tokens the policy saw; empty for recorded text.
        completions: The ``n`` responses.
        answers: What each response answers, ``None`` where it answers nothing; filled once by ``answers.cluster``.
        cluster: Class of each answer, -1 for no answer; classes are numbered by the canonical order of answers.
        stats: Per-token statistics from the policy's own pass (``"entropy"``, ``"certainty"``): ``n`` float
            tensors of the completions' lengths, present only if some reward ``needs`` them.
        links: Related groups of the same round, by ``(relation, response index or None)``.
    """

    instruction: Instruction
    prompt_ids: tuple[int, ...]
    completions: list[Completion]
    answers: list[str | None] | None = None
    cluster: list[int] | None = None
    stats: dict[str, list[Tensor]] = field(default_factory=dict)
    links: dict[tuple[str, int | None], list[Group]] = field(default_factory=dict)

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
    """What a reward says of one group.

    Attributes:
        scores: (n,) float32, one score per response.
        label: The pseudo-label (or gold label) that the scores were measured against, if there is one.
        confidence: In [0, 1]; for votes the share of responses that agree with the label.
        weight: (n,) float32; 0 keeps a response out of baseline, spread and denominator.
        token_scores: Per-token scores, ``n`` float tensors of the completions' lengths, added to the advantage.
        centred: The scores are advantages already; no baseline is subtracted and nothing is scaled.
        info: Facts for the log (``"tie"``, ``"unique_answers"`` ...).
        dropped: A group filter dropped this group, and yet it takes part in the batch statistics of the advantages;
            it is not trained on.
        attempt: Groups of one attempt share their batch statistics, those of different attempts do not.
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
        self.scores = torch.as_tensor(self.scores, dtype=torch.float32)
        weight = torch.ones_like(self.scores) if self.weight is None else self.weight
        self.confidence = float(self.confidence)
        self.weight = torch.as_tensor(weight, dtype=torch.float32)
        if self.weight.shape != self.scores.shape:
            shapes = tuple(self.weight.shape), tuple(self.scores.shape)
            raise ValueError(f"weight has shape {shapes[0]}, scores {shapes[1]}; both must be (n,)")

    def scaled(self, factor: float) -> Verdict:
        """The same verdict with its response weights multiplied by ``factor`` (a group filter's weight)."""
        return self if factor == 1.0 else replace(self, weight=self.weight * factor)


class TokenStats(NamedTuple):
    """What ``Policy.forward`` returns, each (B, T) float32 and 0 outside the completion mask."""

    logp: Tensor
    entropy: Tensor | None = None
    certainty: Tensor | None = None


class RolloutBatch:
    """One micro-batch of an optimizer step.

    A plain class on purpose: under ``bf16-true`` Lightning rounds the floats of dicts and dataclasses.
    All tensors are right-padded and aligned with the token they speak of: ``logp[b, t]`` is that of
    ``input_ids[b, t]``.

    Attributes:
        input_ids: (B, T) int64, prompt then completion then padding.
        attention_mask: (B, T) int64, 1 on real tokens.
        position_ids: (B, T) int64.
        mask: (B, T) bool, True on completion tokens that enter the loss.
        advantages: (B, T) float32.
        old_logp: (B, T) float32 of the policy that starts the round, or ``None`` when the round is a single step.
        ref_logp: (B, T) float32 of the reference policy, or ``None`` without a KL term.
        sampler_logp: (B, T) float32 as the engine reported them, NaN where it reported none; ``None`` if for no row.
        num_tokens: Loss tokens of the whole optimizer step, over all ranks and micro-batches.
        num_sequences: Responses of the whole optimizer step with at least one loss token.
        uids: Instruction uid of each row; empty for an empty slot.
        positions: Positions that went through the decoder; set by ``Policy.forward``.
        padding: How many of them held no token; set by ``Policy.forward``.
        kl_in_reward: Sum over these rows of the divergence that was taken off their reward; 0 if none was.
        stale: Whether older weights than those that start the round wrote any of these rows.
    """

    _TENSORS = (
        "input_ids", "attention_mask", "position_ids", "mask", "advantages", "old_logp", "ref_logp", "sampler_logp",
    )  # fmt: skip

    _NUMBERS = ("num_tokens", "num_sequences", "kl_in_reward", "stale")

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
    ) -> None:
        self.input_ids, self.attention_mask = input_ids, attention_mask
        self.position_ids, self.mask = position_ids, mask
        self.advantages, self.old_logp, self.ref_logp, self.sampler_logp = advantages, old_logp, ref_logp, sampler_logp
        self.num_tokens, self.num_sequences, self.uids = num_tokens, num_sequences, tuple(uids)
        self.kl_in_reward, self.stale = kl_in_reward, stale
        self.positions = self.padding = 0

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> RolloutBatch:
        """A copy with every tensor on ``device``; dtypes stay as they are."""
        held: dict[str, Any] = {k: getattr(self, k) for k in self._TENSORS}
        moved: dict[str, Any] = {
            k: v if v is None else v.to(device, non_blocking=non_blocking) for k, v in held.items()
        }
        return RolloutBatch(**moved, **{k: getattr(self, k) for k in self._NUMBERS}, uids=self.uids)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives only, for a checkpoint read with ``weights_only=True``."""
        held = {k: getattr(self, k) for k in (*self._TENSORS, *self._NUMBERS)}
        return held | {"uids": list(self.uids)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> RolloutBatch:
        """The inverse of :meth:`state_dict`."""
        return cls(**state)


Event = dict[str, Any]


@dataclass
class Round:
    """What came of a round; equal on all ranks.

    Attributes:
        number: From 0.
        groups: The surviving groups (linked follow-ups included), in the order of their instructions.
        verdicts: Their verdicts, group weights folded in.
        dropped: Under ``style="serl"`` the groups that the filters dropped, marked as such in their verdicts: they
            take part in the statistics of their attempt and in nothing else.
        events: The ledger's rows, in order.
        stats: Numbers for the log.
        samples: A few groups with their verdicts, dropped ones too.
        answered: Every answered group with its verdict, before the group filters.
        probe: The votes on the health probe just before the round, by uid; empty where none was made.
        oldest: Optimizer step whose weights wrote the oldest group that survived.
        taken: Proposals that are seeds, which nobody wrote.
    """

    number: int
    groups: list[Group] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    dropped: list[tuple[Group, Verdict]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    stats: dict[str, float] = field(default_factory=dict)
    samples: list[tuple[Group, Verdict]] = field(default_factory=list)
    answered: list[tuple[Group, Verdict]] = field(default_factory=list)
    probe: dict[str, Vote] = field(default_factory=dict)
    oldest: int = 0
    taken: int = 0


#: The most common answer, ``None`` if no answer is more common than all others, and its share of the responses.
Vote: TypeAlias = tuple[str | None, float]


def pad_rows(rows: Sequence[Sequence[int]], starts: Sequence[int], pad_id: int) -> RolloutBatch:
    """Right-pad token rows into a batch whose mask covers each row from its start on.

    Args:
        rows: B lists of token ids.
        starts: First masked position of each row.
        pad_id: Filler, masked everywhere.

    Returns:
        (B, T) batch with advantages 0.
    """
    length = max(2, *(len(r) for r in rows)) if rows else 2
    input_ids = torch.full((max(1, len(rows)), length), pad_id, dtype=torch.long)
    attention = torch.zeros_like(input_ids)
    mask = torch.zeros(input_ids.shape, dtype=torch.bool)
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        input_ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        attention[i, : len(row)] = 1
        mask[i, start : len(row)] = True
    if not rows:
        attention[:, :] = 1  # an empty slot is a real forward pass over fillers
    positions = torch.arange(length).expand_as(input_ids).contiguous()
    return RolloutBatch(input_ids, attention, positions, mask, torch.zeros(input_ids.shape))


#: The default rules, and those of SeRL's published code.
STYLES = ("default", "serl")
