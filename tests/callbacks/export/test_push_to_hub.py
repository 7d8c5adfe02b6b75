"""Publishing on a hub: a run that pushes, hubs that refuse, and what is pulled afterwards."""

import contextlib
import io
import re
import shlex

import datasets
import pytest
import yaml
from helpers.command_line import cli, problems, rows, small, write_rows
from helpers.small_hub import NAME, TOKEN, hub_of_this_process
from helpers.training import selfplay, trainer_for
from huggingface_hub import ModelCard, constants

from lightning_serl.callbacks import PushToHub
from lightning_serl.errors import InputError


def script_of(card):
    (found,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return found


def run_script(script):
    """What a script of a card prints, in this process."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(script, "card", "exec"), {"__name__": "card"})
    return out.getvalue()


def test_a_run_is_pushed_and_pulled(tmp_path, monkeypatch):
    """The hub fails when the run ends: nothing is lost, and the command of the warning pushes."""
    held_out = write_rows(tmp_path / "held_out.jsonl", problems(5))
    root = tmp_path / "the run"
    with hub_of_this_process(monkeypatch, tmp_path / "home") as hub:
        hub.fails = {"/commit/main": 503}
        options = ["--push.repo", "trained", "--push.dataset", "me/made", "--push.private", "true"]
        with pytest.warns(UserWarning, match="push later by: ") as caught:
            ended = cli("fit", *small(root, held_out, samples=2), *options, picture=True)
        assert ended.status == 0, ended.err
        assert (root / "export" / "model.safetensors").exists()
        assert hub.commits == []
        assert hub.private == {"me/trained", "me/made"}
        warnings = [str(one.message) for one in caught if "push later by: " in str(one.message)]
        assert len(warnings) == 2
        assert all("the hub answered with status 503" in line and len(line) <= 400 for line in warnings)

        hub.fails = {}
        for line in warnings:
            command = shlex.split(line.partition("push later by: ")[2])
            assert command[0] == "lightning-serl"
            pushed = cli(*command[1:])
            assert pushed.status == 0, pushed.err
            assert pushed.out.startswith(f"pushed to {hub.address}/")
        both = cli("push", root, "--repo", "me/second", "--dataset", "me/made", "--overwrite")
        assert both.status == 0, both.err
        assert hub.commits == ["me/trained", "me/made", "me/second", "me/made"]

        card = hub.repositories["models", "me/second"]["README.md"].decode()
        check_card(card, root)
        assert {"curves.png", "serl.json", "model.safetensors"} <= hub.repositories["models", "me/second"].keys()
        script = script_of(card)
        assert 'name = "me/second"' in script
        assert run_script(script).strip()

        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.address)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        script = script_of(hub.repositories["datasets", "me/made"]["README.md"].decode())
        assert 'load_dataset("me/made", split="train")' in script
        assert "'problem'" in run_script(script)
    asked = {row["uid"]: row["prompt"] for row in rows(root / "ledger.jsonl") if row["event"] == "proposed"}
    voted = {row["uid"]: row for row in rows(root / "ledger.jsonl") if row["event"] == "voted" and row["label"]}
    made = datasets.load_dataset(str(root / "dataset"), split="train", cache_dir=str(tmp_path / "other")).to_list()
    expected = [{"problem": asked[u], "answer": v["label"], "confidence": v["confidence"]} for u, v in voted.items()]
    assert [{k: v for k, v in row.items() if k != "round"} for row in made] == expected


def check_card(text, root):
    """Licence, data sets, and results with intervals as the hub reads them."""
    data = ModelCard(text).data
    assert (data.license, data.datasets, data.base_model) == ("apache-2.0", ["me/made"], None)
    figures = {one.metric_name: one for one in data.eval_results}
    assert list(figures) == ["greedy pass@1, %", "mean@2, %", "maj@2, %"]
    report = yaml.safe_load((root / "evaluation.json").read_text())["held_out"]
    for name, one in figures.items():
        key = name.removeprefix("greedy ").removesuffix(", %").replace("@2", "@k")
        assert one.metric_value == round(100 * report[key], 2)
        assert one.metric_args["interval_95"] == [round(100 * end, 2) for end in report["intervals"][key]]
        assert one.metric_args["problems"] == 5
    assert "![" in text
    assert "(curves.png)" in text


@pytest.mark.parametrize(
    ("options", "token", "said"),
    [
        ({"repo": "a/b/c"}, TOKEN, "push.repo 'a/b/c' is no name of a repository; write USER/NAME"),
        ({"dataset": "me/na me"}, TOKEN, "push.dataset 'me/na me' is no name of a repository"),
        ({"repo": "me/x"}, None, "push.repo me/x: there is no token of the hub here; give one with write permission"),
        ({"repo": "x"}, "hf_bad", "push.repo x: the hub refused the token; give one"),
        ({"repo": "other/x"}, TOKEN, "push.repo other/x: the token may not write there; give one"),
        ({"dataset": NAME}, TOKEN, f"push.dataset {NAME} exists already, with 4 files; name another one, or give"),
        ({"repo": "me/x", "gone": True}, TOKEN, "push.repo me/x: the hub at http://127.0.0.1:9 cannot be reached"),
        ({"repo": "me/x", "offline": True}, TOKEN, "push.repo me/x: HF_HUB_OFFLINE is set; unset it, or push later"),
        ({"repo": "me/x", "fails": 500}, TOKEN, "push.repo me/x: the hub answered with status 500 (the hub is tired)"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_the_run(tmp_path, monkeypatch, options, token, said):
    with hub_of_this_process(monkeypatch, tmp_path, token) as hub:
        if options.pop("gone", False):
            monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        if options.pop("offline", False):
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        if (status := options.pop("fails", None)) is not None:
            hub.fails = {"/create": status}
        with pytest.raises(InputError) as caught:
            PushToHub(**options).open("fit")
        assert str(caught.value).startswith(said)
        assert len(str(caught.value)) <= 280
        assert hub.commits == []


def test_a_trainer_of_ones_own(tmp_path, monkeypatch):
    """Without an export there is nothing to push; predict has no model, and other commands push nothing."""
    module, data = selfplay()
    with hub_of_this_process(monkeypatch, tmp_path) as hub:
        with pytest.raises(InputError, match=r"list Export\(\) among the Trainer's callbacks"):
            trainer_for(tmp_path / "run", [PushToHub("me/x")]).fit(module, data)
        with pytest.raises(InputError, match="predict makes a data set"):
            PushToHub("me/x").open("predict")
        assert len(hub.repositories) == 1


def test_the_command_refuses_what_it_cannot_push(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "rows.jsonl").write_text('{"problem": "p"}\n')
    table = [
        (["run"], "push needs --repo NAME for the model, --dataset NAME for the data set, or both"),
        (["--repo", "me/x"], "push: the following arguments are required: run; lightning-serl push --help"),
        (["none", "--repo", "me/x"], "there is no run folder none; name the one that the run printed"),
        (["run", "--repo", "me/x"], "run holds no exported model (no export/config.json)"),
        (["run", "--dataset", "me/x"], "run holds no data set: neither ledger.jsonl nor predictions.jsonl"),
        (["rows.jsonl", "--dataset", "me/x"], "rows.jsonl has rows without problem, answer, confidence and round"),
        (["run", "--repo", "-"], "--repo '-' is no name of a repository"),
    ]
    monkeypatch.chdir(tmp_path)
    for arguments, said in table:
        ended = cli("push", *arguments)
        assert ended.status == 2, arguments
        assert ended.error.startswith(said), ended.error
