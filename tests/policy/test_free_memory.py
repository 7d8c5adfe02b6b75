"""What a process may still take, by the host's own figures and those of control groups."""

import pytest
import torch

from lightning_serl.policy import free_memory as module
from lightning_serl.policy.free_memory import free_memory

MIB = 2**20
# (lines of /proc/self/cgroup, files below /sys/fs/cgroup, expected (limit, used) in MiB)
GROUPS = [
    ("0::/\n", {"memory.max": 512, "memory.current": 100, "memory.stat": "inactive_file 0"}, [(512, 100)]),
    ("0::/\n", {"memory.max": 512, "memory.current": 300, "memory.stat": "inactive_file 209715200"}, [(512, 100)]),
    ("0::/\n", {"memory.max": "max", "memory.current": 300, "memory.stat": "inactive_file 0"}, []),
    ("0::/\n", {}, []),
    (
        "0::/job/step\n",
        {
            "job/step/memory.max": "max", "job/step/memory.current": 5, "job/step/memory.stat": "",
            "job/memory.max": 900, "job/memory.current": 50, "job/memory.stat": "",
        },
        [(900, 50)],
    ),
    (
        "0::/a/b\n",
        {
            "a/b/memory.max": 700, "a/b/memory.current": 5, "a/b/memory.stat": "",
            "a/memory.max": 600, "a/memory.current": 500, "a/memory.stat": "",
        },
        [(700, 5), (600, 500)],
    ),
    (
        "9:cpu:/x\n4:memory:/slurm/job1\n",
        {
            "memory/slurm/job1/memory.limit_in_bytes": 2048, "memory/slurm/job1/memory.usage_in_bytes": 1024,
            "memory/slurm/job1/memory.stat": "cache 1\ntotal_inactive_file 0",
        },
        [(2048, 1024)],
    ),
    (
        "4:cpuacct,memory:/\n",
        {
            "memory/memory.limit_in_bytes": 2048, "memory/memory.usage_in_bytes": 1536,
            "memory/memory.stat": "total_inactive_file 536870912",
        },
        [(2048, 1024)],
    ),
    (
        "4:memory:/free\n",
        {
            "memory/free/memory.limit_in_bytes": str(2**63 - 4096), "memory/free/memory.usage_in_bytes": 1,
            "memory/free/memory.stat": "",
        },
        [],
    ),
    ("9:cpu:/x\n", {"memory.max": "nonsense", "memory.current": 1, "memory.stat": ""}, []),
    ("0::/gone\n", {"memory.max": 400, "memory.current": 1, "memory.stat": ""}, [(400, 1)]),
    ("0::/../escape\n", {"memory.max": 300, "memory.current": 2, "memory.stat": ""}, [(300, 2)]),
    ("0::/\n", {"memory.max": 100, "memory.current": 200, "memory.stat": "inactive_file 0"}, [(100, 200)]),
    ("0::/\n", {"memory.max": 100, "memory.current": 1, "memory.stat": "inactive_file 999999999"}, [(100, 0)]),
    ("", {"memory.max": 100, "memory.current": 1, "memory.stat": ""}, []),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "files", "expected"), GROUPS)
def test_limits_of_control_groups(tmp_path, lines, files, expected):
    (tmp_path / "self").write_text(lines)
    root = tmp_path / "cgroup"
    root.mkdir()
    for name, value in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(str(value * MIB) if isinstance(value, int) else value)
    found = module._control_groups(tmp_path / "self", root)
    assert [(limit // MIB, used // MIB) for limit, used in found] == expected


def test_the_smallest_limit_counts_and_processes_share_it(tmp_path, monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(module, "_available", lambda path, total: 900 * MIB)
    monkeypatch.setattr(module, "_control_groups", lambda *paths: [])
    assert free_memory(cpu)[0] == 900 * MIB
    assert free_memory(cpu, processes=3)[0] == 300 * MIB
    monkeypatch.setattr(module, "_control_groups", lambda *paths: [(500 * MIB, 100 * MIB), (2000 * MIB, 0)])
    assert free_memory(cpu) == (400 * MIB, 500 * MIB)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MemTotal: 9 kB\nMemAvailable:   12 kB\n", 12 * 1024),
        ("MemTotal: 9 kB\n", 7),
        ("MemAvailable: x\n", 7),
        ("", 7),
    ],
)
def test_available_memory(tmp_path, text, expected):
    (tmp_path / "meminfo").write_text(text)
    assert module._available(tmp_path / "meminfo", 7) == expected
    assert module._available(tmp_path / "none", 7) == 7
