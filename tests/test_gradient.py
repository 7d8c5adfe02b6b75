"""Through ``Trainer.fit`` with the real module: the gradient is that of all responses of the step at once."""

import random

import pytest
import torch
from spine_kit import distance, flat, recorded_round, tiny_llama, train_recorded, widen
from transformers import AutoModelForCausalLM

from lightning_serl.batching import minibatches
from lightning_serl.objectives import Objective
from lightning_serl.types import Group, Verdict

BOUND = 1e-10
AGGREGATIONS = ("token", "sequence", "constant")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("llama"))


def logps(lm, ids, start, temperature=0.8):
    logits = lm(torch.tensor([ids])).logits[0, :-1] / temperature
    chosen = torch.log_softmax(logits, -1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
    return chosen[start - 1 :]


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

    def __init__(self, model, rounds, objective):
        self.lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
        self.o = objective
        groups, verdicts = rounds
        self.rows = []
        for number, (group, verdict) in enumerate(zip(groups, verdicts, strict=True)):
            for completion, score, weight in zip(
                group.completions, verdict.scores.double(), verdict.weight.double(), strict=True
            ):
                if weight > 0:
                    ids = (*group.prompt_ids, *completion.token_ids)
                    row = {"ids": ids, "start": len(group.prompt_ids), "group": number}
                    self.rows.append(row | {"score": score, "weight": weight})
        with torch.no_grad():
            for row in self.rows:
                row["first"] = logps(self.lm, row["ids"], row["start"])
        for row in self.rows:
            peers = torch.stack([r["score"] for r in self.rows if r["group"] == row["group"]])
            row["advantage"] = (row["score"] - peers.mean()) / (peers.std() + objective.eps) * row["weight"]

    def gradient(self, rows, weights=None, recorded_old=False):
        """d loss / d weights over these rows at once, at the given weights of the run."""
        o, lm = self.o, self.lm
        if weights is not None:
            lm.load_state_dict({n.removeprefix("model."): w for n, w in weights.items()}, strict=True)
        lm.zero_grad()
        total, ratios = 0.0, []
        for row in rows:
            logp = logps(lm, row["ids"], row["start"])
            old = row["first"] if recorded_old else logp.detach()
            ratio = (logp - old).exp()
            ratios.append((ratio.detach() - 1).abs().max())
            clipped = ratio.clamp(1 - o.clip_low, 1 + o.clip_high)
            per_token = -torch.minimum(ratio * row["advantage"], clipped * row["advantage"])
            if o.beta > 0 and o.kl_in == "loss":
                x = logp - row["first"]
                per_token = per_token + o.beta * {"k1": x, "k2": x**2 / 2, "k3": (-x).exp() - 1 + x}[o.kl]
            if o.aggregation == "sequence":
                total = total + per_token.mean() / len(rows)
            elif o.aggregation == "token":
                total = total + per_token.sum() / sum(len(r["ids"]) - r["start"] for r in rows)
            else:
                total = total + per_token.sum() / len(rows) / o.constant_length
        total.backward()
        gradient = {f"model.{n}": p.grad.clone() for n, p in lm.named_parameters()}
        return gradient, float(max(ratios)), float(total.detach())


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_accumulation_padding_and_order_leave_the_gradient_alone(model, tmp_path, aggregation, kl_in):
    objective = Objective(aggregation=aggregation, constant_length=64, beta=0.3, kl="k1", kl_in=kl_in)
    groups, verdicts = recorded_round()
    truth, _, _ = (plain := Plain(model, (groups, verdicts), objective)).gradient(plain.rows)
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
    assert sum(not b.mask.any() for b in many["batches"]) == 2
    assert distance(many["gradient"], few["gradient"]) < BOUND


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_later_steps_of_a_round_use_the_log_probs_it_began_with(model, tmp_path, aggregation):
    objective = Objective(aggregation=aggregation, constant_length=20, beta=0.2, kl="k3", clip_low=0.01, clip_high=0.02)
    groups, verdicts = recorded_round(3)
    verdicts[2].weight.fill_(1.0)
    plain = Plain(model, (groups, verdicts), objective)
    uids = [groups[r["group"]].instruction.uid for r in plain.rows]
    for accumulate in (1, 2):
        steps, _ = train_recorded(model, tmp_path, objective, [(groups, verdicts)], accumulate=accumulate, steps=(2, 2))
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
    objective = Objective(beta=0.2, kl="k2", aggregation="sequence", scale="none")
    rounds = recorded_round()
    plain = Plain(model, rounds, objective)
    for row in plain.rows:
        peers = torch.stack([r["score"] for r in plain.rows if r["group"] == row["group"]])
        row["advantage"] = (row["score"] - peers.mean()) * row["weight"]
    _, _, truth = plain.gradient(plain.rows)
    for accumulate in (1, 3):
        _, module = train_recorded(model, tmp_path, objective, [rounds], accumulate=accumulate)
        assert module.step_metrics["loss"] == pytest.approx(truth, rel=1e-10)


def test_the_reference_has_the_precision_of_the_policy(model, tmp_path):
    """A frozen copy outside the module tree misses Lightning's conversion; its log-probs would be of another model."""
    rounds = recorded_round()
    for precision in ("64-true", "bf16-true", "32-true"):
        _, module = train_recorded(model, tmp_path, Objective(beta=0.2), [rounds], precision=precision)
        (policy_type,) = {p.dtype for p in module.policy.parameters()}
        assert {p.dtype for p in module.policy.frozen["reference"].parameters()} == {policy_type}
        assert module.step_metrics["kl"] == pytest.approx(0.0, abs=1e-12)  # nothing has moved yet


def test_kl_in_the_reward_moves_the_advantages(model, tmp_path):
    """Over two rounds: in the second the policy has left the reference, so the penalty must show."""
    groups, verdicts = recorded_round()
    objective = Objective(beta=0.7, kl="k2", kl_in="reward", scale="none")
    first, second = train_recorded(model, tmp_path, objective, [(groups, verdicts)] * 2)[0]
    plain = Plain(model, (groups, verdicts), objective)
    plain.lm.load_state_dict({n.removeprefix("model."): w for n, w in second["weights"].items()})
    with torch.no_grad():
        for row in plain.rows:
            now = logps(plain.lm, row["ids"], row["start"])
            row["score"] = row["score"] - 0.7 * ((now - row["first"]) ** 2 / 2).sum()
    for row in plain.rows:
        peers = torch.stack([r["score"] for r in plain.rows if r["group"] == row["group"]])
        row["advantage"] = (row["score"] - peers.mean()) * row["weight"]
    truth, _, _ = plain.gradient(plain.rows)
    assert distance(second["gradient"], truth) < BOUND
    assert distance(second["gradient"], first["gradient"]) > 1e-3


def test_the_capture_is_taken_before_clipping(model, tmp_path):
    """Guards the guard: clipped gradients of norm 0.01 would hide a wrong scale."""
    (step,), module = train_recorded(model, tmp_path, Objective(beta=0.0), [recorded_round()])
    assert module.step_metrics["grad_norm"] == pytest.approx(float(flat(step["gradient"]).norm()))
    assert module.step_metrics["grad_norm"] > 0.1
    moved = flat({n: p.detach() for n, p in module.policy.named_parameters()}) - flat(step["weights"])
    assert float(moved.norm()) == pytest.approx(0.5 * 0.01, rel=1e-3)
