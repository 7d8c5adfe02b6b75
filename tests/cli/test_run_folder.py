"""Whole runs that a user may well make: odd precisions, other people's checkpoints, folders used twice."""

import json

import lightning.pytorch as pl
import pytest
import torch
from helpers.command_line import cli, problems, small, write_rows

from lightning_serl import SelfPlayDataModule, SeRLModule
from lightning_serl.callbacks import Summary
from lightning_serl.cli.run_folder import last_checkpoint
from lightning_serl.datamodules import RoundOptions
from lightning_serl.errors import InputError
from lightning_serl.objectives import Objective
from lightning_serl.prompts import SolveTemplate
from lightning_serl.types import Verdict


def fit(root, *callbacks, reward=None, objective=None, **trainer):
    module = SeRLModule(
        "tiny:base", objective=objective or Objective(beta=0.0), optimizer=lambda p: torch.optim.SGD(p, lr=1e-3)
    )
    data = SelfPlayDataModule(
        "tiny:seeds", source="seeds", grader="math", reward=reward, max_tokens=30, rounds_per_epoch=2,
        round=RoundOptions(prompts_per_round=2, samples_per_prompt=4), solve=SolveTemplate(answer_format=""),
    )  # fmt: skip
    options = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_progress_bar": False, **trainer}
    pl.Trainer(default_root_dir=root, callbacks=list(callbacks), **options).fit(module, data)
    return module


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_every_precision_trains_and_rewards_keep_their_digits(tmp_path, precision):
    seen = []

    def reward(groups, ctx):
        seen.append(torch.tensor([1001.0]).dtype)
        return [Verdict(torch.tensor([float(len(t)) for t in g.texts])) for g in groups]

    module = fit(tmp_path, reward=reward, precision=precision)
    assert set(seen) == {torch.float32}
    assert torch.isfinite(torch.tensor(module.step_metrics["loss"]))
    assert len(rows(tmp_path / "metrics.jsonl")) == 2


def test_kl_taken_off_the_reward_is_reported(tmp_path):
    fit(tmp_path, objective=Objective(beta=0.05, kl_in="reward"))
    first, second = (row["kl"] for row in rows(tmp_path / "metrics.jsonl"))
    assert abs(first) < 1e-6
    assert second > 1e-9


def test_two_runs_in_one_folder_are_never_mixed(tmp_path):
    fit(tmp_path)
    old = (tmp_path / "ledger.jsonl").read_bytes()
    fit(tmp_path)
    assert (tmp_path / "ledger.1.jsonl").read_bytes() == old
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_single_evaluation_after_training_is_no_beginning(tmp_path):
    summary = Summary()
    fit(tmp_path, summary)
    assert summary.before == {}


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory):
    root = tmp_path_factory.mktemp("lora") / "run"
    ended = cli("fit", *small(root, rounds=1), "--model.lora.r", 2)
    assert ended.status == 0, ended.err
    return root


def test_an_adapter_is_not_ignored_where_no_adapter_is_asked_for(tmp_path, lora_run):
    checkpoint = lora_run / "checkpoints" / "last.ckpt"
    held_out = write_rows(tmp_path / "held.jsonl", problems(3))
    ended = cli("validate", *small(tmp_path / "run", held_out), "--ckpt_path", checkpoint)
    assert ended.status == 2
    assert "holds a LoRA adapter and this run does not" in ended.error
    ended = cli("validate", *small(tmp_path / "run", held_out), "--ckpt_path", checkpoint, "--model.lora.r", 2)
    assert ended.status == 0, ended.err


# (files of the folder, command, the checkpoint that is meant or what is said)
FOLDERS = [
    (None, "fit", "there is no checkpoint in"),
    ((), "fit", "there is no checkpoint in"),
    ((".writable",), "fit", "there is no checkpoint in"),
    (("notes.txt",), "fit", "there is no checkpoint in"),
    (("evaluation.json",), "fit", "there is no checkpoint in"),
    (("config.yaml",), "fit", "ended before its first checkpoint; it begins again"),
    (("ledger.jsonl",), "fit", "it begins again"),
    (("config.yaml", "ledger.jsonl", "metrics.jsonl", "samples.jsonl"), "fit", "it begins again"),
    (("config.yaml", "ledger.1.jsonl", "ledger.jsonl"), "fit", "it begins again"),
    (("config.yaml", "checkpoints/"), "fit", "it begins again"),
    (("config.yaml", "checkpoints/.last.ckpt.7.unfinished"), "fit", "it begins again"),
    (("config.yaml", "checkpoints/.step=10.ckpt.7.unfinished", "ledger.jsonl"), "fit", "it begins again"),
    (("config.yaml", "checkpoints/step=10.ckpt"), "fit", "checkpoints/step=10.ckpt"),
    (("config.yaml", "checkpoints/step=10.ckpt", "checkpoints/last.ckpt"), "fit", "checkpoints/last.ckpt"),
    (("checkpoints/mine.ckpt",), "fit", InputError),
    (("summary.json", "config.yaml"), "fit", InputError),
    (("export/",), "fit", InputError),
    (("checkpoints/last.ckpt",), "validate", "checkpoints/last.ckpt"),
    ((), "validate", InputError),
    ((), "predict", InputError),
    (("config.yaml",), "test", InputError),
]


@pytest.mark.parametrize(("files", "command", "expected"), FOLDERS)
def test_the_checkpoint_that_last_means(tmp_path, capsys, files, command, expected):
    root = tmp_path / "run"
    for name in files or ():
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.touch()
    if expected is InputError:
        with pytest.raises(InputError, match="--ckpt_path last: there is no"):
            last_checkpoint(root, command)
        if "config.yaml" in (files or ()):
            (root / "ledger.jsonl").touch()
            with pytest.raises(InputError, match=f"did you mean '{root}'"):
                last_checkpoint(tmp_path, "validate")
        return
    found = last_checkpoint(root, command)
    if expected.endswith(".ckpt"):
        assert found == str(root / expected)
    else:
        assert found is None
        assert expected in capsys.readouterr().err


def test_a_finished_run_without_its_last_checkpoint_is_not_begun_again(lora_run):
    ledger = (lora_run / "ledger.jsonl").read_bytes()
    checkpoints = list((lora_run / "checkpoints").glob("*.ckpt"))
    for path in checkpoints:
        path.rename(path.with_suffix(".away"))
    try:
        ended = cli("fit", *small(lora_run, rounds=1), "--model.lora.r", 2, "--ckpt_path", "last")
    finally:
        for path in checkpoints:
            path.with_suffix(".away").rename(path)
    assert ended.status == 2
    assert "there is no" in ended.error
    assert (lora_run / "ledger.jsonl").read_bytes() == ledger


def test_predict_leaves_the_books_of_a_run_alone(tmp_path, lora_run):
    ledger = (lora_run / "ledger.jsonl").read_bytes()
    ended = cli("predict", *small(lora_run, rounds=1), "--data.predict_to", tmp_path / "p.jsonl")
    assert ended.status == 0, ended.err
    assert (lora_run / "ledger.jsonl").read_bytes() == ledger
    assert rows(tmp_path / "p.jsonl")


def test_predict_votes_on_seeds_that_carry_labels(tmp_path):
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text("".join(json.dumps({"problem": f"Compute {i} + 4.", "answer": "999"}) + "\n" for i in range(8)))
    target = tmp_path / "p.jsonl"
    ended = cli(
        "predict", *small(tmp_path / "run", rounds=1), "--data.seeds", seeds, "--data.source", "seeds",
        "--data.predict_to", target,
    )  # fmt: skip
    assert ended.status == 0, ended.err
    assert "999" not in {row["answer"] for row in rows(target)}


def test_a_run_cut_by_max_steps_is_measured_at_its_end(tmp_path):
    held_out = write_rows(tmp_path / "held.jsonl", problems(3))
    ended = cli("fit", *small(tmp_path / "run", held_out, rounds=4), "--trainer.max_steps", 3)
    assert ended.status == 0, ended.err
    metrics = rows(tmp_path / "run" / "metrics.jsonl")
    evaluations = [row["step"] for row in metrics if any(key.startswith("val/") for key in row)]
    assert evaluations == [0, 3]


def test_a_reward_that_needs_labels_is_refused_where_there_are_none(tmp_path):
    ended = cli("fit", *small(tmp_path / "run"), "--data.reward", "VerifiableReward")
    assert ended.status == 2
    assert "needs labels, but problems that the policy writes have none" in ended.error


def test_a_reward_that_needs_labels_trains_on_the_labelled_seeds_alone(tmp_path):
    seeds = [{"problem": f"Compute {i} + 4.", **({"answer": str(i + 4)} if i % 3 else {})} for i in range(12)]
    path = write_rows(tmp_path / "seeds.jsonl", seeds)
    options = ["--data.seeds", path, "--data.source", "seeds"]
    said = "labels: 4 of 12 seeds have none and are left out: data.reward needs labels"
    for reward, alone in ((["--data.reward", "VerifiableReward"], True), ([], False)):
        root = tmp_path / str(alone)
        ended = cli("fit", *small(root, rounds=3), *options, *reward, "--data.round.max_attempts", 3)
        asked = {row["prompt"] for row in rows(root / "ledger.jsonl") if row["event"] == "proposed"}
        assert len(asked) > 4
        assert (asked <= {row["problem"] for row in seeds if "answer" in row}) == alone
        assert (said in ended.err) == alone


def test_one_cycle_and_plateau_schedules(tmp_path):
    one_cycle = ["--model.lr_scheduler", "torch.optim.lr_scheduler.OneCycleLR", "--model.lr_scheduler.max_lr", 1e-4]
    one_cycle += ["--model.lr_scheduler.total_steps", 50]
    root = tmp_path / "one"
    assert cli("fit", *small(root, rounds=2), *one_cycle, "--trainer.max_steps", 1).status == 0
    ended = cli("fit", *small(root, rounds=2), *one_cycle, "--ckpt_path", "last", "--trainer.max_epochs", 2)
    assert ended.status == 0, ended.err
    plateau = ["--model.lr_scheduler", "lightning.pytorch.cli.ReduceLROnPlateau"]
    plateau += ["--model.lr_scheduler.monitor", "loss"]
    ended = cli("fit", *small(tmp_path / "plateau", rounds=1), *plateau)
    assert ended.status == 0, ended.err


def test_no_checkpoints_where_none_are_wanted(tmp_path):
    ended = cli("fit", *small(tmp_path / "run", rounds=1), "--trainer.enable_checkpointing", "false")
    assert ended.status == 0, ended.err
    assert not (tmp_path / "run" / "checkpoints").exists()
