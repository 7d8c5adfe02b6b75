"""Answers to commands and options as Lightning's command lines and other trainers spell them."""

from __future__ import annotations

import difflib
import inspect
import os
import re
from collections.abc import Iterable, Mapping, Sequence

COMMANDS = ("fit", "validate", "test", "predict")
#: Commands of this package alone, which no LightningCLI has.
OWN_COMMANDS = ("plan", "probe", "compare", "report", "merge", "push")
_OTHER_COMMANDS = {
    "train": "fit", "run": "fit", "eval": "validate", "evaluate": "validate", "generate": "predict", "estimate": "plan",
    "upload": "push", "publish": "push", "push_to_hub": "push",
    "merge_and_unload": "merge", "merge-lora": "merge", "merge_lora": "merge",
}  # fmt: skip
# Options of TRL and transformers, and of Lightning before it had a command line.
_OTHER_NAMES = {
    "learning_rate": "--model.lr", "num_generations": "--data.round.samples_per_prompt",
    "max_completion_length": "--data.max_tokens", "max_new_tokens": "--data.max_tokens",
    "per_device_train_batch_size": "--data.round.prompts_per_round", "batch_size": "--data.round.prompts_per_round",
    "gradient_accumulation_steps": "--trainer.accumulate_grad_batches", "num_train_epochs": "--trainer.max_epochs",
    "epochs": "--trainer.max_epochs", "output_dir": "--trainer.default_root_dir", "seed": "--seed_everything",
    "gpus": "--trainer.devices", "bf16": "--trainer.precision bf16-mixed", "fp16": "--trainer.precision 16-mixed",
    "resume": "--ckpt_path", "resume_from_checkpoint": "--ckpt_path", "dataset": "--data.seeds",
    "train_file": "--data.seeds", "model_id": "--model.model_name_or_path", "use_peft": "--model.lora.r 16",
    "lora_r": "--model.lora.r", "lora_alpha": "--model.lora.alpha", "report_to": "--trainer.logger",
    "push_to_hub": "--push.repo", "hub_model_id": "--push.repo", "hub_private_repo": "--push.private",
}  # fmt: skip
# Refusals of Lightning's Trainer that name no option of the command line.
_OF_TRAINER = {
    r"`enable_progress_bar=False` but found `(\w+)`":
        r"trainer.callbacks: \1 needs --trainer.enable_progress_bar true; give it, or remove the callback",
    r"`Trainer\(barebones=True":
        "trainer.barebones cannot be used, because it leaves out the metrics of a round and checkpoints; remove it",
    r"No supported gpu backend found|GPUs requested but none|`(CUDA|MPS)Accelerator` can not run":
        "trainer.accelerator: there is no such device here; use auto or cpu",
    r"`Timer\(duration=(.*?)\)` is not a valid duration":
        r"trainer.max_time, or Timer.duration, must be DD:HH:MM:SS, got \1",
}  # fmt: skip
_CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_ENVIRONMENT = re.compile(rf"PL_({'|'.join(COMMANDS).upper()})__\w+|PL_CONFIG")


def command_refusal(arguments: Sequence[str]) -> str | None:
    """What is wrong with arguments, at least one, whose first is no command; ``None`` if it is one."""
    first, known = arguments[0], (*COMMANDS, *OWN_COMMANDS)
    if first in COMMANDS:
        return None
    if not first.startswith("-"):
        near = (
            [_OTHER_COMMANDS[first]]
            if first in _OTHER_COMMANDS
            else difflib.get_close_matches(first, known, n=1, cutoff=0.65)
        )
        advice = f"did you mean {near[0]}?" if near else f"give {_one_of(known)}"
        return f"there is no command {first[:60]!r}; {advice}"
    named = next((argument for argument in arguments if argument in known), None)
    option = first.partition("=")[0]
    if named is not None:
        return f"{option} stands before the command; give it after {named}, as in lightning-serl {named} {option} ..."
    advice = f"give {_one_of(COMMANDS)} first, as in lightning-serl fit {option} ..."
    return f"no command was given before {option}; {advice}"


def _one_of(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def reads_environment(variables: Mapping[str, str] = os.environ) -> bool:
    """Whether an option is given by an environment variable, as LightningCLI names them: ``PL_FIT__MODEL__LR``."""
    return any(_ENVIRONMENT.fullmatch(name) for name in variables)


def unused_variables(command: str, options: Iterable[str], variables: Mapping[str, str] = os.environ) -> list[str]:
    """A sentence on each environment variable that is named like an option of a command and is none of its options."""
    prefix = f"PL_{command.upper()}__"
    known = {option.removeprefix("--").lower() for option in options}
    said = []
    for name in sorted(name for name in variables if name.startswith(prefix)):
        option = name.removeprefix(prefix).lower().replace("__", ".")
        parts = option.split(".")
        if any(".".join(parts[:end]) in known for end in range(2, len(parts) + 1)) or option in known:
            continue
        near = difflib.get_close_matches(option, known, n=1)
        meant = f"; did you mean {prefix}{near[0].upper().replace('.', '__')}?" if near else ""
        said.append(f"the environment variable {name} names no option of {command} and is ignored{meant}")
    return said


def group_refusal(option: str, value: str) -> str | None:
    """The answer to a value at ``--model``, ``--data`` or ``--trainer``, which hold options by name."""
    value = value if len(value) <= 80 else f"{value[:77]}..."
    is_class = _CLASS_PATH.fullmatch(value) and value.rpartition(".")[2][0].isupper()
    if is_class and option in ("model", "data"):
        ours = {"model": "SeRLModule", "data": "SelfPlayDataModule"}[option]
        return (
            f"{option}: this command runs {ours} alone, so {value} cannot be given; run your own class from a script "
            "with lightning_serl.cli.PresetCLI or Lightning's LightningCLI"
        )
    if option == "model":
        return f"model holds options by name; give the model as --model.model_name_or_path {value}"
    if option == "data":
        return f"data holds options by name; give problems as --data.seeds {value}"
    return None


def without_class(option: str, parameter: str, value: str) -> str | None:
    """The answer to an option of an optimizer or a scheduler whose class was not given."""
    if option == "model.optimizer":
        short = f"give --model.lr {value}, or a class first" if parameter == "lr" else "give a class first"
        return f"{option}.{parameter}: {short}, as in --{option} AdamW --{option}.{parameter} {value}"
    if option == "model.lr_scheduler":
        example = f"--{option} CosineAnnealingLR --{option}.T_max 100"
        return f"{option}.{parameter}: give the scheduler's class first, as in {example}"
    return None


def several_classes(text: str) -> str | None:
    """The answer to a short name that several classes have; ``None`` if the text is about something else."""
    found = re.search(r"Multiple subclasses with name (\w+)\. .*?: ([\w., ]+?)\.?$", text, re.MULTILINE)
    if found is None:
        return None
    paths = sorted(found[2].split(", "), key=lambda path: not path.startswith("lightning.pytorch.cli."))
    return f"there are several {found[1]}; give the full path, {' or '.join(paths[:3])}"


def ambiguous(text: str) -> str | None:
    """The answer to an option that was shortened too much; ``None`` if the text is about something else."""
    found = re.search(r"ambiguous option: (\S+) could match (.+)", text)
    if found is None:
        return None
    names = [name for name in found[2].split(", ") if not name.endswith((".help", "+"))]
    short = [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
    more = ", ..." if len(short) > 4 else ""
    return f"there is no option {found[1]}; did you mean {' or '.join(short[:4])}{more}?"


def of_trainer(text: str) -> str | None:
    """What Lightning's Trainer refused, with the option as it is typed; ``None`` if the text names no option of it."""
    from lightning.pytorch import Trainer

    for pattern, said in _OF_TRAINER.items():
        if found := re.search(pattern, text):
            return found.expand(said)
    named = re.search(r"`(?:Trainer\()?(\w+)\b", text)
    if named is None or named[1] not in inspect.signature(Trainer).parameters:
        return None
    return f"trainer.{named[1]}: {text}"


def meant(name: str, options: Iterable[str]) -> str | None:
    """The option of this command that is meant by one of another command line, such as ``--optimizer.lr``."""
    known = list(options)
    root, dot, rest = name.removeprefix("--").replace("-", "_").partition(".")
    if not dot and (other := _OTHER_NAMES.get(root)) and other.split()[0] in known:
        return other
    group = next((one for one in known if one.rpartition(".")[2] == root and one != f"--{root}"), None)
    return None if group is None else f"{group}{dot}{rest}"
