"""A neuron's equations as functions in Triton, written out from the recorded ones (`dynamics/expression.py`)."""

import functools
import linecache
from collections.abc import Iterable
from typing import Any, NamedTuple

import triton
import triton.language as tl

from plif_lightning.dynamics.equations import Program, program
from plif_lightning.dynamics.expression import Gradient, Value, in_order

_INFIX = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "eq": "==",
    "and": "&",
    "or": "|",
}
_CALLS = {
    "exp": "tl.exp",
    "log": "tl.log",
    "sqrt": "tl.sqrt",
    "abs": "tl.abs",
    "max": "tl.maximum",
    "min": "tl.minimum",
}


def _line(op: str, args: list[str]) -> str:
    """An operation in Triton; arguments are numbers, except for conditions where an operation takes them."""
    if op in _INFIX:
        return f" {_INFIX[op]} ".join(args)
    if op in _CALLS:
        return f"{_CALLS[op]}({', '.join(args)})"
    (z, *_) = args
    match op:
        case "neg":
            return f"-{z}"
        case "detach":
            return z
        case "not":
            return f"({z}) == 0"
        case "where" | "chosen":
            return f"tl.where({', '.join(args)})"
        case "spike":
            return f"{z} >= {args[1]}"
        case "sigmoid":
            return f"1.0 / (1.0 + tl.exp(-{z}))"
        case "tanh":
            ratio = f"(1.0 - tl.exp(-2.0 * tl.abs({z}))) / (1.0 + tl.exp(-2.0 * tl.abs({z})))"
            series = f"{z} * (1.0 - {z} * {z} * (0.3333333333333333 - {z} * {z} * 0.13333333333333333))"
            return f"tl.where(tl.abs({z}) < 0.1, {series}, tl.where({z} < 0.0, -({ratio}), {ratio}))"
    raise NotImplementedError(op)


_OF_CONDITIONS = ("where", "chosen", "and", "or", "not")


def _lines(values: list[Gradient]) -> tuple[list[str], list[str]]:
    """Lines that compute values, and the name of each; all are tensors."""
    names: dict[Value, str] = {}
    spikes: set[Value] = set()  # conditions, until they are used as numbers
    lines: list[str] = []

    def as_number(value: Value) -> str:
        return f"tl.where({names[value]}, 1.0, 0.0)" if value in spikes else names[value]

    for value in in_order([value for value in values if value is not None]):
        if value.op in ("input", "constant"):
            names[value] = _name(value.args[0]) if value.op == "input" else str(value.args[0])
            continue
        operands = 1 if value.op in ("where", "chosen") else len(value.args) if value.op in _OF_CONDITIONS else 0
        args = [
            names[arg] if i < operands or value.op == "detach" else as_number(arg) for i, arg in enumerate(value.args)
        ]
        names[value] = f"_{len(lines)}"
        if value.op == "spike" or (value.op == "detach" and value.args[0] in spikes):
            spikes.add(value)
        lines.append(f"{names[value]} = {_line(value.op, args)}")
    code = []
    for result in values:
        number = "0.0" if result is None else as_number(result)
        is_constant = result is None or result.op == "constant"
        code.append(f"tl.full(x.shape, {number}, tl.float32)" if is_constant else number)
    return lines, code


def _tuple(names: list[str]) -> str:
    return f"({', '.join(names)}{',' if len(names) == 1 else ''})"


def _name(of_input: str) -> str:
    """The name of an input, which no other name in a function is equal to."""
    return of_input if of_input == "x" else f"of_{of_input.replace('d ', 'gradient_')}"


def _unpack(names: Iterable[str], of: str) -> list[str]:
    return [f"{_name(name)} = {of}[{i}]" for i, name in enumerate(names)]


def _source(p: Program) -> str:
    inputs = [*_unpack(p.states, "states"), *_unpack(p.parameters, "parameters")]
    lines, (spike, *after) = _lines([p.spike, *p.after])
    forward = ["def fire(x, states, parameters):", *inputs, *lines, f"return {spike}, {_tuple(after)}"]
    lines, (by_x, *derivatives) = _lines([p.by_x, *p.by_states, *p.by_parameters])
    by_states, by_parameters = derivatives[: len(p.states)], derivatives[len(p.states) :]
    inputs += [f"{_name('d s')} = g_s", *_unpack([f"d {name}" for name in p.states], "by_states")]
    result = f"return {by_x}, {_tuple(by_states)}, {_tuple(by_parameters)}"
    backward = ["def fire_back(x, states, parameters, g_s, by_states):", *inputs, *lines, result]
    return "\n\n\n".join("\n    ".join(function) for function in (forward, backward)) + "\n"


class Code(NamedTuple):
    """A neuron in Triton.

    Attributes:
        fire: (x, states, parameters) to (spikes, states).
        fire_back: (x, states, parameters, gradient of the spikes, gradients of the states after) to the gradients of
            (x, states before, parameters).
        states: their number.
        parameters: their number.
    """

    fire: Any
    fire_back: Any
    states: int
    parameters: int


@functools.cache
def triton_code_of(key: str) -> Code:
    """The functions of a neuron's program."""
    p = program(key)
    source, file = _source(p), f"<neuron {key}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # Triton reads the source
    names: dict[str, Any] = {"tl": tl, "__name__": f"{__name__}.{key}"}
    exec(compile(source, file, "exec"), names)  # generated text, made of recorded operations
    return Code(triton.jit(names["fire"]), triton.jit(names["fire_back"]), len(p.states), len(p.parameters))
