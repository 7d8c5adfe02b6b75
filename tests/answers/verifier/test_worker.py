"""The worker process: limits, restarts, isolation, and its end with the parent."""

import os
import subprocess
import sys
import threading
import time

import pytest

from lightning_serl.answers import MathGrader
from lightning_serl.answers.verifier.client import WorkerClient


def test_works_off_the_main_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(MathGrader("exact").same("2x", "x+x")))
    thread.start()
    thread.join()
    assert found == [True]


def test_worker_dies_and_comes_back():
    client = WorkerClient()
    try:
        assert client.ask("same", 1.0, a=r"\boxed{9^{9^{9}}}", b=r"\boxed{x+2}") is None
        reply = client.ask("same", 5.0, a=r"\boxed{x+1}", b=r"\boxed{1+x}")
        assert reply is not None
        assert reply["same"] is True
        os.killpg(client._process.pid, 9)  # as the kernel does when memory runs out
        client._process.wait()
        reply = client.ask("same", 5.0, a="1", b="1.0")
        assert reply is not None
        assert reply["same"] is True
    finally:
        client.close()


@pytest.mark.skipif(not os.path.exists("/proc/self/limits"), reason="needs /proc")
def test_worker_has_a_memory_limit_and_its_own_session():
    client = WorkerClient()
    try:
        client.ask("same", 5.0, a="1", b="2")
        pid = client._process.pid
        with open(f"/proc/{pid}/limits") as limits:
            line = next(x for x in limits if x.startswith("Max address space"))
        assert int(line.split()[3]) < 2 * 10**9
        assert os.getsid(pid) == pid
    finally:
        client.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def _python(code, **kwargs):
    env = {**os.environ, **kwargs.pop("env", {})}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120, **kwargs)


def test_graders_and_worker_cost_neither_torch_nor_lightning():
    code = (
        "import sys, lightning_serl.answers as a, lightning_serl.answers.verifier.worker as w;"
        "a.MathGrader().same('1', '2');"
        "assert 'sympy' not in sys.modules; w.Verifier();"
        "print([m for m in ('torch', 'lightning', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = _python(code)
    assert done.stdout.strip() == "[]", done.stderr


def test_verdicts_do_not_depend_on_hash_seed_or_working_directory(tmp_path):
    # A file that would break the worker if it were imported from the working directory.
    (tmp_path / "sympy.py").write_text("raise SystemExit(1)")
    (tmp_path / "math.py").write_text("raise SystemExit(1)")
    code = (
        "import sys; sys.path.remove('') if '' in sys.path else None;"
        "from lightning_serl.answers import MathGrader, cluster;"
        r"answers = ['x+1', '1+x', 'a=b', 'b=a', r'\{1,2,x\}', r'\{x,2,1\}'];"
        r"texts = [r'\boxed{%s}' % a for a in answers];"
        "print(cluster(texts, [True] * 6, MathGrader('exact')))"
    )
    root = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))
    outputs = set()
    for seed in ("0", "1", "12345"):
        done = _python(code, cwd=tmp_path, env={"PYTHONHASHSEED": seed, "PYTHONPATH": root})
        assert done.returncode == 0, done.stderr
        outputs.add(done.stdout)
    assert len(outputs) == 1


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_worker_ends_with_its_parent():
    code = (
        "import os; from lightning_serl.answers.verifier.client import shared_client as c;"
        "c().ask('same', 5.0, a='1', b='2'); print(c()._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    pid = int(_python(code).stdout)
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}/stat") and time.monotonic() < deadline:
        with open(f"/proc/{pid}/stat") as stat:
            if stat.read().rsplit(")", 1)[1].split()[0] == "Z":
                break  # ended, and nobody here to collect it
        time.sleep(0.05)
    else:
        assert not os.path.exists(f"/proc/{pid}/stat")


def test_a_forked_child_has_a_worker_of_its_own():
    code = (
        "import os; from lightning_serl.answers import MathGrader as M; assert M().same('x+1', '1+x')\n"
        "pid = os.fork()\n"
        "ok = M().same('y+1', '1+y') and not M().same('y+1', '2+y')\n"
        "from lightning_serl.answers.verifier.client import shared_client\n"
        "if pid == 0:\n    shared_client().close(); os._exit(0 if ok else 1)\n"
        "_, status = os.waitpid(pid, 0); print(ok, status)"
    )
    assert _python(code).stdout.split() == ["True", "0"]


def test_interrupt_leaves_no_worker_traceback():
    code = (
        "import os, signal; from lightning_serl.answers import MathGrader as M; M().same('x+1', '1+x')\n"
        "try:\n    os.killpg(os.getpgrp(), signal.SIGINT); import time; time.sleep(5)\n"
        "except KeyboardInterrupt:\n    print(M().same('x+2', '2+x'))"
    )
    done = _python(code, start_new_session=True)
    assert done.stdout.strip() == "True"
    assert done.stderr == ""


def test_a_script_without_a_main_guard_runs_once(tmp_path):
    script = tmp_path / "train.py"
    script.write_text("from lightning_serl.answers import MathGrader\nprint(MathGrader().same('x+1', '1+x'))\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("True\n", "")
