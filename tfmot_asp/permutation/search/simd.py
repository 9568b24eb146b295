"""The (max, +) product's inner loop: sums over rows of ``max(x - b, 0)``, written in LLVM's vector types.

What a stripe keeps when column x takes the place of one of its columns is a constant plus ``sum(max(x - b, 0))``, with
b the row's threshold (see ``objective``). That sum for many (b, x) pairs is a matrix product with (saturating
subtraction, +) in place of (multiply, +), and nearly all time of the search goes there.

Why not a plain loop: on 16-bit lanes one step is two instructions (``vpsubusw``, ``vpaddw`` on AVX2) for 16 values, but
Python's integer promotion makes the compiler widen to 64 bits. With vector types the same source compiles to AVX2,
AVX-512 or NEON, whatever the machine has. Codes below 2**12 let 16 steps be summed in 16 bits before widening.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
"""16-bit values per vector; rows are padded to a multiple of it."""
STEPS = 16
"""Vectors summed in 16 bits before widening: 16 * 4095 < 2**16."""

_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_NARROW, _WIDE = ir.VectorType(_I16, LANES), ir.VectorType(_I32, LANES)


def _excess_tile(tile_b: int, tile_x: int) -> Callable[..., Any]:
    """Builds the intrinsic that adds a ``tile_b`` by ``tile_x`` tile of excess sums to ``out`` (row-major)."""

    @intrinsic
    def tile(typing_context, b, b_index, b_at, x, x_index, x_at, start, vectors, out):
        """``out[t * tile_x + u] += sum_r max(x[x_index[x_at + u], r] - b[b_index[b_at + t], r], 0)``.

        Rows r from ``start`` (a multiple of LANES) on, ``vectors`` * LANES of them, fewer than 2**20.
        b, x: uint16 (columns, rows), C-contiguous, values below 2**12. b_index, x_index: int64. out: int64.
        """
        signature = types.void(b, b_index, types.intp, x, x_index, types.intp, types.intp, types.intp, out)

        def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
            def constant(value: int) -> ir.Constant:
                return ir.Constant(_I64, value)

            def data(position: int) -> Any:
                return context.make_array(sig.args[position])(context, builder, args[position]).data

            row_bytes = [
                builder.extract_value(context.make_array(sig.args[k])(context, builder, args[k]).strides, 0)
                for k in (0, 3)
            ]

            def column(matrix: int, stride: Any, index: int, at: int, offset: int) -> Any:
                number = builder.load(builder.gep(data(index), [builder.add(args[at], constant(offset))]))
                address = builder.add(builder.ptrtoint(data(matrix), _I64), builder.mul(number, stride))
                address = builder.add(address, builder.mul(args[6], constant(2)))
                return builder.inttoptr(address, _NARROW.as_pointer())

            b_columns = [column(0, row_bytes[0], 1, 2, t) for t in range(tile_b)]
            x_columns = [column(3, row_bytes[1], 4, 5, u) for u in range(tile_x)]
            subtract = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(_NARROW, [_NARROW, _NARROW]), f"llvm.usub.sat.v{LANES}i16"
            )
            total = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(_I32, [_WIDE]), f"llvm.vector.reduce.add.v{LANES}i32"
            )

            def accumulators(kind: Any) -> list[Any]:
                return [cgutils.alloca_once(builder, kind) for _ in range(tile_b * tile_x)]

            narrow, wide = accumulators(_NARROW), accumulators(_WIDE)
            for slot in wide:
                builder.store(ir.Constant(_WIDE, None), slot)

            def vector(pointer: Any, i: Any) -> Any:
                return builder.load(builder.gep(pointer, [i]), align=2)

            vectors_ = args[7]
            groups = builder.sdiv(builder.add(vectors_, constant(STEPS - 1)), constant(STEPS))
            with cgutils.for_range(builder, groups) as group:
                first = builder.mul(group.index, constant(STEPS))
                left = builder.sub(vectors_, first)
                count = builder.select(builder.icmp_signed("<", left, constant(STEPS)), left, constant(STEPS))
                for slot in narrow:
                    builder.store(ir.Constant(_NARROW, None), slot)
                with cgutils.for_range(builder, count) as step:
                    i = builder.add(first, step.index)
                    xs = [vector(pointer, i) for pointer in x_columns]
                    for t in range(tile_b):
                        threshold = vector(b_columns[t], i)
                        for u in range(tile_x):
                            slot = narrow[t * tile_x + u]
                            builder.store(
                                builder.add(builder.load(slot), builder.call(subtract, [xs[u], threshold])), slot
                            )
                for small, large in zip(narrow, wide, strict=True):
                    builder.store(builder.add(builder.load(large), builder.zext(builder.load(small), _WIDE)), large)
            for k, slot in enumerate(wide):
                target = builder.gep(data(8), [constant(k)])
                summed = builder.zext(builder.call(total, [builder.load(slot)]), _I64)
                builder.store(builder.add(builder.load(target), summed), target)
            return context.get_dummy_value()

        return signature, codegen

    return tile


excess_4x2 = _excess_tile(4, 2)
