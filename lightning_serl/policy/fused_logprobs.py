"""Log-probs and their gradient in one pass over chunks of logits, for an output layer that is a plain matrix.

With logits ``z = factor * (hidden @ weight.T)`` and probabilities ``p = softmax(z)``, the derivative of a label's
log-prob by ``z`` is ``(one at the label) - p``. While a chunk of ``p`` exists, two products give the gradients of
hidden states and weight, so that the backward pass need not compute the logits again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Tables of logits that the fused pass holds at one time: the chunk's own and temporaries of its statistics.
TABLES = 3
# Logits whose statistics are taken at one time on a CPU: few enough to stay in its cache.
_CACHED = 2**18

#: A logit whose probability is 0, finite so that its product with 0 is 0.
IMPOSSIBLE = -1e30

#: ``f(logp, place)``: d loss / d logp, (k,), of the tokens at ``place``; ``logp`` is (N,), with 0 for later chunks.
LossDerivative = Callable[[Tensor, slice], Tensor]


def table_bytes(device: str) -> int:
    """Bytes of float32 logits that exist at one time by default, by the type of the device."""
    return 2**25 if device == "cpu" else 2**28


def impossible(dtype: torch.dtype) -> float:
    """:data:`IMPOSSIBLE`, or what float16 can hold of it."""
    return max(IMPOSSIBLE, torch.finfo(dtype).min)


def rows_at_once(hidden: Tensor, vocabulary: int, chunk: int | None) -> int:
    """Positions whose logits exist at one time: ``chunk``, by default what fits :func:`table_bytes`."""
    return max(1, table_bytes(hidden.device.type) // (4 * vocabulary)) if chunk is None else chunk


@dataclass
class FusedLogProbs:
    """Computes log-probs, entropy and certainty, and says how: scaling, chunks, dtypes and what carries a gradient.

    ``scale`` multiplies the logits, ``cap`` is their soft cap, ``temperature`` divides them. ``loss_derivative``
    predicts the gradient by ``logp`` up to a common factor. With ``spread_gradient`` entropy and certainty carry a
    gradient too. The ids in ``spare``, (k,) int64, have probability 0.
    """

    scale: float
    cap: float | None
    temperature: float
    chunk: int | None
    loss_derivative: LossDerivative | None
    certainty: bool
    spread_gradient: bool
    spare: Tensor | None = None
    # set by each call: positions of a chunk, whether gradients are recorded, and the dtype of the matrix products
    rows: int = 0
    learns: bool = False
    dtype: torch.dtype = torch.float32

    def __call__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(logp, entropy, certainty), each (N,)."""
        kind = hidden.device.type
        self.rows = rows_at_once(hidden, weight.shape[0], self.chunk)
        self.learns = torch.is_grad_enabled()
        # the dtype in which F.linear would multiply
        cast = torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64
        self.dtype = torch.get_autocast_dtype(kind) if cast else hidden.dtype
        return _FusedFunction.apply(self, hidden, weight, bias, labels)  # type: ignore[no-untyped-call]

    @property
    def exact(self) -> torch.dtype:
        """The dtype of statistics."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def factor(self) -> float:
        """Derivative of the logits by the layer's outputs, without the cap."""
        return self.scale / self.temperature

    @property
    def in_place(self) -> bool:
        """Whether the table holds logits in exact precision, so that softmax and gradient can overwrite it."""
        return self.dtype == self.exact and self.cap is None

    def chunks(self, count: int) -> list[slice]:
        """Consecutive places of at most :attr:`rows` positions."""
        return [slice(i, min(i + self.rows, count)) for i in range(0, count, self.rows)]

    def blocks(self, place: slice, table: Tensor) -> list[tuple[slice, slice]]:
        """(rows of the chunk, their place in the batch) of the blocks whose statistics are taken at one time."""
        count = place.stop - place.start
        step = max(1, _CACHED // table.shape[1]) if table.device.type == "cpu" else count
        rows = [slice(i, min(i + step, count)) for i in range(0, count, step)]
        return [(r, slice(place.start + r.start, place.start + r.stop)) for r in rows]

    def table(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
        """(k, V): the logits if :attr:`in_place`, else the layer's outputs; written into ``out``."""
        factor = self.factor if self.in_place else 1.0
        start = hidden.new_zeros(()) if bias is None else bias
        beta = 0.0 if bias is None else factor
        return torch.addmm(start, hidden, weight.t(), beta=beta, alpha=factor, out=out[: len(hidden)])

    def log_softmax(self, block: Tensor) -> tuple[Tensor, Tensor | None]:
        """(rows, V) log-probs in exact precision, and the derivative of the cap, ``None`` without one."""
        if self.in_place:
            return torch.log_softmax(self.without_spare(block), -1), None
        logits = block.to(self.exact, copy=True)
        if self.cap is None:
            return torch.log_softmax(self.without_spare(logits.mul_(self.factor)), -1), None
        logits.mul_(self.scale / self.cap).tanh_()
        cap_derivative = 1 - logits.square()
        logits = self.without_spare(logits.mul_(self.cap / self.temperature))
        return torch.log_softmax(logits, -1), cap_derivative

    def without_spare(self, logits: Tensor, value: float = IMPOSSIBLE) -> Tensor:
        """(rows, V) in exact precision, in place with ``value`` in the columns of the spare ids."""
        return logits if self.spare is None else logits.index_fill_(-1, self.spare, value)

    def certainty_of(self, log_p: Tensor) -> Tensor:
        """(rows,) KL(uniform || p) + log V over the ids that can be written, from (rows, V) log-probs."""
        if self.spare is None:
            return -log_p.mean(-1)
        return log_p.index_fill(-1, self.spare, 0.0).sum(-1) / (len(self.spare) - log_p.shape[-1])


class _FusedFunction(torch.autograd.Function):
    """Statistics and, where it can be predicted, the gradient in one pass over the logits.

    The gradient of a hidden state is ``(one at the label) - p`` times the weight, times the upstream gradient of its
    token, which the backward pass multiplies in. The gradient of the weight sums over tokens, so it needs the upstream
    gradient while the logits exist: ``loss_derivative`` predicts it, and the backward pass computes the logits again if
    the prediction was wrong. Tables hold ``p - (one at the label)``.
    """

    @staticmethod
    def forward(
        ctx: Any, task: FusedLogProbs, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        _, needs_hidden, needs_weight, needs_bias, _ = (task.learns and n for n in ctx.needs_input_grad)
        head_learns = needs_weight or needs_bias
        predicts = needs_hidden and not task.spread_gradient and (task.loss_derivative is not None or not head_learns)
        # one softmax in place; the entropy follows from the gradient of the hidden state
        on_cpu = hidden.device.type == "cpu"
        fused = predicts and on_cpu and task.in_place and bias is None and not task.certainty
        count = len(hidden)
        logp, entropy, certainty, predicted_grad = (hidden.new_zeros(count, dtype=task.exact) for _ in range(4))
        with torch.autocast(hidden.device.type, enabled=False):
            h, w, b = _cast(task, hidden, weight, bias)
            out = h.new_empty(min(task.rows, max(1, count)), len(w))
            hidden_grad = torch.empty_like(h) if predicts else None
            sums = _HeadGradient(weight, bias, needs_weight and predicts, needs_bias and predicts)
            for place in task.chunks(count):
                table, y = task.table(h[place], w, b, out), labels[place, None]
                if fused:
                    torch.softmax(task.without_spare(table), -1, out=table)
                    logp[place] = _label_logps(table.gather(-1, y)[:, 0], task, h[place], w, y)
                    _add_at(table, y, -1.0)
                else:
                    _statistics(task, table, place, y, (logp, entropy, certainty), keep_gradient=predicts)
                if hidden_grad is None:
                    continue
                torch.mm(table, w, out=hidden_grad[place])
                if fused:
                    entropy[place] = -logp[place] - task.factor * torch.linalg.vecdot(h[place], hidden_grad[place])
                if head_learns:
                    assert task.loss_derivative is not None
                    predicted_grad[place] = task.loss_derivative(logp, place).to(task.exact)
                    sums.add(table, h[place], predicted_grad[place])
        ctx.task, ctx.predicted = task, (hidden_grad, predicted_grad, sums) if predicts else None
        ctx.save_for_backward(hidden, weight, bias, labels, entropy)
        if not task.spread_gradient:
            ctx.mark_non_differentiable(entropy, certainty)
        return logp, entropy, certainty

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, up: Tensor, up_entropy: Tensor, up_certainty: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels, entropy = ctx.saved_tensors
        task: FusedLogProbs = ctx.task
        _, needs_hidden, needs_weight, needs_bias, _ = ctx.needs_input_grad
        hidden_grad: Tensor | None = None
        # its tensors become the gradients, so a second backward pass computes them from the logits
        predicted, ctx.predicted = ctx.predicted, None
        if predicted is not None:
            per_token, predicted_grad, sums = predicted
            factors = (up * -task.factor)[:, None]
            # not in place under autocast to float16, where gradients may be too small
            same = per_token.dtype == hidden.dtype
            hidden_grad = per_token.mul_(factors) if same else (per_token * factors).to(hidden.dtype)
            if not (needs_weight or needs_bias):
                return None, hidden_grad, None, None, None
            factor = _common_factor(up, predicted_grad)
            if factor is not None:
                return None, hidden_grad, *sums.times(factor * -task.factor), None
        sums = _HeadGradient(weight, bias, needs_weight, needs_bias)
        with torch.autocast(hidden.device.type, enabled=False):
            h, w, b = _cast(task, hidden, weight, bias)
            out = h.new_empty(min(task.rows, max(1, len(h))), len(w))
            gradient = torch.empty_like(h) if needs_hidden and hidden_grad is None else None
            for place in task.chunks(len(h)):
                table, y = task.table(h[place], w, b, out), labels[place, None]
                _logit_gradient(task, table, place, y, entropy, (up, up_entropy, up_certainty))
                if gradient is not None:
                    torch.mm(table, w, out=gradient[place])
                sums.add(table, h[place], None)
        if gradient is not None:
            hidden_grad = gradient.mul_(-task.factor).to(hidden.dtype)
        return None, hidden_grad, *sums.times(-task.factor), None


def _statistics(
    task: FusedLogProbs, table: Tensor, place: slice, labels: Tensor, out: tuple[Tensor, ...], keep_gradient: bool
) -> None:
    """Fill (logp, entropy, certainty) at a chunk's place; if asked, leave ``p - (one at the label)`` in the table."""
    logp, entropy, certainty = out
    for rows, at in task.blocks(place, table):
        log_p, cap_derivative = task.log_softmax(table[rows])
        logp[at] = log_p.gather(-1, labels[rows])[:, 0]
        p = log_p.exp()
        entropy[at] = -torch.linalg.vecdot(p, log_p)
        if task.certainty:
            certainty[at] = task.certainty_of(log_p)
        if keep_gradient:
            _add_at(p, labels[rows], -1.0)
            table[rows] = p if cap_derivative is None else p.mul_(cap_derivative)


def _logit_gradient(
    task: FusedLogProbs, table: Tensor, place: slice, labels: Tensor, entropy: Tensor, upstream: tuple[Tensor, ...]
) -> None:
    """Replace a chunk's table by the negative gradient of the loss by the chunk's logits."""
    up, up_entropy, up_certainty = upstream
    for rows, at in task.blocks(place, table):
        log_p, cap_derivative = task.log_softmax(table[rows])
        p, factors = log_p.exp(), up[at, None]
        if task.spread_gradient:
            even = up_certainty[at, None]
            back = log_p.add_(entropy[at, None]).mul_(up_entropy[at, None]).add_(factors - even)
            possible = p.shape[-1] - (0 if task.spare is None else len(task.spare))
            back = task.without_spare(back.mul_(p).add_(even / possible), 0.0)
        else:
            back = p.mul_(factors)
        _add_at(back, labels[rows], -factors)
        table[rows] = back if cap_derivative is None else back.mul_(cap_derivative)


def _cast(task: FusedLogProbs, *tensors: Tensor | None) -> Iterator[Any]:
    """Tensors (or ``None``) in the dtype of the products."""
    return (None if x is None else x.detach().to(task.dtype) for x in tensors)


def _add_at(table: Tensor, labels: Tensor, value: Tensor | float) -> Tensor:
    """Add to the label of each row, in place."""
    added = value if isinstance(value, Tensor) else table.new_full(labels.shape, value)
    return table.scatter_add_(-1, labels, added.to(table.dtype))


def _label_logps(p: Tensor, task: FusedLogProbs, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """(k,) logs of the labels' probabilities; those too small for their dtype are computed from their logits."""
    small = p < torch.finfo(p.dtype).tiny / torch.finfo(p.dtype).eps
    logs = p.log()
    if bool(small.any()):
        logits = task.without_spare((hidden[small] @ weight.t()).mul_(task.factor))
        logs[small] = torch.log_softmax(logits, -1).gather(-1, labels[small])[:, 0]
    return logs


class _HeadGradient:
    """Gradients of the output layer's weight and bias, summed chunk by chunk in the dtype of the weight."""

    def __init__(self, weight: Tensor, bias: Tensor | None, needs_weight: bool, needs_bias: bool) -> None:
        self.weight = torch.zeros_like(weight) if needs_weight else None
        self.bias = torch.zeros_like(bias) if needs_bias and bias is not None else None

    def add(self, table: Tensor, hidden: Tensor, factors: Tensor | None) -> None:
        """Add a chunk: (k, V) gradients by the outputs, (k, H) hidden states, (k,) factors of the rows' gradients."""
        back = table.t()
        if factors is None:
            factors = hidden.new_ones(len(hidden))
        # in float16 the factors alone would underflow: gradients are small before they are summed
        size = _largest(factors).clamp(min=torch.finfo(factors.dtype).tiny)
        even = factors / size
        if self.bias is not None:
            self.bias.addcmul_(torch.mv(back, even.to(table.dtype)), size)
        if self.weight is None:
            return
        if self.weight.dtype == table.dtype:
            self.weight.addmm_(back, (hidden * factors[:, None]).to(table.dtype))
        else:
            self.weight.addcmul_(torch.mm(back, (hidden * even[:, None]).to(table.dtype)), size)

    def times(self, factor: float | Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Both gradients, multiplied in place."""
        for total in (self.weight, self.bias):
            if total is not None:
                total.mul_(factor)
        return self.weight, self.bias


def _common_factor(up: Tensor, predicted: Tensor) -> Tensor | None:
    """The number that turns ``predicted`` into ``up`` up to rounding, or ``None`` if there is none."""
    a, b = up.double(), predicted.double()
    factor = (a @ b) / (b @ b).clamp(min=torch.finfo(b.dtype).tiny)
    bound = 64 * torch.finfo(up.dtype).eps * _largest(a)
    return factor if bool(_largest(a - factor * b) <= bound) else None


def _largest(values: Tensor) -> Tensor:
    return values.abs().max() if values.numel() else values.new_zeros(())
