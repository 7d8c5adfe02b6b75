"""What all tests share: fixed random numbers, one thread, and the recorded data beside the checkout."""

import random
import signal
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import counts as tally
from helpers.ranks import Pair

from lightning_serl.answers.verifier.client import WorkerClient
from lightning_serl.policy import memory_plan

ROOT = Path(__file__).resolve().parents[1]
# The recorded data lie beside the checkout; they are not ours to ship.
GOLDEN = ROOT.parent / "shared" / "data"
# Where several test processes share the work, a file stays in one of them, and so do tests that share these fixtures.
TOGETHER = {"pair": "ranks", "asked_once": "recorded"}
# They begin first, so that the processes end at about the same time.
LONGEST = ("ranks", "test_resume", "recorded", "test_cli", "test_presets", "test_math", "test_exit_status",
           "test_malformed_inputs", "test_stopped", "test_ranks")  # fmt: skip
# A shell starts its background jobs deaf to Ctrl-C, and they hand that down to the runs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder of recorded responses; only tests marked ``golden`` may ask for it."""
    return GOLDEN


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """Two ranks that run jobs in turn; the tests that use them stay in one test process."""
    two = Pair(tmp_path_factory.mktemp("pair"))
    yield two
    two.ended()


_ANSWERED: dict[tuple, dict | None] = {}


@pytest.fixture
def asked_once(monkeypatch):
    """Several tests have the same recorded responses graded: math-verify is asked each question once per process."""
    ask = WorkerClient.ask

    def remembering(client, op, limit, **fields):
        key = op, limit, *sorted(fields.items())
        if _ANSWERED.get(key) is None:  # None: the worker died or took too long, which need not be so again
            _ANSWERED[key] = ask(client, op, limit, **fields)
        return _ANSWERED[key]

    monkeypatch.setattr(WorkerClient, "ask", remembering)


@pytest.fixture(autouse=True, scope="session")
def _equal_runs_share_their_memory_plan():
    """Tracing one takes as long as a small round, and it depends on these options alone."""
    known = {}

    def plan(config, dtype, work, lora=None, quantized=False):
        key = config.to_json_string(), config._attn_implementation, dtype, work, repr(lora), quantized
        if key not in known:
            known[key] = memory_plan.plan(config, dtype, work, lora, quantized)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_serl.callbacks.foresight.plan", plan)
        yield


@pytest.fixture(autouse=True)
def _fixed_random_numbers():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)


def pytest_itemcollected(item):
    """Name the test's group: pytest-xdist reads it before this file's ``pytest_collection_modifyitems`` is called."""
    item.add_marker(pytest.mark.xdist_group(_group(item)))


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):
        _share_out(items)
    if find_spec("vllm") is None:
        for item in items:
            if item.get_closest_marker("vllm"):
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed here"))
    golden = [item for item in items if item.get_closest_marker("golden")]
    if GOLDEN.is_dir():
        tally.GOLDEN["selected"] = len(golden)
        return
    tally.GOLDEN["deselected"] = len(golden)
    if golden:
        config.hook.pytest_deselected(items=golden)
        items[:] = [item for item in items if item not in golden]


def _group(item):
    """The group of a test for ``--dist loadgroup``, which keeps it in one process: that of its fixture, or its file."""
    if item.get_closest_marker("vllm"):  # one process starts the server, one the engine inside the process
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if "owner" in item.fixturenames or "server" in parameters:
            return "server"
        if "open_engines" in item.fixturenames:
            return "vllm"
    shared = [TOGETHER[name] for name in item.fixturenames if name in TOGETHER]
    return shared[0] if shared else item.path.stem


def _share_out(items):
    """The groups that take longest come first."""
    items.sort(key=lambda item: LONGEST.index(_group(item)) if _group(item) in LONGEST else len(LONGEST))


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # one of several test processes
        session.config.workeroutput["tally"] = tally.send()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    if "tally" in getattr(node, "workeroutput", {}):
        tally.receive(node.workeroutput["tally"])


def pytest_terminal_summary(terminalreporter):
    if tally.MALFORMED:
        _table_of_malformed(terminalreporter)
    if any(tally.GOLDEN.values()):
        where = "found" if GOLDEN.is_dir() else "absent"
        terminalreporter.write_line(
            f"golden tests: {tally.GOLDEN['selected']} selected, {tally.GOLDEN['deselected']} deselected "
            f"(recorded data {where} at ../{GOLDEN.relative_to(ROOT.parent)})"
        )


def _table_of_malformed(terminalreporter):
    counts = tally.MALFORMED
    terminalreporter.section("malformed inputs, by entry point and family")
    for entry in sorted({entry for entry, _ in counts}):
        families = {family: count for (at, family), count in counts.items() if at == entry}
        terminalreporter.write_line(f"{sum(families.values()):>5}  {entry}")
        for family, count in sorted(families.items()):
            terminalreporter.write_line(f"      {count:>5}  {family}")
    entries, families = {e for e, _ in counts}, {f for _, f in counts}
    terminalreporter.write_line(
        f"{counts.total():>5}  in all: {len(families)} families over {len(entries)} entry points"
    )
