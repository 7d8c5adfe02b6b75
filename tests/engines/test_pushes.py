"""Pushes to the real vLLM: exact when clean, refused when not, and no growth however many there are."""

import gc
import os
from types import SimpleNamespace

import pytest
import torch
from helpers.command_line import problems, write_rows
from helpers.engines import adapted_policy, disturb, plain_policy, refresh
from helpers.training import rows, selfplay, trainer_for

from lightning_serl.callbacks import Checkpoints, RolloutRefresh
from lightning_serl.callbacks.rollout_hooks import RolloutHooks
from lightning_serl.datamodules.streams.evaluation import EvaluationOptions
from lightning_serl.engines import Receipt, VLLMEngine, WeightUpdate, weight_checks
from lightning_serl.errors import PushMismatch
from lightning_serl.policy.loading import load_policy
from lightning_serl.policy.lora import LoraOptions
from lightning_serl.tiny.language import held_out, solve_prompt

pytestmark = pytest.mark.vllm


@pytest.fixture
def engine(engine_of):
    return engine_of("vllm")[0]


class Between:
    """The real engine, with something that happens to updates on their way to it."""

    def __init__(self, engine, push):
        self._engine, self._push = engine, push

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def push(self, update):
        return self._push(self._engine, update)


def changed(update, change):
    """An update whose tensors go through ``change(name, tensor)``."""
    return WeightUpdate(
        update.kind, lambda: ((n, change(n, t)) for n, t in update.tensors()), update.version, update.meta
    )


def only_true(damage):
    """Damage that leaves canaries and bases alone: what a fault in mid-run would do."""
    return lambda engine, update: engine.push(update) if update.version < 0 else damage(engine, update)


def test_the_top_of_the_distribution_agrees_after_a_push(engine):
    policy = plain_policy()
    disturb(policy, 0.1)
    refresh(policy, engine)
    prompts = [policy.tokenizer.encode(solve_prompt(q)) for q in held_out(64)]
    session = engine.session
    params = session.vllm.SamplingParams(max_tokens=1, temperature=1.0, logprobs=20, seed=0)
    with session.inside():
        outputs = session.llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    worst = 0.0
    with policy.gathered():
        for prompt, output in zip(prompts, outputs, strict=True):
            true = policy.model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
            top = output.outputs[0].logprobs[0]
            assert len(top) >= 20
            assert set(true.topk(15).indices.tolist()) <= set(top)
            worst = max(worst, *(abs(float(true[i]) - entry.logprob) for i, entry in top.items()))
    assert worst < 1e-4


def test_fifty_clean_pushes(engine):
    policy = plain_policy()
    callback = RolloutRefresh()
    for step in range(50):
        disturb(policy, 0.02, seed=step)
        refresh(policy, engine, callback)
        assert engine.version == policy.version
    assert callback.pushes == 50
    assert callback._fresh["serl/sync/probe_logp_err"] < 2e-5
    one = sum(t.numel() * t.element_size() for _, t in policy.named_weights())
    assert callback._fresh["serl/sync/bytes"] == 50 * one


def noise_in_one_layer(name, tensor):
    if name != "model.layers.1.mlp.down_proj.weight":
        return tensor
    draw = torch.Generator().manual_seed(0)
    return tensor + 0.01 * tensor.std() * torch.randn(tensor.shape, generator=draw)


def stale_head(name, tensor):
    return load_policy("tiny:base").causal_lm.lm_head.weight.detach() if name == "lm_head.weight" else tensor


def half(engine, update):
    """A push that stops half-way, and an engine that thinks it was all."""
    tensors = list(update.tensors())[:12]
    return engine.push(WeightUpdate(update.kind, lambda: iter(tensors), update.version, update.meta))


def skipped(engine, update):
    return Receipt(engine.version)


def lied_about(engine, update):
    """Walked through and thrown away, and signed for."""
    sizes = {n: t.numel() * t.element_size() for n, t in update.tensors()}
    engine._version = update.version
    return Receipt(update.version, frozenset(sizes), sum(sizes.values()))


def truncated(engine, update):
    receipt = engine.push(update)
    return Receipt(receipt.version, receipt.names, receipt.bytes - 4)


DAMAGE = {
    "skipped": (skipped, "is at version"),
    "partial": (half, "tensors"),
    "bytes": (truncated, "bytes where"),
    "lied about": (lied_about, "nats per token off"),
    "noise": (lambda e, u: e.push(changed(u, noise_in_one_layer)), "nats per token off"),
    "stale head": (lambda e, u: e.push(changed(u, stale_head)), "nats per token off"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_push_is_refused(engine, name):
    damage, said = DAMAGE[name]
    policy = plain_policy()
    refresh(policy, engine)
    disturb(policy, 0.02)
    callback = RolloutRefresh()
    with pytest.raises(PushMismatch) as caught:
        refresh(policy, Between(engine, only_true(damage)), callback)
    assert said in str(caught.value)
    assert len(str(caught.value)) <= 300
    # a caller who goes on pushes again, and a clean push makes up for it
    refresh(policy, engine, callback)
    assert engine.version == policy.version


@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_an_adapter_with_one_matrix_zeroed_is_refused(engine, factor):
    policy = adapted_policy()
    name = f"base_model.model.model.layers.1.mlp.down_proj.{factor}.weight"
    assert name in policy.adapter_state()

    def zeroed(engine, update):
        return engine.push(changed(update, lambda n, t: t * 0 if n == name else t))

    with pytest.raises(PushMismatch, match="nats per token off"):
        refresh(policy, Between(engine, only_true(zeroed)))
    refresh(policy, engine)


def test_an_engine_that_keeps_its_weights_is_found_out_at_the_start(engine):
    policy = plain_policy()
    refresh(policy, engine)
    disturb(policy, 0.0)
    engine.proven = False
    with pytest.raises(PushMismatch, match="did not move"):
        refresh(policy, Between(engine, lied_about))
    engine.proven = False
    refresh(policy, engine)


def test_the_policys_tensors_are_copied(engine):
    policy = plain_policy()
    refresh(policy, engine)
    rows = weight_checks.probe_rows(policy)
    before = engine.score(rows)
    disturb(policy, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(engine.score(rows), before, strict=True))


def test_twenty_adapter_pushes_leave_nothing_behind(engine):
    policy = adapted_policy()
    callback = RolloutRefresh()
    seen = []
    for step in range(23):
        disturb(policy, 0.02, seed=step)
        refresh(policy, engine, callback)
        gc.collect()
        session = engine.session
        with session.inside():
            adapters = len(session.llm.llm_engine.list_loras())
        folders = len([p for p in session.weight_writer.folder.iterdir() if p.is_dir()])
        pages = int(open("/proc/self/statm").read().split()[1])  # noqa: SIM115
        seen.append((len(os.listdir("/proc/self/fd")), folders, adapters, pages * os.sysconf("SC_PAGE_SIZE") / 2**20))
    later = seen[3:]
    assert {row[1:3] for row in later} == {(1, 1)}
    # what other tests of this process left open may close meanwhile
    assert later[-1][0] <= later[0][0]
    x = torch.arange(float(len(later)))
    y = torch.tensor([row[3] for row in later])
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    assert slope < 1.0


def test_a_version_is_pushed_once(engine):
    policy = plain_policy()
    callback = refresh(policy, engine)
    refresh(policy, engine, callback)
    assert callback.pushes == 1
    played = SimpleNamespace(stats={"serl/round/groups": 1.0})
    callback.on_round_end(None, None, played)
    assert set(played.stats) == {"serl/round/groups", "serl/sync/bytes", "serl/sync/probe_logp_err", "time/sync"}


def test_an_adapter_of_another_kind_arrives_merged_and_the_base_stays(engine):
    refresh(plain_policy(), engine)
    policy = load_policy("tiny:base", lora=LoraOptions(r=4, alpha=8, peft={"use_dora": True}))
    disturb(policy, 0.5)
    assert not engine.takes_adapter(policy.adapter_config())
    before = {n: t.clone() for n, t in policy.state_dict().items()}
    callback = refresh(policy, engine)
    assert callback.pushes == 1
    assert callback._fresh["serl/sync/probe_logp_err"] < 2e-5
    assert all(torch.equal(t, before[n]) for n, t in policy.state_dict().items())
    with policy.gathered():  # and the adapter does something
        rows = weight_checks.probe_rows(policy)
        with_adapter, without = (weight_checks.policy_logps(policy, rows, base=base) for base in (False, True))
        assert weight_checks.gap(with_adapter, without) > 0.01


def test_a_base_of_four_bits_is_pushed_as_the_trainer_computes_with_it(engine):
    policy = load_policy("tiny:base", lora=LoraOptions(r=4, alpha=8), quantize="nf4")
    disturb(policy, 0.5)
    assert policy.quantized
    engine.session.has_base = False  # as in an engine that was just started
    callback = refresh(policy, engine)
    assert callback.pushes == 2
    assert callback._fresh["serl/sync/probe_logp_err"] < 1e-4
    exact = plain_policy()
    with exact.gathered():
        rows = weight_checks.probe_rows(exact)
        assert weight_checks.gap(engine.score(rows, "reference"), weight_checks.policy_logps(exact, rows)) > 1e-3
    engine.session.has_base = False


def test_resume_and_validation_meet_the_policys_weights(no_vllm, tmp_path):
    """One engine through a fit with evaluation, and another after a resume."""

    class Versions(RolloutHooks):
        def __init__(self):
            self.seen = []

        def on_round_end(self, trainer, pl_module, played):
            self.seen.append((trainer.datamodule.engine.version, pl_module.policy.version))
            assert all(c.version == pl_module.policy.version for g in played.groups for c in g.completions)

    sets = EvaluationOptions(sets={"held_out": str(write_rows(tmp_path / "six.jsonl", problems(6)))}, samples=2)
    for epochs, path in ((1, None), (2, tmp_path / "checkpoints" / "last.ckpt")):
        fresh = VLLMEngine(kv_cache_gb=0.05)
        module, data = selfplay(engine=fresh, evaluation=sets)
        versions, callback = Versions(), RolloutRefresh()
        trainer = trainer_for(tmp_path, [Checkpoints(1), versions, callback], max_epochs=epochs)
        trainer.fit(module, data, ckpt_path=path)
        assert len(versions.seen) == 2
        assert all(ours == theirs >= 0 for ours, theirs in versions.seen)
        assert callback.pushes >= 3
        assert module.last_results["held_out"]["n"] == 6
        assert fresh.version == -1  # closed with the fit
    errors = [row["serl/sync/probe_logp_err"] for row in rows(tmp_path) if "serl/sync/probe_logp_err" in row]
    assert len(errors) == 4
    assert max(errors) < 2e-5
