"""Equations as expressions: recorded by calling ordinary PyTorch functions, and differentiated.

Calling a function of numbers with a `Value` for each of its arguments records its operations in order,
in the order in which it is written. Compiled code is made from the record, and so is the gradient.
"""

import inspect
import linecache
import operator
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import torch

from plif_lightning.errors import UserError

Number = int | float


class UnsupportedError(TypeError):
    """An operation that expressions do not have."""


def _refusing(why: str) -> Callable[..., Any]:
    """A method that equations cannot use."""

    def refuse(*arguments: Any) -> Any:
        raise UnsupportedError(why)

    return refuse


class Value:
    """A number that is not known yet: an input of equations, or the result of an operation on others.

    Equal operations on equal arguments are the same object.

    Attributes:
        op: `input`, `constant`, or the name of an operation, see `OPERATIONS`.
        args: its arguments; of an input its name, of a constant its number.
    """

    __slots__ = ("__weakref__", "args", "op")
    _made: ClassVar["WeakValueDictionary[Any, Value]"] = WeakValueDictionary()
    op: str
    args: tuple[Any, ...]

    def __new__(cls, op: str, *args: Any) -> "Value":
        # By identity: a comparison of values is a value itself.
        key = (op, *(id(arg) if isinstance(arg, Value) else repr(arg) for arg in args))
        value = cls._made.get(key)
        if value is None:
            value = super().__new__(cls)
            value.op, value.args = op, args
            cls._made[key] = value
        return value

    def __reduce__(self) -> tuple[Any, ...]:
        return Value, (self.op, *self.args)

    @property
    def is_condition(self) -> bool:
        """True if this is true or false instead of a number."""
        return self.op in CONDITIONS

    # Arithmetic, as of a tensor.

    def __add__(self, other: Any) -> "Value":
        return _operation("add", self, other)

    def __radd__(self, other: Any) -> "Value":
        return _operation("add", other, self)

    def __sub__(self, other: Any) -> "Value":
        return _operation("sub", self, other)

    def __rsub__(self, other: Any) -> "Value":
        return _operation("sub", other, self)

    def __mul__(self, other: Any) -> "Value":
        return _operation("mul", self, other)

    def __rmul__(self, other: Any) -> "Value":
        return _operation("mul", other, self)

    def __truediv__(self, other: Any) -> "Value":
        return _operation("div", self, other)

    def __rtruediv__(self, other: Any) -> "Value":
        return _operation("div", other, self)

    def __neg__(self) -> "Value":
        return _operation("neg", self)

    def __pos__(self) -> "Value":
        return self

    def __abs__(self) -> "Value":
        return _operation("abs", self)

    def __pow__(self, exponent: Any) -> "Value":
        return _power(self, exponent)

    def __lt__(self, other: Any) -> "Value":
        return _operation("lt", self, other)

    def __le__(self, other: Any) -> "Value":
        return _operation("le", self, other)

    def __gt__(self, other: Any) -> "Value":
        return _operation("gt", self, other)

    def __ge__(self, other: Any) -> "Value":
        return _operation("ge", self, other)

    def __eq__(self, other: object) -> "Value":  # type: ignore[override]
        return _operation("eq", self, other)

    def __ne__(self, other: object) -> "Value":  # type: ignore[override]
        return Value("not", self == other)

    __hash__ = object.__hash__

    def __and__(self, other: Any) -> "Value":
        return Value("and", _condition(self), _condition(other))

    def __or__(self, other: Any) -> "Value":
        return Value("or", _condition(self), _condition(other))

    def __invert__(self) -> "Value":
        return Value("not", _condition(self))

    __bool__ = _refusing("a branch on a value: write torch.where(condition, a, b)")
    __float__ = __int__ = __index__ = _refusing("a value used as a Python number")
    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ipow__ = _refusing("a change in place: write a = a + b")

    @property
    def requires_grad(self) -> bool:
        """True, as for the tensor that it stands for."""
        return True

    @property
    def dtype(self) -> "_Type":
        """Placeholder for `.to(x.dtype)`."""
        return _TYPE

    def to(self, dtype: "_Type") -> "Value":
        """A condition as a number, 1.0 or 0.0; a number is unchanged."""
        if dtype is not _TYPE:
            raise UnsupportedError("a conversion to another type than x.dtype")
        return Value("where", self, constant(1.0), constant(0.0)) if self.is_condition else self

    def detach(self) -> "Value":
        """The same value, through which no gradient flows."""
        return self if self.is_condition else Value("detach", self)

    def __getattr__(self, name: str) -> Any:
        """A method of a tensor that is a function of PyTorch too, such as `exp`."""
        function = getattr(torch, name, None)
        if name.startswith("_") or function is None:
            raise AttributeError(name)
        return lambda *args, **named: self.__torch_function__(function, (), (self, *args), named)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> "Value":
        """The value of a function of PyTorch, called with values."""
        record = _FUNCTIONS.get(function)
        if record is None:
            functions = ", ".join(sorted({f"torch.{f.__name__}" for f in _FUNCTIONS if f in vars(torch).values()}))
            name = getattr(function, "__name__", str(function))
            raise UnsupportedError(f"{name} is not among the functions that equations may use: {functions}")
        return record(*args, **(named or {}))


class _Type:
    """The type of all values, which is known only when they are computed."""

    __eq__ = _refusing("a branch on a type")
    __hash__ = object.__hash__


_TYPE = _Type()
CONDITIONS = ("lt", "le", "gt", "ge", "eq", "and", "or", "not")  # they are true or false
OPERATIONS = (
    *CONDITIONS,
    *("add", "sub", "mul", "div", "max", "min", "neg", "abs"),
    *("exp", "log", "sqrt", "sigmoid", "tanh", "detach"),
    "where",
    "spike",  # of a potential and a threshold: 1.0 where it is reached, else 0.0
    "chosen",  # of a spike, a and b: a where it is 1, b where it is 0
)


def constant(number: Number) -> Value:
    """A known number."""
    return Value("constant", float(number))


def _value(of: Any) -> Value:
    if isinstance(of, Value):
        return of
    if isinstance(of, (int, float)):
        return constant(of)
    raise UnsupportedError(f"a {type(of).__name__} in an equation: only numbers, states and parameters are known")


def number_of(of: Any) -> Value:
    """A value or a known number; a condition is neither."""
    value = _value(of)
    if value.is_condition:
        raise UnsupportedError("a condition used as a number: write condition.to(x.dtype)")
    return value


def _operation(op: str, *args: Any) -> Value:
    a, *rest = values = [number_of(arg) for arg in args]
    # Equal to the bit, and shorter: x - 0 is x, and x + (-y) is x - y.
    if op == "sub" and rest[0].op == "constant" and rest[0].args[0] == 0:
        return a
    if op == "add" and rest[0].op == "neg":
        return _operation("sub", a, *rest[0].args)
    return _new_value(op, *values)


def _new_value(op: str, *values: Value) -> Value:
    if not torch.is_grad_enabled():
        raise UnsupportedError("torch.no_grad in an equation: write value.detach()")
    return Value(op, *values)


def _condition(value: Any) -> Value:
    if not (isinstance(value, Value) and value.is_condition):
        raise UnsupportedError("a number where a condition is needed")
    return value


def _power(base: Value, exponent: Any) -> Value:
    """Powers as PyTorch computes them, by products; the fourth, for which it calls a function, to the last digit."""
    if exponent not in (-2, -1, -0.5, 0.5, 1, 2, 3, 4):
        raise UnsupportedError("a power other than -2, -1, -0.5, 0.5, 1, 2, 3 or 4")
    if exponent < 0:
        return 1.0 / _power(base, -exponent)
    if exponent == 0.5:
        return _operation("sqrt", base)
    return {1: base, 2: base * base, 3: base * base * base, 4: (base * base) * (base * base)}[int(exponent)]


def _where(condition: Any, a: Any, b: Any) -> Value:
    return _new_value("where", _condition(condition), number_of(a), number_of(b))


def _clamp(input: Any, min: Any = None, max: Any = None) -> Value:  # noqa: A002
    # As PyTorch differentiates it: 1 at both ends too, where `max` and `min` of two values share the gradient.
    clamped = _value(input)
    if min is not None:
        clamped = _where(clamped < min, min, clamped)
    return clamped if max is None else _where(clamped > max, max, clamped)


# How a function of PyTorch, or a method of a tensor, is recorded.
_FUNCTIONS: dict[Callable[..., Any], Callable[..., Value]] = {
    torch.where: _where,
    torch.clamp: _clamp,
    torch.relu: lambda z: _where(z <= 0, 0.0, z),  # passes NaN on
    torch.eq: operator.eq,
    torch.ne: operator.ne,
    torch.square: lambda z: z * z,
    torch.reciprocal: lambda z: 1.0 / z,
    torch.maximum: lambda a, b: _operation("max", a, b),
    torch.minimum: lambda a, b: _operation("min", a, b),
    torch.rsub: lambda a, b: b - a,
    torch.pow: lambda base, exponent: _power(_value(base), exponent),
    torch.lt: operator.lt,
    torch.le: operator.le,
    torch.gt: operator.gt,
    torch.ge: operator.ge,
    **{getattr(torch, name): operator.methodcaller(f"__{name}__") for name in ("neg", "abs")},
    **{
        getattr(torch, name): (lambda op: lambda a, b: _operation(op, a, b))(name)
        for name in ("add", "sub", "mul", "div")
    },
    **{
        getattr(torch, name): (lambda op: lambda z: _operation(op, z))(name)
        for name in ("exp", "log", "sqrt", "sigmoid", "tanh")
    },
}


def record(function: Callable[..., Any], **values: Any) -> Any:
    """The result of an equation for the arguments that it names.

    Raises:
        UserError: it cannot be recorded; names the line.
    """
    try:
        _require_no_custom_backward(function)
        with torch.enable_grad():
            outputs = function(**values)
        return tuple(map(number_of, outputs)) if isinstance(outputs, tuple) else number_of(outputs)
    except (UnsupportedError, TypeError, ValueError, AttributeError, NameError, ArithmeticError) as error:
        # The last line of the equation's file, which may call functions of other files.
        file = function.__code__.co_filename
        lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        line_of_source = "" if not lines else f" ({file}, line {lines[-1].lineno}: `{_source(file, lines[-1].lineno)}`)"
        raise UserError(
            f"the equation `{function.__qualname__}` cannot be compiled{line_of_source}: {error}. Equations are sums, "
            "products and functions of numbers, and torch.where instead of a branch."
        ) from None


def _require_no_custom_backward(function: Callable[..., Any]) -> None:
    """Refuse an `autograd.Function`, because its backward would be lost, in an equation or a function that it calls."""
    seen: set[Any] = set()
    waiting: list[Any] = [function]
    while waiting:
        node = waiting.pop()
        if node in seen or not inspect.isfunction(node):
            continue
        seen.add(node)
        if "apply" in node.__code__.co_names:
            raise UnsupportedError(f"{node.__qualname__} calls apply: a user-defined backward is not known")
        names = inspect.getclosurevars(node)
        waiting += [*names.globals.values(), *names.nonlocals.values()]


def _source(file: str, line: int | None) -> str:
    return linecache.getline(file, line or 0).strip()


def in_order(values: Sequence[Value]) -> list[Value]:
    """These values and all that they depend on, each after its arguments."""
    ordered: dict[Value, None] = {}
    stack: list[tuple[Value, bool]] = [(value, False) for value in reversed(values)]
    while stack:
        value, ready = stack.pop()
        if value in ordered:
            continue
        if ready or not isinstance(value.args[0], Value):
            ordered[value] = None
            continue
        stack.append((value, True))
        stack += [(arg, False) for arg in reversed(value.args)]
    return list(ordered)


Gradient = Value | None  # None is zero


def _sum(a: Gradient, b: Gradient) -> Gradient:
    if a is None or b is None:
        return b if a is None else a
    return a + b


def gradients(
    of: Sequence[tuple[Value, Value]], by: Sequence[Value], surrogate: Callable[[Value], Value]
) -> list[Gradient]:
    """Gradients of a sum of products by values: reverse accumulation, as in PyTorch's autograd.

    Args:
        of: pairs of an output and its gradient.
        by: values to differentiate by.
        surrogate: derivative of a spike by the distance between potential and threshold.

    Returns:
        A gradient for each of `by`; None where it is zero.
    """
    of_values: dict[Value, Gradient] = {}
    for output, own_gradient in of:
        of_values[output] = _sum(of_values.get(output), own_gradient)
    for value in reversed(in_order([output for output, _ in of])):
        gradient = of_values.get(value)
        if gradient is None or value.op not in _DERIVATIVES:
            continue
        parts = _DERIVATIVES[value.op](value, gradient, surrogate)
        for arg, term in zip(value.args, parts, strict=True):
            of_values[arg] = _sum(of_values.get(arg), term)
    return [of_values.get(value) for value in by]


def _zero() -> Value:
    return constant(0.0)


def _of_spike(value: Value, g: Value, surrogate: Callable[[Value], Value]) -> list[Gradient]:
    h, threshold = value.args
    by_h = g * surrogate(h - threshold)
    return [by_h, None if threshold.op == "constant" else -by_h]


def _of_extreme(condition: str) -> Callable[..., list[Gradient]]:
    """Gradients of max and min: to the value taken, half to each where they are equal."""

    def parts(value: Value, g: Value, surrogate: Any) -> list[Gradient]:
        a, b = value.args
        where_larger = [Value("where", Value(condition, *pair), g, _zero()) for pair in ((a, b), (b, a))]
        return [Value("where", Value("eq", a, b), g * 0.5, of_other) for of_other in where_larger]

    return parts


# Gradients of an operation's arguments from that of its result, which may be used itself (exp, sigmoid).
_DERIVATIVES: dict[str, Callable[[Value, Value, Callable[[Value], Value]], list[Gradient]]] = {
    "add": lambda y, g, _: [g, g],
    "sub": lambda y, g, _: [g, -g],
    "mul": lambda y, g, _: [g * y.args[1], g * y.args[0]],
    "div": lambda y, g, _: [g / y.args[1], -(g * (y / y.args[1]))],
    "neg": lambda y, g, _: [-g],
    "abs": lambda y, g, _: [
        Value("where", y.args[0] > 0, g, Value("where", y.args[0] < 0, -g, _zero())),
    ],
    "exp": lambda y, g, _: [g * y],
    "log": lambda y, g, _: [g / y.args[0]],
    "sqrt": lambda y, g, _: [g / (y + y)],
    "sigmoid": lambda y, g, _: [g * (y * (1.0 - y))],
    "tanh": lambda y, g, _: [g * (1.0 - y * y)],
    "max": _of_extreme("gt"),
    "min": _of_extreme("lt"),
    "where": lambda y, g, _: [None, Value("where", y.args[0], g, _zero()), Value("where", y.args[0], _zero(), g)],
    "spike": _of_spike,
    "chosen": lambda y, g, _: [
        g * (y.args[1] - y.args[2]),
        Value("chosen", y.args[0], g, _zero()),
        Value("chosen", y.args[0], _zero(), g),
    ],
}


def as_text(values: Sequence[Value]) -> str:
    """A line for each operation, and a line with the results; equal for equal expressions."""
    numbers: dict[Value, str] = {}
    lines: list[str] = []
    ordered = in_order(values)
    # Inputs may be named like operations.
    mark = "%" if any(re.fullmatch(r"_\d+", str(value.args[0])) for value in ordered if value.op == "input") else "_"
    for value in ordered:
        if value.op == "input":
            numbers[value] = value.args[0]
        elif value.op == "constant":
            numbers[value] = repr(value.args[0])
        else:
            numbers[value] = f"{mark}{len(lines)}"
            lines.append(f"{numbers[value]} = {value.op}({', '.join(numbers[arg] for arg in value.args)})")
    return "\n".join([*lines, ", ".join(numbers[value] for value in values)])
