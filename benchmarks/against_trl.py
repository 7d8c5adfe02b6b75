"""Compares our formulas with TRL's code, number by number.

    python benchmarks/against_trl.py [--record tests/recorded/trl_objectives.json]

needs TRL 1.16.0, which this project does not install: use a separate environment with ``trl`` and this checkout on
``PYTHONPATH``. What is executed there:

- the losses: ``GRPOTrainer._compute_loss`` and ``RLOOTrainer._compute_loss`` as they are, on trainers made without
  ``__init__``, whose model pass hands back log-probs and entropies of a fixed ragged batch;
- the correction of the sampler's log-probs: ``GRPOTrainer._generate_and_score_completions``, given log-probs in
  addition to its own (some unknown) as if vLLM had sampled, for every mode; its losses under given importance ratios;
- the advantages: ``_generate_and_score_completions`` of both trainers, made on the embedded tiny model; a reward
  function hands back fixed rewards, ``None`` (our weight 0) among them;
- ``get_soft_overlong_punishment``.

Prints the worst difference of every case, and fails if one is too large. With ``--record`` TRL's inputs and numbers are
written to a file, which :func:`compare` (and with it the tests) reads without TRL.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lightning_serl import objectives

BOUND = 1e-6
MAX_TOKENS = 7
SIZE = 4  # responses of a group
REWARDS = [1, 0, 0, 1, None, 0.25, 0.5, -1, 2, 2, 2, 2, None, None, 3, None, 0.1, None, 0.1, 0.7]
# where TRL normalises over the batch it leaves lone responses out, and ours counts their advantage, which is 0
NONE_ALONE = [*REWARDS[:13], 1, *REWARDS[14:]]


# -- TRL's numbers -----------------------------------------------------------------------------------------------------


def inputs() -> dict[str, Any]:
    """A ragged batch: ratios far beyond the clip range, a response cut short, one that counts for nothing."""
    draw = torch.Generator().manual_seed(0)

    def table(scale: float) -> Tensor:
        return scale * torch.randn(6, MAX_TOKENS, generator=draw, dtype=torch.float64)

    logp = -table(1.0).abs()
    lengths = torch.tensor([7, 3, 5, 0, 1, 6])
    return {
        "logp": logp,
        "old": logp + table(0.5),
        "ref": logp + table(0.3),
        "entropy": table(1.0).abs(),
        "mask": torch.arange(MAX_TOKENS) < lengths[:, None],
        "advantages": torch.tensor([1.5, -0.7, -1.2, 0.4, 0.9, 0.0], dtype=torch.float64),
        # importance ratios as a correction may leave them: of tokens and of sequences, some masked
        "token": table(1.0).abs().clamp(0.3, 1.5) - 0.3,
        "sequence": table(1.0).abs()[:, :1] * torch.tensor([[1.0], [1.0], [0.0], [1.0], [1.0], [1.0]]),
    }


def loss_settings() -> list[dict[str, Any]]:
    """Settings of ``GRPOTrainer``, by TRL's names."""
    plain = {"epsilon": 0.2, "epsilon_high": 0.2, "delta": None, "beta": 0.0, "entropy_coef": 0.0}
    changes: list[dict[str, Any]] = [
        {},
        {"epsilon": 0.1, "epsilon_high": 0.28},
        {"delta": 1.5},
        {"beta": 0.3},
        {"epsilon_high": 0.28, "delta": 1.4, "beta": 0.04},
    ]
    kinds = ("grpo", "bnpo", "dapo", "dr_grpo")
    cases = [{"loss_type": kind} | plain | change for kind, change in itertools.product(kinds, changes)]
    # TRL's bonus is a mean over tokens whatever the loss is, so ours is comparable where the loss is one too
    cases.append({"loss_type": "bnpo"} | plain | {"beta": 0.3, "entropy_coef": 0.02})
    weighed = {"epsilon_high": 0.28, "delta": 1.4, "beta": 0.04}
    cases += [{"loss_type": k} | plain | weighed | {"ratio": r} for k in kinds for r in ("token", "sequence")]
    # GSPO, at bounds that clip some responses and at those of its paper, and CISPO, whose bound is an absolute one
    whole = [{"epsilon": 0.1, "epsilon_high": 0.1}, {"epsilon": 3e-4, "epsilon_high": 4e-4}]
    cases += [{"loss_type": k, "level": "sequence"} | plain | c for k in ("grpo", "dapo") for c in [*changes, *whole]]
    cases.append({"loss_type": "grpo", "level": "sequence"} | plain | weighed | {"ratio": "token"})
    bounds = [{"epsilon_high": 5.0}, {"epsilon_high": 1.2}, {"epsilon_high": 1.2, "beta": 0.3}]
    cases += [{"loss_type": "cispo"} | plain | b for b in [*bounds, {"epsilon_high": 1.2, "ratio": "token"}]]
    return cases


def _blank(kind: type, batch: dict[str, Any], **settings: Any) -> tuple[Any, Tensor, Tensor]:
    """A trainer of TRL that was never initialised, with what its loss reads, and the leaves of its graph."""
    from accelerate import Accelerator

    trainer = object.__new__(kind)
    logp, entropy = batch["logp"].clone().requires_grad_(), batch["entropy"].clone().requires_grad_()
    known = {
        "accelerator": Accelerator(cpu=True),
        "aux_loss_enabled": False,
        "current_gradient_accumulation_steps": 1,
        "importance_sampling_level": "token",
        "max_completion_length": MAX_TOKENS,
        "model": SimpleNamespace(training=True),
        "off_policy_mask_threshold": None,
        "top_entropy_quantile": 1.0,
        "use_adaptive_entropy": False,
        "use_vllm": False,
        "_metrics": {"train": defaultdict(list)},
        "_get_per_token_logps_and_entropies": lambda *_, **__: (logp, entropy, None),
    }
    for name, value in (known | settings).items():
        setattr(trainer, name, value)
    return trainer, logp, entropy


def trl_losses(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """Loss and gradients of every setting."""
    from trl import GRPOTrainer

    size, width = batch["mask"].shape
    items = 2.0 * batch["mask"].sum()  # as if another micro-batch were as long
    given = {
        "prompt_ids": torch.ones(size, 1, dtype=torch.long),
        "prompt_mask": torch.ones(size, 1, dtype=torch.long),
        "completion_ids": torch.ones(size, width, dtype=torch.long),
        "completion_mask": batch["mask"].to(torch.float64),
        "advantages": batch["advantages"],
        "old_per_token_logps": batch["old"],
        "ref_per_token_logps": batch["ref"],
        "num_items_in_batch": items,
    }
    out = []
    for case in loss_settings():
        options = SimpleNamespace(delta=case["delta"], use_bias_correction_kl=False, steps_per_generation=1)
        trainer, logp, entropy = _blank(
            GRPOTrainer, batch, args=options, beta=case["beta"], epsilon_low=case["epsilon"],
            epsilon_high=case["epsilon_high"], loss_type=case["loss_type"], entropy_coef=case["entropy_coef"],
            _entropy_bonus_enabled=case["entropy_coef"] > 0, use_vllm="ratio" in case,
            vllm_importance_sampling_correction=True, importance_sampling_level=case.get("level", "token"),
        )  # fmt: skip
        ratios = {"importance_sampling_ratio": batch[case["ratio"]]} if "ratio" in case else {}
        loss = trainer._compute_loss(None, given | ratios)
        loss.backward()
        slope = torch.zeros_like(entropy) if entropy.grad is None else entropy.grad
        found = {"loss": loss.item(), "gradient": logp.grad.tolist(), "entropy_gradient": slope.tolist()}
        out.append(case | {"items": items.item()} | found)
    return out


def trl_rloo_gradient(batch: dict[str, Any]) -> list[list[float]]:
    """RLOO's ratio is that of whole responses, so ours is comparable where nothing has moved yet: ratio 1."""
    from trl import RLOOTrainer

    trainer, logp, _ = _blank(RLOOTrainer, batch, epsilon_low=0.2, epsilon_high=0.2)
    mask = batch["mask"].to(torch.float64)
    given = {
        "prompt_ids": torch.ones(len(mask), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(mask), 1, dtype=torch.long),
        "completion_ids": torch.ones(mask.shape, dtype=torch.long),
        "completion_mask": mask,
        "advantages": batch["advantages"],
        "old_logps": (batch["logp"] * mask).sum(1),
    }
    trainer._compute_loss(None, given).backward()
    return logp.grad.tolist()


def trl_advantages() -> list[dict[str, Any]]:
    """Advantages that both trainers give to fixed rewards, for every way they can be scaled."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    from lightning_serl import tiny

    rewards: list[float | None] = []

    def reward(completions: list[str], **_: Any) -> list[float | None]:
        return rewards

    rows = [{"prompt": f"Question: Compute {i} + 4.\nSolution:"} for i in range(len(REWARDS) // SIZE)]
    out = []
    with tempfile.TemporaryDirectory() as root:
        options = {
            "output_dir": root, "num_generations": SIZE, "generation_batch_size": len(REWARDS),
            "per_device_train_batch_size": len(REWARDS), "max_completion_length": 12, "use_cpu": True, "bf16": False,
            "report_to": "none", "seed": 1,
        }  # fmt: skip
        base = str(tiny.path("base"))
        data = Dataset.from_list(rows)
        asked = [row for row in rows for _ in range(SIZE)]
        group = [i // SIZE for i in range(len(REWARDS))]

        grpo = GRPOTrainer(base, reward, args=GRPOConfig(**options), train_dataset=data)
        grpo.model.train()
        rewards[:] = REWARDS
        for scale in ("group", "batch", "none"):
            grpo.scale_rewards = scale
            found = grpo._generate_and_score_completions(asked)["advantages"]
            case = {"trainer": "grpo", "scale": scale, "beta": 0.0, "kl": [0.0] * len(REWARDS)}
            out.append(case | {"rewards": list(rewards), "group": group, "advantages": found.tolist()})

        rloo = RLOOTrainer(base, reward, args=RLOOConfig(beta=0.3, **options), train_dataset=data)
        rloo.model.train()
        with torch.no_grad():
            for weight in rloo.model.parameters():  # away from the reference, so that there is a divergence
                weight.add_(0.02 * torch.randn_like(weight))
        passes: list[Tensor] = []
        score = rloo._get_per_token_logps_and_entropies

        def listening(*given: Any, **more: Any) -> Any:
            answer = score(*given, **more)
            passes.append(answer[0])
            return answer

        rloo._get_per_token_logps_and_entropies = listening
        for normalised in (False, True):
            rloo.normalize_advantages = normalised
            rewards[:] = NONE_ALONE if normalised else REWARDS
            passes.clear()
            found = rloo._generate_and_score_completions(asked)
            policy, reference = passes
            divergence = ((policy - reference) * found["completion_mask"]).sum(-1)
            case = {"trainer": "rloo", "scale": "batch" if normalised else "none", "beta": 0.3}
            case |= {"kl": divergence.tolist(), "rewards": list(rewards), "group": group}
            out.append(case | {"advantages": found["advantages"].tolist()})
    return out


def trl_importance() -> dict[str, Any]:
    """Importance ratios of one generated batch, and what is logged of them, for every mode and two pairs of bounds."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from lightning_serl import tiny

    rows = [{"prompt": f"Question: Compute {i} + 4.\nSolution:"} for i in range(4)]
    with tempfile.TemporaryDirectory() as root:
        options = GRPOConfig(
            output_dir=root, num_generations=2, generation_batch_size=8, per_device_train_batch_size=8,
            max_completion_length=12, use_cpu=True, bf16=False, report_to="none", seed=1,
        )  # fmt: skip
        trainer = GRPOTrainer(
            str(tiny.path("base")), lambda completions, **_: [1.0, 0.0] * 4, args=options,
            train_dataset=Dataset.from_list(rows),
        )  # fmt: skip
        trainer.model.train()
        asked = [row for row in rows for _ in range(2)]
        generated = list(trainer._generate([row["prompt"] for row in asked]))
        lengths = [len(ids) for ids in generated[1]]
        trainer.use_vllm = trainer.vllm_importance_sampling_correction = True
        trainer._generate = lambda prompts: tuple(generated)

        def score(said: list[list[float]], mode: str, low: float | None, high: float) -> dict[str, Any]:
            generated[4] = said
            trainer.vllm_importance_sampling_mode = mode
            trainer.vllm_importance_sampling_clip_min, trainer.vllm_importance_sampling_clip_max = low, high
            trainer._metrics["train"].clear()
            return trainer._generate_and_score_completions(asked)

        first = score([[0.0] * n for n in lengths], "token_truncate", None, 3.0)
        old, mask = first["old_per_token_logps"].double(), first["completion_mask"].bool()
        noise = 0.2 * torch.randn(old.shape, generator=torch.Generator().manual_seed(2))
        noise[0, 0] = noise[1, :3] = torch.nan  # vLLM could not say
        said = [row[:n].tolist() for row, n in zip(old + noise, lengths, strict=True)]
        cases = []
        for mode in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"):
            for low, high in ((None, 1.2), (0.8, 1.3)):
                found = score(said, mode, low, high)
                case = {"mode": mode, "low": low or 0.0, "high": high}
                case["ratio"] = found["importance_sampling_ratio"].tolist()
                metrics = trainer._metrics["train"].items()
                cases.append(case | {k: v[-1] for k, v in metrics if k.startswith("sampling/importance")})
        sampler = found["sampling_per_token_logps"]
        return {"old": old.tolist(), "mask": mask.tolist(), "sampler": sampler.tolist(), "cases": cases}


def trl_overlong() -> list[dict[str, Any]]:
    """Penalties of lengths on both sides of every corner."""
    from trl.rewards import get_soft_overlong_punishment

    out = []
    for longest, buffer in ((100, 20), (10, 10), (7, 3)):
        lengths = sorted({1, longest - buffer, longest - buffer + 1, longest - 1, longest, longest + 1, 2 * longest})
        found = get_soft_overlong_punishment(longest, buffer)(completion_ids=[[0] * n for n in lengths])
        out.append({"max_tokens": longest, "buffer": buffer, "lengths": lengths, "penalties": found})
    return out


def record() -> dict[str, Any]:
    """Everything TRL says, as primitives."""
    import trl

    batch = inputs()
    return {
        "trl": trl.__version__,
        "torch": torch.__version__,
        "batch": {name: table.tolist() for name, table in batch.items()},
        "losses": trl_losses(batch),
        "rloo_gradient": trl_rloo_gradient(batch),
        "advantages": trl_advantages(),
        "importance": trl_importance(),
        "overlong": trl_overlong(),
    }


# -- ours beside it ----------------------------------------------------------------------------------------------------


def _worst(ours: Any, theirs: Any) -> float:
    ours, theirs = (torch.as_tensor(x, dtype=torch.float64) for x in (ours, theirs))
    assert ours.shape == theirs.shape, "nothing may be left out"
    return float((ours - theirs).abs().max())


def our_loss(batch: dict[str, Tensor], case: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and its gradients by log-probs and entropies, under settings by TRL's names."""
    logp, entropy = batch["logp"].clone().requires_grad_(), batch["entropy"].clone().requires_grad_()
    mask, rows, tokens = batch["mask"], len(batch["mask"]), float(batch["mask"].sum())
    how: dict[str, Any] = {
        "grpo": {"aggregation": "sequence", "denominator": rows},
        "bnpo": {"aggregation": "token", "denominator": tokens},
        "dapo": {"aggregation": "token", "denominator": case["items"]},
        "cispo": {"aggregation": "token", "denominator": case["items"]},
        "dr_grpo": {"aggregation": "constant", "denominator": rows, "constant_length": MAX_TOKENS},
    }[case["loss_type"]]
    advantages = batch["advantages"][:, None] * (batch[case["ratio"]] if "ratio" in case else 1.0)
    cispo = case["loss_type"] == "cispo"
    loss = objectives.policy_loss(
        logp, batch["old"], advantages, mask, case["epsilon"], case["epsilon_high"] - cispo, case["delta"],
        ratio=case.get("level", "token"), surrogate="cispo" if cispo else "clip", **how,
    )  # fmt: skip
    loss = loss + case["beta"] * objectives.aggregate(objectives.kl(logp, batch["ref"], "k3", mask), mask, **how)
    loss = loss - case["entropy_coef"] * objectives.aggregate(entropy, mask, **how)
    loss.backward()
    assert logp.grad is not None
    assert entropy.grad is not None
    return loss.detach(), logp.grad, entropy.grad


def our_advantages(case: dict[str, Any]) -> Tensor:
    """In an order that separates the members of a group, which TRL needs side by side."""
    weight = torch.tensor([float(r is not None) for r in case["rewards"]])
    rewards = torch.tensor([0.0 if r is None else r for r in case["rewards"]]).double()
    scores = rewards - case["beta"] * torch.tensor(case["kl"]).double()
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(3))
    back = order.argsort()
    group = torch.tensor(case["group"])
    live = weight.double()

    def ours(baseline: Any, scale: Any) -> Tensor:
        return objectives.advantages(scores[order], group[order], baseline, scale, live[order], 1e-4)[back]

    if case["trainer"] == "grpo" and case["scale"] == "batch":
        # another definition: TRL divides by the deviation of the scores, ours by that of the differences
        return ours("group", "none") / (scores[live > 0].std() + 1e-4)
    return ours("group" if case["trainer"] == "grpo" else "loo", case["scale"])


def our_importance(found: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    """Ratios on tokens that count, or of sequences, and their log."""
    old, sampler = (torch.tensor(found[name], dtype=torch.float64) for name in ("old", "sampler"))
    mask = torch.tensor(found["mask"])
    ours = objectives.importance_weights(old, sampler, mask, case["mode"], case["high"], case["low"])
    units = ours.counted(mask).weight
    theirs = torch.tensor(case["ratio"], dtype=torch.float64)
    names = ((f"sampling/importance_sampling_ratio/{k}", getattr(units, k)()) for k in ("min", "mean", "max"))
    return {"ratio": (units, theirs[mask if theirs.shape == mask.shape else mask.any(-1, keepdim=True)])} | {
        name: (value, case[name]) for name, value in names
    }


def compare(found: dict[str, Any]) -> dict[str, float]:
    """Worst absolute difference between our numbers and a record of TRL's, case by case."""
    types = defaultdict(lambda: torch.float64, mask=torch.bool)
    batch = {name: torch.tensor(table, dtype=types[name]) for name, table in found["batch"].items()}
    out: dict[str, float] = {}
    for case in found["losses"]:
        settings = [f"{k} {case[k]}" for k in ("epsilon", "epsilon_high", "delta", "beta", "entropy_coef")]
        ratio = f", ratio of {case['ratio']}" if "ratio" in case else ""
        level = ", ratios of sequences" if "level" in case else ""
        name = f"loss {case['loss_type']}, {', '.join(settings)}{ratio}{level}"
        theirs = case["loss"], case["gradient"], case["entropy_gradient"]
        out[name] = max(_worst(a, b) for a, b in zip(our_loss(batch, case), theirs, strict=True))
    logp = batch["logp"].clone().requires_grad_()
    objectives.policy_loss(
        logp, batch["logp"], batch["advantages"], batch["mask"], aggregation="constant", denominator=len(logp)
    ).backward()
    out["loss rloo, gradient at ratio 1"] = _worst(logp.grad, found["rloo_gradient"])
    for case in found["advantages"]:
        name = f"advantages {case['trainer']}, scale {case['scale']}, beta {case['beta']}"
        out[name] = _worst(our_advantages(case), case["advantages"])
    for case in found["importance"]["cases"]:
        name = f"importance {case['mode']}, bounds {case['low']} and {case['high']}"
        out[name] = max(_worst(a, b) for a, b in our_importance(found["importance"], case).values())
    for case in found["overlong"]:
        ours = objectives.overlong_penalty(torch.tensor(case["lengths"]), case["max_tokens"], case["buffer"])
        out[f"overlong penalty, {case['max_tokens']} tokens, buffer {case['buffer']}"] = _worst(ours, case["penalties"])
    return out


def main() -> int:
    """Run TRL, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, help="write TRL's inputs and numbers into this file")
    options = parser.parse_args()
    found = record()
    if options.record is not None:
        options.record.write_text(json.dumps(found, separators=(",", ":")) + "\n", encoding="utf-8")
    worst = compare(found)
    width = max(map(len, worst))
    for name, value in worst.items():
        print(f"{name:<{width}}  {value:.1e}{'' if value <= BOUND else '  <-- too large'}")
    print(f"{len(worst)} cases, worst difference {max(worst.values()):.1e}, bound {BOUND:.0e}")
    return int(max(worst.values()) > BOUND)


if __name__ == "__main__":
    sys.exit(main())
