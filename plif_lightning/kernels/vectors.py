"""Loops that numba does not vectorise well, written in LLVM IR: sums of indexed rows, and bits.

In a numba loop that adds rows selected by a list, the total is loaded and stored for each row, because the compiler
does not keep an array in registers. Here the total is 64 columns in LLVM vectors, which map to the machine's
(AVX-512, AVX2, NEON) without a C compiler. Four such registers hide the latency of the additions; the limit is the
bandwidth of the second-level cache.
"""

import itertools
from typing import Any

import torch
from llvmlite import ir  # type: ignore[import-untyped]  # numba's
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from plif_lightning.kernels.layout import LANES

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

_F32, _I16, _I32, _I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
# Side of the blocks that are transposed in registers: 16 of AVX2's would not fit its 16 registers of 8 values.
_TRANSPOSED = 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8
_FLOATS, _INTEGERS = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)


def _data(context: Any, builder: Any, array: Any, value: Any) -> Any:
    return context.make_array(array)(context, builder, value).data


def _load(builder: Any, data: Any, index: Any, dtype: Any) -> Any:
    """Load 16 values from an index: float32 from float32 or from bfloat16 bits (uint16), int32 from integers."""
    lane = data.type.pointee
    pointer = builder.bitcast(builder.gep(data, [index]), ir.VectorType(lane, LANES).as_pointer())
    value = builder.load(pointer, align=dtype.bitwidth // 8)
    if dtype == types.uint16:
        sixteen = ir.Constant(_INTEGERS, [ir.Constant(_I32, 16)] * LANES)
        return builder.bitcast(builder.shl(builder.zext(value, _INTEGERS), sixteen), _FLOATS)
    return builder.sext(value, _INTEGERS) if dtype in (types.int8, types.int16) else value


def _sum_of_rows(columns: int) -> Any:
    @intrinsic
    def sum_of_rows(typing, table, shift, range_stride, column, indices, ranges, out, to, overwrite):
        n = types.intp
        signature = types.void(table, n, n, n, indices, ranges, out, n, types.boolean)

        def code(context, builder, signature, arguments):
            table_type, _, _, _, indices_type, ranges_type, out_type, _, _ = signature.args
            table, shift, range_stride, column, indices, ranges, out, to, overwrite = arguments
            of_table, of_total = table_type.dtype, out_type.dtype
            integers = of_total == types.int32
            vector = _INTEGERS if integers else _FLOATS
            add = builder.add if integers else builder.fadd
            stride = cgutils.unpack_tuple(builder, context.make_array(table_type)(context, builder, table).shape, 2)[1]
            rows = _data(context, builder, table_type, table)
            chosen = _data(context, builder, indices_type, indices)
            total = builder.gep(_data(context, builder, out_type, out), [to])
            vectors = range(columns // LANES)
            offsets = [ir.Constant(_I64, LANES * j) for j in vectors]
            zero = ir.Constant(vector, None)
            totals = [builder.select(overwrite, zero, _load(builder, total, offset, of_total)) for offset in offsets]

            def with_rows_of(begin, end, shift, before):
                """Emit code that adds the table's rows indices[begin:end] + shift to `before`; returns the sums."""
                entry = builder.block
                loop, after = builder.append_basic_block("rows"), builder.append_basic_block("summed")
                builder.cbranch(builder.icmp_signed("<", begin, end), loop, after)

                builder.position_at_end(loop)
                i = builder.phi(_I64)
                sums = [builder.phi(vector) for _ in vectors]
                index = builder.sext(builder.load(builder.gep(chosen, [i])), _I64)
                row = builder.add(builder.mul(builder.add(index, shift), stride), column)
                added = [
                    add(s, _load(builder, rows, builder.add(row, offset), of_table))
                    for s, offset in zip(sums, offsets, strict=True)
                ]
                following = builder.add(i, ir.Constant(_I64, 1))
                i.add_incoming(begin, entry)
                i.add_incoming(following, loop)
                builder.cbranch(builder.icmp_signed("<", following, end), loop, after)

                builder.position_at_end(after)
                accumulators = [builder.phi(vector) for _ in vectors]
                for phi, start, more in zip([*sums, *accumulators], [*before] * 2, [*added] * 2, strict=True):
                    phi.add_incoming(start, entry)
                    phi.add_incoming(more, loop)
                return accumulators

            bounds = cgutils.unpack_tuple(builder, ranges, ranges_type.count)
            for begin, end in zip(bounds[::2], bounds[1::2], strict=True):
                totals = with_rows_of(begin, end, shift, totals)
                shift = builder.add(shift, range_stride)
            for value, offset in zip(totals, offsets, strict=True):
                index = builder.bitcast(builder.gep(total, [offset]), vector.as_pointer())
                builder.store(value, index, align=4)
            return context.get_dummy_value()

        return signature, code

    return sum_of_rows


# out[to:][:columns] (+)= sum over i of table[indices[i] + shift, column:][:columns], in that order, for i in ranges
# (begin, end, begin, end, ...); shift grows by `range_stride` from range to range. table is [rows, width], indices are
# int32, out is flat: float32 for a table of float32 or bfloat16 bits, int32 for a table of int8 or int16. `overwrite`
# starts at zero.
sum_64: Any = _sum_of_rows(64)
sum_16: Any = _sum_of_rows(16)


def _add_row_16(typing, table, row, column, factor, out, to):
    """out[to:][:16] += factor * table[row, column:][:16]; types as `sum_16`, without integers.

    Uses a fused multiply-add if the processor has one, as the dense library does.
    """
    signature = types.void(table, types.intp, types.intp, types.float32, out, types.intp)

    def code(context, builder, signature, arguments):
        table_type, out_type = signature.args[0], signature.args[4]
        table, row, column, factor, out, to = arguments
        stride = cgutils.unpack_tuple(builder, context.make_array(table_type)(context, builder, table).shape, 2)[1]
        offset = builder.add(builder.mul(row, stride), column)
        values = _load(builder, _data(context, builder, table_type, table), offset, table_type.dtype)
        total = _data(context, builder, out_type, out)
        fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_FLOATS, [_FLOATS] * 3), f"llvm.fmuladd.v{LANES}f32"
        )
        sums = builder.call(fma, [_repeated(builder, factor), values, _load(builder, total, to, out_type.dtype)])
        builder.store(sums, builder.bitcast(builder.gep(total, [to]), _FLOATS.as_pointer()), align=4)
        return context.get_dummy_value()

    return signature, code


def _repeated(builder: Any, value: Any) -> Any:
    """Broadcast a float32 to all lanes."""
    first_lane = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), value, ir.Constant(_I32, 0))
    first = ir.Constant(_INTEGERS, [ir.Constant(_I32, 0)] * LANES)
    return builder.shuffle_vector(first_lane, ir.Constant(_FLOATS, ir.Undefined), first)


def _transpose_16(typing, x, row, column, out, to, stride):
    """out[to + j stride + i] = x[row + i, column + j] for i, j < 16; x is [rows, columns], out flat and of its type."""
    signature = types.void(x, types.intp, types.intp, out, types.intp, types.intp)

    def code(context, builder, signature, arguments):
        x_type, _, _, out_type, _, _ = signature.args
        x, row, column, out, to, stride = arguments
        vector = ir.VectorType(context.get_data_type(x_type.dtype), _TRANSPOSED)
        width = cgutils.unpack_tuple(builder, context.make_array(x_type)(context, builder, x).shape, 2)[1]
        source = builder.gep(_data(context, builder, x_type, x), [builder.add(builder.mul(row, width), column)])
        target = builder.gep(_data(context, builder, out_type, out), [to])

        def line(data, number, step, first):
            at = builder.add(builder.mul(ir.Constant(_I64, number), step), ir.Constant(_I64, first))
            return builder.bitcast(builder.gep(data, [at]), vector.as_pointer())

        for top, left in itertools.product(range(0, LANES, _TRANSPOSED), repeat=2):
            lines = [builder.load(line(source, top + i, width, left), align=2) for i in range(_TRANSPOSED)]
            size = _TRANSPOSED // 2
            while size:  # swap blocks of half the size, a quarter, ... across the diagonal
                upper = [j if not j & size else j - size + _TRANSPOSED for j in range(_TRANSPOSED)]
                lower = [j + size if not j & size else j + _TRANSPOSED for j in range(_TRANSPOSED)]
                numbers = ir.VectorType(_I32, _TRANSPOSED)
                masks = [ir.Constant(numbers, [ir.Constant(_I32, k) for k in m]) for m in (upper, lower)]
                for i in range(_TRANSPOSED):
                    if not i & size:
                        a, b = lines[i], lines[i + size]
                        lines[i], lines[i + size] = (builder.shuffle_vector(a, b, mask) for mask in masks)
                size //= 2
            for j, value in enumerate(lines):
                builder.store(value, line(target, left + j, stride, top), align=2)
        return context.get_dummy_value()

    return signature, code


def _equal_16(typing, x, at, value):
    """Bits that mark which of the 16 values x[at:] equal `value`; x is flat, of the type of `value`."""

    def code(context, builder, signature, arguments):
        array = signature.args[0]
        lane = context.get_data_type(array.dtype)
        vector = ir.VectorType(lane, LANES)
        pointer = builder.gep(_data(context, builder, array, arguments[0]), [arguments[1]])
        values = builder.load(builder.bitcast(pointer, vector.as_pointer()), align=1)
        undefined = ir.Constant(vector, ir.Undefined)
        first_lane = builder.insert_element(undefined, arguments[2], ir.Constant(_I32, 0))
        all_equal = builder.shuffle_vector(
            first_lane, undefined, ir.Constant(_INTEGERS, [ir.Constant(_I32, 0)] * LANES)
        )
        floats = isinstance(array.dtype, types.Float)
        mask = (builder.fcmp_ordered if floats else builder.icmp_unsigned)("==", values, all_equal)
        return builder.zext(builder.bitcast(mask, _I16), _I64)

    return types.uint64(x, types.intp, x.dtype), code


def _spread_16(typing, bits, x, at, set_value):
    """x[at:][:16] = `set_value` for each of the 16 lowest bits that is set, else 0; x is flat, of its type."""
    signature = types.void(types.uint64, x, types.intp, set_value)

    def code(context, builder, signature, arguments):
        bits, x, at, set_value = arguments
        lane = context.get_data_type(signature.args[3])
        vector = ir.VectorType(lane, LANES)
        chosen = builder.bitcast(builder.trunc(bits, _I16), ir.VectorType(ir.IntType(1), LANES))
        ones = ir.Constant(vector, ir.Undefined)
        for i in range(LANES):
            ones = builder.insert_element(ones, set_value, ir.Constant(_I32, i))
        zeros = ir.Constant(vector, [ir.Constant(lane, 0)] * LANES)
        pointer = builder.gep(_data(context, builder, signature.args[1], x), [at])
        chosen_ones = builder.select(chosen, ones, zeros)
        target = builder.bitcast(pointer, vector.as_pointer())
        builder.store(chosen_ones, target, align=signature.args[3].bitwidth // 8)
        return context.get_dummy_value()

    return signature, code


def _lowest_bit(typing, word):
    """Index of the lowest set bit, 0 to 63, of a non-zero word."""

    def code(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), True))

    return types.int64(types.uint64), code


def _number_of_bits(typing, word):
    """Number of bits that are set."""

    def code(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), code


# Any: the Python signatures have a typing context, which compiled callers do not pass.
add_row_16: Any = intrinsic(_add_row_16)
transpose_16: Any = intrinsic(_transpose_16)
equal_16: Any = intrinsic(_equal_16)
spread_16: Any = intrinsic(_spread_16)
lowest_bit: Any = intrinsic(_lowest_bit)
number_of_bits: Any = intrinsic(_number_of_bits)
