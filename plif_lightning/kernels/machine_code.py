"""Machine code of a neuron's equations, for the CPU: loops over rows of neurons, 16 at a time.

The loops are written in LLVM IR from the recorded equations (`dynamics/expression.py`) and compiled when a layer first
runs, which takes some hundredths of a second. Compiled as ordinary loops by numba, a neuron with several states would
not be vectorised: the compiler compares each pair of its arrays for overlap, and gives up beyond eight.

A function gets numbers only: addresses and lengths, all of 64 bits. Rows are a multiple of 16 long.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from llvmlite import ir  # type: ignore[import-untyped]  # numba's
from numba import types
from numba.core import cgutils
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from plif_lightning.dynamics.equations import Program, program
from plif_lightning.dynamics.expression import Gradient, Value, in_order
from plif_lightning.kernels.layout import LANES

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

_I1, _I16, _I32, _I64 = ir.IntType(1), ir.IntType(16), ir.IntType(32), ir.IntType(64)


class _Vectors:
    """Operations on vectors of 16 real numbers.

    Args:
        builder: of the function.
        real: float32 or float64.
    """

    def __init__(self, builder: Any, real: torch.dtype) -> None:
        self.builder = builder
        self.scalar = ir.DoubleType() if real == torch.float64 else ir.FloatType()
        self.type = ir.VectorType(self.scalar, LANES)
        self.bytes = 8 if real == torch.float64 else 4

    def constant(self, number: float) -> Any:
        return ir.Constant(self.type, [number] * LANES)

    def repeated(self, value: Any) -> Any:
        """Broadcast a number to all lanes."""
        undefined = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
        first_lane = self.builder.insert_element(undefined, value, ir.Constant(_I32, 0))
        first = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
        return self.builder.shuffle_vector(first_lane, undefined, first)

    def below(self, index: Any, n: Any) -> Any:
        """Condition of the lanes of a vector from an index that lie below n: a row may end within a vector."""
        integers = ir.VectorType(_I32, LANES)
        left = self.builder.trunc(self.builder.sub(n, index), _I32)
        return self.builder.icmp_signed("<", ir.Constant(integers, list(range(LANES))), self.repeated(left))

    def pointer(self, address: Any, index: Any, of: Any = None) -> Any:
        """Pointer to a vector from an index of the array at an address."""
        base = self.builder.inttoptr(address, (of or self.scalar).as_pointer())
        vector = ir.VectorType(of or self.scalar, LANES)
        return self.builder.bitcast(self.builder.gep(base, [index]), vector.as_pointer())

    def load(self, address: Any, index: Any, of: Any = None) -> Any:
        return self.builder.load(self.pointer(address, index, of), align=4)

    def store(self, value: Any, address: Any, index: Any) -> None:
        self.builder.store(value, self.pointer(address, index, value.type.element), align=4)

    def parameters(self, address: Any, stride: Any, number: int, index: Any | None) -> list[Any]:
        """Load each parameter as a vector: LANES values from `index`, or for None a number, repeated."""
        loaded = []
        for i in range(number):
            at = self.builder.mul(ir.Constant(_I64, i), stride)
            if index is None:
                base = self.builder.inttoptr(address, self.scalar.as_pointer())
                loaded.append(self.repeated(self.builder.load(self.builder.gep(base, [at]), align=4)))
            else:
                loaded.append(self.load(address, self.builder.add(at, index)))
        return loaded

    def of(self, values: Sequence[Gradient], inputs: dict[str, Any]) -> list[Any]:
        """Compute values from inputs by name; None is zero. A spike is a condition, everything else a number."""
        lowered: dict[Value, Any] = {}
        for value in in_order([value for value in values if value is not None]):
            if value.op == "input":
                lowered[value] = inputs[value.args[0]]
            elif value.op == "constant":
                lowered[value] = self.constant(value.args[0])
            else:
                lowered[value] = self._operation(value, [lowered[arg] for arg in value.args])
        return [self.constant(0.0) if value is None else lowered[value] for value in values]

    def number(self, value: Any) -> Any:
        """A condition as 1.0 or 0.0; a number is unchanged."""
        return self.builder.select(value, self.constant(1.0), self.constant(0.0)) if _is_condition(value) else value

    def _operation(self, value: Value, args: list[Any]) -> Any:
        op, b = value.op, self.builder
        match op:
            case "detach":
                return args[0]
            case "where" | "chosen":
                return b.select(args[0], *map(self.number, args[1:]))
            case "spike":
                return b.fcmp_ordered(">=", *map(self.number, args))
            case "and" | "or":
                return (b.and_ if op == "and" else b.or_)(*args)
            case "not":
                return b.not_(args[0])
        args = [self.number(arg) for arg in args]
        if op in _COMPARISONS:
            return b.fcmp_ordered(_COMPARISONS[op], *args)
        if op in _ARITHMETIC:
            return getattr(b, _ARITHMETIC[op])(*args)
        if op in _INTRINSICS:
            return self._intrinsic(_INTRINSICS[op], *args)
        return getattr(self, f"_{op}")(*args)

    def _intrinsic(self, name: str, *args: Any) -> Any:
        kind = ir.FunctionType(self.type, [self.type] * len(args))
        full = f"llvm.{name}.v{LANES}f{8 * self.bytes}"
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, full), args)

    def _exp(self, z: Any) -> Any:
        return self._exp_float32(z) if self.bytes == 4 else self._intrinsic("exp", z)

    def _exp_float32(self, z: Any) -> Any:
        """exp in float32 by a polynomial (Cephes), 1e-7 of error: the library's function is a call for each number."""
        b, c = self.builder, self.constant
        beyond = b.fcmp_ordered(">", z, c(_float32(88.72283)))
        z = b.select(b.fcmp_ordered("<", z, c(-104.0)), c(-104.0), z)  # less than half of the smallest number
        z = b.select(beyond, c(88.0), z)
        magic = 12582912.0  # 1.5 * 2^23: adding it leaves the nearest integer in the low bits
        t = self._intrinsic("fmuladd", z, c(_float32(1.44269504088896341)), c(magic))
        rounded = b.fsub(t, c(magic))
        r = self._intrinsic("fmuladd", rounded, c(-0.693359375), z)
        r = self._intrinsic("fmuladd", rounded, c(_float32(2.12194440e-4)), r)
        p = c(_float32(1.9875691500e-4))
        for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            p = self._intrinsic("fmuladd", p, r, c(_float32(coefficient)))
        p = b.fadd(self._intrinsic("fmuladd", b.fmul(p, r), r, r), c(1.0))
        integers = ir.VectorType(_I32, LANES)

        def integer(number: int) -> Any:
            return ir.Constant(integers, [number] * LANES)

        def power_of_two(exponent: Any) -> Any:
            return b.bitcast(b.shl(b.add(exponent, integer(127)), integer(23)), self.type)

        # Two factors: 2^n is itself too large for n = 128, and too small for n < -126.
        exponent = b.sub(b.bitcast(t, integers), integer(0x4B400000))
        half = b.ashr(exponent, integer(1))
        scaled = b.fmul(b.fmul(p, power_of_two(half)), power_of_two(b.sub(exponent, half)))
        return b.select(beyond, c(float("inf")), scaled)

    def _sigmoid(self, z: Any) -> Any:
        unit = self.constant(1.0)
        return self.builder.fdiv(unit, self.builder.fadd(unit, self._exp(self.builder.fneg(z))))

    def _tanh(self, z: Any) -> Any:
        """(1 - e) / (1 + e) with e = exp(-2 abs(z)), and the sign of z; near zero, where that cancels, a series."""
        unit, size = self.constant(1.0), self._intrinsic("fabs", z)
        e = self._exp(self.builder.fmul(size, self.constant(-2.0)))
        ratio = self.builder.fdiv(self.builder.fsub(unit, e), self.builder.fadd(unit, e))
        square = self.builder.fmul(z, z)
        term = self.builder.fmul(square, self.constant(2 / 15 if self.bytes == 8 else _float32(2 / 15)))
        third = self.constant(1 / 3 if self.bytes == 8 else _float32(1 / 3))
        factor = self.builder.fsub(unit, self.builder.fmul(square, self.builder.fsub(third, term)))
        small = self.constant(0.01 if self.bytes == 8 else _float32(0.1))
        near = self.builder.fcmp_ordered("<", size, small)
        return self.builder.select(near, self.builder.fmul(z, factor), self._intrinsic("copysign", ratio, z))


def _float32(number: float) -> float:
    """The float32 nearest to a number: LLVM refuses constants with more digits than their type."""
    return torch.tensor(number, dtype=torch.float32).item()


def _is_condition(value: Any) -> bool:
    return value.type.element == _I1


_COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "=="}
_ARITHMETIC = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv", "neg": "fneg"}
# `maximum` and `minimum` pass NaN on, as PyTorch's do.
_INTRINSICS = {"log": "log", "sqrt": "sqrt", "abs": "fabs", "max": "maximum", "min": "minimum"}


@contextmanager
def _function(module: Any, arguments: str, real: torch.dtype) -> Iterator[tuple[_Vectors, Any]]:
    """The function of a module, of its name; yields its vectors, and its arguments by name."""
    names = arguments.split()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [_I64] * len(names)), module.name)
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    by_name = dict(zip(names, function.args, strict=True))
    yield _Vectors(builder, real), lambda wanted: [by_name[argument_name] for argument_name in wanted.split()]
    builder.ret_void()


@contextmanager
def _sixteens(vectors: _Vectors, n: Any) -> Iterator[Any]:
    """A loop over 0, 16, 32, ... below n."""
    step = ir.Constant(_I64, LANES)
    with cgutils.for_range_slice(vectors.builder, ir.Constant(_I64, 0), n, step, _I64) as (i, _):
        yield i


def _rows(vectors: _Vectors, names: Sequence[str], address: Any, stride: Any, i: Any) -> dict[str, Any]:
    """Vectors from index i of rows at distance `stride`, by name."""
    b = vectors.builder
    return {
        name: vectors.load(address, b.add(b.mul(ir.Constant(_I64, number), stride), i))
        for number, name in enumerate(names)
    }


def _store_rows(vectors: _Vectors, values: Sequence[Any], address: Any, stride: Any, i: Any) -> None:
    b = vectors.builder
    for number, value in enumerate(values):
        vectors.store(value, address, b.add(b.mul(ir.Constant(_I64, number), stride), i))


def _fire(module: Any, p: Program, real: torch.dtype, shared: bool) -> None:
    """A step of a row of neurons: spikes, and the states after it."""
    arguments = "n x before before_stride after after_stride parameters parameter_stride spikes"
    with _function(module, arguments, real) as (vectors, argument):
        (n, x, before, before_stride, after, after_stride, parameters, stride, spikes) = argument(arguments)
        of_all = vectors.parameters(parameters, stride, len(p.parameters), None) if shared else None
        with _sixteens(vectors, n) as i:
            of_these = of_all or vectors.parameters(parameters, stride, len(p.parameters), i)
            inputs = {"x": vectors.load(x, i), **dict(zip(p.parameters, of_these, strict=True))}
            inputs |= _rows(vectors, p.states, before, before_stride, i)
            spike, *states = vectors.of([p.spike, *p.after], inputs)
            vectors.store(vectors.number(spike), spikes, i)
            _store_rows(vectors, [vectors.number(state) for state in states], after, after_stride, i)


def _fire_back(module: Any, p: Program, real: torch.dtype, shared: bool, to_winner: bool) -> None:
    """A step back: gradients of the states after it become, in place, gradients of the states before it.

    `window` is the gradient of the pooled spikes; with `to_winner` only the neuron whose number is `winner` gets
    it. `by_x` gets the gradient of the input; `sums`, float64, accumulates the parameters' gradients: at each neuron,
    or in 16 places if all neurons share them.
    """
    arguments = (
        "n x before before_stride parameters parameter_stride window winner own by_states state_stride by_x sums "
        "sum_stride"
    )
    with _function(module, arguments, real) as (vectors, argument):
        b = vectors.builder
        n, x, before, before_stride, parameters, stride = argument(
            "n x before before_stride parameters parameter_stride"
        )
        window, winner, gradient, by_states, state_stride = argument("window winner own by_states state_stride")
        by_x, sums, sum_stride = argument("by_x sums sum_stride")
        of_all = vectors.parameters(parameters, stride, len(p.parameters), None) if shared else None
        gradient = vectors.repeated(b.sitofp(gradient, vectors.scalar))
        totals = [cgutils.alloca_once(b, vectors.type) for _ in p.parameters] if shared else []
        for total in totals:
            b.store(vectors.constant(0.0), total)
        with _sixteens(vectors, n) as i:
            of_these = of_all or vectors.parameters(parameters, stride, len(p.parameters), i)
            inputs = {"x": vectors.load(x, i), **dict(zip(p.parameters, of_these, strict=True))}
            inputs |= _rows(vectors, p.states, before, before_stride, i)
            inputs |= _rows(vectors, [f"d {name}" for name in p.states], by_states, state_stride, i)
            g = vectors.load(window, i)
            if to_winner:
                g = b.select(b.fcmp_ordered("==", vectors.load(winner, i), gradient), g, vectors.constant(0.0))
            inputs["d s"] = g
            values = vectors.of([p.by_x, *p.by_states, *p.by_parameters], inputs)
            to_x, *values = [vectors.number(value) for value in values]
            vectors.store(to_x, by_x, i)
            _store_rows(vectors, values[: len(p.states)], by_states, state_stride, i)
            mask = vectors.below(i, n)
            for number, value in enumerate(values[len(p.states) :]):
                value = b.select(mask, value, vectors.constant(0.0))
                if shared:
                    b.store(b.fadd(b.load(totals[number]), value), totals[number])
                else:
                    _add_to_sums(vectors, value, sums, b.add(b.mul(ir.Constant(_I64, number), sum_stride), i))
        for number, total in enumerate(totals):
            _add_to_sums(vectors, b.load(total), sums, b.mul(ir.Constant(_I64, number), sum_stride))


def _add_to_sums(vectors: _Vectors, value: Any, sums: Any, index: Any) -> None:
    """Add to float64 sums."""
    double = ir.DoubleType()
    wide = value if vectors.bytes == 8 else vectors.builder.fpext(value, ir.VectorType(double, LANES))
    vectors.store(vectors.builder.fadd(vectors.load(sums, index, double), wide), sums, index)


def _fire_window(module: Any, p: Program, real: torch.dtype, shared: bool, integers: bool) -> None:
    """A step of the neurons of a window, from the sums of their inputs: bits of the spikes of any of them.

    The sums of neuron i lie from `places[i]` on; X = sums scale + shift. `out` gets a word for each 64 outputs, where
    number is a multiple of 16.
    """
    arguments = "neurons outputs places sums scale shift parameters parameter_stride states state_stride out valid"
    with _function(module, arguments, real) as (vectors, argument):
        b = vectors.builder
        neurons, outputs, places, sums, scale, shift = argument("neurons outputs places sums scale shift")
        parameters, stride, states, state_stride, out, valid = argument(
            "parameters parameter_stride states state_stride out valid"
        )
        of_all = vectors.parameters(parameters, stride, len(p.parameters), None) if shared else None
        words = b.inttoptr(out, _I64.as_pointer())
        pointers = b.inttoptr(places, _I64.as_pointer())
        word = cgutils.alloca_once_value(b, ir.Constant(_I64, 0))
        with _sixteens(vectors, outputs) as j:
            of_these = of_all or vectors.parameters(parameters, stride, len(p.parameters), j)
            factor, offset = vectors.load(scale, j), vectors.load(shift, j)
            fired = cgutils.alloca_once_value(b, ir.Constant(_I16, 0))
            with cgutils.for_range_slice(b, ir.Constant(_I64, 0), neurons, ir.Constant(_I64, 1), _I64) as (i, _):
                total = vectors.load(sums, b.add(b.load(b.gep(pointers, [i])), j), _I32 if integers else None)
                if integers:
                    total = b.sitofp(total, vectors.type)
                inputs = {"x": b.fadd(b.fmul(total, factor), offset), **dict(zip(p.parameters, of_these, strict=True))}
                index = b.add(b.mul(i, outputs), j)
                inputs |= _rows(vectors, p.states, states, state_stride, index)
                spike, *after = vectors.of([p.spike, *p.after], inputs)
                _store_rows(vectors, [vectors.number(state) for state in after], states, state_stride, index)
                b.store(b.or_(b.load(fired), b.bitcast(spike, _I16)), fired)
            within = b.and_(j, ir.Constant(_I64, 63))
            b.store(b.or_(b.load(word), b.shl(b.zext(b.load(fired), _I64), within)), word)
            last = b.icmp_signed(">=", b.add(j, ir.Constant(_I64, LANES)), outputs)
            with b.if_then(b.or_(last, b.icmp_signed("==", within, ir.Constant(_I64, 48)))):
                word_of_spikes = b.select(last, b.and_(b.load(word), valid), b.load(word))
                b.store(word_of_spikes, b.gep(words, [b.lshr(j, ir.Constant(_I64, 6))]))
                b.store(ir.Constant(_I64, 0), word)


_WRITERS: dict[str, Callable[..., None]] = {"fire": _fire, "fire_back": _fire_back, "fire_window": _fire_window}


@functools.cache
@global_compiler_lock
def _code(name: str, key: str, real: torch.dtype, shared: bool, *variant: Any) -> tuple[Any, int]:
    """The library that owns a function's machine code, and its address."""
    unique = "_".join(["plif", name, key, str(real)[6:], *map(str, (shared, *variant))])
    library = cpu_target.target_context.codegen().create_library(unique)
    module = library.create_ir_module(unique)
    _WRITERS[name](module, program(key), real, shared, *variant)
    library.add_ir_module(module)
    library.finalize()
    return library, library.get_pointer_to_function(unique)


def machine_code_of(name: str, key: str, real: torch.dtype, shared: bool, *variant: Any) -> int:
    """Address of a function, compiled on its first use in this process.

    Args:
        name: fire, fire_back or fire_window.
        key: of the neuron's program.
        real: float32 or float64.
        shared: all neurons of the layer share its parameters.
        variant: for fire_back, `to_winner`; for fire_window, True if sums are integers.
    """
    return _code(name, key, real, shared, *variant)[1]


def _call(typing, address, arguments):
    """Call a function at an address with a tuple of integers."""

    def code(context, builder, signature, operands):
        numbers = [
            context.cast(builder, value, kind, types.int64)
            for value, kind in zip(cgutils.unpack_tuple(builder, operands[1]), signature.args[1].types, strict=True)
        ]
        kind = ir.FunctionType(ir.VoidType(), [_I64] * len(numbers))
        builder.call(builder.inttoptr(operands[0], kind.as_pointer()), numbers)
        return context.get_dummy_value()

    return types.void(address, arguments), code


def _keep(typing, array):
    """Keep an array alive until here: its address alone would not."""

    def code(context, builder, signature, arguments):
        return context.get_dummy_value()

    return types.void(array), code


call: Any = intrinsic(_call)
keep: Any = intrinsic(_keep)
