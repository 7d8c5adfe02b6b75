"""The private parts of torch in use, one test for each: an upgrade that changes one fails by its name."""

import ast
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import distributed_c10d as c10d

from lightning_serl.engines.vllm import isolation

PACKAGE = Path(__file__).resolve().parents[1] / "lightning_serl"
MODULE_TABLES = {name for name in vars(nn.Module()) if name.startswith("_")}
#: Items with a test below.
TESTED = set()


def holds(*items):
    """Mark a test as the one that fails if these items change."""
    TESTED.update(items)
    return lambda test: test


@pytest.fixture
def default_group():
    """A default group of one process, as a trainer's is."""
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield dist.group.WORLD
    if dist.is_initialized():
        dist.destroy_process_group()


def total(value, group):
    """Sum over a group that is looked up by its name, as functional collectives do."""
    out = torch.ops._c10d_functional.all_reduce(torch.tensor([value]), "sum", group.group_name)
    return float(torch.ops._c10d_functional.wait_tensor(out))


# -- process groups ----------------------------------------------------------------------------------------------------


@holds("torch.distributed.distributed_c10d._World")
def test_world_reads_module_variables_through_properties_that_the_engine_s_world_replaces():
    def variables(function):
        return {n for n in function.__code__.co_names if isinstance(vars(c10d).get(n), (dict, int))}

    tables = {name for name, p in vars(c10d._World).items() if isinstance(p, property) and variables(p.fget)}
    assert len(tables) >= 7
    assert tables <= vars(isolation._EngineWorld).keys()
    assert vars(c10d._World()) == {"_default_pg": None, "_pg_coalesce_state": {}, "_comms": []}


@holds("torch.distributed.distributed_c10d._world")
def test_world_holds_the_process_groups_in_use(default_group):
    assert c10d._world.default_pg is default_group
    groups = isolation.IsolatedGroups(torch.device("cpu"))
    try:
        with groups.active():
            assert dist.group.WORLD is c10d._world.default_pg is not default_group
            assert dist.new_group([0]) in c10d._world.pg_map
        assert dist.group.WORLD is default_group
        assert list(c10d._world.pg_map) == [default_group]
    finally:
        groups.close()
    assert total(3.0, default_group) == 3.0


@holds("torch.distributed.distributed_c10d._default_pg_init_method")
def test_default_pg_init_method_holds_the_address_of_the_last_init(tmp_path):
    address = f"file://{tmp_path}/rendezvous"
    dist.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    groups = isolation.IsolatedGroups(torch.device("cpu"))
    try:
        assert c10d._default_pg_init_method == address
        with groups.active():
            assert c10d._default_pg_init_method is None  # the engine's groups were given a store
        assert c10d._default_pg_init_method == address
    finally:
        groups.close()
        dist.destroy_process_group()


@holds("torch.distributed.distributed_c10d._unregister_all_process_groups")
def test_unregister_all_process_groups_is_what_destroying_the_default_group_calls(default_group, monkeypatch):
    called = []
    monkeypatch.setattr(c10d, "_unregister_all_process_groups", lambda: called.append(True))
    dist.destroy_process_group()
    monkeypatch.undo()
    c10d._unregister_all_process_groups()
    assert called == [True]


@holds("torch.distributed.distributed_c10d._unregister_process_group")
def test_unregister_process_group_forgets_one_name_and_may_be_called_twice(default_group):
    other = dist.new_group([0])
    assert total(2.0, other) == 2.0
    c10d._unregister_process_group(other.group_name)
    with pytest.raises(RuntimeError):
        total(2.0, other)
    c10d._unregister_process_group(other.group_name)
    assert total(2.0, default_group) == 2.0


@holds("torch.distributed.distributed_c10d._get_default_store")
def test_get_default_store_is_shared_by_the_ranks_and_counts(default_group):
    store = dist.PrefixStore("serl", c10d._get_default_store())
    assert [store.add("meeting 1", 1), store.add("meeting 1", 1), store.add("meeting 1", 0)] == [1, 2, 2]
    store.set("meeting 1 0", "here")
    assert store.check(["meeting 1 0"])
    assert store.delete_key("meeting 1 0")
    assert not store.check(["meeting 1 0"])


# -- the memory plan ---------------------------------------------------------------------------------------------------


@holds("torch.utils._pytree.tree_leaves")
def test_tree_leaves_finds_tensors_in_nested_containers():
    a, b = torch.ones(1), torch.ones(2)
    leaves = torch.utils._pytree.tree_leaves({"x": [a, {"y": (b,)}], "z": 3})
    assert [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)] == [a, b]


@holds("torch.utils._python_dispatch.TorchDispatchMode")
def test_torch_dispatch_mode_sees_every_operation_in_the_backward_pass_too():
    seen = []

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.overloadpacket)
            return func(*args, **(kwargs or {}))

    weight = torch.ones(2, 2, requires_grad=True)
    with Mode():
        (torch.ones(2, 2) @ weight).sum().backward()
    assert seen.count(torch.ops.aten.mm) == 2


@holds("torch._subclasses.fake_tensor.FakeTensorMode")
def test_fake_tensor_mode_computes_shapes_on_the_cpu_without_storage():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        huge = torch.empty(2**24, 2**24)
        product = huge @ huge
    assert (product.shape, product.device.type, product.nbytes) == ((2**24, 2**24), "cpu", 2**50)


# -- tables of modules -------------------------------------------------------------------------------------------------


@holds("torch.nn.Module._parameters")
def test_parameters_is_the_table_that_modules_compute_with():
    layer = nn.Linear(2, 2, bias=False)
    assert layer._parameters["weight"] is layer.weight
    layer._parameters["weight"] = nn.Parameter(torch.zeros(2, 2))
    assert float(layer(torch.ones(2)).detach().abs().sum()) == 0
    assert dict(layer.named_parameters())["weight"] is layer._parameters["weight"]


@holds("torch.nn.Module._buffers")
def test_buffers_is_the_table_of_buffers():
    norm = nn.BatchNorm1d(2)
    norm._buffers["running_mean"] = torch.ones(2)
    assert norm.running_mean is norm._buffers["running_mean"] is dict(norm.named_buffers())["running_mean"]


@holds("torch.nn.Module._modules")
def test_modules_is_the_table_of_children():
    model = nn.Sequential(nn.Linear(2, 2))
    model._modules = {n: nn.Identity() for n in model._modules}
    assert [type(m) for m in model.children()] == [nn.Identity]


@holds("torch.nn.Module._forward_hooks", "torch.nn.Module._forward_pre_hooks")
def test_forward_hooks_are_empty_unless_registered():
    layer = nn.Linear(2, 2)
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks
    layer.register_forward_hook(lambda *args: None)
    layer.register_forward_pre_hook(lambda *args: None)
    assert (len(layer._forward_hooks), len(layer._forward_pre_hooks)) == (1, 1)


# -- none is missing here ----------------------------------------------------------------------------------------------


def dotted(node, names):
    """The full name of an attribute chain below a module of torch, else ``None``."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    root = names.get(node.id) if isinstance(node, ast.Name) else None
    return ".".join([root, *reversed(parts)]) if root else None


def private_items(tree):
    """Private names of torch in one file: imported, or reached as attributes of its modules or of any ``nn.Module``."""
    names, found = {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.asname or "torch": a.name if a.asname else "torch" for a in node.names if a.name[:5] == "torch"}
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
            found |= {f"{node.module}.{a.name}" for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Name):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if node.value.id in names:
                names |= {t.id: names[node.value.id] for t in targets if isinstance(t, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.add(dotted(node, names) or "")
            if node.attr in MODULE_TABLES:
                found.add(f"torch.nn.Module.{node.attr}")
    return {f for f in found if f[:5] == "torch" and any(part[:1] == "_" for part in f.split("."))}


def test_every_private_name_in_use_has_a_test():
    used = {f"torch.distributed.distributed_c10d.{name}" for name in isolation.GROUP_STATE}
    for path in PACKAGE.rglob("*.py"):
        used |= private_items(ast.parse(path.read_text(encoding="utf-8")))
    assert "torch.distributed.distributed_c10d._World" in used
    assert used <= TESTED, used - TESTED
