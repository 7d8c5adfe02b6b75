"""The memory of a run as a function of how its work is divided, and the division that fits a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_serl.distributed.strategies import precision_of
from lightning_serl.engines import TransformersEngine, VLLMEngine
from lightning_serl.policy.free_memory import free_memory
from lightning_serl.policy.loading import check_model_path
from lightning_serl.policy.lora import LoraOptions
from lightning_serl.policy.memory_plan import Plan, Work, largest_below, plan, writing_bytes
from lightning_serl.protocols import LoadsPolicy, SelfPlay

#: Share of the free memory that a plan may take: allocators lose some, and prompts may be longer than foreseen.
SHARE = 0.85
# Fewest tokens that a prompt is taken for where no option limits it, and characters of a problem for each token.
_PROMPT, _CHARACTERS = 256, 3
# Rows of a pass without gradients where nothing makes it smaller.
_SCORED = 64


@dataclass(frozen=True)
class Division:
    """How the work of a run is divided."""

    micro_batches: int  # of an optimizer step, on each rank
    rows: int  # completions written at one time
    scored: int  # rows of a pass without gradients


class Foresight:
    """What one process of a run takes, by the options of Trainer, module and datamodule; nothing is loaded.

    Raises an InputError if the model directory cannot be used.
    """

    def __init__(self, trainer: pl.Trainer, module: LoadsPolicy, data: SelfPlay) -> None:
        from transformers import AutoConfig

        assert module.model_name_or_path is not None
        self.trainer, self.module, self.data = trainer, module, data
        self.device = trainer.strategy.root_device
        self.config = AutoConfig.from_pretrained(check_model_path(module.model_name_or_path), trust_remote_code=False)
        named = module.load_options["dtype"]
        loaded = (self.config.dtype or torch.float32) if named == "auto" else getattr(torch, named)
        self.dtype = precision_of(trainer).weights or loaded
        on_cpu = self.device.type != "cuda"
        #: Bytes that this process can take, those of a loaded model included, and bytes of the device.
        self.free, self.total = free_memory(self.device, max(1, trainer.num_devices) if on_cpu else 1)
        self.free += _held(module, self.device)
        #: Responses that an optimizer step has on each rank.
        self.responses = responses_of(trainer, module, data)
        self._traced = lru_cache(maxsize=None)(self._trace)

    @property
    def limit(self) -> int:
        """Bytes that a plan should stay below."""
        return int(SHARE * self.free)

    @property
    def limits_rows(self) -> bool:
        """Whether the engine leaves open how many completions are written at one time."""
        return isinstance(self.data.engine, TransformersEngine) and self.data.engine.given_rows is None

    @property
    def most_rows(self) -> int:
        """Completions that the engine would write at one time if memory did not matter."""
        engine = self.data.engine
        return engine.max_rows if isinstance(engine, TransformersEngine) else 1

    @cached_property
    def work(self) -> Work:
        """The work of the run, apart from how it is divided."""
        trainer, module, data = self.trainer, self.module, self.data
        longest = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        prompt = data.round_options.max_prompt_tokens or _prompt_tokens(data.seed_problems)
        length = prompt + data.sampling.longest
        writing = data.writing if data.writes else None
        examples = 0 if writing is None else writing.exemplars * _prompt_tokens(data.seed_problems, least=0)
        written = 0 if writing is None else _PROMPT + examples + writing.sampling.longest
        sharded = isinstance(trainer.strategy, ModelParallelStrategy)
        passes = module.objective.beta > 0 or module.steps_per_round > 1
        return Work(
            rows=self.responses,
            length=min(length, longest or length),
            sampled=0,
            autocast=precision_of(trainer).autocast,
            checkpointing=module.load_options["gradient_checkpointing"],
            state=state_per_weight(module.check_optimizer()),
            reference=module.lora is None and module.objective.beta > 0,
            offload=module.offload_frozen,
            ranks=trainer.world_size if sharded else 1,
            replicated=trainer.world_size > 1 and not sharded,
            engine=self._engine_bytes(),
            device="cuda" if self.device.type == "cuda" else "cpu",
            scored=_SCORED if passes else 0,
            written_length=min(written, longest or written),
        )

    def _engine_bytes(self) -> int | None:
        """What a separate engine takes; ``None`` where the policy itself writes."""
        engine = self.data.engine
        if isinstance(engine, TransformersEngine):
            return None
        if isinstance(engine, VLLMEngine):
            cache = (engine.kv_cache_gb or 1) * 2**30
            return int(engine.memory_share * self.total if self.device.type == "cuda" else cache)
        return 0

    def divided(self, rows: int, writing: int, scored: int = _SCORED) -> Work:
        """The work with ``rows`` responses in a micro-batch and ``writing`` completions written at one time."""
        data, ranks = self.data, self.trainer.world_size
        answers = -(-_responses(data) // ranks)
        asked = max(answers, data.evaluation.batch_size * data.evaluation.samples if data.evaluation.sets else 0)
        problems = -(-data.writing.prompts_per_call // ranks) if data.writes else 0
        return replace(
            self.work,
            rows=rows,
            sampled=min(writing, asked),
            written=min(writing, problems),
            # a pass with gradients takes more than one without
            scored=0 if scored <= rows or not self.work.scored else min(scored, answers),
        )

    def plan_of(self, rows: int, writing: int, scored: int = _SCORED) -> Plan:
        """The plan with ``rows`` responses in a micro-batch and ``writing`` completions written at one time."""
        work = self.divided(rows, writing, scored)
        found = self._traced(rows, 0)
        if work.scored:
            found = replace(found, scoring=self._traced(1, work.scored).scoring)
        if work.engine is None:
            found = replace(found, engine=found.engine + writing_bytes(self.config, self.dtype, work))
        return found

    def _trace(self, rows: int, scored: int) -> Plan:
        """The plan of a run that writes nothing, which is all that takes time to compute."""
        work = replace(self.work, rows=rows, scored=scored)
        return plan(self.config, self.dtype, work, self.module.lora, self.module.quantize is not None)

    def rows_of(self, micro_batches: int) -> int:
        """Responses of the largest of so many micro-batches."""
        return -(-self.responses // micro_batches)

    def writing_rows(self, limit: int) -> int:
        """Completions that can be written at one time below ``limit``; 0 if not one can."""
        if not self.limits_rows:
            return self.most_rows
        lasting = self.plan_of(1, 1, 1).lasting
        amount = lambda rows: lasting + writing_bytes(self.config, self.dtype, self.divided(1, rows))  # noqa: E731
        return largest_below(amount, self.most_rows, limit)

    def rows_beside_weights(self, limit: int) -> int:
        """Completions that can be written at one time where nothing is trained; 0 if not one can."""
        if not self.limits_rows:
            return self.most_rows

        def amount(rows: int) -> int:
            return writing_bytes(self.config, self.dtype, replace(self.work, sampled=rows))

        if amount(self.most_rows) <= limit // 4:  # far from the limit: the weights need not be counted
            return self.most_rows
        return largest_below(amount, self.most_rows, limit - self.plan_of(1, 1, 1).weights)

    def largest_micro_batch(self, limit: int) -> int:
        """Responses of the largest micro-batch whose training stays below ``limit``; 0 if not one response does."""
        return largest_below(lambda rows: self.plan_of(rows, self.most_rows, 1).training, self.responses, limit)

    def scored_rows(self, rows: int, limit: int) -> int:
        """Rows of a pass without gradients, at least those of a micro-batch."""
        fits = largest_below(lambda scored: self.plan_of(rows, self.most_rows, scored).training, _SCORED, limit)
        return max(1, min(_SCORED, max(fits, rows)))


def responses_of(trainer: pl.Trainer, module: LoadsPolicy, data: SelfPlay) -> int:
    """Responses that an optimizer step has on each rank, at most."""
    return -(-_responses(data) // (module.minibatches * trainer.world_size))


def _responses(data: SelfPlay) -> int:
    """Responses of a round, at most: of its problems and of all their follow-ups."""
    options = data.round_options
    grown = sum(options.max_derived**wave for wave in range(options.max_waves + 1))
    return int(options.prompts_per_round * options.samples_per_prompt * grown)


def _prompt_tokens(seeds: Sequence[Any], least: int = _PROMPT) -> int:
    """Tokens of a long prompt: only one problem in twenty has more."""
    lengths = sorted(len(seed.prompt) for seed in seeds)
    return max(least, lengths[int(0.95 * (len(lengths) - 1))] // _CHARACTERS + 1 if lengths else least)


def _held(module: Any, device: torch.device) -> int:
    """Bytes of the policy and its frozen copies that are on the device already."""
    policy = dict(module.named_children()).get("policy")
    if policy is None:
        return 0
    owners = (policy, *getattr(policy, "frozen", {}).values())
    return sum(p.nbytes for owner in owners for p in owner.parameters() if p.device == device)


def state_per_weight(optimizer: torch.optim.Optimizer) -> float:
    """Bytes of state that an optimizer holds per trained weight, found by a step on a small matrix.

    The matrix replaces its first parameters, so the optimizer must be made for this question alone.
    """
    if type(optimizer).__module__.startswith("bitsandbytes"):  # steps on GPUs only
        return 2 + 8 / 256 if "8bit" in type(optimizer).__name__ else 8
    weight = nn.Parameter(torch.zeros(128, 128))
    weight.grad = torch.zeros_like(weight)
    optimizer.param_groups[0]["params"] = [weight]
    optimizer.step()
    state = [t for t in tree_leaves(optimizer.state[weight]) if isinstance(t, Tensor)]
    return sum(t.nbytes for t in state) / weight.numel()


# -- what would make a run smaller -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Remedy:
    """Options that make a run smaller."""

    options: str  # as the user types them
    lora: int = 0  # rank of the adapter; 0 leaves it as it is
    quantized: bool = False
    half: bool = False  # weights in bfloat16, and mixed precision
    state: float | None = None  # bytes of optimizer state per trained weight
    micro_batches: int = 0  # 0: one response in each
    rows: int = 1  # completions written at one time


#: In the order in which they are tried; the presets' figures are those of ``configs/``.
REMEDIES = (
    Remedy("--model.gradient_checkpointing true"),
    Remedy("-c preset:lora-24gb", lora=32, half=True, micro_batches=64, rows=32),
    Remedy("-c preset:qlora-24gb", lora=16, quantized=True, half=True, state=2.03125, micro_batches=128, rows=32),
)


def remedied(foresight: Foresight, remedy: Remedy) -> Plan:
    """The plan of the run with the options of a remedy."""
    rows = foresight.rows_of(remedy.micro_batches) if remedy.micro_batches else 1
    work = replace(foresight.divided(rows, remedy.rows, rows), checkpointing=True)
    lora, dtype = foresight.module.lora, foresight.dtype
    if remedy.lora:
        lora = LoraOptions(r=remedy.lora, alpha=2 * remedy.lora)
        work = replace(work, reference=False)
    if remedy.half:
        dtype, work = torch.bfloat16, replace(work, autocast=torch.bfloat16)
    if remedy.state is not None:
        work = replace(work, state=remedy.state)
    quantized = remedy.quantized or foresight.module.quantize is not None
    return plan(foresight.config, dtype, work, lora, quantized)
