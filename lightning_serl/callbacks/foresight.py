"""The memory of a run as a function of how its work is divided, and the division that fits a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from lightning_serl.policy.free_memory import free_memory, resident_memory
from lightning_serl.policy.kv_cache import row_layers
from lightning_serl.policy.loading import check_model_path
from lightning_serl.policy.lora import LoraOptions
from lightning_serl.policy.memory_plan import Plan, Work, gib, largest_below, plan, writing_bytes
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


@dataclass(frozen=True)
class Place:
    """Where the processes of a run work."""

    device: torch.device
    ranks: int = 1  # processes that train together
    sharded: bool = False  # whether weights are sharded over them
    shares: int = 1  # of them, those that share the memory of a host
    memory: tuple[int, int] | None = None  # bytes that are free on the device and that it has, where they are not asked
    engine: int | None = None  # bytes of a separate engine on the device, where the engine does not say
    name: str = ""  # for messages

    @classmethod
    def of(cls, trainer: pl.Trainer) -> Place:
        """Where a Trainer runs."""
        device = trainer.strategy.root_device
        shares = max(1, trainer.num_devices) if device.type != "cuda" else 1
        return cls(device, trainer.world_size, isinstance(trainer.strategy, ModelParallelStrategy), shares)

    def free(self) -> tuple[int, int]:
        """Bytes that this process can take on the device, and those that the device has."""
        return self.memory or free_memory(self.device, self.shares)


class Foresight:
    """What one process of a run takes, by the options of Trainer, module and datamodule; nothing is loaded.

    Raises an InputError if the model directory cannot be used.
    """

    def __init__(self, trainer: pl.Trainer, module: LoadsPolicy, data: SelfPlay, place: Place | None = None) -> None:
        from transformers import AutoConfig

        assert module.model_name_or_path is not None
        self.trainer, self.module, self.data = trainer, module, data
        self.place = place or Place.of(trainer)
        #: Name of the device, for messages.
        self.device = self.place.name or str(self.place.device)
        self.config = AutoConfig.from_pretrained(check_model_path(module.model_name_or_path), trust_remote_code=False)
        named = module.load_options["dtype"]
        loaded = (self.config.dtype or torch.float32) if named == "auto" else getattr(torch, named)
        self.dtype = precision_of(trainer).weights or loaded
        #: Bytes that this process can take, those of a loaded model included, and bytes of the device.
        self.free, self.total = self.place.free()
        self.free += _held(module, self.place.device)
        #: Responses that an optimizer step has on each rank.
        self.responses = responses_of(self.place.ranks, module, data)
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
        module, data, place = self.module, self.data, self.place
        longest = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        prompt = data.round_options.max_prompt_tokens or _prompt_tokens(data.seed_problems)
        length = prompt + data.sampling.longest
        writing = data.writing if data.writes else None
        examples = 0 if writing is None else writing.exemplars * _prompt_tokens(data.seed_problems, least=0)
        written = 0 if writing is None else _PROMPT + examples + writing.sampling.longest
        passes = module.objective.beta > 0 or module.steps_per_round > 1
        group = self._group
        return Work(
            rows=self.responses,
            length=min(length, longest or length),
            sampled=0,
            autocast=precision_of(self.trainer).autocast,
            checkpointing=module.load_options["gradient_checkpointing"],
            state=state_per_weight(module.check_optimizer()),
            reference=module.lora is None and module.objective.beta > 0,
            offload=module.offload_frozen,
            ranks=place.ranks if place.sharded else 1,
            replicated=place.ranks > 1 and not place.sharded,
            engine=self._engine_bytes(),
            device="cuda" if place.device.type == "cuda" else "cpu",
            scored=_SCORED if passes else 0,
            written_length=min(written, longest or written),
            group=group,
            # the rest is the answer, even if the context is shorter than both
            prompt=max(0, min(prompt, (longest or length) - data.sampling.longest)) if group else 0,
        )

    @property
    def packs(self) -> bool:
        """Whether micro-batches will be packed, as far as options and configuration tell: a fit decides by a trial."""
        attention = self.module.load_options.get("attn_implementation")
        wanted = (
            getattr(self.module, "packing", "none") == "auto"
            and not self.place.sharded
            and attention in (None, "sdpa", "eager")
        )
        return wanted and row_layers(self.config) is not None

    @property
    def _group(self) -> int:
        """Neighbouring rows of a micro-batch with one prompt; 0 where micro-batches are padded."""
        return int(self.data.round_options.samples_per_prompt) if self.packs else 0

    @property
    def libraries(self) -> int:
        """Bytes that this process holds besides a model; 0 on a GPU, where its context is no longer free."""
        if self.place.device.type == "cuda":
            return 0
        return max(0, resident_memory() - _held(self.module, self.place.device))

    def _engine_bytes(self) -> int | None:
        """What a separate engine takes; ``None`` where the policy itself writes."""
        engine = self.data.engine
        if self.place.engine is not None:
            return self.place.engine
        if isinstance(engine, TransformersEngine):
            return None
        if isinstance(engine, VLLMEngine):
            cache = (engine.kv_cache_gb or 1) * 2**30
            return int(engine.memory_share * self.total if self.place.device.type == "cuda" else cache)
        return 0

    def divided(self, rows: int, writing: int, scored: int = _SCORED) -> Work:
        """The work with ``rows`` responses in a micro-batch and ``writing`` completions written at one time."""
        data, ranks = self.data, self.place.ranks
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

    def expected(self, division: Division, prompt: float, answer: float, written: float) -> Plan:
        """The plan for texts that are shorter than the options allow.

        ``prompt`` and ``answer`` are tokens of a row in a micro-batch, ``written`` those of one while it is written.
        """
        work = self.divided(self.rows_of(division.micro_batches), division.rows, division.scored)
        length = max(2, min(round(prompt + answer), work.length))
        work = replace(work, length=length, prompt=min(round(prompt), length - 1) if work.group else 0)
        lora, quantized = self.module.lora, self.module.quantize is not None
        found = plan(self.config, self.dtype, work, lora, quantized)
        if work.engine is None:
            row = replace(work, length=round(written), written_length=round(written))
            found = replace(found, engine=writing_bytes(self.config, self.dtype, row))
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


def responses_of(ranks: int, module: LoadsPolicy, data: SelfPlay) -> int:
    """Responses that an optimizer step has on each of so many ranks, at most."""
    return -(-_responses(data) // (module.minibatches * ranks))


def _responses(data: SelfPlay) -> int:
    """Responses of a round, at most: of its problems and of all their follow-ups."""
    options = data.round_options
    grown = sum(options.max_derived**wave for wave in range(options.max_waves + 1))
    return int(options.prompts_per_round * options.samples_per_prompt * grown)


# -- the division that fits --------------------------------------------------------------------------------------------


def chosen_division(foresight: Foresight, cannot_fit: Callable[[Foresight], None]) -> Division:
    """The fewest micro-batches, most rows and longest passes without gradients that fit."""
    whole = foresight.plan_of(foresight.responses, foresight.most_rows, 1)
    if whole.peak <= foresight.limit:
        return Division(1, foresight.most_rows, _scored(foresight, foresight.responses, whole))
    rows = foresight.largest_micro_batch(foresight.limit)
    writing = foresight.writing_rows(foresight.limit)
    if not rows or not writing:
        if foresight.plan_of(1, 1, 1).peak > foresight.free:
            cannot_fit(foresight)
        rows, writing = max(1, rows), max(1, writing)
    count = -(-foresight.responses // rows)
    plan = foresight.plan_of(foresight.rows_of(count), writing, 1)
    return Division(count, writing, _scored(foresight, foresight.rows_of(count), plan))


def given_division(foresight: Foresight, micro_batches: int, cannot_fit: Callable[[Foresight], None]) -> Division:
    """The user's number of micro-batches, with the most rows and longest passes that fit."""
    size = foresight.rows_of(micro_batches)
    writing = foresight.most_rows
    plan = foresight.plan_of(size, writing, 1)
    if plan.peak > foresight.limit:
        writing = foresight.writing_rows(foresight.limit)
        if foresight.plan_of(1, 1, 1).peak > foresight.free:
            cannot_fit(foresight)
        writing = max(1, writing)
    return Division(micro_batches, writing, _scored(foresight, size, plan))


def writing_only(foresight: Foresight) -> Division:
    """The rows that fit beside the weights alone, for an evaluation or a prediction."""
    return Division(1, max(1, foresight.rows_beside_weights(foresight.limit)), 1)


def _scored(foresight: Foresight, rows: int, plan: Plan) -> int:
    """Rows of a pass without gradients, which takes less than one with gradients over as many rows."""
    from_training = plan.lasting + plan.gradients + plan.activations * -(-64 // rows)
    return 64 if from_training <= foresight.limit else foresight.scored_rows(rows, foresight.limit)


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


def remedies(foresight: Foresight) -> str:
    """What would make a run fit that does not, at most two options with the peak that each would have."""
    peaks = ((remedy.options, remedied(foresight, remedy).peak) for remedy in REMEDIES)
    found = [f"{options} would take {gib(peak)}" for options, peak in peaks if peak <= foresight.limit]
    return " and ".join(found[:2]) or "take a smaller model, or shard it over several devices"
