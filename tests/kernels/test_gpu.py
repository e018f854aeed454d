"""The Triton kernels without a GPU: results in Triton's interpreter, machine code from its compiler."""

import itertools
import linecache
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch._subclasses import FakeTensorMode

from plif_lightning import neurons
from plif_lightning.configs import INPUTS, network_of
from plif_lightning.dynamics import SurrogateName
from plif_lightning.structure import NEURONS
from tests.conftest import PATIENCE, REPOSITORY

triton = pytest.importorskip("triton")

INTERPRETED = '''
import sys
import torch
from plif_lightning.kernels import layout, ops
from plif_lightning.kernels.layout import POOLS, rows_of
from plif_lightning.dynamics import Firing
from plif_lightning.dynamics.equations import Dynamics
from plif_lightning.dynamics.leaky import leaky
from plif_lightning import neurons
from triton.runtime import interpreter

def within_its_tensors(builder=interpreter.interpreter_builder, executor=interpreter.GridExecutor):
    """Make every load and store of a kernel fail outside of the tensors that it was given."""
    given, load, store = executor._init_args_hst, builder.create_masked_load, builder.create_masked_store
    def arguments(self, *args):
        found = given(self, *args)
        tensors = [one for one in found[0] if isinstance(one, torch.Tensor)]
        self.__class__.regions = [(t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for t in tensors]
        return found
    def require(pointers, mask):
        at = pointers.data[mask.data]
        inside = sum((at >= start) & (at < end) for start, end in executor.regions)
        assert inside.all(), "a kernel left its tensors"
    executor._init_args_hst = arguments
    builder.create_masked_load = lambda at, mask, *rest: (require(at, mask), load(at, mask, *rest))[1]
    builder.create_masked_store = lambda at, x, mask, *rest: (require(at, mask), store(at, x, mask, *rest))[1]

within_its_tensors()

def both(
    shape, pool, held=False, per_step=True, leak=True, start=False, last=False, detach=True, kind="atan", bf16=False,
    reset="hard", learned_threshold=False, neuron=None, check=None,
):
    torch.manual_seed(sum(shape))
    steps, images, channels = shape[:3]
    y = torch.randn(*((1, *shape[1:]) if held else shape))
    y = y.bfloat16() if bf16 else y
    rows = len(y) if per_step else 1
    scale, shift, mean = torch.rand(rows, channels) + 0.5, torch.randn(rows, channels), torch.randn(rows, channels)
    k = torch.rand(channels) if leak else None
    seed = torch.tensor(123456789)
    threshold = 0.5 + torch.rand(channels) if learned_threshold else 1.0
    firing = Firing(threshold, v_reset=-0.1, reset=reset, detach_reset=detach, surrogate=kind, surrogate_width=1.2)
    dynamics = leaky(k, firing) if neuron is None else Dynamics.of(neuron.equations, neuron.dynamics.parameters, firing)
    learned, key = rows_of(dynamics, y), dynamics.key
    states = len(dynamics.equations.state)
    v = 0.5 * torch.randn(states, *shape[1:]) if start else None
    results = []
    for layout.ON_CPU in ("triton", "cpu"):
        spikes, final = ops.fire(y, scale, shift, learned, v, steps, POOLS[pool], key, last)
        generator = torch.Generator().manual_seed(0)
        grad = torch.randn(spikes.shape, generator=generator)
        grad_final = torch.randn(final.shape, generator=generator) if last else None
        back = ops.fire_backward(
            y, scale, shift, mean, learned, v, seed, grad, grad_final, steps, POOLS[pool], key,
        )
        normalized = back[0].clone()
        ops.normalize_backward(normalized, y, scale, shift, mean)
        results.append([spikes, final, *back, *ops.moments(y), normalized])
        if check:
            check(torch.ops.plif.fire, (y, scale, shift, learned, v, steps, POOLS[pool], key, last))
            given = y, scale, shift, mean, learned, v, seed, grad, grad_final, steps, POOLS[pool], key
            check(torch.ops.plif.fire_backward, given)
            check(torch.ops.plif.moments, (y,))
            check(torch.ops.plif.normalize_backward, (back[0].clone(), y, scale, shift, mean))
            check = None  # in the interpreter alone
    for ours, theirs in zip(*results, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), (shape, pool, ours.shape, theirs.shape)
        assert not ours.isnan().any()
    assert torch.equal(results[0][0], results[1][0])
    for ours, theirs in zip(*(r[1:] for r in results), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2 if bf16 else 1e-4, atol=1e-2 if bf16 else 1e-4)

both((3, 2, 5, 4, 6), "max_first", check=torch.library.opcheck)
both((3, 2, 5, 5, 7), "max_random")
both((3, 2, 5, 5, 6), "avg", per_step=False)
both((3, 2, 5, 4, 6), "none", start=True, last=True, check=torch.library.opcheck)
both((1, 2, 3, 2, 2), "max_random", leak=False)
both((4, 2, 70, 4, 4), "max_random", held=True, per_step=False)
both((8, 1, 3, 4, 4), "max_first", detach=False)
both((8, 2, 3, 4, 4), "max_random", detach=False, reset="soft", start=False)
both((5, 2, 3, 4, 4), "max_first", detach=False, reset="soft", learned_threshold=True)
both((4, 2, 70, 3, 4), "none", start=True, last=True, learned_threshold=True)
both((4, 2, 1, 4, 4), "avg", learned_threshold=True)
both((4, 2, 3, 3, 4), "none", held=True, per_step=False, start=True, last=True, reset="soft")
for kind in ("sigmoid", "triangle", "rectangle", "fast_sigmoid", "boxcar"):
    both((4, 1, 3, 4, 4), "none", kind=kind)
both((4, 2, 6, 4, 4), "max_random", bf16=True)
for kind in (neurons.NAMED,):
    both((5, 2, 3, 4, 4), "max_random", neuron=kind(), detach=False)
    both((5, 2, 3, 3, 4), "none", neuron=kind(), start=True, last=True, learned_threshold=kind is neurons.CLIF)
print("equal")
'''


@pytest.mark.parametrize("name", ["PLIF", "CLIF"])
def test_kernel_source_matches_the_reviewed_text(name):
    from plif_lightning.kernels.triton_code import triton_code_of

    key = getattr(neurons, name)().dynamics.key
    triton_code_of(key)
    expected = Path(__file__).parent / f"{name.lower()}_in_triton.txt"
    assert "".join(linecache.getlines(f"<neuron {key}>")) == expected.read_text()


SLOW = [name for name in NEURONS if name not in ("PLIF", "LIF", "IF", "CLIF")]


@pytest.mark.parametrize("name", ["CLIF", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_interpreted_triton_equals_the_cpu_kernels(name):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED.replace("NAMED", name)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "equal"


POINTERS = {
    "_forward": ("y", "scale", "shift", "parameters", "start", "v_first", "v_last", "out"),
    "_backward": (
        *("y", "scale", "shift", "mean", "parameters", "start", "v_first", "grad_out", "grad_last", "history"),
        *("grad_y", "grad_first", "sums", "sums_learned"),
    ),
    "_moments": ("y", "pivot", "sums"),
    "_normalize_back": ("grad", "y", "factor", "offset", "slope"),
}
OF_THE_MAP = {"y", "out", "grad_out", "grad_y", "grad"}
TILES = {1: {"P": 4, "M": 1, "BC": 64}, 4: {"P": 1, "M": 4, "BC": 64}}


def of_neuron(neuron):
    """Compile-time arguments of a layer's neurons, for `_forward` and for `_backward`."""
    from plif_lightning.kernels.triton_code import triton_code_of

    code = triton_code_of(neuron.dynamics.key)
    forward = {"FIRE": code.fire, "S": code.states, "N": code.parameters}
    return forward, {**forward, "FIRE_BACK": code.fire_back}


def variants():
    """(kernel, dtype of the feature map, compile-time arguments) of all variants in use."""
    forward, backward = of_neuron(neurons.PLIF())
    for dtype, (number, pool), held in itertools.product(
        ("fp32", "bf16", "fp16"), ((1, 0), (4, 1), (4, 2), (4, 3)), (False, True)
    ):
        shared = {"POOL": pool, "HELD": held, "PER_STEP": not held, **TILES[number]}
        ends = {"START": number == 1, "LAST": number == 1}
        yield "_forward", dtype, {**shared, **ends, **forward}
        yield "_backward", dtype, {**shared, **ends, **backward}
    # Not used by the paper's networks: soft reset, a learned threshold, the reset's gradient, other surrogates.
    other = {"POOL": 2, "HELD": False, "PER_STEP": True, "START": False, "LAST": False, **TILES[4]}
    settings = {"reset": "soft", "learn_threshold": True, "detach_reset": False}
    yield "_forward", "fp32", {**other, **of_neuron(neurons.PLIF(reset="soft"))[0]}
    for name in get_args(SurrogateName):
        yield "_backward", "fp32", {**other, **of_neuron(neurons.PLIF(surrogate=name, **settings))[1]}
    for dtype in ("fp32", "bf16", "fp16"):
        yield "_moments", dtype, {"P": 4, "BC": 64}
        yield "_normalize_back", dtype, {"PER_STEP": True, "BLOCK": 1024}


OTHERS = [name for name in NEURONS if name not in ("PLIF", "LIF")]


def others():
    """The same of the other neurons, each once forward and back."""
    shared = {"POOL": 2, "HELD": False, "PER_STEP": True, "START": False, "LAST": False, **TILES[4]}
    for name in OTHERS:
        forward, backward = of_neuron(getattr(neurons, name)())
        yield "_forward", "fp32", {**shared, **forward}
        yield "_backward", "fp32", {**shared, **backward}


def compiled(name, dtype, constants, capability):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from plif_lightning.kernels import gpu

    function = getattr(gpu, name)
    signature = {}
    for argument in function.arg_names:
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in POINTERS[name]:
            signature[argument] = f"*{dtype if argument in OF_THE_MAP else 'fp32'}"
        else:
            signature[argument] = "i64" if argument == "seed" else "i32"
    source = ASTSource(function, signature, constants)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(gpu._OPTIONS))


def report(kernel, folder):
    """Register report of NVIDIA's assembler."""
    path = folder / "kernel.ptx"
    path.write_text(kernel.asm["ptx"])
    architecture = re.search(r"\.target (sm_\w+)", path.read_text())[1]
    # Triton ships several assemblers; try the newest first.
    for tool in sorted((Path(triton.__file__).parent / "backends/nvidia/bin").glob("ptxas*"), reverse=True):
        command = [tool, "-v", f"--gpu-name={architecture}", str(path), "-o", str(folder / "kernel.cubin")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stderr
    raise AssertionError(done.stderr)


SLOW = pytest.mark.slow  # by default, one generation compiles all kernels, the others every fifth


@pytest.mark.parametrize(
    ("capability", "every"),
    [(80, 5), (90, 1), (100, 5), pytest.param(80, 1, marks=SLOW), pytest.param(100, 1, marks=SLOW)],
)
def test_every_kernel_compiles_and_spills_no_register(capability, every, tmp_path):
    seen = 0
    for name, dtype, constants in itertools.islice(variants(), 0, None, every):
        kernel = compiled(name, dtype, constants, capability)
        assert kernel.asm["cubin"]
        text = report(kernel, tmp_path)
        spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", text)
        assert spills, text
        assert set(spills) == {"0"}, (name, dtype, constants, text)
        registers = max(map(int, re.findall(r"Used (\d+) registers", text)))
        assert 2 * registers * 128 <= 65_536, (name, dtype, constants, text)  # two blocks on an SM
        seen += 1
    assert seen == -(-61 // every)


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_every_neuron_compiles(capability, tmp_path):
    for name, dtype, constants in others():
        assert compiled(name, dtype, constants, capability).asm["cubin"]


@pytest.mark.slow
@pytest.mark.skipif(torch.version.cuda is None, reason="needs a CUDA build of PyTorch")
@pytest.mark.parametrize("neuron", ["plif", "clif"])
@pytest.mark.parametrize("name", INPUTS)
def test_a_network_runs_forwards_on_tensors_of_a_gpu_that_is_not_there(name, neuron):
    with FakeTensorMode(), torch.device("cuda"):
        net = network_of(name, neuron=neuron, backend="triton")
        x = torch.empty(net.time_steps, 2, *net.input_shape)
        for training, given in itertools.product((True, False), (x, x[0])):
            votes = net.train(training)(given)
            assert (votes.device.type, votes.shape) == ("cuda", (net.time_steps, 2, net.num_classes))
