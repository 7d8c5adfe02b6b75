"""Small real runs for the tests of gradient, stream, resume and ranks: models, recorded rounds, trainers."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lightning_serl import SelfPlayDataModule, SeRLModule, tiny
from lightning_serl.datamodules import RoundOptions
from lightning_serl.datamodules.sources import Writing
from lightning_serl.distributed.sharding import full
from lightning_serl.engines import TransformersEngine
from lightning_serl.engines.base import Sampling
from lightning_serl.objectives import Objective
from lightning_serl.prompts import InstructionTemplate, SolveTemplate
from lightning_serl.types import Completion, Group, Instruction, RolloutBatch, Verdict

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


def sharded(ranks=2, **options):
    """FSDP2 as a user would ask for it."""
    return ModelParallelStrategy(
        data_parallel_size=ranks, tensor_parallel_size=1, save_distributed_checkpoint=False, **options
    )


def tiny_llama(directory):
    """A random Llama with a tokenizer, wide enough in its weights that no log-prob is near uniform."""
    tokenizer = AutoTokenizer.from_pretrained(tiny.resolve("tiny:base"))
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        tie_word_embeddings=False,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


# -- a recorded round ----------------------------------------------------------------------------------------


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


# -- self-play runs ------------------------------------------------------------------------------------------


def selfplay(steps=(1, 1), beta=0.01, engine=None, rounds_per_epoch=2, optimizer=torch.optim.AdamW, scheduler=None,
             **data):  # fmt: skip
    """A real module and datamodule on the embedded base, small enough for a third of a second per round."""
    module = SeRLModule(
        "tiny:base",
        objective=Objective(beta=beta),
        inner_epochs=steps[0],
        minibatches=steps[1],
        optimizer=lambda p: optimizer(p, lr=1e-3),
        lr_scheduler=scheduler,
    )
    options = {
        "seeds": "tiny:seeds",
        "grader": "math",
        "round": RoundOptions(prompts_per_round=3, samples_per_prompt=4, max_attempts=2),
        "max_tokens": 24,
        "solve": SolveTemplate(answer_format=""),
        "writing": Writing(
            exemplars=4,
            from_kept=1,
            prompts_per_call=2,
            template=InstructionTemplate(header="Write new math questions."),
            sampling=Sampling(max_tokens=64),
        ),
    }
    return module, SelfPlayDataModule(**options | data, engine=engine, rounds_per_epoch=rounds_per_epoch)


def trainer_for(root, callbacks=(), max_epochs=1, **options):
    return pl.Trainer(**QUIET | options, max_epochs=max_epochs, default_root_dir=root, callbacks=list(callbacks))


def weights(module):
    """Whole weights on the CPU; all ranks in step where they are sharded."""
    return {n: full(p).cpu().clone() for n, p in module.policy.named_parameters()}


def ledger(root):
    return (Path(root) / "ledger.jsonl").read_bytes()


def rows(root, name="metrics"):
    """Rows of a run file without what a clock measured."""
    text = (Path(root) / f"{name}.jsonl").read_text(encoding="utf-8")
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in text.splitlines()]


class FailingEngine(TransformersEngine):
    """Fails at its ``fail_at``-th request for completions (a call of ``generate``), half-way through."""

    def __init__(self, fail_at=None, error=RuntimeError, rank=None):
        super().__init__()
        self.fail_at, self.error, self.rank, self.calls, self.log = fail_at, error, rank, 0, []

    def start(self, policy, ranks=None):
        super().start(policy, ranks)
        self.here = self.rank is None or ranks.rank == self.rank

    def generate(self, requests, who="policy"):
        self.calls += 1
        self.log.append((self.calls, self.version))
        for done, one in enumerate(super().generate(requests, who)):
            if self.calls == self.fail_at and self.here and done >= len(requests) // 2:
                raise self.error("the engine is gone")
            yield one


# -- other processes -----------------------------------------------------------------------------------------


def run_script(script, *arguments, limit):
    """Run a script in a process group of its own; at the limit the group is killed, since DDP ignores SIGTERM.

    Returns:
        ``(exit status, stdout, stderr)``; status ``None`` if it was killed.
    """
    ours = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    env = {k: v for k, v in os.environ.items() if k not in ours}
    here = Path(__file__).parents[1]  # this checkout, whichever one is installed
    path = f"{here}{os.pathsep}{here.parent}"
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(
        [sys.executable, str(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=env,
    )
    try:
        out, err = process.communicate(timeout=limit)
        status = process.returncode
    except subprocess.TimeoutExpired:
        status, out, err = None, "", ""
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if status is None:
        out, err = process.communicate()
    return status, out, err
