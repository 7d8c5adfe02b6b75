"""A value that is NaN or infinite, wherever it comes from, changes no weight and reaches no file and no engine."""

import math
from dataclasses import replace

import pytest
from helpers.nonfinite import Alternating, Fault, Run, first_weight, spoil
from helpers.training import rows

from lightning_serl.errors import NotFinite
from lightning_serl.objectives import experience
from lightning_serl.objectives.surrogate import Surrogate

NAN, INF = math.nan, math.inf


class Injector:
    """Brings one value each into the second, fourth ... step of a run; what is said of the step is the last part.

    The policy's version tells the step, since every optimizer step raises it.
    """

    PLACES = (
        ("gradient", NAN, "the gradient is not finite"),
        ("engine", NAN, "a log-prob of the engine of problem"),
        ("engine", -INF, "a log-prob of the engine of problem"),
        ("reference", NAN, "a reference log-prob of problem"),
        ("advantage", INF, "an advantage of problem"),
        ("logits", NAN, "a log-prob of the policy on problem"),
        ("loss", INF, "the loss of"),
    )

    def __init__(self, patch):
        self.patch, self.in_step = patch, False
        self.callback = Fault("on_before_optimizer_step", self.in_gradient, 1, 1000)

    def value(self, place):
        """The value that is due at a place now."""
        number, odd = divmod(self.module.policy.version, 2)
        due = odd and self.PLACES[number][:2]
        return due[1] if due and due[0] == place else None

    def in_gradient(self, trainer, module, *rest):
        if (value := self.value("gradient")) is not None:
            spoil(first_weight(module).grad, value)

    def __call__(self, module, engine):
        self.module = module
        logprobs, set_advantages, evaluate = module._logprobs, experience.set_advantages, Surrogate.evaluate

        def of_engine(completion):
            value = self.value("engine")
            return completion if value is None else replace(completion, logprobs=(*completion.logprobs[:-1], value))

        def of_reference(chosen, names):
            found = logprobs(chosen, names)
            if (value := self.value("reference")) is not None:
                found[names.index("reference")][0][0] = value
            return found

        def of_advantages(scored, objective):
            set_advantages(scored, objective)
            if (value := self.value("advantage")) is not None:
                scored[1].advantage[0] = value

        def of_loss(surrogate, policy):
            self.in_step = True
            loss, stats = evaluate(surrogate, policy)
            self.in_step = False
            return loss + (self.value("loss") or 0.0), stats

        def of_logits(norm, inputs, hidden):
            if self.in_step and self.value("logits") is not None:
                hidden = hidden.clone()
                hidden[0, -3] = NAN  # the last hidden state of a position, and so all its logits
            return hidden

        engine.spoil, module._logprobs = of_engine, of_reference
        self.patch.setattr(experience, "set_advantages", of_advantages)
        self.patch.setattr(Surrogate, "evaluate", of_loss)
        module.policy.causal_lm.base_model.norm.register_forward_hook(of_logits)


def test_a_step_is_left_out(tmp_path, monkeypatch, recwarn):
    injector = Injector(monkeypatch)
    steps = 2 * len(injector.PLACES) + 1
    run = Run(tmp_path, [injector.callback], steps, injector)
    assert run.error is None
    assert run.not_finite() is None
    assert run.checkpoints == list(range(1, steps + 1, 2)), "none after a step that was left out"
    assert run.moved() == [step % 2 == 1 for step in range(1, steps)], "weights stay, and are trained on from there"
    assert [row.get("serl/nonfinite_steps", 0) for row in rows(tmp_path)] == [step // 2 for step in range(1, steps + 1)]
    assert all(math.isfinite(value) for row in rows(tmp_path) for value in row.values())
    said = [str(w.message) for w in recwarn if "not taken" in str(w.message)]
    for (place, value, words), message, step in zip(injector.PLACES, said, range(2, steps, 2), strict=True):
        assert message.startswith(f"optimizer step {step} (round {step}) was not taken: "), (place, value)
        assert words in message, (place, value)
    assert run.module.steps_not_taken == 0
    assert (tmp_path / "export" / "config.json").exists()


def weight(hook, at=1, value=NAN):
    return Fault(hook, lambda trainer, module, *_: spoil(first_weight(module), value), at)


def in_gradient(at, times=1):
    return Fault("on_before_optimizer_step", lambda t, module, *_: spoil(first_weight(module).grad), at, times)


#: What a step cannot get rid of: the callback that brings it there, what is said, the steps with a checkpoint.
ENDED = {
    "a push": (weight("on_rollout_start", 2), "weights are not finite after step 1", [1]),
    "a checkpoint": (weight("on_train_batch_end", 1, INF), "state_dict.policy", []),
    "the export": (weight("on_train_end"), "weights are not finite after step 2", [1, 2]),
    "the optimizer's state": (
        Fault("on_train_batch_start", lambda t, m, *_: spoil(t.optimizers[0].state[first_weight(m)]["exp_avg_sq"])),
        "weights are not finite after step 2", [1],
    ),
    "the reference": (
        Fault("on_train_batch_end", lambda t, m, *_: spoil(next(m.policy.frozen["reference"].parameters())), 1),
        "serl_policy.frozen", [],
    ),
    "the last step": (in_gradient(2), "ended on a step that was not taken", [1]),
    "three steps": (in_gradient(1, 3), "3 optimizer steps in a row, the last step 3 (round 3), because the gr", []),
}  # fmt: skip


@pytest.mark.parametrize("place", ENDED)
def test_a_run_ends(tmp_path, place):
    callback, said, steps = ENDED[place]
    run = Run(tmp_path, [callback], 4 if place == "three steps" else 2)
    assert isinstance(run.error, NotFinite)
    assert said in str(run.error)
    assert len(str(run.error)) < 290
    assert run.not_finite() is None
    assert run.checkpoints == steps
    assert (tmp_path / "checkpoints" / "last.ckpt").exists() == bool(steps)
    assert not (tmp_path / "export").exists()


def test_a_reward_of_ones_own_that_is_infinite(tmp_path):
    run = Run(tmp_path, rounds=1, reward=Alternating(1, INF))
    assert "the reward Alternating of role 'solve' gave a score or weight that is not a finite" in str(run.error)
    assert run.not_finite() is None
