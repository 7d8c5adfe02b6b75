"""Tokens per processor second of writing: ours, ``generate``, vLLM and the bare matrix products, side by side.

    python benchmarks/writing.py --model models/smollm2-135m-instruct [--rows 64 256] [--tokens 128] [--repeats 1]
        [--prompt-tokens 100] [--threads 1] [--sides products ours generate vllm]

All sides write exactly ``--tokens`` tokens for each row, eight rows for each prompt, prompts included in the time. The
products are those of all linear layers and the output layer for the same tokens: what no engine can go below. Sides
take turns, and the ratios are of the medians.
"""

from __future__ import annotations

import argparse
import resource
import statistics
from collections.abc import Callable
from importlib.util import find_spec

import torch

from lightning_serl.engines import Request, RolloutEngine, Sampling, TransformersEngine, VLLMEngine
from lightning_serl.policy import Policy
from lightning_serl.policy.loading import load_policy

_SAMPLES = 8


def seconds() -> tuple[float, float]:
    """User and system seconds of this process and the children it has waited for."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + children.ru_utime, own.ru_stime + children.ru_stime


class Endless(Policy):
    """A policy whose completions have no end token, so that all sides write the same number of tokens."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """No token's id."""
        return (-1,)


def engine_side(engine: RolloutEngine, policy: Policy, requests: list[Request]) -> Callable[[], int]:
    """Writes the requests with an engine; returns the number of tokens."""

    def write() -> int:
        with policy.gathered():
            return sum(len(c.token_ids) for _, written in engine.generate(requests) for c in written)

    return write


def generate_side(policy: Policy, requests: list[Request]) -> Callable[[], int]:
    """Writes the requests with ``generate``; returns the number of tokens."""
    rows = torch.tensor([request.prompt_ids for request in requests for _ in request.seeds])
    tokens = requests[0].sampling.max_tokens

    def write() -> int:
        with policy.gathered():
            out = policy.causal_lm.generate(
                rows, attention_mask=torch.ones_like(rows), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=policy.pad_id,
            )  # fmt: skip
        return int(out[:, rows.shape[1] :].numel())

    return write


def products_side(policy: Policy, rows: int, tokens: int) -> Callable[[], int]:
    """Multiplies as much as writing so many tokens needs; returns their number."""
    layers = [m for m in policy.causal_lm.modules() if isinstance(m, torch.nn.Linear)]
    inputs = {layer.in_features: torch.randn(rows, layer.in_features, dtype=layer.weight.dtype) for layer in layers}

    def multiply() -> int:
        with torch.no_grad():
            for _ in range(tokens):
                for layer in layers:
                    layer(inputs[layer.in_features])
        return rows * tokens

    return multiply


def measure(work: Callable[[], int]) -> tuple[float, float]:
    """Tokens per processor second, and the share of system time."""
    user, system = seconds()
    tokens = work()
    user, system = (after - before for after, before in zip(seconds(), (user, system), strict=True))
    return tokens / (user + system), system / (user + system)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny:base")
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompt-tokens", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sides", nargs="+", default=["products", "ours", "generate"])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    loaded = load_policy(given.model)
    policy = Endless(loaded.model, loaded.tokenizer).eval()
    for rows in given.rows:
        torch.manual_seed(0)
        sampling = Sampling(max_tokens=given.tokens)
        prompts = torch.randint(5, len(policy.tokenizer), (rows // _SAMPLES, given.prompt_tokens)).tolist()
        requests = [
            Request(tuple(ids), tuple(range(_SAMPLES * i, _SAMPLES * (i + 1))), sampling)
            for i, ids in enumerate(prompts)
        ]
        ours = TransformersEngine(max_rows=rows)
        ours.start(policy)
        sides: dict[str, Callable[[], int]] = {
            "products": products_side(policy, rows, given.tokens),
            "ours": engine_side(ours, policy, requests),
            "generate": generate_side(policy, requests),
        }
        if "vllm" in given.sides:
            if find_spec("vllm") is None:
                parser.error("--sides vllm: vLLM is not installed")
            engine = VLLMEngine()
            engine.start(policy)
            sides["vllm"] = engine_side(engine, policy, requests)
        found: dict[str, list[tuple[float, float]]] = {side: [] for side in given.sides}
        for _ in range(given.repeats):
            for side in given.sides:
                found[side].append(measure(sides[side]))
        rates = {side: statistics.median(rate for rate, _ in figures) for side, figures in found.items()}
        for side, figures in found.items():
            text = f"{rows} rows  {side:<9} {rates[side]:8.1f} tokens/s  system {100 * figures[-1][1]:4.1f} %"
            if side != "ours" and "ours" in rates:
                text += f"  ours / {side} {rates['ours'] / rates[side]:.2f}"
            print(text, flush=True)


if __name__ == "__main__":
    main()
