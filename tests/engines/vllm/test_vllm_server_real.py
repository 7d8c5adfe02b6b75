"""The HTTP engine against the real vLLM: one server for the whole file, started by the engine itself."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from helpers.command_line import cli, finish, problems, rows, small, start, write_rows

from lightning_serl import tiny
from lightning_serl.engines import Request, Sampling, VLLMServerEngine, WeightUpdate
from lightning_serl.engines.vllm import server_engine as module
from lightning_serl.engines.vllm.weight_files import read_names
from lightning_serl.errors import EngineFailure
from lightning_serl.policy.loading import LoraOptions, load_policy
from lightning_serl.tiny.language import held_out, solve_prompt

pytestmark = pytest.mark.vllm


@torch.no_grad()
def stir(policy, names, scale):
    """Something like a step of training."""
    for name, parameter in policy.model.named_parameters():
        if names in name:
            parameter.add_(scale * torch.randn_like(parameter))


def adapter(policy, version):
    config = policy.model.peft_config["default"].to_dict()
    return WeightUpdate("adapter", lambda: iter(policy.adapter_state().items()), version, config)


@pytest.fixture
def engine(owner):
    """Started with an adapter, so that its server takes both kinds of weights."""
    owner.poll = lambda: None
    return owner


@pytest.fixture(scope="module")
def policy(owner):
    return owner.session.policy


@pytest.fixture(scope="module")
def url(owner):
    return owner.session.local_servers[0].url


@pytest.fixture(scope="module")
def prompts(policy):
    return [tuple(policy.tokenizer.encode(solve_prompt(q))) for q in held_out(64)]


def descendants(pid):
    found = [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [pid, *(d for child in found for d in descendants(child))]


def memory(engine):
    """Resident bytes and open files of the server's processes."""
    pids = descendants(engine.session.local_servers[0].watchdog.pid)
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE"), sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)


def ask(url, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        said = answer.read()
    return json.loads(said) if said.startswith(b"{") else None


def gap(engine, policy, rows, who="policy"):
    """Largest distance of any log-prob, in nats."""
    with policy.gathered():
        own = policy.stats([(row, 1) for row in rows], who)
    return max(float((s.logp - t).abs().max()) for s, t in zip(own, engine.score(rows, who), strict=True))


def top_gap(url, model, policy, prompts):
    """The same over the 20 likeliest next tokens of each prompt."""
    body = {"model": model, "max_tokens": 1, "temperature": 1.0, "logprobs": 20, "return_tokens_as_token_ids": True}
    answer = ask(url, "/v1/completions", {**body, "prompt": [list(p) for p in prompts]})
    worst, seen = 0.0, 0
    for choice, prompt in zip(sorted(answer["choices"], key=lambda c: c["index"]), prompts, strict=True):
        with policy.gathered():
            own = policy.model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        for name, logp in choice["logprobs"]["top_logprobs"][0].items():
            worst = max(worst, abs(float(own[int(name.partition(":")[2])]) - logp))
            seen += 1
    assert seen >= 20 * len(prompts)
    return worst


def test_full_weights_and_then_adapters_arrive_to_the_last_digit(engine, url, policy, prompts):
    assert engine.dtype == torch.float32
    stir(policy, ".base_layer.", 0.01)  # not the weights of any file
    receipt = engine.push(WeightUpdate("full", policy.named_weights, 1))
    assert receipt.names == {name for name, _ in policy.named_weights()}
    assert "lm_head.weight" in receipt.names
    assert engine.version == 1
    assert not engine.needs_base
    with policy.model.disable_adapter():
        assert gap(engine, policy, prompts[:16]) < 1e-4
        assert top_gap(url, "serl", policy, prompts) < 1e-4
    assert gap(engine, policy, prompts[:16]) > 0.1
    receipt = engine.push(adapter(policy, 2))
    assert receipt.names == set(policy.adapter_state())
    assert engine.version == 2
    assert gap(engine, policy, prompts[:16]) < 1e-4
    assert gap(engine, policy, prompts[:16], "reference") < 1e-4
    assert top_gap(url, engine.session.pool.adapter, policy, prompts) < 1e-4


def test_what_it_writes_is_the_policys(engine, policy, prompts):
    engine.push(adapter(policy, 3))
    requests = [Request(p, tuple(range(9 * i, 9 * i + 4)), Sampling(40, 0.7)) for i, p in enumerate(prompts[:12])]
    groups = dict(engine.generate(requests))
    policy.temperature = 0.7
    try:
        with policy.gathered():
            own = iter(
                policy.stats([(r.prompt_ids + c.token_ids, len(r.prompt_ids)) for r, c in pairs(requests, groups)])
            )
        for _, completion in pairs(requests, groups):
            assert completion.logprobs == pytest.approx(next(own).logp.tolist(), abs=1e-4)
            assert completion.finished is (completion.token_ids[-1] == 0)
            assert completion.version == 3
    finally:
        policy.temperature = 1.0
    again = dict(engine.generate([requests[i] for i in (7, 3, 11)]))
    assert [[c.token_ids for c in again[k]] for k in range(3)] == [[c.token_ids for c in groups[i]] for i in (7, 3, 11)]


def pairs(requests, groups):
    return [(request, c) for i, request in enumerate(requests) for c in groups[i]]


def test_twenty_adapters_leave_nothing_behind(engine, url, policy, prompts):
    seen = []
    engine.push(adapter(policy, 9))
    listed = len(ask(url, "/v1/models")["data"])
    for version in range(10, 30):
        stir(policy, "lora_B", 0.01)
        engine.push(adapter(policy, version))
        seen.append(memory(engine))
        assert len(ask(url, "/v1/models")["data"]) == listed
        assert len(list(engine.session.weight_writer.folder.iterdir())) <= 3  # two versions and the lock
    assert gap(engine, policy, prompts[:8]) < 1e-4
    slope = (seen[-1][0] - seen[3][0]) / (len(seen) - 4)
    assert slope < 1e6, seen
    assert seen[-1][1] <= seen[3][1] + 2, seen


def test_a_server_that_lost_its_weights_is_noticed(engine, url, policy):
    engine.push(WeightUpdate("full", policy.named_weights, 39))
    engine.push(adapter(policy, 40))
    ask(url, "/v1/unload_lora_adapter", {"lora_name": engine.session.pool.adapter})
    assert engine.version == -1
    assert not engine.needs_base
    engine.push(adapter(policy, 40))
    ask(url, "/update_weight_version", {"new_version": "of somebody else"})
    assert engine.version == -1
    assert engine.needs_base
    engine.push(WeightUpdate("full", policy.named_weights, 41))
    assert engine.version == 41


def test_refusals_of_the_real_server(engine, url, policy, prompts, monkeypatch):
    engine.push(adapter(policy, 50))
    with pytest.raises(EngineFailure, match="do not fit into the context"):
        list(engine.generate([Request(prompts[0], (0,), Sampling(512))]))
    large = load_policy("tiny:base", lora=LoraOptions(r=64))
    other = VLLMServerEngine(url)
    with pytest.raises(EngineFailure, match="up to rank 8, this one needs 64; start it with --max-lora-rank 64"):
        other.start(large)
    with pytest.raises(EngineFailure, match="up to rank 8, this one has 64"):
        engine.push(adapter(large, 51))
    # a folder that the server does not see; the weights it holds stay usable
    engine.push(adapter(policy, 52))
    with monkeypatch.context() as patched:
        patched.setattr(module, "read_names", read_and_remove)
        with pytest.raises(EngineFailure, match=r"does not see .*data\.engine\.publish_to"):
            engine.push(WeightUpdate("full", policy.named_weights, 53))
    assert engine.needs_base
    engine.push(WeightUpdate("full", policy.named_weights, 54))
    engine.push(adapter(policy, 55))
    assert gap(engine, policy, prompts[:4]) < 1e-4


def read_and_remove(folder):
    """The server comes too late, as if it had no such folder."""
    read = read_names(folder)
    shutil.rmtree(folder)
    return read


def test_whoever_leaves_early_frees_the_server(engine, url, policy, prompts):
    engine.push(adapter(policy, 60))
    stream = engine.generate([Request(p, tuple(range(16)), Sampling(200)) for p in prompts[:16]])
    next(stream)
    stream.close()
    assert engine.session.pool.servers[0].in_flight == 0

    def busy():
        with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(x.split()[-1]) for x in lines if x.startswith("vllm:num_requests_running{"))

    deadline = time.monotonic() + 30
    while busy():
        assert time.monotonic() < deadline
        time.sleep(0.1)


OWNER = """
import sys, time
from pathlib import Path
from lightning_serl.engines.vllm.local_server import LocalServer
server = LocalServer(sys.argv[1], Path(sys.argv[2]), arguments=["--dtype", "float32"])
print(server.watchdog.pid, flush=True)
time.sleep(600)
"""


def test_a_killed_trainer_leaves_no_server(tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-c", OWNER, tiny.resolve("tiny:base"), str(log)]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
    watchdog = int(owner.stdout.readline())
    while "EngineCore pid" not in (log.read_text() if log.exists() else ""):
        assert owner.poll() is None
        time.sleep(0.1)
    processes = descendants(watchdog)
    assert len(processes) >= 3
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{pid}") for pid in processes):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def server_options(url):
    return ["--data.engine", "VLLMServerEngine", "--data.engine.urls", url, "--data.engine.patience", "5"]


def test_the_quickstart_runs_on_it(url, tmp_path):
    held = write_rows(tmp_path / "held_out.jsonl", problems(8))
    ended = cli("fit", *small(tmp_path / "run", held, rounds=2, samples=2), *server_options(url))
    assert ended.status == 0, ended.err
    summary = json.loads((ended.run / "summary.json").read_text())
    assert {summary["before"]["n"], summary["after"]["n"]} == {8}
    gaps = [r["sampling/sampling_logp_difference/mean"] for r in rows(ended.run / "metrics.jsonl") if "loss" in r]
    assert all(g < 1e-4 for g in gaps)


def test_a_server_killed_in_mid_run_ends_it_with_a_checkpoint_to_go_on_from(engine, url, tmp_path):
    """The last test of the file: afterwards the server is gone."""
    run = tmp_path / "run"
    process = start("fit", *small(run, rounds=50), *server_options(url))
    while not (run / "metrics.jsonl").exists() or len(rows(run / "metrics.jsonl")) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    for pid in reversed(descendants(engine.session.local_servers[0].watchdog.pid)):
        os.kill(pid, signal.SIGKILL)
    ended = finish(process, 120)
    assert ended.status == 1
    assert f"the vLLM server at {url} is gone" in ended.error
    assert "--ckpt_path last" in ended.error
    assert (run / "checkpoints" / "last.ckpt").exists()
    played = len({r["round"] for r in rows(run / "ledger.jsonl")})
    with pytest.raises(EngineFailure, match=r"did not start|is gone"):
        engine.version  # noqa: B018
    again = cli("fit", "-c", run / "config.yaml", "--ckpt_path", "last", "--data.engine", "TransformersEngine",
                "--trainer.max_steps", str(played + 1))  # fmt: skip
    assert again.status == 0, again.err
