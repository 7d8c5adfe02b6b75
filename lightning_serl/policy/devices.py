"""Cards by their data sheets, and what this machine does in a second, measured."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_serl.errors import InputError
from lightning_serl.policy.roofline import Machine, Shape


@dataclass(frozen=True)
class Card:
    """A GPU: dense products, without sparsity."""

    memory: float  # GiB that a process finds
    half: float  # TFLOP/s in bfloat16 (float16 where there is none), sums in float32
    single: float  # TFLOP/s in float32; TF32 is not used unless a run asks for it
    bandwidth: float  # GB/s of its memory
    link: float  # GB/s in one direction to the other cards of a node


CARDS = {
    "b200": Card(178, 2250, 75, 7700, 900),
    "h200": Card(139.8, 989, 67, 4800, 450),
    "h100-80gb": Card(79.2, 989, 67, 3350, 450),
    "h100-pcie": Card(79.2, 756, 51, 2000, 64),
    "a100-80gb": Card(79.2, 312, 19.5, 2039, 300),
    "a100-40gb": Card(39.4, 312, 19.5, 1555, 300),
    "l40s": Card(44.4, 362, 91.6, 864, 32),
    "a6000": Card(47.4, 155, 38.7, 768, 32),
    "a10g": Card(22.1, 70, 31.2, 600, 32),
    "l4": Card(22.0, 121, 30.3, 300, 32),
    "t4": Card(14.6, 65, 8.1, 320, 16),
    "v100-32gb": Card(31.7, 125, 15.7, 900, 150),
    "rtx5090": Card(31.3, 209, 105, 1790, 64),
    "rtx4090": Card(23.5, 165, 82.6, 1008, 32),
    "rtx3090": Card(23.6, 71, 35.6, 936, 32),
}
#: The name of this machine.
THIS = "cpu"
#: Assumptions for cards, none of them measured: shares of the data sheet's figures that are reached in products over
#: many tokens, in products while tokens are written, and of the bandwidth; seconds in which the host starts the
#: operations of one layer, with an adapter, and those of vLLM, which starts them as one graph.
PRODUCTS, DECODING, MEMORY = 0.55, 0.4, 0.6
_CALL, _CALL_ADAPTER, _CALL_GRAPH, _STEP, _TOKEN = 0.35e-3, 0.7e-3, 0.03e-3, 1.5e-3, 15e-6
# Bytes/s between nodes for each card (a network of 200 Gbit/s for each), and of weights to another process.
_NETWORK, _PUSH = 25e9, 2e9
#: Said beside every plan for a card.
ASSUMED = (
    f"of the card, not measured: {100 * PRODUCTS:.0f} % of the data sheet's FLOP/s while training, "
    f"{100 * DECODING:.0f} % while writing, {100 * MEMORY:.0f} % of the bandwidth, {1000 * _CALL} ms of the host for "
    "each layer and pass"
)


def card(name: str) -> Card:
    """The card of that name, in any spelling of case and hyphens; an InputError with the known names otherwise."""
    plain = {_plain(known): known for known in CARDS}
    if (found := plain.get(_plain(name))) is not None:
        return CARDS[found]
    near = [one for one in plain if _plain(name) and one.startswith(_plain(name))]
    near = near or difflib.get_close_matches(_plain(name), plain, n=1)
    meant = f"did you mean {plain[near[0]]}? " if near else ""
    raise InputError(f"plan.device {name!r} is not known; {meant}known are {THIS} (this machine), {', '.join(CARDS)}")


def card_named(device: str) -> str | None:
    """The card that torch calls ``device``, such as ``NVIDIA H100 80GB HBM3``; ``None`` if it is not known."""
    plain = _plain(device)
    found = [name for name in CARDS if all(_plain(part) in plain for part in name.split("-"))]
    kinds = [name for name in CARDS if _plain(name.split("-")[0]) in plain]
    return max(found, key=len) if found else (kinds[0] if kinds else None)


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def card_machine(one: Card, dtype: torch.dtype, graphs: bool, adapter: bool, nodes: int = 1) -> Machine:
    """What a card does in a second with products in a dtype; ``graphs`` where vLLM writes."""
    peak = 1e12 * (one.single if dtype in (torch.float32, torch.float64) else one.half)
    bandwidth = MEMORY * 1e9 * one.bandwidth
    eager = _CALL_ADAPTER if adapter else _CALL
    return Machine(
        products=PRODUCTS * peak,
        decoding=DECODING * peak,
        reading=bandwidth,
        attending=bandwidth,
        bandwidth=bandwidth,
        fresh=bandwidth,
        call=_CALL_GRAPH if graphs else eager,
        step=_STEP,
        token=_TOKEN,
        link=MEMORY * 1e9 * one.link if nodes == 1 else min(_NETWORK, 1e9 * one.link),
        push=_PUSH,
    )


# -- this machine ------------------------------------------------------------------------------------------------------

# Time of the host for one layer, without and for an adapter, for the rest of a step that writes a token, and for a
# token of each row, in units of a call of a small linear layer; from runs of the embedded policy on two CPU cores.
_CALLS, _CALLS_ADAPTER, _CALLS_STEP, _CALLS_TOKEN = 80, 60, 200, 5
# Most bytes of the weights that the probe of products reads, its most FLOP at one time, and the bytes of a buffer that
# the probe of memory writes.
_WEIGHTS, _FLOP, _BUFFER = 128 << 20, 4e9, 64 << 20
# Rows with which a product takes the time of reading its weights; rows and columns of the probe of attention.
_FEW, _ROWS, _CONTEXT = 2, 32, 128


def cpu_machine(shape: Shape, dtype: torch.dtype, rows: int, tokens: int) -> Machine:
    """Measure this machine in about two seconds, with torch's present number of threads.

    Products have the shapes of the model's layers, with ``rows`` rows as while tokens are written and with ``tokens``
    rows as in training. Measured are processor seconds for each thread, so that other load matters little.
    """
    with torch.no_grad():
        small, layer = torch.zeros(8, 8), torch.nn.Linear(8, 8)
        call = _seconds(lambda: [layer(small) for _ in range(200)]) / 200
        buffer = torch.ones(_BUFFER // 4)
        other = torch.empty_like(buffer)
        copied = _seconds(lambda: other.copy_(buffer))
        fresh = _seconds(lambda: buffer + 1)
        return Machine(
            products=_product_rate(shape, dtype, min(max(tokens, 32), 512)),
            decoding=_product_rate(shape, dtype, max(1, min(rows, 512))),
            reading=_product_rate(shape, dtype, _FEW) * dtype.itemsize / (2 * _FEW),
            attending=_attention_rate(shape, dtype),
            bandwidth=2 * _BUFFER / copied,
            fresh=2 * _BUFFER / fresh,
            call=call * (_CALLS + (_CALLS_ADAPTER if shape.adapter else 0)),
            step=call * _CALLS_STEP,
            token=call * _CALLS_TOKEN,
            link=2 * _BUFFER / copied,
            push=_BUFFER / fresh,
        )


def _product_rate(shape: Shape, dtype: torch.dtype, rows: int) -> float:
    """FLOP/s of products of so many rows with weights as in the model's layers."""
    size = shape.hidden * max(shape.inner, shape.hidden)
    count = int(min(shape.layers, _WEIGHTS // (size * dtype.itemsize), _FLOP // (2 * rows * size)))
    weights = [torch.full((size // shape.hidden, shape.hidden), 0.01, dtype=dtype) for _ in range(max(1, count))]
    x = torch.full((rows, shape.hidden), 0.01, dtype=dtype)

    def multiply() -> None:
        for weight in weights:
            torch.nn.functional.linear(x, weight)

    return 2.0 * rows * size * len(weights) / _seconds(multiply)


def _attention_rate(shape: Shape, dtype: torch.dtype) -> float:
    """Bytes/s of keys and values that attention reads for one token of each of some rows."""
    heads = max(1, shape.kv_heads // shape.width)
    keys = torch.full((_ROWS, heads, _CONTEXT, shape.width), 0.01, dtype=dtype)
    queries = keys[:, :, : max(1, shape.heads // shape.kv_heads)].clone()
    mask = torch.ones(_ROWS, 1, 1, _CONTEXT, dtype=torch.bool)
    attend = torch.nn.functional.scaled_dot_product_attention
    return 2 * keys.nbytes / _seconds(lambda: attend(queries, keys, keys, attn_mask=mask))


def _seconds(work: Callable[[], Tensor | list[Tensor] | None]) -> float:
    """Processor seconds per thread of some work: the median of as many repeats as fit a third of a second."""
    work()
    found: list[float] = []
    end = time.monotonic() + 0.35
    while len(found) < 3 or (time.monotonic() < end and len(found) < 200):
        began = time.process_time()
        work()
        found.append((time.process_time() - began) / torch.get_num_threads())
    return max(1e-9, sorted(found)[len(found) // 2])
