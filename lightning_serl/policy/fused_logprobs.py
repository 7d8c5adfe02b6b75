"""Log-probabilities and their gradient in chunks, without the full logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Bytes of float32 logits that exist at one time unless a chunk is given.
_TABLE = {"cpu": 2**25, "other": 2**28}
# Logits whose statistics are taken at one time on a CPU: few enough to stay in its cache.
_CACHED = 2**18

# (N,) log-probs, those of later chunks still 0, and the chunk's place -> d loss / d logp of the chunk
Slope = Callable[[Tensor, slice], Tensor]


def _rows_at_once(hidden: Tensor, vocabulary: int, chunk: int | None) -> int:
    table = _TABLE["cpu" if hidden.device.type == "cpu" else "other"]
    return max(1, table // (4 * vocabulary)) if chunk is None else chunk


# -- a matrix: everything while the logits of a chunk are there --------------------------------------------------------


@dataclass
class _Product:
    """How the logits of a chunk are made, and what is asked of them."""

    scale: float
    cap: float | None
    temperature: float
    chunk: int | None
    slope: Slope | None
    certainty: bool
    spread_gradient: bool
    rows: int = 0
    learns: bool = False
    dtype: torch.dtype = torch.float32

    def __call__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(logp, entropy, certainty), each (N,)."""
        kind = hidden.device.type
        self.rows = _rows_at_once(hidden, weight.shape[0], self.chunk)
        self.learns = torch.is_grad_enabled()
        # in what F.linear would multiply
        cast = torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64
        self.dtype = torch.get_autocast_dtype(kind) if cast else hidden.dtype
        return _TokenStats.apply(self, hidden, weight, bias, labels)  # type: ignore[no-untyped-call]

    @property
    def exact(self) -> torch.dtype:
        """In which statistics are taken."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def factor(self) -> float:
        """Derivative of the logits by the layer's outputs, cap aside."""
        return self.scale / self.temperature

    @property
    def in_place(self) -> bool:
        """Whether a softmax of the table is all that lies between the layer's outputs and the gradient."""
        return self.dtype == self.exact and self.cap is None

    def chunks(self, count: int) -> list[slice]:
        return [slice(i, min(i + self.rows, count)) for i in range(0, count, self.rows)]

    def blocks(self, place: slice, table: Tensor) -> list[tuple[slice, slice]]:
        """Rows of a chunk that are worked on together, and their place in the batch."""
        count = place.stop - place.start
        step = max(1, _CACHED // table.shape[1]) if table.device.type == "cpu" else count
        rows = [slice(i, min(i + step, count)) for i in range(0, count, step)]
        return [(r, slice(place.start + r.start, place.start + r.stop)) for r in rows]

    def table(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
        """(k, V): the logits where :attr:`in_place`, else what the layer gives."""
        factor = self.factor if self.in_place else 1.0
        start = hidden.new_zeros(()) if bias is None else bias
        beta = 0.0 if bias is None else factor
        return torch.addmm(start, hidden, weight.t(), beta=beta, alpha=factor, out=out[: len(hidden)])

    def log_softmax(self, block: Tensor) -> tuple[Tensor, Tensor | None]:
        """(rows, V) log-probs in exact precision, and the derivative of the cap where there is one."""
        if self.in_place:
            return torch.log_softmax(block, -1), None
        logits = block.to(self.exact, copy=True)
        if self.cap is None:
            return torch.log_softmax(logits.mul_(self.factor), -1), None
        logits.mul_(self.scale / self.cap).tanh_()
        bend = 1 - logits.square()
        return torch.log_softmax(logits.mul_(self.cap / self.temperature), -1), bend


class _TokenStats(torch.autograd.Function):
    """Statistics and, where the gradient can be known ahead, both of its products in one pass over the logits.

    d logp / d logits is (one at the label) - p. The gradient of a hidden state is that row times the weight, whatever
    its upstream gradient turns out to be: a factor per token. The gradient of the weight sums over tokens, so it needs
    the upstream gradient, or the slope that foretells it. Tables hold p - (one at the label).
    """

    @staticmethod
    def forward(
        ctx: Any, product: _Product, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        _, needs_hidden, needs_weight, needs_bias, _ = (product.learns and n for n in ctx.needs_input_grad)
        learns_head = needs_weight or needs_bias
        ahead = needs_hidden and not product.spread_gradient and (product.slope is not None or not learns_head)
        # one softmax in place, and the entropy follows from the gradient of the hidden state
        on_cpu = hidden.device.type == "cpu"
        swift = ahead and on_cpu and product.in_place and bias is None and not product.certainty
        count = len(hidden)
        logp, entropy, certainty, foretold = (hidden.new_zeros(count, dtype=product.exact) for _ in range(4))
        with torch.autocast(hidden.device.type, enabled=False):
            h, w, b = _cast(product, hidden, weight, bias)
            out = h.new_empty(min(product.rows, max(1, count)), len(w))
            unit = torch.empty_like(h) if ahead else None
            sums = _Sums(weight, bias, needs_weight and ahead, needs_bias and ahead)
            for place in product.chunks(count):
                table, y = product.table(h[place], w, b, out), labels[place, None]
                if swift:
                    torch.softmax(table, -1, out=table)
                    logp[place] = _logs(table.gather(-1, y)[:, 0], product, h[place], w, y)
                else:
                    for rows, at in product.blocks(place, table):
                        log_p, bend = product.log_softmax(table[rows])
                        logp[at] = log_p.gather(-1, y[rows])[:, 0]
                        p = log_p.exp()
                        entropy[at] = -torch.linalg.vecdot(p, log_p)
                        if product.certainty:
                            certainty[at] = -log_p.mean(-1)
                        if ahead:
                            _add_at(p, y[rows], -1.0)
                            table[rows] = p if bend is None else p.mul_(bend)
                if unit is None:
                    continue
                if swift:
                    _add_at(table, y, -1.0)
                torch.mm(table, w, out=unit[place])
                if swift:
                    entropy[place] = -logp[place] - product.factor * torch.linalg.vecdot(h[place], unit[place])
                if learns_head:
                    assert product.slope is not None
                    foretold[place] = product.slope(logp, place).to(product.exact)
                    sums.add(table, h[place], foretold[place])
        ctx.product, ctx.ahead = product, (unit, foretold, sums) if ahead else None
        ctx.save_for_backward(hidden, weight, bias, labels, entropy)
        if not product.spread_gradient:
            ctx.mark_non_differentiable(entropy, certainty)
        return logp, entropy, certainty

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, up: Tensor, up_entropy: Tensor, up_certainty: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels, entropy = ctx.saved_tensors
        product: _Product = ctx.product
        _, needs_hidden, needs_weight, needs_bias, _ = ctx.needs_input_grad
        by_hidden: Tensor | None = None
        ahead, ctx.ahead = ctx.ahead, None  # its tensors become the gradients; a second call computes anew
        if ahead is not None:
            unit, foretold, sums = ahead
            factors = (up * -product.factor)[:, None]
            # not in place under autocast to float16, where gradients may be too small
            by_hidden = unit.mul_(factors) if unit.dtype == hidden.dtype else (unit * factors).to(hidden.dtype)
            if not (needs_weight or needs_bias):
                return None, by_hidden, None, None, None
            factor = _common_factor(up, foretold)
            if factor is not None:
                return None, by_hidden, *sums.times(factor * -product.factor), None
        sums = _Sums(weight, bias, needs_weight, needs_bias)
        with torch.autocast(hidden.device.type, enabled=False):
            h, w, b = _cast(product, hidden, weight, bias)
            out = h.new_empty(min(product.rows, max(1, len(h))), len(w))
            gradient = torch.empty_like(h) if needs_hidden and by_hidden is None else None
            for place in product.chunks(len(h)):
                table, y = product.table(h[place], w, b, out), labels[place, None]
                for rows, at in product.blocks(place, table):
                    log_p, bend = product.log_softmax(table[rows])
                    p, factors = log_p.exp(), up[at, None]
                    if product.spread_gradient:
                        even = up_certainty[at, None]
                        back = log_p.add_(entropy[at, None]).mul_(up_entropy[at, None]).add_(factors - even)
                        back.mul_(p).add_(even / p.shape[-1])
                    else:
                        back = p.mul_(factors)
                    _add_at(back, y[rows], -factors)
                    table[rows] = back if bend is None else back.mul_(bend)
                if gradient is not None:
                    torch.mm(table, w, out=gradient[place])
                sums.add(table, h[place], None)
        if gradient is not None:
            by_hidden = gradient.mul_(-product.factor).to(hidden.dtype)
        return None, by_hidden, *sums.times(-product.factor), None


def _cast(
    product: _Product, hidden: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    cast = [None if x is None else x.detach().to(product.dtype) for x in (hidden, weight, bias)]
    assert cast[0] is not None
    assert cast[1] is not None
    return cast[0], cast[1], cast[2]


def _add_at(table: Tensor, labels: Tensor, value: Tensor | float) -> Tensor:
    """In place: add to the label of each row."""
    added = value if isinstance(value, Tensor) else table.new_full(labels.shape, value)
    return table.scatter_add_(-1, labels, added.to(table.dtype))


def _logs(p: Tensor, product: _Product, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """(k,) logs of the labels' probabilities; those too small for their precision are computed anew."""
    small = p < torch.finfo(p.dtype).tiny / torch.finfo(p.dtype).eps
    logs = p.log()
    if bool(small.any()):
        logits = (hidden[small] @ weight.t()).mul_(product.factor)
        logs[small] = torch.log_softmax(logits, -1).gather(-1, labels[small])[:, 0]
    return logs


class _Sums:
    """Gradients of weight and bias, summed chunk by chunk in the precision of the weight."""

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
        """Both gradients times one factor."""
        for total in (self.weight, self.bias):
            if total is not None:
                total.mul_(factor)
        return self.weight, self.bias


def _common_factor(up: Tensor, foretold: Tensor) -> Tensor | None:
    """The number that makes ``up`` of ``foretold``, or None if none does to the last bits."""
    a, b = up.double(), foretold.double()
    factor = (a @ b) / (b @ b).clamp(min=torch.finfo(b.dtype).tiny)
    bound = 64 * torch.finfo(up.dtype).eps * _largest(a)
    return factor if bool(_largest(a - factor * b) <= bound) else None


def _largest(values: Tensor) -> Tensor:
    return values.abs().max() if values.numel() else values.new_zeros(())
