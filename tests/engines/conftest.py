"""One engine of each kind for all tests of a process: a start costs seconds."""

from itertools import count
from types import SimpleNamespace

import pytest
import torch

from lightning_serl.callbacks import RolloutRefresh
from lightning_serl.engines import TransformersEngine
from lightning_serl.policy.loading import LoraOptions, load_policy

#: Every engine that samples from the policy; each passes `test_contract.py`.
LIVE = ["transformers"]
COPIES = [pytest.param(kind, marks=pytest.mark.vllm) for kind in ("vllm", "server")]


#: The engines of a process meet many policies here, which a version must tell apart.
_versions = count(1)


def refresh(policy, engine, callback=None):
    """What a stream does before it generates."""
    callback = callback or RolloutRefresh()
    callback.on_rollout_start(None, SimpleNamespace(policy=policy), engine)
    return callback


def disturb(policy, scale=0.01, seed=0):
    """Something like a step of training: other weights, another version."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=draw) * scale
                parameter.add_(noise * max(float(parameter.std()), 0.1))
    policy.version = next(_versions)


def plain_policy():
    """``tiny:base`` with a version that no engine has seen."""
    policy = load_policy("tiny:base")
    policy.version = next(_versions)
    return policy


def adapted_policy():
    """``tiny:base`` with an adapter that changes what it writes."""
    policy = load_policy("tiny:base", lora=LoraOptions(r=4, alpha=8))
    disturb(policy, 1.0)
    return policy


@pytest.fixture(scope="session")
def owner(tmp_path_factory):
    """The engine that started the one vLLM server of the process; others are given its address."""
    from lightning_serl.engines import VLLMServerEngine

    engine = VLLMServerEngine(patience=20.0)
    engine.folder = tmp_path_factory.mktemp("server")
    engine.start(adapted_policy())
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def open_engines():
    """(engine, policy) by kind, started when first asked for."""
    made = {}
    yield made
    for engine, _ in made.values():
        engine.close()


def _make(kind, request):
    if kind == "server":
        from lightning_serl.engines import VLLMServerEngine

        return VLLMServerEngine(request.getfixturevalue("owner").session.local_servers[0].url)
    if kind == "vllm":
        from lightning_serl.engines import VLLMEngine

        return VLLMEngine(kv_cache_gb=0.25)
    return TransformersEngine()


@pytest.fixture
def engine_of(open_engines, request):
    """A function from kind to the process's engine of that kind and the policy it was started with."""

    def started(kind):
        if kind not in open_engines:
            open_engines[kind] = _make(kind, request), adapted_policy()
        engine, policy = open_engines[kind]
        if kind in LIVE or engine.session is None:  # new, or closed by a test
            engine.start(policy)
        return engine, policy

    return started
