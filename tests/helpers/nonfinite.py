"""Runs in which one value becomes NaN or infinite at a chosen place, and what they left behind."""

import math
from pathlib import Path

import torch
from helpers.training import selfplay, trainer_for
from safetensors.torch import load_file

from lightning_serl.callbacks import Checkpoints, Export, ReferenceSync, RolloutHooks
from lightning_serl.datamodules import RoundOptions
from lightning_serl.distributed.finite import first_not_finite, tensors_in
from lightning_serl.engines import TransformersEngine
from lightning_serl.engines.base import Receipt
from lightning_serl.types import Verdict

ROUND = {"source": "seeds", "max_tokens": 8, "round": RoundOptions(prompts_per_round=2, samples_per_prompt=4)}


class Recording(TransformersEngine):
    """Takes weights as an engine of its own does, and keeps what was pushed; ``spoil`` changes its completions."""

    def __init__(self):
        super().__init__()
        self.held, self.pushed, self.spoil = -1, [], lambda completion: completion
        self.proven = True  # it reads the live weights after all, so that a canary would not show

    version = property(lambda self: self.held)

    def push(self, update):
        sent = {name: tensor.clone() for name, tensor in update.tensors()}
        self.pushed.append(sent)
        self.held = update.version
        return Receipt(self.held, frozenset(sent), sum(t.numel() * t.element_size() for t in sent.values()))

    def generate(self, requests, who="policy"):
        for index, completions in super().generate(requests, who):
            yield index, [self.spoil(completions[0]), *completions[1:]]


class Alternating:
    """A reward of one's own: scores alternate, and those of the round ``at`` end with ``last``."""

    needs: frozenset[str] = frozenset()

    def __init__(self, at=0, last=0.0):
        self.at, self.last, self.calls = at, last, 0

    def __call__(self, groups, ctx):
        self.calls += 1
        verdicts = [Verdict(torch.arange(len(group)) % 2.0) for group in groups]
        if self.calls == self.at:
            verdicts[0].scores[-1] = self.last
        return verdicts


class Fault(RolloutHooks):
    """Calls ``strike`` in one hook, with its arguments, at its ``at``-th call and the ``times`` - 1 after it."""

    def __init__(self, hook, strike, at=2, times=1):
        super().__init__()
        self.seen = 0

        def call(trainer, module, *rest):
            self.seen += 1
            if at <= self.seen < at + times:
                strike(trainer, module, *rest)

        setattr(self, hook, call)


def first_weight(module):
    return next(p for p in module.policy.parameters() if p.requires_grad)


@torch.no_grad()
def spoil(tensor, value=math.nan):
    tensor.view(-1)[3] = value


class Run:
    """A fit of ``rounds`` rounds of one optimizer step with a checkpoint after each, and an export."""

    def __init__(self, root, callbacks=(), rounds=4, change=lambda module, engine: None, ckpt=None, reward=None,
                 **options):  # fmt: skip
        self.root, self.engine = Path(root), Recording()
        self.module, data = selfplay(
            engine=self.engine, rounds_per_epoch=rounds, reward=reward or Alternating(), scheduler=None, **ROUND
        )
        change(self.module, self.engine)
        kept = [Checkpoints(1, keep=-1), Export(), ReferenceSync("ema", every_n_steps=1, alpha=0.5)]
        self.trainer = trainer_for(root, [*callbacks, *kept], gradient_clip_val=1.0, **options)
        self.error = None
        try:
            self.trainer.fit(self.module, data, ckpt_path=ckpt)
        except Exception as error:
            self.error = error

    @property
    def checkpoints(self):
        """The steps that have a checkpoint of their own."""
        return sorted(int(p.stem.removeprefix("step=")) for p in (self.root / "checkpoints").glob("step=*.ckpt"))

    def moved(self):
        """For each push but the first, whether its weights differ from those before."""
        pairs = zip(self.engine.pushed, self.engine.pushed[1:], strict=False)
        return [any(not torch.equal(one[name], other[name]) for name in one) for one, other in pairs]

    def not_finite(self):
        """The first value in checkpoint, export or push that is not finite."""
        held = [load_file(path) for path in self.root.rglob("*.safetensors")]
        for path in self.root.rglob("*.ckpt"):
            state = torch.load(path, weights_only=True)
            held.append({k: state[k] for k in ("state_dict", "optimizer_states", "serl_policy")})
        return first_not_finite(tensors_in([*held, *self.engine.pushed]))
