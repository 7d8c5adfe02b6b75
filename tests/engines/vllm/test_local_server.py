"""Servers of our own: started, waited for, and ended in every way there is. Scripts stand in for the program itself."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from helpers.small_models import small_policy

from lightning_serl.engines import VLLMServerEngine
from lightning_serl.engines.vllm.local_server import Launch, LocalServer
from lightning_serl.errors import EngineFailure

# A server that has a child in a session of its own, which a signal to the group does not reach; both ignore SIGTERM.
STUBBORN = """#!{python}
import http.server, os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "--port" not in sys.argv:
    time.sleep(600)
child = subprocess.Popen([sys.executable, __file__], start_new_session=True)
print(f"pids {{os.getpid()}} {{child.pid}}", flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def program(path, text):
    path.write_text(text.replace("{python}", sys.executable).replace("{{", "{").replace("}}", "}"))
    path.chmod(0o755)
    return str(path)


def alive(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.05)


def pids(log):
    return [int(word) for line in log.read_text().splitlines() if line.startswith("pids ") for word in line.split()[1:]]


def healthy(server):
    try:
        with urllib.request.urlopen(f"{server.url}/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_a_server_is_waited_for_and_ended_with_all_its_processes(tmp_path):
    server = LocalServer("model", tmp_path / "log", program(tmp_path / "python", STUBBORN))
    try:
        polls = []
        server.wait(lambda: healthy(server), 30, lambda: polls.append(1))
        assert polls
        processes = pids(server.log)
        assert len(processes) == 2
        assert all(map(alive, processes))
        assert server.running
    finally:
        server.stop()
    assert not any(map(alive, processes))
    assert not server.running
    server.stop()


OWNER = """
import sys, time
from pathlib import Path
from lightning_serl.engines.vllm.local_server import LocalServer
server = LocalServer("model", Path(sys.argv[1]), sys.argv[2])
print(server.watchdog.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("victim", ["owner", "owner, forked", "watchdog"])
def test_whoever_is_killed_no_server_is_left(tmp_path, victim):
    log = tmp_path / "log"
    text = OWNER
    if victim == "owner, forked":  # a process that inherits the pipe and outlives its parent
        text = text.replace("time.sleep(600)", "import os\nif not os.fork(): time.sleep(20)\ntime.sleep(600)")
    command = [sys.executable, "-c", text, str(log), program(tmp_path / "python", STUBBORN)]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
    watchdog = int(owner.stdout.readline())
    wait_for(lambda: log.exists() and len(pids(log)) == 2)
    server, child = pids(log)
    os.kill(watchdog if victim == "watchdog" else owner.pid, signal.SIGKILL)
    wait_for(lambda: not alive(server))
    if victim == "watchdog":  # what hid in another session is beyond a death signal
        os.kill(child, signal.SIGKILL)
        owner.kill()
    wait_for(lambda: not alive(child) and not alive(watchdog))
    owner.wait()
    owner.stdout.close()


def test_a_server_that_does_not_start_is_quoted(tmp_path):
    failing = program(
        tmp_path / "python",
        "#!/bin/sh\necho '(EngineCore pid=7) ERROR 11-26 13:54:34 [core.py:1] ValueError: no room for the cache'\n"
        "echo 'RuntimeError: Engine core initialization failed. See root cause above.'\nexit 1\n",
    )
    engine = VLLMServerEngine(launch=Launch(python=failing))
    engine.folder = tmp_path
    with pytest.raises(EngineFailure) as caught:
        engine.start(small_policy("llama_tied"))
    assert "did not start (ValueError: no room for the cache); see" in str(caught.value)
    assert str(tmp_path / "vllm-server-0.log") in str(caught.value)
    with pytest.raises(EngineFailure, match=r"cannot be started|did not start"):
        VLLMServerEngine(launch=Launch(python="/nowhere/python", log_to=str(tmp_path))).start(small_policy("opt"))


def test_a_server_that_is_silent_is_given_up_and_ended(tmp_path):
    silent = program(tmp_path / "python", "#!/bin/sh\necho pids $$ $$\necho still loading\nexec sleep 600\n")
    engine = VLLMServerEngine(launch=Launch(python=silent, log_to=str(tmp_path)), start_seconds=1.0)
    with pytest.raises(EngineFailure, match=r"no answer within 1 s \(still loading\); raise data.engine.start_seconds"):
        engine.start(small_policy("llama_tied"))
    assert not any(map(alive, pids(tmp_path / "vllm-server-0.log")))


def test_without_vllm_the_remedies_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineFailure, match=r"pip install vllm, or name a server in data.engine.urls"):
        VLLMServerEngine(launch=Launch(log_to=str(tmp_path))).start(small_policy("llama_tied"))
