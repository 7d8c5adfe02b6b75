"""Reads configuration files: packaged presets, ``extends``, keys given twice, and class paths of earlier versions."""

from __future__ import annotations

import difflib
import os
import re
from importlib.resources import files
from pathlib import Path

import yaml

from lightning_serl.cli.parser_errors import ParserRefusal
from lightning_serl.cli.short_names import spell_out_file

#: Class paths that ``config.yaml`` files of earlier versions hold, and where the classes are now.
MOVED = {
    "lightning_serl.answers.choice.ChoiceGrader": "lightning_serl.answers.ChoiceGrader",
    "lightning_serl.answers.math.MathGrader": "lightning_serl.answers.MathGrader",
    "lightning_serl.answers.text.TextGrader": "lightning_serl.answers.TextGrader",
    "lightning_serl.callbacks.ledger.Ledger": "lightning_serl.callbacks.Ledger",
    "lightning_serl.callbacks.progress.Phases": "lightning_serl.callbacks.Phases",
    "lightning_serl.callbacks.summary.Summary": "lightning_serl.callbacks.Summary",
    "lightning_serl.checkpoint_io.CheckpointFiles": "lightning_serl.checkpoints.io.CheckpointFiles",
    "lightning_serl.engines.vllm_server.VLLMServerEngine": "lightning_serl.engines.VLLMServerEngine",
    "lightning_serl.published.schedule.CosineWithFloor": "lightning_serl.objectives.CosineWithFloor",
    "lightning_serl.published.scoring.RuleReward": "lightning_serl.rewards.RuleReward",
    "lightning_serl.published.vote.PairwiseVote": "lightning_serl.rewards.PairwiseVote",
    "lightning_serl.sources.FewShotSelfInstruction": "lightning_serl.datamodules.sources.FewShotSelfInstruction",
    "lightning_serl.sources.Mixture": "lightning_serl.datamodules.sources.Mixture",
    "lightning_serl.sources.PromptSet": "lightning_serl.datamodules.sources.PromptSet",
    "lightning_serl.strategies.ShardedStrategy": "lightning_serl.distributed.ShardedStrategy",
}
_MOVED = re.compile(rf"(?<![\w./])(?:{'|'.join(map(re.escape, MOVED))})(?![\w.])")


def with_current_paths(text: str) -> str:
    """A value or a whole configuration file with the class paths of earlier versions replaced, see :data:`MOVED`."""
    return _MOVED.sub(lambda found: MOVED[found[0]], text)


def presets() -> list[str]:
    """Names of the packaged presets."""
    names = (p.name for p in (files("lightning_serl") / "configs").iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def preset_path(name: str) -> str:
    """The file of a packaged preset; a ParserRefusal with the nearest names if there is none."""
    if name not in presets():
        near = [p for p in presets() if name and p.startswith(name)] or difflib.get_close_matches(name, presets(), n=3)
        known = f"did you mean {' or '.join(near)}?" if near else "`lightning-serl fit --help` lists them at --config"
        raise ParserRefusal(f"there is no preset {name[:60]!r}; {known}")
    return str(files("lightning_serl") / "configs" / f"{name}.yaml")


def read_config(name: str) -> tuple[list[str], str | None]:
    """The files that a configuration file extends, and its other options; ``None`` if the parser can read it as it is.

    Its entry ``extends`` is a list of ``preset:NAME`` and of files, relative to the file's folder.
    """
    path = Path(name)
    try:
        written = path.read_text(encoding="utf-8")
        text = with_current_paths(written)
        node = yaml.compose(text)
    except (OSError, ValueError, yaml.YAMLError):
        return [], None  # the parser reports what is wrong with it
    _check_keys(name, node)
    if spell_out_file(node):
        text = yaml.serialize(node)
    entries = node.value if isinstance(node, yaml.MappingNode) else []
    for entry in entries:
        key, value = entry
        if key.value == "extends":
            items = value.value if isinstance(value, yaml.SequenceNode) else []
            if not items or any(item.tag != "tag:yaml.org,2002:str" for item in items):
                said = "extends must be a list of preset:NAME and file names, as in extends: [preset:serl]"
                raise ParserRefusal(said)
            found = [item.value for item in items]
            entries.remove(entry)
            rest = yaml.serialize(node) if entries else ""
            return [one if one.startswith("preset:") else os.path.normpath(path.parent / one) for one in found], rest
    return [], text if text != written else None


def _check_keys(name: str, root: yaml.Node | None) -> None:
    """Refuse a key that stands twice in one mapping: YAML keeps the last value without a warning."""
    waiting, checked = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in checked:  # an alias
            continue
        checked.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += reversed(node.value)
        if not isinstance(node, yaml.MappingNode):
            continue
        first: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            line = key.start_mark.line + 1
            if key.value in first:
                raise ParserRefusal(
                    f"{name[-120:]}:{line} holds {key.value[:60]!r} a second time, which would undo line "
                    f"{first[key.value]}; put both under one {key.value[:60]!r}"
                )
            first[key.value] = line
        waiting += [value for _, value in reversed(node.value)]
