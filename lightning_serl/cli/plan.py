"""``lightning-serl plan``: what a fit takes, foreseen from its options; nothing is loaded and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from lightning_serl.callbacks.foresight import (
    Division,
    Foresight,
    Place,
    chosen_division,
    given_division,
    remedies,
    responses_of,
)
from lightning_serl.callbacks.time_advice import DOMINATES, Situation, advice, situation_of
from lightning_serl.cli.lightning_cli import SelfPlayCLI
from lightning_serl.cli.plan_options import HELP, split_options
from lightning_serl.cli.plan_report import Report, report_lines, report_values
from lightning_serl.cli.plan_work import Fleet, lengths_of, round_of, work_of
from lightning_serl.cli.run_folder import CommandState
from lightning_serl.datamodules import checks
from lightning_serl.datamodules.spending import planned_rounds
from lightning_serl.distributed.strategies import check_strategy_name, precision_of
from lightning_serl.engines import TransformersEngine
from lightning_serl.errors import InputError, reason
from lightning_serl.policy.devices import ASSUMED, CARDS, THIS, card, card_machine, card_named, cpu_machine
from lightning_serl.policy.free_memory import free_memory
from lightning_serl.policy.loading import check_model_path, for_a_plan
from lightning_serl.policy.model_shape import model_shape

_GIB = 2**30
_SHARDED = ("sharded", "ShardedStrategy", "ModelParallelStrategy")


class PlanCLI(SelfPlayCLI):
    """Takes a command line of ``fit`` with ``--plan.*`` options and prints what that fit would take."""

    def __init__(self, args: Sequence[str], state: CommandState) -> None:
        self.asked, rest = split_options(args[1:])
        self.engine_share: float | None = None  # of a card's memory, where vLLM writes in the trainer's process
        self.serves = False  # whether vLLM servers write
        self.devices, self.nodes, self.sharded = 1, 1, False
        self.assumed: list[str] = []
        with for_a_plan():
            super().__init__(["fit", *rest], state)

    @property
    def device(self) -> str:
        """Name of the device that the plan is for."""
        return self.asked.device or THIS

    @property
    def on_card(self) -> bool:
        """Whether the plan is for a GPU."""
        return self.device.lower() != THIS

    def before_instantiate_classes(self) -> None:
        """Read where the run would work, and put in its place what this machine can construct."""
        options = self.config[self.subcommand]
        trainer, data = options.trainer, options.data
        if self.asked.device is None and trainer.accelerator != "cpu" and torch.cuda.is_available():
            self.asked.device = _card_here(torch.cuda.get_device_name())
        if self.on_card:
            card(self.device)
        strategy = trainer.strategy
        if isinstance(strategy, str):
            check_strategy_name(strategy)
        named = strategy if isinstance(strategy, str) else str(getattr(strategy, "class_path", ""))
        self.sharded = named.rpartition(".")[2] in _SHARDED
        self.nodes = self.asked.nodes or int(trainer.num_nodes or 1)
        self.devices = self.asked.gpus or _number(trainer.devices)
        if self.on_card:
            self.assumed.append(ASSUMED)
            if self.asked.gpus is None and str(trainer.devices) in ("-1", "auto"):
                self.assumed.append("one GPU for each node (plan.gpus)")
        trainer.accelerator, trainer.devices, trainer.num_nodes, trainer.strategy = "cpu", 1, 1, "auto"
        trainer.logger, trainer.default_root_dir, options.ckpt_path = False, ".", None
        if str(trainer.precision) in ("16", "16-mixed"):  # as large and as fast, and a CPU has no 16-mixed
            trainer.precision = "bf16-mixed"
        engine = data.get("engine")
        kind = str(getattr(engine, "class_path", "")).rpartition(".")[2]
        self.serves = kind == "VLLMServerEngine" or bool(self.asked.servers)
        if kind == "VLLMEngine" and not self.serves:
            self.engine_share = float(engine.init_args.get("memory_share") or 0.45)
        if self.serves or self.engine_share is not None:  # vLLM need not be installed for a plan
            data.engine = Namespace(class_path="lightning_serl.engines.VLLMServerEngine", init_args=Namespace())

    def run(self, subcommand: str) -> None:
        """Print the plan."""
        report = self.make_plan()
        for line in report_lines(report):
            print(line)
        if self.asked.json is not None:
            target = Path(self.asked.json).expanduser()
            target.write_text(json.dumps(report_values(report), indent=2) + "\n", encoding="utf-8")

    def make_plan(self) -> Report:
        """The plan; an InputError where there is no model, or none that can be planned for."""
        checks.check_fit(self.trainer, self.model, self.datamodule)
        if (name := self.model.model_name_or_path) is None:
            raise InputError("no model was named; set --model.model_name_or_path to a directory with config.json")
        try:
            return self._report(name)
        except InputError:
            raise
        except Exception as error:  # of transformers or torch, for a model that they do not know or cannot trace
            said = f"there is no plan for model {name[-80:]!r} ({reason(error)})"
            raise InputError(f"{said}; give a directory with the config.json of a model with attention") from error

    # -- the plan ------------------------------------------------------------------------------------------------------

    def _place(self) -> Place:
        """Where the run would work."""
        ranks = self.nodes * self.devices
        if not self.on_card:
            return Place(torch.device("cpu"), ranks, self.sharded, self.devices, engine=self._engine_bytes(None))
        memory = int(card(self.device).memory * _GIB)
        return Place(torch.device("cuda"), ranks, self.sharded, 1, (memory, memory), self._engine_bytes(memory),
                     self.device)  # fmt: skip

    def _engine_bytes(self, memory: int | None) -> int | None:
        """Bytes of a separate engine on the trainer's device; ``None`` where the policy itself writes."""
        if self.engine_share is not None:
            return int(self.engine_share * (memory or free_memory(torch.device("cpu"))[1]))
        return 0 if self.serves else None

    def _foresight(self) -> tuple[Foresight, Division, bool]:
        """The memory plan of the fit, with the division that it would choose, and whether it fits."""
        foresight = Foresight(self.trainer, self.model, self.datamodule, self._place())
        misses: list[Foresight] = []
        asked, given = self.model.micro_batch, self.trainer.accumulate_grad_batches
        if isinstance(asked, int):
            responses = responses_of(foresight.place.ranks, self.model, self.datamodule)
            division = given_division(foresight, -(-responses // min(asked, responses)), misses.append)
        elif given > 1:
            division = given_division(foresight, given, misses.append)
        else:
            division = chosen_division(foresight, misses.append)
        return foresight, division, not misses

    def _report(self, name: str) -> Report:
        foresight, division, fits = self._foresight()
        lengths = lengths_of(self.datamodule, foresight.config, check_model_path(name))
        rounds = planned_rounds(self.trainer, self.datamodule.rounds_per_epoch)
        work = work_of(foresight, division, self.asked, lengths, rounds)
        own = not self.serves and self.engine_share is None
        fleet = self._fleet(foresight, division if fits else replace(division, rows=foresight.most_rows))
        played = round_of(fleet, work)
        memory = foresight.plan_of(foresight.rows_of(division.micro_batches), division.rows, division.scored)
        written = work.answers.prompt_tokens + work.answers.longest
        written = max(written, work.texts.prompt_tokens + work.texts.longest)
        expected = foresight.expected(division, lengths.prompt, work.answers.tokens, written)
        limit = played.limit
        run = self._situation(division)
        share = played.parts[limit] / sum(played.parts.values())
        changes = [] if fits else [f"it does not fit: {remedies(foresight)}"]
        if (said := advice(limit, run)) and share >= DOMINATES:
            changes.append(f"to save time: {said}")
        return Report(
            model=name, shape=fleet.shape, device=foresight.device, nodes=self.nodes,
            devices=self.devices, servers=fleet.writers if self.serves else 0, memory=memory, expected=expected,
            free=foresight.free, libraries=foresight.libraries, fits=fits, own=own, division=division,
            responses=foresight.rows_of(division.micro_batches), work=work, played=played, rounds=rounds,
            changes=tuple(changes), assumed=(*work.assumed, *self.assumed),
            machine=fleet.trainer,
        )  # fmt: skip

    def _fleet(self, foresight: Foresight, division: Division) -> Fleet:
        """The devices and what they do in a second."""
        precision = precision_of(self.trainer)
        lora, quantized = self.model.lora, self.model.quantize is not None
        shape = model_shape(foresight.config, foresight.dtype, lora, precision.autocast, quantized)
        # the policy writes without autocast; vLLM in the dtype that the trainer computes in
        own = isinstance(self.datamodule.engine, TransformersEngine)
        compute = precision.autocast or foresight.dtype
        dtype = foresight.dtype if own else compute
        written = shape if own and precision.autocast is None else replace(shape, itemsize=dtype.itemsize)
        if not own:
            written = replace(written, weight_bytes=dtype.itemsize)
        size = self.datamodule.round_options
        rows = min(division.rows if own else 256, size.prompts_per_round * size.samples_per_prompt)
        ranks = self.nodes * self.devices
        writers = max(1, self.asked.servers) if self.serves else ranks
        if self.on_card:
            one, adapter = card(self.device), lora is not None
            trainer = card_machine(one, compute, False, adapter, self.nodes)
            writer = card_machine(one, dtype, not own, adapter and own, self.nodes)
        else:
            steps = responses_of(ranks, self.model, self.datamodule) * self.datamodule.sampling.longest
            trainer = writer = cpu_machine(shape, compute, rows, steps // division.micro_batches)
        pushed = shape.adapter * 4 if lora is not None else (shape.weights + shape.head) * compute.itemsize
        ahead = bool(self.datamodule.max_staleness) and self.serves and ranks == 1
        if not self.serves:  # from one part of a device's memory to another
            trainer = replace(trainer, push=trainer.bandwidth / 2)
        return Fleet(trainer, writer, shape, written, ranks, writers, rows, 0 if own else pushed, self.sharded, ahead)

    def _situation(self, division: Division) -> Situation:
        engine = "server" if self.serves else "own" if self.engine_share is None else "vllm"
        rows = division.rows if engine == "own" else None
        return replace(situation_of(self.trainer), gpu=self.on_card, engine=engine, most_rows=rows)


def show_help() -> None:
    """Print the options of the command."""
    print(HELP.format(cards=", ".join(CARDS)))


def _card_here(name: str) -> str:
    """The card of this machine."""
    if (found := card_named(name)) is None:
        known = f"{THIS} (this machine's processors), {', '.join(CARDS)}"
        raise InputError(f"there is no data sheet of this machine's GPU ({name[:40]}); give --plan.device: {known}")
    return found


def _number(devices: Any) -> int:
    """Devices of a node as the Trainer takes them; 1 where only the machine of the run knows."""
    if isinstance(devices, (list, tuple)):
        return max(1, len(devices))
    try:
        return max(1, int(devices))
    except (TypeError, ValueError):
        return 1
