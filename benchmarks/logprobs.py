"""Token log-probs, entropy, loss and gradients from hidden states: our single pass compared with others.

    python benchmarks/logprobs.py [--tokens 2048] [--dim 256] [--vocabulary 50000] [--rounds 5]

The work is a clipped policy loss and the gradients of hidden states and output weight. Sides: ``naive`` (log_softmax
and gather), ``trl`` (TRL's ``ChunkedLogProbFunction`` with entropy, as its ``GRPOTrainer`` calls it on a CPU; left
out where TRL is not installed), ``ours`` (``token_stats`` with the loss's derivative, as ``training_step`` calls it)
and the three matrix products alone. One thread, processor time, sides alternating in one process, medians, as
multiples of the products.

Memory is the growth of the resident set of a fresh process per side at ``--peak-tokens`` tokens, less the gradients
of hidden states and weight, which every side must hold. Exits 1 if a target is missed: 1.15 times the products, 64
MiB.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_serl.objectives import policy_loss
from lightning_serl.policy.logprobs import OutputLayer, token_stats

TIME, MEMORY = 1.15, 64.0


class Work:
    """Hidden states, weight and what the loss is made of."""

    def __init__(self, tokens: int, dim: int, vocabulary: int) -> None:
        torch.manual_seed(0)
        self.hidden = torch.randn(tokens, dim).requires_grad_()
        self.layer = nn.Linear(dim, vocabulary, bias=False)
        self.labels = torch.randint(vocabulary, (tokens,))
        self.old, self.advantages = torch.full((tokens,), -11.0), torch.randn(tokens)

    def loss(self, logp: Tensor) -> Tensor:
        """Clipped, over tokens."""
        rows = (x[None] for x in (logp, self.old, self.advantages, torch.ones_like(self.labels, dtype=torch.bool)))
        return policy_loss(*rows)

    def clear(self) -> None:
        """Forget the gradients."""
        self.hidden.grad = self.layer.weight.grad = None


def naive(work: Work) -> None:
    """A table of all logits, and one of all log-probs."""
    table = torch.log_softmax(work.layer(work.hidden), -1)
    work.loss(table.gather(-1, work.labels[:, None])[:, 0]).backward()


def trl(work: Work) -> None:
    """TRL's chunks over tokens and vocabulary."""
    from trl.kernels import ChunkedLogProbFunction

    given = (work.hidden, work.layer.weight, None, work.labels, 1.0, 32768, None, 1.0, ("entropy",))
    work.loss(ChunkedLogProbFunction.apply(*given)[0]).backward()


def ours(work: Work) -> None:
    """As ``SeRLModule.training_step`` does it."""

    def loss_derivative(logp: Tensor, place: slice) -> Tensor:
        with torch.enable_grad():
            logp = logp.clone().requires_grad_()
            return torch.autograd.grad(work.loss(logp), logp)[0][place]

    work.loss(
        token_stats(work.hidden, OutputLayer(work.layer), work.labels, 1.0, loss_derivative=loss_derivative)[0]
    ).backward()


@torch.no_grad()
def products(work: Work, chunk: int = 512) -> None:
    """The three matrix products, through one buffer."""
    hidden, weight = work.hidden.detach(), work.layer.weight.detach()
    table = torch.empty(chunk, len(weight))
    work.hidden.grad, work.layer.weight.grad = torch.empty_like(hidden), torch.zeros_like(weight)
    for i in range(0, len(hidden), chunk):
        here = hidden[i : i + chunk]
        logits = torch.mm(here, weight.t(), out=table[: len(here)])
        torch.mm(logits, weight, out=work.hidden.grad[i : i + chunk])
        work.layer.weight.grad.addmm_(logits.t(), here)


SIDES = {"naive": naive, "trl": trl, "ours": ours, "products": products}


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def peak(side: str, tokens: int, dim: int, vocabulary: int) -> None:
    """Print the MiB that a side needs beyond its inputs and gradients; one call per process."""
    SIDES[side](Work(64, dim, 1000))
    work = Work(tokens, dim, vocabulary)
    before = _status("VmRSS")
    SIDES[side](work)
    print(_status("VmHWM") - before - 4 * (work.hidden.numel() + work.layer.weight.numel()) / 2**20)


def main() -> int:
    """Time, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=50000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-tokens", type=int, default=8192)
    parser.add_argument("--peak", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        peak(options.peak, options.peak_tokens, options.dim, options.vocabulary)
        return 0
    sides = dict(SIDES)
    try:
        beside = f"trl {version('trl')}"
    except PackageNotFoundError:
        beside = "trl is not installed and left out"
        del sides["trl"]
    print(f"torch {torch.__version__}, {beside}; {options.dim} wide, vocabulary {options.vocabulary}")
    work = Work(options.tokens, options.dim, options.vocabulary)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    grads: dict[str, list[Tensor]] = {}
    for _ in range(options.rounds):
        for name, run in sides.items():
            work.clear()
            start = time.process_time()
            run(work)
            seconds[name].append(time.process_time() - start)
            grads[name] = [work.hidden.grad, work.layer.weight.grad]
    median = {name: statistics.median(found) for name, found in seconds.items()}
    columns = f"x of the products, {options.tokens} tokens | MiB beyond the gradients, {options.peak_tokens} tokens"
    print(f"\n| side | {columns} | worst difference from naive |\n|---|---|---|---|")
    ratio, extra = {}, {}
    for name in sides:
        sizes = [f"--{k}={getattr(options, k.replace('-', '_'))}" for k in ("peak-tokens", "dim", "vocabulary")]
        found = subprocess.run(
            [sys.executable, __file__, f"--peak={name}", *sizes], capture_output=True, text=True, check=True
        )
        ratio[name], extra[name] = median[name] / median["products"], float(found.stdout.split()[-1])
        apart = max(
            float((a - b).abs().max() / b.abs().max()) for a, b in zip(grads[name], grads["naive"], strict=True)
        )
        gap = "" if name == "products" else f"{apart:.0e}"
        print(f"| {name} | {ratio[name]:.2f} | {extra[name]:.0f} | {gap} |")
    checks = {
        f"time: {ratio['ours']:.2f} of the products, target at most {TIME}": ratio["ours"] <= TIME,
        f"memory: {extra['ours']:.0f} MiB beyond the gradients, target at most {MEMORY:.0f}": extra["ours"] <= MEMORY,
    }
    for said, met in checks.items():
        print(f"{'PASS' if met else 'MISS'}  {said}")
    return int(not all(checks.values()))


if __name__ == "__main__":
    sys.exit(main())
