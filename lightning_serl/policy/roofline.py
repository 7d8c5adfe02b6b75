"""Seconds of the phases of a round, by arithmetic: products, bytes and calls over what a device does in a second.

Nothing is measured or loaded here. A phase takes the time of its matrix products, or of reading the weights if that is
longer; beside it the time of all other operations, which read and write memory, and of the calls that start them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

# Elements that the operations between the products of a layer read and write for each token, per element of the hidden
# states (two norms with their casts, two residual sums), of queries and keys (rotation, transposition), and of the
# inner layer (activation and product of its two halves). A backward pass moves twice as much.
_HIDDEN, _HEADS, _INNER = 24, 8, 6
# The same for an adapter, per element of the results of the linear layers that it is on: scaled and added.
_ADAPTER = 3
# Bytes that the log-probs move per entry of a table of logits: written, read twice, overwritten by the gradient.
_TABLE = 16
# Bytes that drawing a token moves per entry of the vocabulary.
_DRAW = 28
# Bytes that an optimizer step moves per trained weight, beyond reading and writing the optimizer's state: the weight
# three times, the gradient five times (norm, clipping, step, check).
_STEP = 32
# The longest of many answers, as a multiple of their mean length, if no limit is reached before.
_LONGEST = 3


@dataclass(frozen=True)
class Machine:
    """What one device does in a second as this package reaches it; a data sheet says more."""

    products: float  # FLOP/s of products over many tokens: training and reading prompts
    decoding: float  # FLOP/s of products over as many rows as are written at one time
    reading: float  # bytes/s of weights that are multiplied with few rows
    attending: float  # bytes/s of keys and values while tokens are written
    bandwidth: float  # bytes/s that are read or written
    fresh: float  # bytes/s of large buffers that are allocated where they are written
    call: float  # seconds in which the host starts the operations of one layer
    step: float  # seconds of the host for a token of all rows together, beside the layers
    token: float  # seconds of the host for a token of each row
    link: float  # bytes/s between devices that train together
    push: float  # bytes/s of weights on their way to another process


@dataclass(frozen=True)
class Shape:
    """A model, as far as it takes time."""

    products: int  # weights of the decoder that each token is multiplied with; of experts those that are chosen
    weights: int  # all weights of the decoder
    head: int  # weights of the output layer
    layers: int
    hidden: int  # elements of a hidden state
    heads: int  # elements of the queries of a token in one layer
    kv_heads: int  # elements of its keys
    inner: int  # elements of the inner layer, of chosen experts together
    vocab: int
    width: int = 64  # elements of one head
    itemsize: int = 4  # bytes of an element in products and activations
    weight_bytes: int = 4  # bytes of a weight as it is read
    adapter: int = 0  # weights of an adapter; 0 without one
    trained: int = 0  # weights that are trained
    total: int = 0  # all weights, input embeddings included, without an adapter

    @property
    def moved(self) -> int:
        """Elements that a forward pass moves for each token in all layers, beside its products."""
        one = _HIDDEN * self.hidden + _HEADS * (self.heads + self.kv_heads) + _INNER * self.inner
        if self.adapter:
            one += _ADAPTER * (self.heads + 2 * self.kv_heads + 2 * self.hidden + 2 * self.inner)
        return self.layers * one

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values of a token in all layers."""
        return 2 * self.layers * self.kv_heads * self.itemsize

    def attention(self, context: float) -> float:
        """FLOP of attention for a token that sees ``context`` others."""
        return 4.0 * self.layers * self.heads * context


@dataclass(frozen=True)
class Texts:
    """Completions of equal kind that are written together."""

    prompts: float  # distinct ones
    prompt_tokens: float
    each: float  # completions of a prompt
    tokens: float  # of a completion on average
    limit: int  # most tokens of one

    @property
    def written(self) -> float:
        """Tokens of all completions."""
        return self.prompts * self.each * self.tokens

    @property
    def longest(self) -> float:
        """Tokens of the longest completion."""
        return min(float(self.limit), _LONGEST * self.tokens)

    def times(self, factor: float) -> Texts:
        """So many times as many prompts."""
        return Texts(self.prompts * factor, self.prompt_tokens, self.each, self.tokens, self.limit)


def forward_seconds(
    machine: Machine, shape: Shape, tokens: float, context: float, passes: float, scored: float = 0.0
) -> float:
    """Seconds of ``passes`` forward passes over so many tokens in all, ``scored`` of them through the output layer."""
    flop = tokens * (2 * (shape.products + shape.adapter) + shape.attention(context)) + 2.0 * scored * shape.head
    reading = passes * (shape.weights + shape.head) * shape.weight_bytes / machine.reading
    moving = tokens * shape.moved * shape.itemsize / machine.fresh + scored * shape.vocab * _TABLE / machine.bandwidth
    return max(flop / machine.products, reading) + moving + passes * shape.layers * machine.call


def writing_seconds(machine: Machine, shape: Shape, texts: Texts, rows: int, ranks: int = 1) -> float:
    """Seconds in which ``ranks`` devices write completions, each at most ``rows`` at one time."""
    mine = texts.times(1 / ranks)
    if not mine.written:
        return 0.0
    reading = forward_seconds(machine, shape, mine.prompts * mine.prompt_tokens, mine.prompt_tokens / 2, 1)
    live = min(float(rows), mine.prompts * mine.each)
    # full until the prompts run out, and then as long as the longest of the last rows goes on
    steps = max(mine.written / live, mine.longest)
    context = mine.prompt_tokens + mine.tokens / 2
    flop = 2 * (shape.products + shape.adapter) + 2 * shape.head
    moved = shape.moved * shape.itemsize + shape.vocab * _DRAW
    each = flop / machine.decoding + moved / machine.bandwidth + machine.token
    each += context * shape.kv_bytes / machine.attending
    weights = (shape.weights + shape.head) * shape.weight_bytes / machine.reading
    # reading the weights hides behind the products where there are enough rows
    idle = max(0.0, weights - mine.written / steps * flop / machine.decoding)
    return reading + mine.written * each + steps * (shape.layers * machine.call + machine.step + idle)


@dataclass(frozen=True)
class Steps:
    """The optimizer steps of a round on one device."""

    count: int
    micro_batches: int  # of a step
    tokens: float  # positions of the whole round, prompts and padding included
    scored: float  # of them, those in the loss
    context: float  # tokens that one of them sees on average
    full: bool = True  # whether all weights are trained, else an adapter
    checkpointing: bool = False
    state: float = 8.0  # bytes of optimizer state per trained weight
    reference: bool = False  # whether reference log-probs are computed
    old: bool = False  # whether those of the policy at the start of the round are
    rows_passes: int = 1  # passes without gradients for one of these
    passes: int = 1  # over the responses (inner epochs)


def training_seconds(machine: Machine, shape: Shape, steps: Steps, ranks: int = 1, sharded: bool = False) -> float:
    """Seconds of a round's optimizer steps on each of ``ranks`` devices."""
    calls = float(steps.count * steps.micro_batches)
    tokens, scored = steps.passes * steps.tokens / ranks, steps.passes * steps.scored / ranks
    forward = forward_seconds(machine, shape, tokens, steps.context, calls)
    # products with the transposed weights, and for all weights those of their gradients; attention five halves
    weights = 4 if steps.full else 2
    flop = tokens * (weights * shape.products + 4 * shape.adapter + 2.5 * shape.attention(steps.context))
    # the log-probs and their gradients come from one pass through the output layer
    flop += scored * (6 if steps.full else 4) * shape.head
    moved = (
        2 * tokens * shape.moved * shape.itemsize / machine.fresh + scored * shape.vocab * _TABLE / machine.bandwidth
    )
    backward = flop / machine.products + moved + 1.5 * calls * shape.layers * machine.call
    again = forward if steps.checkpointing else 0.0
    own = shape.trained / (ranks if sharded else 1)
    updates = steps.count * own * (_STEP + 2 * steps.state) / machine.bandwidth
    return forward + again + backward + updates + steps.count * _exchange(machine, shape, steps, ranks, sharded)


def _exchange(machine: Machine, shape: Shape, steps: Steps, ranks: int, sharded: bool) -> float:
    """Seconds in which one optimizer step moves weights and gradients between the devices."""
    if ranks == 1:
        return 0.0
    share = (ranks - 1) / ranks
    if sharded:  # weights are gathered for both passes of each micro-batch, gradients reduced after the second
        moved = steps.micro_batches * 3.0 * (shape.weights + shape.head) * shape.itemsize
    else:
        moved = 2.0 * shape.trained * 4
    return share * moved / machine.link


def logprob_seconds(machine: Machine, shape: Shape, steps: Steps, ranks: int = 1) -> float:
    """Seconds of the passes without gradients that give reference and old log-probs."""
    wanted = steps.reference + steps.old
    tokens, scored = steps.tokens / ranks, steps.scored / ranks
    return wanted * forward_seconds(machine, shape, tokens, steps.context, steps.rows_passes, scored) if wanted else 0.0


@dataclass(frozen=True)
class Round:
    """Seconds of a round by part, and of what does not belong to any round."""

    parts: dict[str, float] = field(default_factory=dict)  # named as under ``time/``
    ahead: bool = False  # whether the next round is written while this one trains
    evaluation: float = 0.0  # of one evaluation

    @property
    def seconds(self) -> float:
        """Seconds from one round to the next."""
        written = sum(self.parts.get(name, 0.0) for name in ("writing", "answering", "grading"))
        rest = sum(self.parts.values()) - written
        return max(written, rest) if self.ahead else written + rest

    @property
    def limit(self) -> str:
        """The part that takes longest."""
        return max(self.parts, key=lambda name: self.parts[name])


def attempts(kept: float, most: int) -> int:
    """How often a round answers prompts until so large a share of them fills it; ``most`` at most."""
    return 1 if kept >= 1 else min(most, 2 if kept >= 0.5 else ceil(1 / kept))
