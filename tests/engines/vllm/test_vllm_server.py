"""The HTTP engine against small servers: spread, order, failures, who holds what. The real vLLM has its own file."""

import contextlib
import gc
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
from helpers.command_line import cli, small
from helpers.small_models import small_model, small_policy
from helpers.small_server import SmallServer, tokens

from lightning_serl.engines import Request, Sampling, VLLMServerEngine, WeightUpdate
from lightning_serl.engines.vllm import server_engine as module
from lightning_serl.engines.vllm.local_server import Launch, find_error
from lightning_serl.errors import EngineFailure, PushMismatch
from lightning_serl.policy import Policy
from lightning_serl.policy.lora import LoraOptions, add_lora

SAMPLING = Sampling(max_tokens=6)


@pytest.fixture(scope="module")
def policy():
    return small_policy("llama_tied")


@pytest.fixture(scope="module")
def adapted():
    return Policy(add_lora(small_model("llama_tied"), LoraOptions(r=4)), small_policy("llama_tied").tokenizer)


@contextlib.contextmanager
def engine_for(policy, *servers, patience=1.0, **options):
    engine = VLLMServerEngine([s.url for s in servers], patience=patience, start_seconds=5.0, **options)
    try:
        engine.start(policy)
        yield engine
    finally:
        engine.close()
        for server in servers:
            server.kill()


def full(policy, version=0):
    return WeightUpdate("full", policy.named_weights, version)


def adapter(policy, version):
    config = policy.model.peft_config["default"].to_dict()
    return WeightUpdate("adapter", lambda: iter(policy.adapter_state().items()), version, config)


def requests(count, n=4):
    return [Request((5, 6, 7 + i), tuple(range(100 * i, 100 * i + n)), SAMPLING) for i in range(count)]


def check(asked, groups):
    """Every group is there once, each completion of its own prompt and seed."""
    assert sorted(groups) == list(range(len(asked)))
    for i, request in enumerate(asked):
        expected = [tuple(tokens(request.prompt_ids, seed, 6)) for seed in request.seeds]
        assert [c.token_ids for c in groups[i]] == expected


def _version_after(engine, update):
    engine.push(update)
    return engine.version


# --- spread and order ------------------------------------------------------------------------------------------------


def test_requests_are_spread_and_bounded_and_leave_nothing_to_the_servers_defaults(policy):
    one, two = SmallServer(delay=0.02), SmallServer(delay=0.02)
    with engine_for(policy, one, two, max_in_flight=6) as engine:
        engine.push(full(policy, 3))
        asked = [*requests(12), Request((9,), (), SAMPLING), Request((9, 9), tuple(range(40)), SAMPLING)]
        groups = dict(engine.generate(asked))
        check(asked, groups)
        assert {c.version for cs in groups.values() for c in cs} == {3}
        assert not any(c.finished for cs in groups.values() for c in cs)
        sent = [len(s.completions()) for s in (one, two)]
        assert sum(sent) == 12 * 4 + 40
        assert min(sent) >= 30
        assert all(1 < s.most_in_flight <= 6 for s in (one, two))
        body = one.completions()[0]
        wanted = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "n": 1}
        assert {k: body[k] for k in wanted} == wanted
        assert body["stop_token_ids"] == [0]


def test_groups_come_as_they_finish(policy):
    asked = requests(3)
    server = SmallServer(hold={asked[0].prompt_ids: threading.Event()})
    with engine_for(policy, server) as engine:
        engine.push(full(policy))
        stream = engine.generate(asked)
        assert {next(stream)[0], next(stream)[0]} == {1, 2}
        server.hold[asked[0].prompt_ids].set()
        assert [i for i, _ in stream] == [0]


def test_scores_come_back_in_order(policy):
    with engine_for(policy, SmallServer(), SmallServer()) as engine:
        engine.push(full(policy))
        rows = [[3] * (1 + i % 7) for i in range(40)]
        scores = engine.score(rows)
        assert [s.tolist() for s in scores] == [[pytest.approx(-0.3)] * (i % 7) for i in range(40)]
        assert all(s.dtype == torch.float32 for s in scores)


def test_whoever_leaves_early_ends_the_requests(policy):
    class Stop(Exception):
        pass

    asked = requests(2)
    server = SmallServer(hold={asked[0].prompt_ids: threading.Event()})
    with engine_for(policy, server) as engine:
        engine.push(full(policy))
        calls = []

        def poll():
            calls.append(1)
            if len(calls) > 3:
                raise Stop

        engine.poll = poll
        with pytest.raises(Stop):
            list(engine.generate([asked[0]]))
        engine.poll = lambda: None
        assert engine.session.pool.servers[0].in_flight == 0
        check([asked[1]], dict(engine.generate([asked[1]])))


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_server_killed_in_mid_round_is_done_without(policy):
    asked = requests(8)
    one, two = SmallServer(), SmallServer()
    one.hold = {r.prompt_ids: threading.Event() for r in asked[1:]}
    two.hold = {r.prompt_ids: threading.Event() for r in asked[1:]}
    with engine_for(policy, one, two) as engine, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine.push(full(policy))
        stream = engine.generate(asked)
        groups = dict([next(stream)])
        assert list(groups) == [0]
        one.kill()
        for event in two.hold.values():
            event.set()
        groups.update(stream)
        check(asked, groups)
        assert len([b for b in two.completions() + one.completions() if b["prompt"] == [5, 6, 7]]) == 4
        # the next round goes to the other one alone
        assert engine.version == 0
        assert any(one.url in str(w.message) and "goes on without it" in str(w.message) for w in caught)
        check(asked, dict(engine.generate(asked)))


def test_without_any_server_the_finished_groups_are_handed_over_and_then_one_sentence(policy):
    asked = requests(3)
    server = SmallServer(hold={asked[2].prompt_ids: threading.Event()})
    with engine_for(policy, server) as engine:
        engine.push(full(policy))
        stream = engine.generate(asked)
        got = {next(stream)[0], next(stream)[0]}
        server.kill()
        with pytest.raises(EngineFailure, match=rf"{server.url} is gone .*continue with --ckpt_path last"):
            next(stream)
        assert got == {0, 1}
        with pytest.raises(EngineFailure, match="is gone"):
            engine.version  # noqa: B018


def test_a_server_that_hangs_is_given_up_after_the_patience(policy):
    one, two = SmallServer(), SmallServer()
    with engine_for(policy, one, two) as engine:
        engine.push(full(policy))
        one.hang.set()

        def play():
            check(requests(6), dict(engine.generate(requests(6))))
            return engine.version

        with pytest.warns(UserWarning, match=f"{one.url} is gone .* goes on without it"):
            assert play() == 0
        one.hang.clear()
        assert engine.version == 0  # taken back: it still holds what was pushed
        assert engine.session.pool.servers[0].state == "live"


def test_what_passes_is_asked_again_and_what_does_not_is_said_at_once(policy):
    server = SmallServer()
    with engine_for(policy, server) as engine:
        engine.push(full(policy))
        server.fail = {"/v1/completions": [(500, "a hiccup"), (503, "busy")]}
        check(requests(1, 1), dict(engine.generate(requests(1, 1))))
        assert len(server.completions()) == 3
        server.fail = {"/v1/completions": [(500, "out of memory")] * 9}
        with pytest.raises(EngineFailure, match=rf"{server.url} fails \(500: out of memory\)"):
            list(engine.generate(requests(1, 1)))
        server.fail = {"/v1/completions": [(400, "the prompt is odd")]}
        before = len(server.completions())
        with pytest.raises(EngineFailure, match="refuses a prompt: the prompt is odd"):
            list(engine.generate(requests(1, 1)))
        assert len(server.completions()) == before + 1


def test_a_server_that_fails_again_and_again_is_done_without(policy, capfd):
    one, two = SmallServer(fail={}), SmallServer()
    asked = requests(8)
    with engine_for(policy, one, two) as engine:
        engine.push(full(policy))
        one.fail = {"/v1/completions": [(500, "out of memory")] * 999}
        with pytest.warns(UserWarning, match=rf"{one.url} is gone \(it fails: 500: out of memory\)"):
            check(asked, dict(engine.generate(asked)))
        # both: one sentence, and nothing else of the many requests that failed
        two.fail = {"/v1/completions": [(500, "out of memory")] * 999}
        with pytest.raises(EngineFailure, match=rf"{two.url} fails \(500: out of memory\)"):
            list(engine.generate(asked))
        gc.collect()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("answer", [None, {"detail": "a proxy's page"}, {"choices": []}])
def test_an_answer_without_a_completion_is_none(policy, answer):
    one, two = SmallServer(), SmallServer()
    asked = requests(8)
    with engine_for(policy, one, two) as engine:
        engine.push(full(policy))
        one.complete = lambda body: (200, answer)
        check(asked, dict(engine.generate(asked)))
        two.complete = one.complete
        with pytest.raises(EngineFailure, match=r"is gone \((its answer holds no completion|it fails again and again)"):
            list(engine.generate(asked))


def test_servers_may_call_the_model_by_other_names(policy):
    one, two = SmallServer(delay=0.01), SmallServer(delay=0.01, model="/models/mine")
    with engine_for(policy, one, two) as engine:
        engine.push(full(policy))
        asked = requests(8)
        check(asked, dict(engine.generate(asked)))
        assert {body["model"] for body in one.completions()} == {"base"}
        assert {body["model"] for body in two.completions()} == {"/models/mine"}


def test_a_server_that_is_gone_costs_no_patience_while_another_works(policy):
    one, two = SmallServer(), SmallServer()
    with engine_for(policy, one, two, patience=30.0) as engine:
        engine.push(full(policy))
        engine.session.pool.mark_gone(engine.session.pool.servers[0], "unplugged")
        one.kill()
        began = time.monotonic()
        with pytest.warns(UserWarning, match="unplugged"):
            assert engine.version == 0
        assert time.monotonic() - began < 15


def test_another_reference_than_the_servers_base_answers_here(adapted):
    policy = Policy(add_lora(small_model("llama_tied"), LoraOptions(r=4)), adapted.tokenizer)
    policy.freeze_copy("reference")
    rows = [list(range(40, 52))]
    with engine_for(policy, SmallServer()) as engine:
        engine.push(full(policy))
        engine.push(adapter(policy, 1))
        with policy.gathered():
            here = policy.stats([(rows[0], 1)], "reference")[0].logp
            assert torch.allclose(engine.score(rows, "reference")[0], here)
            assert not torch.allclose(engine.score(rows)[0], here)  # the small server's are a formula


def test_the_least_context_of_all_servers_counts(policy):
    with engine_for(policy, SmallServer(context=60), SmallServer(context=40)) as engine:
        assert engine.context_length == engine.shared_context(policy) == 40
    assert engine.context_length is None
    assert engine.shared_context(policy) == policy.context_length


def test_too_long_for_the_server_is_said_before_anything_is_sent(policy):
    with engine_for(policy, SmallServer(context=20)) as engine:
        engine.push(full(policy))
        with pytest.raises(EngineFailure, match=r"17 tokens and 6 more do not fit .* \(20\); start it with a larger"):
            list(engine.generate([*requests(1), Request((5,) * 17, (1,), SAMPLING)]))
        assert engine.session.pool.servers[0].in_flight == 0


# --- who holds what --------------------------------------------------------------------------------------------------


def test_a_push_pauses_reloads_resets_resumes_and_names_and_a_restart_is_noticed(policy):
    one, two = SmallServer(), SmallServer()
    with engine_for(policy, one, two) as engine:
        assert engine.version == -1
        before = len(one.calls)
        receipt = engine.push(full(policy, 5))
        weights = dict(policy.named_weights())
        assert receipt.version == engine.version == 5
        assert receipt.names == set(weights)
        assert receipt.bytes == sum(t.numel() * 4 for t in weights.values())
        order = ["/pause", "/collective_rpc", "/reset_prefix_cache", "/resume", "/update_weight_version"]
        assert [p for p in one.paths()[before:] if p in order] == order
        engine.push(full(policy, 6))
        loaded = [b["kwargs"]["weights_path"] for p, b in one.calls if p == "/collective_rpc"]
        assert len(set(loaded)) == 2
        two.restart()
        assert engine.version == -1
        engine.push(full(policy, 6))
        assert engine.version == 6
        assert two.weights == one.weights != "default"


def test_weights_that_change_while_it_writes_end_the_round(policy):
    asked = requests(1)
    server = SmallServer(hold={asked[0].prompt_ids: threading.Event()})
    with engine_for(policy, server) as engine:
        engine.push(full(policy))
        stream = engine.generate([*asked, *requests(2)[1:]])
        next(stream)
        server.weights = "somebody else's"
        server.hold[asked[0].prompt_ids].set()
        with pytest.raises(EngineFailure, match="got other weights while it wrote"):
            list(stream)
        assert engine.version == -1


def test_adapters_travel_under_fresh_names_and_old_ones_are_unloaded(adapted):
    one, two = SmallServer(), SmallServer()
    with engine_for(adapted, one, two) as engine:
        assert engine.needs_base
        engine.push(full(adapted, 0))
        assert not engine.needs_base
        names = set()
        for version in range(1, 6):
            engine.push(adapter(adapted, version))
            assert engine.version == version
            assert len(one.adapters) == len(two.adapters) == 1
            names |= set(one.adapters.items())
        assert len({name for name, _ in names}) == len({path for _, path in names}) == 5
        check(requests(2), dict(engine.generate(requests(2))))
        assert {b["model"] for b in one.completions()} == set(one.adapters)
        engine.score([[3, 4]], who="reference")
        asked = [b["model"] for s in (one, two) for p, b in s.calls if "prompt_logprobs" in (b or {})]
        assert asked == ["base"]
        two.adapters.clear()
        assert engine.version == -1
        assert not engine.needs_base
        two.restart()
        assert engine.version == -1
        assert engine.needs_base
    assert one.adapters == {}


def test_without_development_routes_adapters_alone_will_do(adapted):
    server = SmallServer()
    server.fail = {path: [(404, "Not Found")] * 9 for path in ("/pause", "/weight_info")}
    with engine_for(adapted, server, push_base=False) as engine:
        assert not engine.needs_base
        engine.push(adapter(adapted, 2))
        assert engine.version == 2


REFUSED = {
    "dev": ("full", "/pause", 404, "Not Found", "no routes for new weights .*VLLM_SERVER_DEV_MODE=1"),
    "old": ("full", "/update_weight_version", 404, "Not Found", "cannot say which weights it holds"),
    "unseen": (
        "full",
        "/collective_rpc",
        500,
        "Cannot find any model weights",
        "does not see .* data.engine.publish_to",
    ),
    "wrong": ("full", "/collective_rpc", 500, "size mismatch", r"refuses the weights of version 1 \(size mismatch\)"),
    "route": ("adapter", "/v1/load_lora_adapter", 404, "Not Found", "no route for adapters; start it with VLLM_ALLOW"),
    "off": ("adapter", "/v1/load_lora_adapter", 500, "LoRA is not enabled. Use", "takes no adapters; .*--enable-lora"),
    "rank": (
        "adapter",
        "/v1/load_lora_adapter",
        500,
        "LoRA rank 64 is greater than max_lora_rank 16.",
        "up to rank 16, this one has 64; start it with a larger --max-lora-rank",
    ),
    "elsewhere": ("adapter", "/v1/load_lora_adapter", 404, "No adapter found for /x", "does not see .*publish_to"),
    "odd": ("adapter", "/v1/load_lora_adapter", 400, "bad file", r"refuses the adapter of version 1 \(bad file\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_weights_are_one_sentence_and_the_server_goes_on(adapted, case):
    kind, path, status, message, sentence = REFUSED[case]
    server = SmallServer()
    with engine_for(adapted, server) as engine:
        server.fail = {path: [(status, message)]}
        with pytest.raises(EngineFailure, match=sentence) as caught:
            engine.push(full(adapted, 1) if kind == "full" else adapter(adapted, 1))
        assert server.url in str(caught.value)
        assert len(str(caught.value)) <= 300
        assert engine.version == -1
        if kind == "full" and path != "/pause":
            assert server.paths().count("/resume") == 1
        engine.push(full(adapted, 1) if kind == "full" else adapter(adapted, 1))
        assert engine.version == 1


@pytest.mark.parametrize("path", ["/pause", "/resume", "/reset_prefix_cache"])
def test_steps_of_a_push_that_fail(policy, path):
    one, two = SmallServer(), SmallServer()
    with engine_for(policy, one, two) as engine:
        one.fail = {path: [(503, "busy"), (503, "busy")]}
        engine.push(full(policy, 1))
        assert engine.version == 1
        one.fail = {path: [(418, "a teapot")] * 9}
        with pytest.raises(EngineFailure, match=rf"{one.url} refuses a step of a push \(a teapot\); see its log"):
            engine.push(full(policy, 2))
        one.fail = {path: [(500, "out of memory")] * 99}
        with pytest.warns(UserWarning, match=rf"{one.url} is gone \(it fails: 500: out of memory\)"):
            assert _version_after(engine, full(policy, 3)) == -1  # it answers again and lacks the weights
        two.fail = {path: [(500, "out of memory")] * 99}
        with pytest.raises(EngineFailure, match=r"is gone \(it fails: 500: out of memory\); start it again"):
            engine.push(full(policy, 4))


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_a_server_that_dies_before_it_confirms_a_push(adapted, kind):
    """Between the load and the question which weights it holds: the run goes on with the others, or ends by name."""
    one, two = SmallServer(), SmallServer()

    def die_when_asked(server):
        answer = server.reply

        def reply(path, body, key):
            if path == "/weight_info":
                threading.Thread(target=server.kill).start()
                time.sleep(0.3)
            return answer(path, body, key)

        server.reply = reply

    with engine_for(adapted, one, two) as engine:
        update = (lambda v: full(adapted, v)) if kind == "full" else (lambda v: adapter(adapted, v))
        engine.push(full(adapted, 1))
        die_when_asked(one)
        with pytest.warns(UserWarning, match=rf"{one.url} is gone \(.+\); the run goes on without it"):  # noqa: PT031
            engine.push(update(2))
            assert engine.version == 2
        die_when_asked(two)
        with pytest.raises(EngineFailure, match=r"the vLLM server at .+ is gone \(.+\); start it again"):
            engine.push(update(3))


def test_prefixes_that_stay_are_a_mismatch(policy, monkeypatch):
    server = SmallServer()
    answer = server.reply
    server.reply = lambda path, body, key: (
        (200, {"success": False}) if path == "/reset_prefix_cache" else answer(path, body, key)
    )
    with engine_for(policy, server) as engine, pytest.raises(PushMismatch, match="keeps prefixes"):
        engine.push(full(policy, 1))


# --- the start -------------------------------------------------------------------------------------------------------


def refused_start(policy, *servers, **options):
    with pytest.raises(EngineFailure) as caught, engine_for(policy, *servers, **options):
        pass
    assert len(str(caught.value)) <= 300
    return str(caught.value)


def test_what_cannot_work_is_said_at_the_start(policy, adapted, monkeypatch):
    killed = SmallServer()
    killed.kill()
    engine = VLLMServerEngine([killed.url], start_seconds=0.3)
    with pytest.raises(EngineFailure, match=rf"{killed.url} cannot be reached .*data.engine.urls"):
        engine.start(policy)
    assert "is no vLLM server" in refused_start(policy, SmallServer(fail={"/v1/models": [(404, "Not Found")]}))
    assert "set VLLM_API_KEY" in refused_start(policy, SmallServer(key="secret"))
    assert "serves another model" in refused_start(
        policy, SmallServer(fail={"/v1/completions": [(400, "out of vocabulary")]})
    )
    raw = {"model_config": {"logprobs_mode": "raw_logprobs"}}
    assert "--logprobs-mode processed_logprobs" in refused_start(policy, SmallServer(config=raw))
    without = {"model_config": {}, "lora_config": None}
    assert "takes no adapters" in refused_start(adapted, SmallServer(config=without))
    small = {"model_config": {}, "lora_config": {"max_lora_rank": 1}}
    assert "up to rank 1, this one needs 4" in refused_start(adapted, SmallServer(config=small))
    monkeypatch.setattr(module, "is_local", lambda url: False)
    assert "data.engine.publish_to" in refused_start(policy, SmallServer())


def test_the_key_comes_from_the_environment_and_is_never_shown(policy, monkeypatch, capfd, tmp_path):
    monkeypatch.setenv("VLLM_API_KEY", "sesame-4711")
    server = SmallServer(key="sesame-4711")
    with engine_for(policy, server, publish_to=str(tmp_path)) as engine:
        engine.push(full(policy))
        check(requests(1), dict(engine.generate(requests(1))))
        server.kill()
        with pytest.raises(EngineFailure) as caught:
            list(engine.generate(requests(1)))
        assert "sesame" not in str(caught.value) + repr(vars(engine))
    assert "sesame" not in "".join(capfd.readouterr())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"urls": []}, "urls is empty"),
        ({"urls": ["127.0.0.1:8000"]}, "is no address; give one like http"),
        ({"urls": ["http://me:word@host:1"]}, "without credentials and set VLLM_API_KEY"),
        ({"urls": ["http://host:99999"]}, "the port of .* is not valid"),
        ({"urls": ["http://host:1", "http://host:1/v1/"]}, "names a server twice"),
        ({"max_in_flight": 0}, "max_in_flight must be at least 1"),
        ({"patience": 0}, "must be above 0"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        VLLMServerEngine(**options)


def test_launch_options_that_are_the_engines_own_are_refused():
    with pytest.raises(ValueError, match="--port is set by the engine"):
        Launch(arguments=["--gpu-memory-utilization=0.5", "--port=1"])
    with pytest.raises(ValueError, match="devices of at least one server"):
        Launch(devices=[])


def test_the_error_in_a_log():
    log = """
(EngineCore pid=9) ERROR 11-26 13:54:34 [core.py:1184] Traceback (most recent call last):
(EngineCore pid=9) ERROR 11-26 13:54:34 [core.py:1184] ValueError: No available memory for the cache blocks.
(APIServer pid=8) Traceback (most recent call last):
(APIServer pid=8)   File "x.py", line 3, in main
(APIServer pid=8) RuntimeError: Engine core initialization failed. See root cause above.
""".splitlines()
    assert find_error(log) == "ValueError: No available memory for the cache blocks."
    assert (
        find_error(["usage: x", "api_server.py: error: unrecognized arguments: --x"]) == "unrecognized arguments: --x"
    )
    assert find_error(["\x1b[31mINFO 11-26 13:54:34 [a.py:1] loading\x1b[0m", ""]) == "loading"
    assert find_error([]) == "its log is empty"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--data.engine.urls", "http://127.0.0.1:9", "--data.engine.start_seconds", "0.2"], "127.0.0.1:9 cannot be"),
        (["--data.engine.urls", "127.0.0.1:9"], "'127.0.0.1:9' is no address; give one like http://127.0.0.1:8000"),
        (["--data.engine.url", "http://127.0.0.1:9"], "no option 'url'; did you mean urls?"),
    ],
)
def test_the_command_line_says_in_a_sentence_what_is_wrong_with_a_server(tmp_path, options, sentence):
    ended = cli("fit", *small(tmp_path / "run"), "--data.engine", "VLLMServerEngine", *options)
    assert ended.status == 2
    assert sentence in ended.error


# --- several ranks ---------------------------------------------------------------------------------------------------


def test_of_two_ranks_one_pushes_and_both_agree(tmp_path):
    servers = [SmallServer(), SmallServer()]
    job = Path(__file__).with_name("server_job.py")
    more = [str(tmp_path), str(tmp_path / "shared"), *(s.url for s in servers)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ranks = [subprocess.Popen([sys.executable, job, str(rank), *more], env=environment) for rank in (0, 1)]
    try:
        assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()
        for server in servers:
            server.kill()
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["versions"] == second["versions"] == [4, 4]
    assert first["names"] == second["names"] != []
    for rank, seen in enumerate((first, second)):
        for i, written in seen["written"].items():
            assert written == [tokens((5, 6, 7 + int(i) + 50 * rank), seed, 4) for seed in (1, 2)]
    assert [s.paths().count("/collective_rpc") for s in servers] == [1, 1]
    assert first["error"].startswith("EngineFailure: weights of version 5 cannot be written to /proc/nowhere")
    assert "rank 0 failed while pushing weights to the vLLM servers" in second["error"]
