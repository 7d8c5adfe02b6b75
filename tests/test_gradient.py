"""Through ``Trainer.fit`` with the real module: the gradient is that of all responses of the step at once."""

import math
import random
import warnings
from dataclasses import replace

import pytest
import torch
from helpers.slow_advantages import RULES, rules, slow_advantages
from helpers.training import distance, flat, recorded_round, train_recorded, widen
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from lightning_serl import tiny
from lightning_serl.objectives import Objective
from lightning_serl.objectives.minibatches import minibatches
from lightning_serl.types import Group, Verdict

BOUND = 1e-10
AGGREGATIONS = ("token", "sequence", "constant")


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


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return gpt2(tmp_path_factory.mktemp("gpt2"))


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
        known = [not math.isnan(s) for s in row["sampler"]]
        logs = [float(o) - s if k else 0.0 for o, s, k in zip(old, row["sampler"], known, strict=True)]
        if "sequence" in kind:
            logs = [sum(logs) / (max(1, sum(known)) if ratio == "geometric" else 1)]
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


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_accumulation_padding_and_order_leave_the_gradient_alone(model, tmp_path, aggregation, kl_in):
    groups, verdicts = recorded_round()
    plain = Plain(model, (groups, verdicts), aggregation=aggregation, length=64, beta=0.3, kl="k1", kl_in=kl_in)
    objective, (truth, _, _) = plain.objective, plain.gradient()
    assert flat(truth).norm() > 1e-3

    def run(rounds, **options):
        (step,), _ = train_recorded(model, tmp_path, objective, [rounds], **options)
        return distance(step["gradient"], truth)

    for accumulate in (1, 2, 4):
        assert run((groups, verdicts), accumulate=accumulate) < BOUND
    assert run((groups, verdicts), accumulate=2, change=widen) < BOUND

    shuffled = list(zip(groups, verdicts, strict=True))
    random.Random(1).shuffle(shuffled)
    turned = []
    for group, verdict in shuffled:
        order = random.Random(len(group)).sample(range(len(group)), len(group))
        turned.append(
            (
                Group(group.instruction, group.prompt_ids, [group.completions[i] for i in order]),
                Verdict(verdict.scores[order], weight=verdict.weight[order]),
            )
        )
    assert run(tuple(zip(*turned, strict=True)), accumulate=2) < BOUND


def test_a_dropped_group_is_as_good_as_absent(model, tmp_path):
    groups, verdicts = recorded_round()
    kept = [i for i, v in enumerate(verdicts) if v.weight.any()]
    assert len(kept) == len(groups) - 1
    objective = Objective(beta=0.0)
    (all_of_them,), _ = train_recorded(model, tmp_path, objective, [(groups, verdicts)])
    rest = [groups[i] for i in kept], [verdicts[i] for i in kept]
    (without,), _ = train_recorded(model, tmp_path, objective, [rest])
    assert torch.equal(flat(all_of_them["gradient"]), flat(without["gradient"]))


def test_more_slots_than_rows(model, tmp_path):
    objective = Objective(beta=0.3, aggregation="token", kl="k2")
    groups, verdicts = recorded_round()
    rounds = ([groups[1]], [verdicts[1]])  # three responses
    (few,), _ = train_recorded(model, tmp_path, objective, [rounds], accumulate=1)
    (many,), _ = train_recorded(model, tmp_path, objective, [rounds], accumulate=5)
    assert sum(not b.mask.any() for b in many["batches"]) >= 2
    assert distance(many["gradient"], few["gradient"]) < BOUND


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("dual_clip", [None, 1.015])
def test_later_steps_of_a_round_use_the_log_probs_it_began_with(model, tmp_path, aggregation, dual_clip):
    groups, verdicts = recorded_round(3)
    verdicts[2].weight.fill_(1.0)
    rounds, clips = (groups, verdicts), {"clip": (0.01, 0.02), "dual_clip": dual_clip}
    plain = Plain(model, rounds, **clips, aggregation=aggregation, length=20, beta=0.2, kl="k3", entropy=0.05)
    uids = [groups[r["group"]].instruction.uid for r in plain.rows]
    for accumulate in (1, 2):
        steps, _ = train_recorded(
            model, tmp_path, plain.objective, [(groups, verdicts)], accumulate=accumulate, steps=(2, 2)
        )
        assert len(steps) == 4
        far = []
        for number, step in enumerate(steps):
            chosen = minibatches(uids, 2, number // 2)[number % 2]
            rows = [plain.rows[i] for i in chosen]
            assert sorted(token_rows(step["batches"])) == sorted(r["ids"] for r in rows)
            truth, ratio, _ = plain.gradient(rows, step["weights"], recorded_old=True)
            assert distance(step["gradient"], truth) < BOUND
            far.append(ratio)
        assert far[0] < 1e-12
        assert min(far[1:]) > 0.02, "the later steps are meant to be off-policy, beyond the clip"


def test_both_inner_epochs_see_every_response_once(model, tmp_path):
    groups, verdicts = recorded_round()
    steps, _ = train_recorded(model, tmp_path, Objective(beta=0.0), [(groups, verdicts)], accumulate=2, steps=(2, 3))
    want = sorted(
        (*g.prompt_ids, *c.token_ids)
        for g, v in zip(groups, verdicts, strict=True)
        for c, w in zip(g.completions, v.weight, strict=True)
        if w > 0
    )
    for epoch in (0, 1):
        batches = [b for step in steps[3 * epoch : 3 * epoch + 3] for b in step["batches"]]
        assert sorted(token_rows(batches)) == want


def test_logged_loss_is_the_loss_of_the_whole_step(model, tmp_path):
    rounds = recorded_round()
    plain = Plain(model, rounds, beta=0.2, kl="k2", aggregation="sequence", scale="none", entropy=0.1)
    _, _, truth = plain.gradient()
    for accumulate in (1, 3):
        _, module = train_recorded(model, tmp_path, plain.objective, [rounds], accumulate=accumulate)
        assert module.step_metrics["loss"] == pytest.approx(truth, rel=1e-10)


def test_the_reference_has_the_precision_of_the_policy(model, tmp_path):
    """A frozen copy outside the module tree misses Lightning's conversion; its log-probs would be of another model."""
    rounds = recorded_round()
    for precision in ("64-true", "bf16-true", "32-true"):
        # packed rows round differently, in bfloat16 visibly
        _, module = train_recorded(
            model, tmp_path, Objective(beta=0.2), [rounds], precision=precision, options={"packing": "none"}
        )
        (policy_type,) = {p.dtype for p in module.policy.parameters()}
        assert {p.dtype for p in module.policy.frozen["reference"].parameters()} == {policy_type}
        assert module.step_metrics["kl"] == pytest.approx(0.0, abs=1e-12)  # nothing has moved yet


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


@pytest.mark.parametrize(("style", "name"), RULES)
def test_every_algorithm_by_name(model, tmp_path, style, name):
    """Over two rounds: in the second the policy has left the reference, so the divergence must show."""
    rounds = mixed_round()
    plain = Plain(model, rounds, style=style, name=name, beta=0.7, entropy=0.05, length=64)
    objective = Objective(name, style, beta=0.7, entropy=0.05, constant_length=64, correction="none")
    first, second = train_recorded(model, tmp_path, objective, [rounds] * 2, accumulate=3)[0]
    begun, _, _ = plain.gradient()
    assert distance(first["gradient"], begun) < BOUND
    plain.begin(second["weights"])
    truth, _, _ = plain.gradient()
    assert distance(second["gradient"], truth) < BOUND
    assert distance(begun, truth) > 1e-3
    kept = sorted(row["ids"] for row in plain.trained)
    assert sorted(token_rows(second["batches"])) == kept
    assert len(kept) == len(plain.rows) - 6


@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
@pytest.mark.parametrize(("kl_in", "scale"), [("reward", "none"), ("return", "batch"), ("return", "token")])
def test_the_divergence_moves_the_advantages(model, tmp_path, kl, kl_in, scale):
    rounds = mixed_round()
    plain = Plain(model, rounds, beta=0.7, kl=kl, kl_in=kl_in, baseline="batch", scale=scale)
    _, second = train_recorded(model, tmp_path, plain.objective, [rounds] * 2)[0]
    before = flat(plain.gradient(weights=second["weights"])[0])
    plain.begin(second["weights"])
    truth, _, _ = plain.gradient()
    assert distance(second["gradient"], truth) < BOUND
    assert float((before - flat(truth)).norm()) > 1e-3 * float(flat(truth).norm())


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_entropy_bonus_is_aggregated_as_the_loss_is(model, tmp_path, aggregation):
    rounds = recorded_round()
    plain = Plain(model, rounds, beta=0.0, entropy=0.3, aggregation=aggregation, length=32)
    (step,), _ = train_recorded(model, tmp_path, plain.objective, [rounds], accumulate=2)
    truth, _, _ = plain.gradient()
    assert distance(step["gradient"], truth) < BOUND
    plain.entropy = 0.0
    assert distance(plain.gradient()[0], truth) > 1e-2


@pytest.mark.parametrize("name", ["grpo", "rloo", "reinforce++"])
def test_a_dropped_group_serves_the_statistics_of_a_batch_alone(model, tmp_path, name):
    groups, verdicts = mixed_round()
    kept = [i for i, v in enumerate(verdicts) if not v.dropped]
    objective = Objective(name, beta=0.3)
    (with_them,), module = train_recorded(model, tmp_path, objective, [(groups, verdicts)])
    rest = [groups[i] for i in kept], [verdicts[i] for i in kept]
    (without,), _ = train_recorded(model, tmp_path, objective, [rest])
    same = torch.equal(flat(with_them["gradient"]), flat(without["gradient"]))
    assert same == (name != "reinforce++")
    assert module.step_metrics["num_tokens"] == sum(len(i) for b in without["batches"] for i in b.mask.nonzero()) / 2


CORRECTIONS = [
    ("token_truncate", "product", 1.15, 0.0, "token"),
    ("token_mask", "product", 1.15, 0.9, "sequence"),
    ("sequence_truncate", "product", 1.3, 0.8, "constant"),
    ("sequence_mask", "product", 1.3, 0.0, "token"),
    ("sequence_mask", "geometric", 1.05, 0.9, "sequence"),
]


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
                if holes and k == 1:
                    said[0] = math.nan
                gone = holes and (number, k) == (0, 1)
                group.completions[k] = replace(completion, logprobs=None if gone else tuple(said))
    return groups, verdicts


@pytest.mark.parametrize(("correction", "ratio", "cap", "floor", "aggregation"), CORRECTIONS)
def test_the_correction_weighs_tokens_and_leaves_the_clip_alone(
    model, tmp_path, correction, ratio, cap, floor, aggregation
):
    """Over both steps of a round, with a dual clip: in the second the policy has left the clip's range."""
    rounds = off_by(model, recorded_round(3), 0.2, holes=True)
    chosen = {"correction": correction, "correction_ratio": ratio, "correction_cap": cap, "correction_floor": floor}
    plain = Plain(
        model, rounds, correction=chosen, aggregation=aggregation, length=20, beta=0.2, entropy=0.05,
        clip=(0.01, 0.02), dual_clip=1.015,
    )  # fmt: skip
    metrics = []
    for accumulate in (1, 3):
        steps, module = train_recorded(
            model, tmp_path, plain.objective, [rounds], accumulate=accumulate, steps=(2, 1), lr=0.5
        )
        for step in steps:
            truth, ratio, _ = plain.gradient(weights=step["weights"], recorded_old=True)
            assert distance(step["gradient"], truth) < BOUND
        assert ratio > 0.02, "the second step is meant to be beyond the clip"
        metrics.append(module.step_metrics)
    untouched = replace(plain.objective, correction="none")
    assert distance(train_recorded(model, tmp_path, untouched, [rounds])[0][0]["gradient"], truth) > 1e-3

    units = [plain.importance(r, r["old"]).expand(len(r["old"]) if "token" in correction else 1) for r in plain.rows]
    found = torch.cat(units)
    what = "masked" if "mask" in correction else "truncated"
    out = (found == 0) if "mask" in correction else (found == cap) | (found == floor)
    expected = {
        "sampling/importance_sampling_ratio/min": found.min(),
        "sampling/importance_sampling_ratio/mean": found.mean(),
        "sampling/importance_sampling_ratio/max": found.max(),
        "serl/sampling/effective_sample_size": 1 / ((found / found.mean()) ** 2).mean(),
        f"serl/sampling/{what}_frac": out.double().mean(),
    }
    assert 0 < out.double().mean() < 1, "some are meant to be out of bounds"
    for one in metrics:
        assert {k for k in one if "sampling/" in k} - expected.keys() == {
            "sampling/sampling_logp_difference/mean", "sampling/sampling_logp_difference/max",
        }  # fmt: skip
        for name, value in expected.items():
            assert one[name] == pytest.approx(float(value), rel=1e-10), name


def test_an_exact_sampler_is_corrected_by_nothing(model, tmp_path):
    rounds = off_by(model, recorded_round(), 0.0)
    for correction in ("token_truncate", "sequence_mask"):
        (corrected,), module = train_recorded(model, tmp_path, Objective(correction=correction), [rounds])
        (trusted,), _ = train_recorded(model, tmp_path, Objective(correction="none"), [rounds])
        assert distance(corrected["gradient"], trusted["gradient"]) < BOUND
        assert module.step_metrics["serl/sampling/effective_sample_size"] == pytest.approx(1.0, abs=1e-12)
        assert module.step_metrics["sampling/sampling_logp_difference/max"] < 1e-12


def test_a_large_gap_is_told_once_and_only_of_fresh_responses(model, tmp_path):
    def warned(spread, versions=0, **options):
        groups, verdicts = off_by(model, recorded_round(), spread)
        for group in groups:
            group.completions = [replace(c, version=versions) for c in group.completions]
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            train_recorded(model, tmp_path, Objective(), [(groups, verdicts)] * 2, lr=1e-9, **options)
        return [str(w.message) for w in said if "log-probs differ" in str(w.message)]

    (sentence,) = warned(0.02, versions=-1)
    assert "more than float64 explains (0.0005)" in sentence
    assert warned(0.02, versions=-1, precision="bf16-mixed") == []
    assert warned(1e-4, versions=-1) == []
    assert len(warned(0.02)) == 1, "the first of two rounds is as new as the policy, the second is not"


def test_the_capture_is_taken_before_clipping(model, tmp_path):
    """Guards the guard: clipped gradients of norm 0.01 would hide a wrong scale."""
    (step,), module = train_recorded(model, tmp_path, Objective(beta=0.0), [recorded_round()])
    assert module.step_metrics["grad_norm"] == pytest.approx(float(flat(step["gradient"]).norm()))
    assert module.step_metrics["grad_norm"] > 0.1
    moved = flat({n: p.detach() for n, p in module.policy.named_parameters()}) - flat(step["weights"])
    assert float(moved.norm()) == pytest.approx(0.5 * 0.01, rel=1e-3)
