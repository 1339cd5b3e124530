"""torch imported lean and then completed is torch as it always is: the same names, operators, kernels and results.

Each test runs fresh processes. What a lean torch has not got yet is compared too: kernels for meta tensors, and
operators that torch's Python modules define, which are what torch_hooks.py waits for.
"""

import json
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ember.engine.lean import torch_list
from ember.engine.lean.torch_list import find_torch, load_list
from tests.engine_models.tiny_encoders import encoder_classes

FOUND = find_torch()
assert FOUND is not None
DIRECTORY, VERSION = FOUND
LIST = load_list(VERSION)
pytestmark = pytest.mark.skipif(LIST is None, reason=f"there is no list for torch {VERSION}")

LEAN = """
from ember.engine.lean import lean_import
lean = lean_import.prepare()
import torch
lean.finish()
assert not lean.is_complete and not lean.deferral.touched
"""
STATE = """
import json, sys, torch
from ember.engine.lean.deferred import raw_dict
KEYS = ["CPU", "CUDA", "Meta", "AutogradCPU", "Autograd", "CompositeImplicitAutograd", "CompositeExplicitAutograd",
        "CompositeExplicitAutogradNonFunctional", "Functionalize", "BackendSelect", "AutocastCPU", "AutocastCUDA",
        "ADInplaceOrView", "SparseCPU", "SparseCUDA", "NestedTensorCPU", "QuantizedCPU", "FuncTorchBatched", "Python"]
def kernels():
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return {name: [key for key in KEYS if has(name, key)] for name in torch._C._dispatch_get_all_op_names()}
def names():
    found = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("torch", "torchgen") and isinstance(module, type(sys)):
            values = raw_dict(module)
            found[name] = {key: type(value).__name__ for key, value in values.items()}
            found[name]["the class"] = type(module).__name__
            spec = values.get("__spec__")
            found[name]["the spec"] = repr(spec).partition(" object at ")[0] if spec is not None else None
    return found
def registries():
    import copyreg
    from multiprocessing.reduction import ForkingPickler
    from torch._decomp import decomposition_table, meta_table
    import torch._ops
    return {
        "decompositions": sorted(map(str, decomposition_table)), "meta": sorted(map(str, meta_table)),
        "higher order": sorted(torch._ops._higher_order_ops), "copyreg": sorted(map(str, copyreg.dispatch_table)),
        "pickler": sorted(map(str, ForkingPickler._extra_reducers)), "tensor": sorted(dir(torch.Tensor)),
        "python kernels": sorted(f"{op} {sorted(map(str, op.py_kernels))}" for op in map(overload, kernels()) if op),
        "documented": sorted(name for name in dir(torch) if getattr(getattr(torch, name), "__doc__", None)),
    }
def overload(name):
    namespace, _, rest = name.partition("::")
    packet, _, kind = rest.partition(".")
    packet = getattr(getattr(torch.ops, namespace), packet, None)
    return getattr(packet, kind or "default", None) if packet is not None else None
"""
PRINT = """
print(json.dumps({"kernels": kernels(), "names": names(), "registries": registries()}))
"""


def run(code: str, *arguments: str, timeout: float = 250) -> str:
    environment = {**os.environ, "EMBER_LEAN_TORCH": "true", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def plain() -> dict:
    return json.loads(run(STATE + PRINT))


def test_every_deferred_module_imported_in_random_order_leaves_the_plain_torch(plain):
    names = list(LIST.modules)
    random.shuffle(names)
    code = f"""
    import importlib
    for name in {names!r}:
        module = importlib.import_module(name)
        vars(module)
        assert type(module).__name__ not in ("DeferredModule", "ExecutingModule"), name
    assert lean.is_complete
    import gc
    gc.collect()
    from ember.engine.lean.deferred import DeferredName, DeferredUnion
    held = [each for each in gc.get_objects() if type(each) in (DeferredUnion,)]
    assert not held, held
    given = list(lean.deferral.given.values())
    assert given
    lean.deferral.given.clear()
    for each in given:
        holders = [type(holder) for holder in gc.get_referrers(each) if holder is not given and holder is not globals()]
        assert not holders, (each._ember_module, each._ember_name, holders)
    """
    found = json.loads(run(LEAN + STATE + textwrap.dedent(code) + PRINT))
    assert len(found["kernels"]) > 2000
    for kind in ("kernels", "registries"):
        for name in plain[kind].keys() | found[kind].keys():
            assert found[kind].get(name) == plain[kind].get(name), f"{kind}: {name}"
    for name in plain["names"].keys() | found["names"].keys():
        ours, theirs = found["names"].get(name), plain["names"].get(name)
        assert ours == theirs, f"{name}: {set((ours or {}).items()) ^ set((theirs or {}).items())}"


def test_a_lean_torch_lacks_meta_kernels_and_python_operators_and_nothing_else(plain):
    found = json.loads(run(LEAN + STATE + "print(json.dumps(kernels())); assert not lean.is_complete"))
    # A build without CUDA has a few kernels for it all the same, which Python registers.
    without = ("Meta", "CUDA") if "torch._native" in LIST.modules else ("Meta",)
    for name, keys in found.items():
        theirs = [key for key in plain["kernels"][name] if key not in without]
        assert [key for key in keys if key not in without] == theirs, name
    missing = plain["kernels"].keys() - found.keys()
    assert {name.partition("::")[0] for name in missing}.isdisjoint({"aten", "quantized", "mkldnn", "_c10d_functional"})


def test_what_a_lean_torch_has_works_without_the_rest():
    code = """
    generator = torch.Generator().manual_seed(3)
    first = torch.randn(4, generator=generator)
    assert torch.equal(torch.randn(4, generator=torch.Generator().manual_seed(3)), first)
    assert isinstance(generator, torch.Generator)
    from multiprocessing.reduction import ForkingPickler
    assert torch.Tensor in ForkingPickler._extra_reducers
    assert torch.nn.functional.softmax(torch.ones(2), -1).tolist() == [0.5, 0.5]
    with torch.inference_mode():
        assert torch.einsum("i,i->", first, first).item() > 0
    assert not lean.is_complete, lean.deferral.completed_for
    """
    run(LEAN + textwrap.dedent(code))


def test_what_a_boot_on_a_gpu_calls_needs_nothing_of_what_is_deferred():
    """Each call as far as it comes without a driver."""
    code = """
    device = torch.device("cuda:0")
    calls = [
        lambda: torch.cuda._utils._get_device_index(device, optional=True),
        lambda: torch.cuda.is_available(), lambda: torch.cuda.device_count(),
        lambda: torch.cuda.get_device_capability(0), lambda: torch.cuda.get_device_properties(device),
        lambda: torch.cuda.mem_get_info(device), lambda: torch.cuda.empty_cache(), lambda: torch.cuda.Stream(),
        lambda: torch.cuda.Event(enable_timing=True), lambda: torch.cuda.current_stream(),
        lambda: torch.cuda.CUDAGraph(), lambda: torch.cuda.graph(None), lambda: torch.cuda.graph_pool_handle(),
        lambda: torch.cuda.synchronize(), lambda: torch.cuda.set_device(0),
        lambda: torch.cuda.device(0).__enter__(), lambda: torch.empty(3, device="cuda"),
        lambda: torch.empty(3, pin_memory=True), lambda: torch.empty(3).to(device, non_blocking=True),
        lambda: torch.cuda.is_current_stream_capturing(), lambda: torch.OutOfMemoryError("x"),
    ]
    for i, call in enumerate(calls):
        try:
            call()
        except (RuntimeError, AssertionError, AttributeError):  # a build for CPUs lacks some functions
            pass
        assert not lean.is_complete, (i, lean.deferral.completed_for)
    """
    run(LEAN + textwrap.dedent(code))


COMPLETING = {
    "a factory on meta": "assert torch.empty(2, 3, device='meta').sum().device.type == 'meta'",
    "zeros on meta": "assert torch.zeros(2, device='meta').is_meta",
    "arange on meta": "assert torch.arange(4, device='meta').shape == (4,)",
    "a tensor moved to meta": "assert torch.ones(2).to('meta').is_meta",
    "strided on meta": "assert torch.empty_strided((2, 3), (1, 2), device='meta').stride() == (1, 2)",
    "a tensor made on meta": "assert torch.tensor([1, 2], device='meta').is_meta",
    "empty_like on meta": "assert torch.empty_like(torch.ones(2), device='meta').is_meta",
    "new_zeros on meta": "assert torch.ones(2).new_zeros(3, device='meta').is_meta",
    "eye on meta": "assert torch.eye(3, device='meta').is_meta",
    "the meta device as a context": """
with torch.device('meta'):
    layer = torch.nn.Linear(3, 4)
assert layer(torch.empty(2, 3, device='meta')).shape == (2, 4)
""",
    "an operator of Python's": "assert torch.ops.prims.add(torch.ones(2), torch.ones(2)).tolist() == [2.0, 2.0]",
    "a higher-order operator": "assert torch.ops.higher_order.cond is not None",
    "FakeTensor": """
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():
    x = torch.nn.functional.gelu(torch.empty(2, 3)) @ torch.empty(3, 4)
assert x.shape == (2, 4)
""",
    "a subclass of Tensor that dispatches": """
from torch.utils._pytree import tree_map
class Logged(torch.Tensor):
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        unwrap = lambda x: x.inner if isinstance(x, Logged) else x
        return func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs or {}))
    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.inner = inner
        return made
assert (Logged(torch.ones(2)) + 1).tolist() == [2.0, 2.0]
""",
    "autograd": """
class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return 2 * x
    @staticmethod
    def backward(ctx, grad): return 2 * grad
x = torch.ones(2, requires_grad=True)
Double.apply(x).sum().backward()
assert x.grad.tolist() == [2.0, 2.0]
""",
    "export": """
class Add(torch.nn.Module):
    def forward(self, x): return x + 1
assert torch.export.export(Add(), (torch.ones(2),)).module()(torch.ones(2)).tolist() == [2.0, 2.0]
""",
    "fx": "assert torch.fx.symbolic_trace(lambda x: x + 1)(torch.ones(1)).item() == 2",
    "vmap": "assert torch.vmap(lambda x: x * 2)(torch.ones(3)).tolist() == [2.0] * 3",
    "jit": "assert torch.jit.script(torch.nn.Linear(2, 2))(torch.ones(1, 2)).shape == (1, 2)",
    "dynamo": "import torch._dynamo; assert torch._dynamo.config.verbose is False",
    "compile": "assert torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)).item() == 2",
    "distributed": """
import torch.distributed as dist
dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
x = torch.ones(2); dist.all_reduce(x); assert x.tolist() == [1.0, 1.0]
dist.destroy_process_group()
""",
    "pickle": """
import copy, io, pickle
layer = copy.deepcopy(torch.nn.Linear(2, 2))
assert torch.equal(pickle.loads(pickle.dumps(layer)).weight, layer.weight)
file = io.BytesIO(); torch.save(layer.state_dict(), file); file.seek(0)
assert torch.equal(torch.load(file, weights_only=True)['weight'], layer.weight)
""",
    "reload": "import importlib; assert importlib.reload(torch.hub) is torch.hub and callable(torch.hub.load)",
    "documentation": "import torch._torch_docs; dir(torch); assert 'matrix' in torch.linalg.svd.__doc__.lower()",
    "threads": """
import threading
results = []
def touch(i):
    if i % 3 == 0: results.append(2 + len(torch.fx.Graph().nodes))
    elif i % 3 == 1: results.append(torch.empty(2, device='meta').shape[0])
    else:
        from torch.distributions import Normal
        results.append(int(Normal(2.0, 1.0).mean))
threads = [threading.Thread(target=touch, args=(i,)) for i in range(9)]
for thread in threads: thread.start()
for thread in threads: thread.join(120)
assert results == [2] * 9 or sorted(results) == [2] * 9, results
""",
}


@pytest.mark.parametrize("group", range(4))
def test_what_needs_more_of_torch_gets_it(group):
    """Each in a process of its own, forked from one whose torch is lean."""
    chosen = {name: code for i, (name, code) in enumerate(COMPLETING.items()) if i % 4 == group}
    code = f"""
    import os, traceback
    torch.set_num_threads(1)
    failed = []
    for name, code in {chosen!r}.items():
        child = os.fork()
        if child == 0:
            try:
                exec(code, {{"torch": torch, "__name__": "__main__"}})
                assert lean.is_complete, "the import was not completed"
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            failed.append(name)
    assert not failed, failed
    """
    run(LEAN + textwrap.dedent(code))


def test_a_boot_and_requests_need_nothing_of_what_is_deferred():
    code = """
    from builder.lean_probe import _look_up, _requests, attributes_of_torch
    from ember.wire import Configure
    for name in attributes_of_torch():
        _look_up(name)
    assert _requests(Configure(model="demo", device="cpu", max_model_len=1024, num_blocks=160, seed=0)) > 50
    assert _requests(Configure(model="demo", device="cpu", dtype="float32", max_model_len=1024, num_blocks=160)) > 50
    assert not lean.is_complete, lean.deferral.completed_for
    """
    run("import sys; sys.path.insert(0, '.')\n" + LEAN + textwrap.dedent(code))


def test_pooling_needs_nothing_of_what_is_deferred(tmp_path):
    """A decoder, and encoders whose kinds of attention differ, with weights that are made on the spot."""
    for variant in ("bert", "mpnet", "modernbert", "deberta_convolution"):
        cls, config = encoder_classes(variant)
        config.architectures = [cls.__name__]
        config.save_pretrained(tmp_path / variant)
    code = """
    from builder.lean_probe import pool_texts
    from ember.wire import Configure
    base = dict(device="cpu", max_model_len=64, num_blocks=40, runner="pooling", load_format="dummy")
    assert pool_texts(Configure(model="demo", convert="embed", **base)) == 4
    assert pool_texts(Configure(model="demo", convert="classify", hf_overrides={"num_labels": 3}, **base)) == 4
    for directory in sys.argv[1:]:
        assert pool_texts(Configure(model=directory, **base)) == 4, directory
        assert not lean.is_complete, (directory, lean.deferral.completed_for)
    """
    run("import sys; sys.path.insert(0, '.')\n" + LEAN + textwrap.dedent(code), *map(str, tmp_path.iterdir()))


def test_transformers_generates_in_the_process_of_an_engine_that_has_answered():
    pytest.importorskip("transformers")
    code = """
    from builder.lean_probe import _requests
    from ember.wire import Configure, Generate, SamplingParams
    from ember.boot import Timeline
    from ember.engine.core.assemble import assemble
    from ember.engine.core.boot import open_model
    configure = Configure(model="demo", device="cpu", dtype="float32", max_model_len=256, num_blocks=40, seed=0)
    timeline = Timeline("test")
    opened = open_model(configure, timeline, lambda message: None)
    engine, _ = assemble(configure, opened, timeline)
    prompt = list(range(10, 30))
    def generate(number):
        engine.add(Generate(number, prompt, SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)))
        found = []
        while engine.has_work:
            for output in engine.step():
                found += output.token_ids
        return found
    ours = generate(1)
    assert not lean.is_complete
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(opened.model_dir, dtype=torch.float32)
    theirs = model.generate(torch.tensor([prompt]), max_new_tokens=12, min_new_tokens=12, do_sample=False)
    assert lean.is_complete
    assert theirs[0, len(prompt):].tolist() == ours, (theirs, ours)
    assert generate(2) == ours
    """
    run("import sys; sys.path.insert(0, '.')\n" + LEAN + textwrap.dedent(code))


def test_every_shipped_list_can_be_read_and_names_modules_with_their_packages():
    files = list(torch_list.DIRECTORY.glob("torch-*.json"))
    assert files
    for file in files:
        found = load_list(file.stem.removeprefix("torch-"))
        assert found is not None and len(found.modules) > 300, file
        assert "torch" not in found.modules and "torch._tensor" not in found.modules
        for importer, modules in found.names.items():
            assert importer not in found.modules
            assert modules.keys() <= found.modules.keys()


def test_a_build_for_cpus_has_a_list_of_its_own(tmp_path):
    """What torch.distributed exports differs between builds, and with it what a star import binds."""
    content = (torch_list.DIRECTORY / "torch-2.13.0.json").read_bytes()
    for name in ("2.13.0", "2.12.0+cpu", "2.12.0+cu130"):
        (tmp_path / f"torch-{name}.json").write_bytes(content)
    found = {name: load_list(name, tmp_path) is not None for name in ("2.13.0+cpu", "2.13.0+cu130", "2.13.0", "2.12.0")}
    assert found == {"2.13.0+cpu": False, "2.13.0+cu130": True, "2.13.0": True, "2.12.0": False}
    assert load_list("2.12.0+cpu", tmp_path) is not None and load_list("2.12.0+cu128", tmp_path) is None


def test_a_version_without_a_list_is_imported_whole_with_one_line(tmp_path):
    code = """
    from ember.engine.lean import lean_import, torch_list
    from pathlib import Path
    lean_import.load_list = lambda version: torch_list.load_list(version, Path(sys.argv[1]))
    lines = []
    assert lean_import.prepare(lines.append) is None
    assert len(lines) == 1 and "imported whole" in lines[0], lines
    import torch
    assert torch.fx.Graph
    """
    run("import sys\n" + textwrap.dedent(code), str(tmp_path))


def test_the_variable_turns_it_off():
    code = "import os; os.environ['EMBER_LEAN_TORCH'] = ' False '\nfrom ember.engine.lean import lean_import\n"
    run(code + "assert lean_import.prepare(print) is None")


def test_torch_is_found_where_it_is_imported_from():
    out = run("import torch; print(torch.__file__); print(torch.__version__)").splitlines()
    assert Path(out[0]).parent == Path(DIRECTORY) and out[1] == VERSION
