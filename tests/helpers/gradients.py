"""Recorded rounds, a Trainer run on them, and an independent computation of the gradient."""

import math
from dataclasses import replace

import lightning.pytorch as pl
import torch
from helpers.slow_advantages import rules, slow_advantages
from helpers.training import QUIET
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from lightning_serl import SeRLModule, tiny
from lightning_serl.distributed.sharding import full
from lightning_serl.objectives import Objective
from lightning_serl.types import Completion, Group, Instruction, RolloutBatch, Verdict


def gpt2(directory):
    """A random GPT-2, wide enough in its weights that no log-prob is near uniform.

    No Llama, whose norms are taken in float32 in transformers: padding can change their last bit.
    """
    tokenizer = AutoTokenizer.from_pretrained(tiny.resolve("tiny:base"))
    torch.manual_seed(7)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=24, n_layer=2, n_head=4, n_positions=96, tie_word_embeddings=False,
        initializer_range=0.3, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def recorded_round(seed=0, vocab=400):
    """Four ragged groups with verdicts: weights 0 and a half among them, one group dropped altogether."""
    draw = torch.Generator().manual_seed(seed)

    def ids(count):
        return tuple(torch.randint(1, vocab, (count,), generator=draw).tolist())

    groups, verdicts = [], []
    sizes = [(5, (3, 11, 7, 2)), (9, (6, 1, 14)), (3, (4, 4, 9)), (7, (12, 5, 8, 8, 3))]
    for number, (prompt, lengths) in enumerate(sizes):
        completions = [Completion(ids(n), "", tuple((-torch.rand(n, generator=draw)).tolist())) for n in lengths]
        groups.append(Group(Instruction("", f"g{number}"), ids(prompt), completions))
        verdicts.append(Verdict(torch.rand(len(lengths), generator=draw)))
    verdicts[0].weight[2] = 0.0
    verdicts[1] = verdicts[1].scaled(0.5)
    verdicts[2] = verdicts[2].scaled(0.0)  # dropped by a filter
    return groups, verdicts


class RecordedStream:
    """The least a training stream can be: sized, and asking the module for its micro-batches."""

    def __init__(self, data):
        self.data = data

    def _module(self):
        return self.data.trainer.lightning_module

    def __len__(self):
        per_round = self._module().steps_per_round * self.data.trainer.accumulate_grad_batches
        return per_round * len(self.data.rounds)

    def __iter__(self):
        for groups, verdicts in self.data.rounds:
            for batch in self._module().experience(groups, verdicts):
                yield self.data.change(batch)


class RecordedData(pl.LightningDataModule):
    def __init__(self, rounds, change=lambda batch: batch):
        super().__init__()
        self.rounds, self.change = rounds, change

    def train_dataloader(self):
        return RecordedStream(self)


def widen(batch):
    """The same micro-batch with five more columns of padding, filled with ids that mean something elsewhere."""

    def wider(tensor, fill):
        return None if tensor is None else torch.nn.functional.pad(tensor, (0, 5), value=fill)

    return RolloutBatch(
        wider(batch.input_ids, 3),
        wider(batch.attention_mask, 0),
        wider(batch.position_ids, 0),
        wider(batch.mask, False),
        wider(batch.advantages, 9.0),
        wider(batch.old_logp, -2.0),
        wider(batch.ref_logp, -50.0),
        wider(batch.sampler_logp, 1.0),
        batch.num_tokens,
        batch.num_sequences,
        batch.uids,
    )


class Capture(pl.Callback):
    """Every step's gradient before clipping, the weights it was taken at, and the step's micro-batches."""

    def __init__(self):
        self.steps, self._window = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._window.append(batch)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        parameters = dict(pl_module.policy.named_parameters())
        self.steps.append(
            {
                "gradient": {n: full(p.grad).clone() for n, p in parameters.items() if p.grad is not None},
                "weights": {n: full(p).clone() for n, p in parameters.items()},
                "batches": self._window,
            }
        )
        self._window = []


def train_recorded(model, root, objective, rounds, accumulate=1, change=lambda batch: batch, steps=(1, 1), lr=0.5,
                   precision="64-true", options=None, **trainer):  # fmt: skip
    """Train on recorded rounds through ``Trainer.fit``; returns the steps that :class:`Capture` saw, and the module."""
    module = SeRLModule(
        model,
        objective=objective,
        inner_epochs=steps[0],
        minibatches=steps[1],
        temperature=0.8,
        optimizer=lambda p: torch.optim.SGD(p, lr=lr),
        **(options or {}),
    )
    capture = Capture()
    runner = pl.Trainer(
        **QUIET | trainer,
        max_epochs=1,
        precision=precision,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=0.01,
        enable_checkpointing=False,
        default_root_dir=root,
        callbacks=[capture],
    )
    runner.fit(module, RecordedData(rounds, change))
    return capture.steps, module


def flat(tensors):
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def distance(a, b):
    """Relative distance of two gradients given as name -> tensor."""
    a, b = flat(a), flat(b)
    return float((a - b).norm() / b.norm())


def mixed_round():
    """The recorded round in two attempts: a dropped group in each, and weights of 0 and a half."""
    groups, verdicts = recorded_round()
    verdicts[2] = Verdict(torch.tensor([0.9, 0.1, 0.3]), dropped=True)
    more, extra = recorded_round(5)
    for group, verdict in zip(more, extra, strict=True):
        group.instruction = replace(group.instruction, uid=f"late {group.instruction.uid}")
        verdict.attempt = 1
    extra[0].dropped = True
    return groups + more[:2], verdicts + extra[:2]


def off_by(model, rounds, spread, holes=False):
    """The round as another sampler saw it: the trainer's log-probs and noise, with ``holes`` where it saw nothing."""
    groups, verdicts = rounds
    noise = torch.Generator().manual_seed(11)
    seen = {(r["group"], r["ids"]): r["first"] for r in Plain(model, rounds).rows}
    for number, group in enumerate(groups):
        for k, completion in enumerate(group.completions):
            first = seen.get((number, (*group.prompt_ids, *completion.token_ids)))
            if first is not None:
                said = (first + spread * torch.randn(len(first), generator=noise, dtype=torch.float64)).tolist()
                group.completions[k] = replace(completion, logprobs=None if holes and k == 1 else tuple(said))
    return groups, verdicts


def spread(lm, ids, start, temperature=0.8):
    """Log-probs of the completion's tokens, and the entropies of what they were drawn from."""
    table = torch.log_softmax(lm(torch.tensor([ids])).logits[0, start - 1 : -1] / temperature, -1)
    return table.gather(-1, torch.tensor(ids[start:])[:, None])[:, 0], -(table.exp() * table).sum(-1)


def token_rows(batches):
    """The responses in micro-batches, as tuples of ids; empty slots hold none."""
    return [
        tuple(ids[mask.bool()].tolist())
        for b in batches
        if b.uids
        for ids, mask in zip(b.input_ids, b.attention_mask, strict=True)
    ]


class Plain:
    """The same objective written down a second time: no padding, one row at a time, nothing of ours but the options."""

    def __init__(self, model, rounds, clip=(0.2, 0.2), dual_clip=None, beta=0.001, entropy=0.0, length=1024,
                 correction=None, **named):  # fmt: skip
        self.lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
        self.rule, self.clip, self.dual_clip = rules(**named), clip, dual_clip
        self.beta, self.entropy, self.length = beta, entropy, length
        self.correction = {"correction": "none"} if correction is None else correction
        self.rows = []
        for number, (group, verdict) in enumerate(zip(*rounds, strict=True)):
            for completion, score, weight in zip(
                group.completions, verdict.scores.tolist(), verdict.weight.tolist(), strict=True
            ):
                if weight > 0:
                    ids, start = (*group.prompt_ids, *completion.token_ids), len(group.prompt_ids)
                    row = {"ids": ids, "start": start, "group": number, "score": score, "weight": weight}
                    row["sampler"] = completion.logprobs
                    row |= {"dropped": verdict.dropped, "attempt": verdict.attempt, "centred": verdict.centred}
                    self.rows.append(row | {"tokens": len(completion.token_ids)})
        with torch.no_grad():
            for row in self.rows:
                row["first"] = spread(self.lm, row["ids"], row["start"])[0]
                row["ref"] = row["first"].tolist()
        self.begin()

    @property
    def objective(self):
        """The options of the run."""
        names = ("baseline", "scale", "kl", "kl_in", "aggregation", "eps")
        return Objective(
            style="serl" if self.rule["clamp"] else "default", clip_low=self.clip[0], clip_high=self.clip[1],
            dual_clip=self.dual_clip, beta=self.beta, entropy=self.entropy, constant_length=self.length,
            **self.correction, **{name: self.rule[name] for name in names},
        )  # fmt: skip

    @property
    def trained(self):
        return [row for row in self.rows if not row["dropped"]]

    def load(self, weights):
        self.lm.load_state_dict({n.removeprefix("model."): w for n, w in weights.items()}, strict=True)

    def begin(self, weights=None):
        """A round begins at these weights of the run: its old log-probs and its advantages."""
        if weights is not None:
            self.load(weights)
        with torch.no_grad():
            for row in self.rows:
                row["old"] = spread(self.lm, row["ids"], row["start"])[0]
                row["logp"] = row["old"].tolist()
        for row, advantage in zip(self.rows, slow_advantages(self.rows, self.beta, self.rule), strict=True):
            row["advantage"] = torch.tensor(advantage, dtype=torch.float64)

    def importance(self, row, old):
        """The weight of each token, by the definitions in words: one row, no padding."""
        kind, ratio = self.correction["correction"], self.correction.get("correction_ratio", "product")
        if kind == "none" or row["sampler"] is None:
            return torch.ones(())
        logs = [float(o) - s for o, s in zip(old, row["sampler"], strict=True)]
        if "sequence" in kind:
            logs = [sum(logs) / (len(logs) if ratio == "geometric" else 1)]
        low, high = self.correction["correction_floor"], self.correction["correction_cap"]
        out = []
        for value in map(math.exp, logs):
            inside = low <= value <= high
            out.append(value if inside else 0.0 if "mask" in kind else min(max(value, low), high))
        return torch.tensor(out, dtype=torch.float64)

    def gradient(self, rows=None, weights=None, recorded_old=False):
        """d loss / d weights over these rows at once, at the given weights of the run."""
        lm, rule = self.lm, self.rule
        rows = self.trained if rows is None else rows
        if weights is not None:
            self.load(weights)
        lm.zero_grad()
        total, ratios, count = 0.0, [], sum(row["tokens"] for row in rows)

        def share(per_token, way):
            if way == "sequence":
                return per_token.mean() / len(rows)
            return per_token.sum() / (count if way == "token" else len(rows) * self.length)

        for row in rows:
            logp, entropy = spread(lm, row["ids"], row["start"])
            advantage, ratio = row["advantage"], (logp - (row["old"] if recorded_old else logp.detach())).exp()
            ratios.append((ratio.detach() - 1).abs().max())
            gain = torch.minimum(ratio * advantage, ratio.clamp(1 - self.clip[0], 1 + self.clip[1]) * advantage)
            if self.dual_clip is not None:
                gain = torch.where(advantage < 0, torch.maximum(gain, self.dual_clip * advantage), gain)
            gain = gain * self.importance(row, row["old"] if recorded_old else logp.detach())
            total = total - share(gain + self.entropy * entropy, rule["aggregation"])
            if rule["kl_in"] == "loss":
                x = logp - row["first"]
                divergence = {"k1": x, "k2": x**2 / 2, "k3": (-x).exp() - 1 + x}[rule["kl"]]
                total = total + self.beta * share(divergence, rule["kl_aggregation"])
        total.backward()
        gradient = {f"model.{n}": p.grad.clone() for n, p in lm.named_parameters()}
        return gradient, float(max(ratios)), float(total.detach())
