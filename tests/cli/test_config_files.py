"""Configuration files of earlier versions: class paths that moved since are read as if they were written today."""

import json
import re
from pathlib import Path
from pkgutil import resolve_name

import pytest
import yaml
from helpers.command_line import cli, rows

from lightning_serl.cli.config_files import MOVED, with_current_paths

# Written with --print_config by the code before the package's files moved; it names classes that moved.
FORMER = Path(__file__).parents[1] / "recorded" / "former_config.yaml"


def class_paths(text):
    return re.findall(r"lightning_serl\.[\w.]+", text)


def test_every_class_path_of_an_earlier_version_leads_to_its_class():
    for former, current in MOVED.items():
        assert resolve_name(current).__name__ == former.rpartition(".")[2]
        with pytest.raises((ImportError, AttributeError)):
            resolve_name(former)


@pytest.mark.parametrize(
    "path",
    [
        "callbacks.checkpoints.Checkpoints", "callbacks.export.Export", "callbacks.filters.DifficultyFilter",
        "callbacks.filters.GroupFilter", "callbacks.filters.InstructionFilter", "callbacks.filters.NoveltyFilter",
        "callbacks.filters.QualityFilter", "callbacks.filters.ZeroSpread", "callbacks.health.Health",
        "callbacks.preemption.Preemption", "callbacks.reference_sync.ReferenceSync",
        "callbacks.rollout_refresh.RolloutRefresh", "engines.replay.ReplayEngine",
        "engines.transformers.TransformersEngine", "engines.vllm.VLLMEngine", "module._adamw",
        "rewards.format.FormatReward", "rewards.majority.MajorityVote", "rewards.random.RandomReward",
        "rewards.verifiable.LabelElseVote", "rewards.verifiable.VerifiableReward",
    ],
)  # fmt: skip
def test_other_parts_of_earlier_versions_are_where_they_were(path):
    """Files keep the class path that was typed, full or short."""
    found = resolve_name(with_current_paths(f"lightning_serl.{path}"))
    assert found.__name__ == path.rpartition(".")[2]


def without_later_options(found, former):
    """What was printed, without options that the earlier version did not have."""
    if isinstance(found, dict) and isinstance(former, dict):
        return {key: without_later_options(value, former[key]) for key, value in found.items() if key in former}
    return found


def test_a_config_of_an_earlier_version_is_the_same_run():
    text = FORMER.read_text()
    assert len([path for path in class_paths(text) if path in MOVED]) >= 5
    printed = cli("fit", "-c", FORMER, "--print_config")
    assert printed.status == 0, printed.err
    former = yaml.safe_load(with_current_paths(text))
    assert without_later_options(yaml.safe_load(printed.out), former) == former
    for path in class_paths(printed.out):
        assert path not in MOVED
        resolve_name(path)


def test_a_config_of_an_earlier_version_runs(tmp_path):
    """On one device, with an engine that is there; its schedule, reward, plugin and callbacks are used."""
    sizes = ["--data.round.prompts_per_round", 2, "--data.round.samples_per_prompt", 4, "--data.rounds_per_epoch", 2]
    sizes += ["--data.evaluation.sets", "{}", "--data.probe.every", 0, "--data.engine", "null"]
    ended = cli("fit", "-c", FORMER, *sizes, "--trainer.strategy", "auto", "--trainer.default_root_dir", tmp_path)
    assert ended.status == 0, ended.err
    # two warm-up steps of the schedule: the first has learning rate 0, the second half of 1e-4
    assert [row["learning_rate"] for row in rows(tmp_path / "metrics.jsonl")] == pytest.approx([0, 5e-5])


def test_a_file_that_extends_one_of_an_earlier_version(tmp_path):
    (tmp_path / "mine.yaml").write_text(f"extends: [{FORMER}]\ndata:\n  max_tokens: 9\n")
    printed = cli("fit", "-c", tmp_path / "mine.yaml", "--print_config")
    assert printed.status == 0, printed.err
    found = yaml.safe_load(printed.out)
    assert found["data"]["max_tokens"] == 9
    assert found["trainer"]["strategy"]["class_path"] == "lightning_serl.distributed.ShardedStrategy"


MOVED_CLASS = "lightning_serl.published.schedule.CosineWithFloor"


@pytest.mark.parametrize(
    "options",
    [
        ["--model.lr_scheduler", MOVED_CLASS, "--model.lr_scheduler.total_steps=3"],
        [f"--model.lr_scheduler={MOVED_CLASS}", "--model.lr_scheduler.total_steps=3"],
        ["--model.lr_scheduler", json.dumps({"class_path": MOVED_CLASS, "init_args": {"total_steps": 3}})],
    ],
)  # fmt: skip
def test_class_paths_of_earlier_versions_on_the_command_line(options):
    printed = cli("fit", "-c", "preset:quickstart", *options, "--print_config")
    assert printed.status == 0, printed.err
    found = yaml.safe_load(printed.out)["model"]["lr_scheduler"]
    assert found["class_path"] == "lightning_serl.objectives.CosineWithFloor"
    assert found["init_args"]["total_steps"] == 3


@pytest.mark.parametrize(
    "text",
    [
        "lightning_serl.strategies.ShardedStrategyOfMine",
        "mine.lightning_serl.strategies.ShardedStrategy",
        "/data/lightning_serl.strategies.ShardedStrategy",
        "lightning_serl.strategies.ShardedStrategy.timeout",
    ],
)
def test_other_names_are_left_alone(text):
    assert with_current_paths(text) == text
