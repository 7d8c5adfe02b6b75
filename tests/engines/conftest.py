"""One engine of each kind for all tests of a process: a start costs seconds."""

import pytest
from helpers.engines import LIVE, adapted_policy

from lightning_serl.engines import TransformersEngine


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
def no_vllm(open_engines):
    """No engine holds vLLM in this process: for tests that start others."""
    if "vllm" in open_engines:
        open_engines["vllm"][0].close()


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
