"""Simulates a run on 1 to 256 servers and 1 to 64 training ranks, and says where it saturates and why.

    python benchmarks/fleet.py [--like RUN] [--prompts 64] [--samples 16] [--surplus 1.25]
    python benchmarks/fleet.py --device h100-80gb [--model DIR] [--lora]
    python benchmarks/fleet.py --check

A discrete-event simulation of rounds as the package plays them: problems are written, requests of one prompt go to the
server with the fewest open ones in batches of 16, a finished row makes room for the next, the filters ask for a second
attempt, ranks train on equal shares of the responses, and the weights are pushed between rounds. With
``max_staleness`` the next round is written while one trains. Lengths of answers and costs are those of a run
(``--like``, by default SmolLM2-135M-Instruct on CPU cores, one for each server and rank), or of cards by their data
sheets as in ``lightning-serl plan`` (``--device``). A third column of times ends a round as soon as enough groups are
whole out of ``--surplus`` times as many; it is not what the package does.

``--check`` runs the quickstart on one and on two ranks, each with its engine on one core, takes the costs from the
first run and compares what is foreseen with the measured processor seconds. Exits 1 if a part is off by more than 30 %.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

SERVERS, RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256), (1, 4, 16, 64)
ROUNDS = 6
_BATCH = 16  # requests of one prompt that go to one server together


@dataclass(frozen=True)
class Costs:
    """Seconds of what one device does."""

    step: float  # a server writes one token of all its rows: whatever their number
    row: float  # and for each of them
    prompt: float  # a server reads a prompt
    token: float  # a rank trains on a token, log-probs included
    update: float  # a rank takes an optimizer step
    exchange: float  # the ranks add up their gradients, for many of them
    push: float  # weights are saved
    load: float  # a server loads them where it is alone
    files: float  # the shared file system hands them to one server
    grading: float = 5e-5  # of an answer
    call: float = 2e-3  # between two batches of requests of a round: parsing, filters, voting


#: SmolLM2-135M-Instruct in float32 on one core each, from docs/speed.md, docs/plan.md and benchmarks/writing.py.
MEASURED = Costs(
    step=0.122, row=0.0050, prompt=0.35, token=0.0142, update=0.9, exchange=0.5, push=0.8, load=1.2, files=0.1
)


@dataclass(frozen=True)
class Shape:
    """What a round consists of."""

    prompts: int = 64
    samples: int = 16
    kept: float = 0.7  # share of groups that the filters keep
    attempts: int = 2
    texts: int = 12  # texts of new problems for a full round, each as long as the longest answers
    rows: int = 256  # that a server writes at one time


class Lengths:
    """Lengths of answers, drawn from those that were seen."""

    def __init__(self, seen: list[int]) -> None:
        self.seen = sorted(seen)
        self.mean, self.longest = fmean(seen), self.seen[-1]

    def draw(self, rng: random.Random, count: int) -> list[int]:
        """So many lengths."""
        return rng.choices(self.seen, k=count)

    @classmethod
    def typical(cls, mean: float, limit: int) -> Lengths:
        """A log-normal form with a long tail that is cut off, as answers of language models have it."""
        rng = random.Random(1)
        return cls([min(limit, max(1, round(mean * rng.lognormvariate(-0.18, 0.6)))) for _ in range(4096)])

    @classmethod
    def of(cls, run: Path, mean: float) -> Lengths:
        """Those of a run's recorded samples, whose characters are converted so that the mean is that of all tokens."""
        rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
        texts = [len(r["text"]) for row in rows for r in row.get("responses", ()) if r["text"]]
        factor = mean / fmean(texts)
        return cls([max(1, round(factor * n)) for n in texts])


# -- the servers -------------------------------------------------------------------------------------------------------


class Server:
    """Writes rows together; a row that ends makes room for the next."""

    def __init__(self, costs: Costs, rows: int) -> None:
        self.costs, self.most = costs, rows
        self.rows: list[tuple[float, int]] = []  # heap of (tokens at which a row ends, its batch)
        self.queue: deque[tuple[int, int]] = deque()  # (tokens, batch)
        self.written, self.now, self.busy, self.open, self.version = 0.0, 0.0, 0.0, 0, 0

    def pace(self) -> float:
        """Seconds for a token of all rows."""
        return self.costs.step + self.costs.row * len(self.rows)

    def advance(self, now: float) -> None:
        """Write until a time."""
        if self.rows and now > self.now:
            self.written += (now - self.now) / self.pace()
            self.busy += now - self.now
        self.now = max(self.now, now)

    def give(self, now: float, lengths: list[int], batch: int) -> None:
        """Take a batch of one prompt."""
        self.advance(now)
        self.open += len(lengths)
        # the prompt is read once, while the rows wait
        self.now += self.costs.prompt
        self.busy += self.costs.prompt
        self.queue.extend((n, batch) for n in lengths)
        self._fill()

    def _fill(self) -> None:
        while self.queue and len(self.rows) < self.most:
            tokens, batch = self.queue.popleft()
            heapq.heappush(self.rows, (self.written + tokens, batch))
        self.version += 1

    def next_end(self) -> float:
        """The time at which the next row ends."""
        return self.now + max(0.0, self.rows[0][0] - self.written) * self.pace()

    def finish(self, now: float) -> list[int]:
        """The batches of the rows that end now."""
        self.advance(now)
        ended = []
        while self.rows and self.rows[0][0] <= self.written + 1e-6:
            ended.append(heapq.heappop(self.rows)[1])
        self.open -= len(ended)
        self._fill()
        return ended


def serve(
    now: float, batches: list[list[int]], servers: list[Server], enough: int | None = None
) -> tuple[float, list[int]]:
    """Write batches; returns the time at which they, or ``enough`` of them, are whole, and which are."""
    for server in servers:
        server.advance(now)
        server.rows.clear()
        server.queue.clear()
        server.open = 0
    left = [len(one) for one in batches]
    for number, lengths in enumerate(batches):
        min(servers, key=lambda s: s.open).give(now, lengths, number)
    events = [(server.next_end(), i, server.version) for i, server in enumerate(servers) if server.rows]
    heapq.heapify(events)
    whole: list[int] = []
    while events and len(whole) < (enough or len(batches)):
        at, i, version = heapq.heappop(events)
        server = servers[i]
        if version != server.version:
            continue
        now = max(now, at)
        for batch in server.finish(at):
            left[batch] -= 1
            if not left[batch]:
                whole.append(batch)
        if server.rows:
            heapq.heappush(events, (server.next_end(), i, server.version))
    return now, whole


# -- rounds ------------------------------------------------------------------------------------------------------------


def written(now: float, shape: Shape, lengths: Lengths, servers: list[Server], rng: random.Random, surplus: float
            ) -> tuple[float, list[int], dict[str, float]]:  # fmt: skip
    """The time at which a round is written, the lengths that are trained on, and seconds by part."""
    parts = {"writing": 0.0, "answering": 0.0, "grading": 0.0}
    costs, trained, missing = servers[0].costs, [], shape.prompts
    for _ in range(shape.attempts):
        texts = -(-shape.texts * missing // shape.prompts)
        end, _ = serve(now, [[lengths.longest] for _ in range(texts)], servers)
        parts["writing"] += end - now
        asked = round(missing * surplus)
        groups = [lengths.draw(rng, shape.samples) for _ in range(asked)]
        batches = [(g, group[i : i + _BATCH]) for g, group in enumerate(groups) for i in range(0, len(group), _BATCH)]
        per_group = -(-shape.samples // _BATCH)
        enough = None if surplus == 1 else missing * per_group
        begun = end + costs.call
        now, whole = serve(begun, [lengths_ for _, lengths_ in batches], servers, enough)
        parts["answering"] += now - end
        answered = [groups[g] for g in dict.fromkeys(batches[i][0] for i in whole)]
        graded = costs.grading * shape.samples * len(answered)
        parts["grading"] += graded
        now += graded
        kept = [group for group in answered if rng.random() < shape.kept]
        trained += [n for group in kept[:missing] for n in group]
        missing -= min(missing, len(kept))
        if not missing:
            break
    return now, trained, parts


def training(costs: Costs, lengths: list[int], ranks: int) -> float:
    """Seconds of an optimizer step: the rank with most tokens, and the exchange of gradients."""
    shares = [0] * ranks
    heapq.heapify(shares)
    for n in sorted(lengths, reverse=True):
        heapq.heapreplace(shares, shares[0] + n)
    return max(shares) * costs.token + costs.update + (costs.exchange * (ranks - 1) / ranks if ranks > 1 else 0.0)


@dataclass(frozen=True)
class Result:
    """A simulated run."""

    seconds: float  # of a round
    busy: float  # share of the time in which servers write
    parts: dict[str, float]  # seconds of a round
    length: float  # mean length that was trained on

    @property
    def limit(self) -> str:
        """The part that takes longest."""
        return max(self.parts, key=lambda name: self.parts[name])


def simulate(
    costs: Costs, shape: Shape, lengths: Lengths, servers: int, ranks: int, ahead: bool, surplus: float = 1.0
) -> Result:
    """A run of several rounds."""
    rng = random.Random(0)
    fleet = [Server(costs, shape.rows) for _ in range(servers)]
    now, totals, tokens = 0.0, {}, []
    for _ in range(ROUNDS):
        begun = now
        now, trained, parts = written(now, shape, lengths, fleet, rng, surplus)
        tokens += trained
        parts["training"] = training(costs, trained, ranks)
        # saved once; every server loads, and the shared file system hands the files out
        parts["push"] = costs.push + max(costs.load, costs.files * servers)
        seconds = now - begun
        now = begun + (max(seconds, parts["training"]) if ahead else seconds + parts["training"]) + parts["push"]
        for server in fleet:
            server.now = now
        for name, value in parts.items():
            totals[name] = totals.get(name, 0.0) + value / ROUNDS
    busy = fmean(server.busy for server in fleet) / now
    return Result(now / ROUNDS, busy, totals, fmean(tokens))


def why(costs: Costs, shape: Shape, lengths: Lengths, one: Result, servers: int, ranks: int) -> str:
    """What limits a run, in words."""
    if one.limit == "answering":
        tail = shape.attempts * lengths.longest * (costs.step + costs.row)
        if tail > 0.6 * one.parts["answering"]:
            return "the longest answer of each attempt"
        return "answering"
    if one.limit == "writing":
        return "the longest text of new problems"
    if one.limit == "training":
        fixed = costs.update + (costs.exchange if ranks > 1 else 0)
        return "update and exchange of gradients" if fixed > one.parts["training"] / 2 else "training"
    if one.limit == "push" and costs.files * servers > costs.load:
        return "the file system that hands out the weights"
    return one.limit


def table(costs: Costs, shape: Shape, lengths: Lengths, surplus: float, ranks: int) -> None:
    """Seconds of a round by the number of servers."""
    print(f"\n{ranks} training rank{'s' * (ranks > 1)}")
    print(
        f"| servers | seconds of a round | servers busy | limit | max_staleness 1 | {surplus:g} x prompts, first ones |"
    )
    print("|---|---|---|---|---|---|")
    before: float | None = None
    saturated: int | None = None
    for servers in SERVERS:
        plain = simulate(costs, shape, lengths, servers, ranks, ahead=False)
        ahead = simulate(costs, shape, lengths, servers, ranks, ahead=True)
        more = simulate(costs, shape, lengths, servers, ranks, ahead=False, surplus=surplus)
        said = why(costs, shape, lengths, plain, servers, ranks)
        if saturated is None and before is not None and plain.seconds > 0.9 * before:
            saturated = servers // 2
        before = plain.seconds
        bias = more.length / plain.length - 1
        print(
            f"| {servers} | {plain.seconds:.1f} | {100 * plain.busy:.0f} % | {said} | {ahead.seconds:.1f} | "
            f"{more.seconds:.1f}, lengths {100 * bias:+.0f} % |"
        )
    print(
        f"saturates at {saturated} servers: twice as many save less than a tenth" if saturated else "does not saturate"
    )


# -- costs -------------------------------------------------------------------------------------------------------------


def steps_of(run: Path) -> list[dict]:
    """The rows of a run's optimizer steps."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row][1:]


def asked_of(row: dict) -> float:
    """Groups that were answered in a round."""
    return row["serl/round/groups"] / max(1e-9, row["serl/filter/yield"])


def costs_of(run: Path, samples: int) -> Costs:
    """The costs of a run whose policy writes itself: a least-squares fit of the seconds of its rounds."""
    rows = steps_of(run)
    tokens = [row["completions/mean_length"] * asked_of(row) * samples for row in rows]
    steps = [row["completions/max_length"] * row["serl/round/attempts"] for row in rows]
    seconds = [row.get("time/answering", 0.0) for row in rows]
    step, row_ = two_fit(steps, tokens, seconds)
    trained = [row["completions/mean_length"] * row["serl/round/groups"] * samples for row in rows]
    spent = [row.get("time/training", 0.0) + row.get("time/logprobs", 0.0) for row in rows]
    update, token = two_fit([1.0] * len(rows), trained, spent)
    push = fmean(row.get("time/sync", 0.0) for row in rows)
    return Costs(step, row_, 0.0, token, update, update / 2, push, push, push / 8)


def two_fit(a: list[float], b: list[float], y: list[float]) -> tuple[float, float]:
    """Non-negative factors of two causes, by least squares."""
    aa, ab, bb = (sum(p * q for p, q in zip(u, v, strict=True)) for u, v in ((a, a), (a, b), (b, b)))
    ay, by = (sum(p * q for p, q in zip(u, y, strict=True)) for u in (a, b))
    determinant = aa * bb - ab * ab
    first, second = ((ay * bb - by * ab) / determinant, (by * aa - ay * ab) / determinant) if determinant else (0, 0)
    if first <= 0:
        return 0.0, by / bb
    return (first, second) if second > 0 else (ay / aa, 0.0)


def card_costs(device: str, where: str | None, lengths: Lengths, prompt: int, lora: bool) -> Costs:
    """The costs of a card by its data sheet, for a model in bfloat16."""
    import torch
    from transformers import AutoConfig, Qwen2Config

    from lightning_serl.policy.devices import card, card_machine
    from lightning_serl.policy.lora import LoraOptions
    from lightning_serl.policy.model_shape import model_shape
    from lightning_serl.policy.roofline import Steps, Texts, training_seconds, writing_seconds

    config = AutoConfig.from_pretrained(where) if where else Qwen2Config(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, tie_word_embeddings=False,
    )  # fmt: skip
    shape = model_shape(config, torch.bfloat16, LoraOptions(r=16) if lora else None, None)
    writer = card_machine(card(device), torch.bfloat16, True, False, 2)
    trainer = card_machine(card(device), torch.bfloat16, False, False, 2)

    def token_of(rows: int) -> float:
        mean = round(lengths.mean)
        none = writing_seconds(writer, shape, Texts(1, prompt, rows, 1, 1), rows)
        return (writing_seconds(writer, shape, Texts(1, prompt, rows, mean, mean), rows) - none) / (mean - 1)

    row = (token_of(256) - token_of(1)) / 255
    reading = writing_seconds(writer, shape, Texts(1, prompt, 1, 1, 1), 1)

    def trained(tokens: float) -> float:
        # as sharded over one node: the part over nodes is the exchange
        return training_seconds(trainer, shape, Steps(1, 1, tokens, tokens, lengths.mean / 2, not lora), 1)

    token = (trained(200_000) - trained(100_000)) / 100_000
    size = 4 * shape.adapter if lora else 2 * shape.total
    return Costs(
        step=token_of(1) - row, row=row, prompt=reading, token=4 / 3 * token, update=trained(100_000) - 100_000 * token,
        exchange=2 * size / trainer.link, push=size / trainer.push, load=size / trainer.push, files=size / 10e9,
    )  # fmt: skip


# -- against runs ------------------------------------------------------------------------------------------------------


def child(arguments: list[str]) -> int:
    """The command line in this process, with a profile in processor seconds."""
    from lightning_serl.callbacks.run_folder import profile
    from lightning_serl.cli import main as command

    profile.time = SimpleNamespace(monotonic=time.process_time)
    profile.seconds_waited = lambda: 0.0  # it is wall time, which is no part of processor time
    return command(arguments)


def check(keep: str | None) -> int:
    """One and two ranks of the quickstart, each with a separate engine; returns the number of misses."""
    missed = 0
    with tempfile.TemporaryDirectory() as name:
        root, samples = Path(keep or name), 16
        options = ["fit", "-c", "preset:quickstart", "--data.rounds_per_epoch", "12", "--data.evaluation.sets", "{}",
                   "--data.probe.every", "0", "--trainer.accumulate_grad_batches", "2"]  # fmt: skip
        for ranks in (1, 2):
            if (root / f"{ranks}" / "summary.json").is_file():
                continue
            more = ["--trainer.devices", str(ranks), "--trainer.default_root_dir", str(root / f"{ranks}")]
            more += ["--trainer.strategy", "ddp"] if ranks > 1 else []
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run([sys.executable, __file__, "child", *options, *more], env=environment, check=False,
                                  capture_output=True, text=True)  # fmt: skip
            if done.returncode:
                raise SystemExit(done.stderr[-600:])
        costs = costs_of(root / "1", samples)
        print("| ranks | part | foreseen | measured | off by |\n|---|---|---|---|---|")
        for ranks in (1, 2):
            rows = steps_of(root / f"{ranks}")
            measured = {
                "answering": fmean(row.get("time/answering", 0.0) for row in rows),
                "training": fmean(row.get("time/training", 0.0) + row.get("time/logprobs", 0.0) for row in rows),
            }
            mean = fmean(row["completions/mean_length"] for row in rows)
            lengths = Lengths.of(root / f"{ranks}", mean)
            kept = fmean(row["serl/filter/yield"] for row in rows)
            shape = Shape(prompts=16, samples=samples, kept=kept, texts=0)
            found = simulate(replace(costs, exchange=0.0), shape, lengths, ranks, ranks, ahead=False)
            for part, value in measured.items():
                off = found.parts[part] / value - 1
                missed += abs(off) > 0.3
                print(f"| {ranks} | {part} | {found.parts[part]:.2f} | {value:.2f} | {100 * off:+.0f} % |")
    print("met" if not missed else f"MISSED: {missed} parts are off by more than 30 %")
    return missed


def main() -> int:
    """The tables, or the check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--like", type=Path, help="folder of a run whose costs and lengths are taken")
    parser.add_argument("--device", help="card by its data sheet, as in lightning-serl plan")
    parser.add_argument("--model", help="directory with config.json, for --device (default: of 7B)")
    parser.add_argument("--lora", action="store_true", help="with --device: an adapter is trained and pushed")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--mean", type=float, default=400, help="mean tokens of an answer, without --like")
    parser.add_argument("--limit", type=int, default=1024, help="most tokens of an answer, without --like")
    parser.add_argument("--surplus", type=float, default=1.25)
    parser.add_argument("--ranks", type=int, nargs="+", default=list(RANKS))
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--keep", help="folder that the runs of --check stay in")
    args = parser.parse_args()
    if args.check:
        return int(check(args.keep) > 0)
    lengths, costs = Lengths.typical(args.mean, args.limit), MEASURED
    if args.like:
        lengths = Lengths.of(args.like, fmean(row["completions/mean_length"] for row in steps_of(args.like)))
        costs = costs_of(args.like, args.samples)
    elif args.device:
        costs = card_costs(args.device, args.model, lengths, 200, args.lora)
    print(f"answers of {lengths.mean:.0f} tokens on average, at most {lengths.longest}; {costs}")
    for ranks in args.ranks:
        table(costs, Shape(prompts=args.prompts, samples=args.samples), lengths, args.surplus, ranks)
    return 0


if __name__ == "__main__":
    sys.exit(child(sys.argv[2:]) if sys.argv[1:2] == ["child"] else main())
