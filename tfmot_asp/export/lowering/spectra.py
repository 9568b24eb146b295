"""Writes discrete Fourier transforms as matrix products, and complex numbers as two tensors: their parts.

ONNX has no complex numbers, and TensorRT no transforms. Spectrograms in a model (``keras.ops.stft``, ``tf.signal``) and
mixing by transforms (FNet) begin and end in real numbers: every op that makes real numbers of complex ones (a real
part, a magnitude, an inverse transform) is computed from the parts instead, back to where they come from. A transform
along an axis of n is a product with the n x n matrix of its cosines and sines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfmot_asp.export.lowering.graph_edit import GraphEdit
from tfmot_asp.export.lowering.invariants import Analysis
from tfmot_asp.graph.flat_graph import Op, Tensor

_PARTS = frozenset({"Real", "Imag", "ComplexAbs", "Angle"})
_INVERSES = frozenset({"IRFFT", "IRFFT2D", "IRFFT3D"})
SPECTRA = _PARTS | _INVERSES
"""Ops that make real numbers of complex ones."""

# What is done to each part alone, by what gives the type of the parts.
_ELEMENTWISE = ("Identity", "Neg", "AddV2", "Add", "Sub", "SelectV2", "Sum", "Mean")
_MOVING = (
    "Reshape",
    "ExpandDims",
    "Squeeze",
    "Transpose",
    "BroadcastTo",
    "Tile",
    "ConcatV2",
    "Pack",
    "Pad",
    "MirrorPad",
)
_TAKING = ("StridedSlice", "Slice", "ReverseV2", "Roll")
_PART_BY_PART = {**dict.fromkeys((*_ELEMENTWISE, *_MOVING, *_TAKING), "T"), "GatherV2": "Tparams"}

_Parts = tuple[str, str]
_ToParts = Callable[..., tuple[tf.Tensor, ...]]
_Wave = npt.NDArray[np.float64]


def lower_spectra(analysis: Analysis, edit: GraphEdit) -> None:
    """Replaces what makes real numbers of complex ones, where all that is complex before it is known here."""
    lowering = _Lowering(analysis, edit)
    for op in analysis.graph.ops:
        if op.name in edit.nodes and op.type in SPECTRA:
            lowering.replace(op)


class _Lowering:
    """The parts of complex tensors, each made once."""

    def __init__(self, analysis: Analysis, edit: GraphEdit) -> None:
        self._analysis, self._edit = analysis, edit
        self._made: dict[int, _Parts | None] = {}

    def replace(self, op: Op) -> None:
        """Computes an op from the parts of its input, if they are known."""
        parts = self._parts(op.inputs[0])
        if parts is None:
            return
        if op.type in ("Real", "Imag"):
            real = op.outputs[0].dtype
            self._edit.replace(op.name, "Identity", [parts[op.type == "Imag"]], T=real)
        elif op.type in _PARTS:
            function = _magnitude if op.type == "ComplexAbs" else _angle
            self._edit.graft(op.name, function, parts, [self._spec(op.inputs[0])] * 2)
        else:
            self._inverse_to_real(op, parts)

    def _parts(self, tensor: Tensor) -> _Parts | None:
        """The names of a complex tensor's real and imaginary part; None if it comes from what is not known here."""
        if id(tensor) not in self._made:
            self._made[id(tensor)] = self._of(tensor)
        return self._made[id(tensor)]

    def _of(self, tensor: Tensor) -> _Parts | None:
        op, edit = tensor.op, self._edit
        if op is None or op.name not in edit.nodes or self._analysis.shape(tensor) is None:
            return None
        value = self._analysis.value(tensor)
        if value is not None:
            real = edit.constant(f"{op.name}/real", np.real(value), _real(tensor))
            return real, edit.constant(f"{op.name}/imaginary", np.imag(value), _real(tensor))
        inputs = [name for name in edit.nodes[op.name].input if not name.startswith("^")]
        if op.type == "Complex":
            return inputs[0], inputs[1]
        if op.type == "Cast" and not op.inputs[0].dtype.is_complex:
            cast = edit.add("Cast", f"{op.name}/real", inputs[:1], SrcT=op.inputs[0].dtype, DstT=_real(tensor))
            return cast, edit.add("ZerosLike", f"{op.name}/imaginary", [cast], T=_real(tensor))
        if op.type in ("RFFT", "RFFT2D", "RFFT3D"):
            return self._transform_of_real(op, inputs[0])
        given = [self._parts(t) if t.dtype.is_complex else (n, n) for t, n in zip(op.inputs, inputs, strict=True)]
        if any(parts is None for parts in given):
            return None
        operands = [parts for parts in given if parts is not None]
        if op.type in _PART_BY_PART:
            attributes = dict(edit.nodes[op.name].attr) | {_PART_BY_PART[op.type]: _real(tensor)}
            real = edit.add(op.type, f"{op.name}/real", [real for real, _ in operands], **attributes)
            return real, edit.add(op.type, f"{op.name}/imaginary", [part for _, part in operands], **attributes)
        if op.type == "Conj":
            return operands[0][0], edit.add("Neg", f"{op.name}/imaginary", operands[0][1:], T=_real(tensor))
        if op.type in ("Mul", "RealDiv"):
            specs = [self._spec(factor) for factor in op.inputs for _ in range(2)]
            return self._both(op, _product if op.type == "Mul" else _quotient, [*operands[0], *operands[1]], specs)
        if op.type in ("FFT", "FFT2D", "FFT3D", "IFFT", "IFFT2D", "IFFT3D"):
            return self._transform(op, operands[0])
        return None

    # Transforms

    def _transform_of_real(self, op: Op, data: str) -> _Parts | None:
        lengths, real = self._analysis.value(op.inputs[1]), op.inputs[0].dtype
        if lengths is None or self._analysis.shape(op.inputs[0]) is None:
            return None
        *others, last = sizes = [int(length) for length in lengths]
        cosines, sines = _waves(last)
        waves = [cosines[:, : last // 2 + 1], -sines[:, : last // 2 + 1], *_all_waves(others)]

        def transformed(x: tf.Tensor, cosine: tf.Tensor, sine: tf.Tensor, *rest: tf.Tensor) -> tuple[tf.Tensor, ...]:
            x = _resized(x, sizes)
            return _along_axes((tf.matmul(x, cosine), tf.matmul(x, sine)), rest, last=False)

        bases = self._bases(op, waves, real)
        return self._both(op, transformed, [data, *bases], [self._spec(op.inputs[0]), *_specs(bases, real)])

    def _transform(self, op: Op, parts: _Parts) -> _Parts | None:
        shape = self._analysis.shape(op.inputs[0]) or ()
        sizes = shape[len(shape) - _dimensions(op) :]
        if -1 in sizes:
            return None
        bases = self._bases(op, _all_waves(sizes, inverse=op.type.startswith("I")), _real(op.inputs[0]))

        def transformed(re: tf.Tensor, im: tf.Tensor, *rest: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return _along_axes((re, im), rest, last=True)

        specs = [*[self._spec(op.inputs[0])] * 2, *_specs(bases, _real(op.inputs[0]))]
        return self._both(op, transformed, [*parts, *bases], specs)

    def _inverse_to_real(self, op: Op, parts: _Parts) -> None:
        lengths, real = self._analysis.value(op.inputs[1]), _real(op.inputs[0])
        if lengths is None:
            return
        *others, last = [int(length) for length in lengths]
        kept = last // 2 + 1
        twice = np.full((kept, 1), 2.0)  # the other half is the conjugate of this one
        twice[0] = 1.0
        if last % 2 == 0:
            twice[-1] = 1.0
        waves = [twice * wave[:kept] for wave in _waves(last, inverse=True)]

        def restored(re: tf.Tensor, im: tf.Tensor, cosine: tf.Tensor, sine: tf.Tensor, *rest: tf.Tensor) -> tf.Tensor:
            resized = (_resized(part, [*others, kept]) for part in (re, im))
            re, im = _along_axes(tuple(resized), rest, last=False)
            return tf.matmul(re, cosine) + tf.matmul(im, sine)

        bases = self._bases(op, [*waves, *_all_waves(others, inverse=True)], real)
        specs = [*[self._spec(op.inputs[0])] * 2, *_specs(bases, real)]
        self._edit.graft(op.name, restored, [*parts, *bases], specs)

    # Nodes

    def _bases(self, op: Op, waves: Sequence[_Wave], dtype: tf.DType) -> list[str]:
        return [self._edit.constant(f"{op.name}/waves", wave.astype(dtype.as_numpy_dtype), dtype) for wave in waves]

    def _both(self, op: Op, function: _ToParts, names: Sequence[str], specs: Sequence[tf.TensorSpec]) -> _Parts:
        real, imaginary = (
            self._edit.graft(f"{op.name}/{name}", lambda *given, at=at: function(*given)[at], names, specs)
            for at, name in enumerate(("real", "imaginary"))
        )
        return real, imaginary

    def _spec(self, tensor: Tensor) -> tf.TensorSpec:
        return tf.TensorSpec(self._analysis.spec(tensor).shape, _real(tensor))


def _specs(bases: Sequence[str], dtype: tf.DType) -> list[tf.TensorSpec]:
    return [tf.TensorSpec([None, None], dtype)] * len(bases)


def _real(tensor: Tensor) -> tf.DType:
    return tensor.dtype.real_dtype


def _dimensions(op: Op) -> int:
    return int(op.type[-2]) if op.type.endswith("D") else 1


def _waves(size: int, *, inverse: bool = False) -> tuple[_Wave, _Wave]:
    """Cosines and sines of 2 pi n k / size, (size, size), with the sign and the share that the inverse has."""
    turns = np.outer(np.arange(size), np.arange(size)) % size * (2 * np.pi / size)
    cosines, sines = np.cos(turns), np.sin(turns)
    return (cosines / size, -sines / size) if inverse else (cosines, sines)


def _all_waves(sizes: Sequence[int], *, inverse: bool = False) -> list[_Wave]:
    return [wave for size in sizes for wave in _waves(size, inverse=inverse)]


def _resized(x: tf.Tensor, sizes: Sequence[int]) -> tf.Tensor:
    """The first values along the last axes, or zeros after them: what a transform of other lengths takes."""
    for back, size in enumerate(reversed(sizes), 1):
        axis = x.shape.rank - back
        if x.shape[axis] == size:
            continue
        before = [[0, 0]] * axis
        x = tf.pad(x, [*before, [0, size], *[[0, 0]] * (back - 1)]) if (x.shape[axis] or 0) < size else x
        x = tf.slice(x, [0] * x.shape.rank, [size if place == axis else -1 for place in range(x.shape.rank)])
    return x


def _along_axes(parts: tuple[tf.Tensor, ...], bases: Sequence[tf.Tensor], *, last: bool) -> tuple[tf.Tensor, ...]:
    """Transforms along the axes that there are cosines and sines for: the last ones, or those before the last."""
    re, im = parts
    count = len(bases) // 2
    for number in range(count):
        cosine, sine = bases[2 * number], bases[2 * number + 1]
        axis = re.shape.rank - count + number - (not last)
        swap = list(range(re.shape.rank))
        swap[axis], swap[-1] = swap[-1], swap[axis]

        def moved(x: tf.Tensor, swap: list[int] = swap) -> tf.Tensor:
            return x if swap == sorted(swap) else tf.transpose(x, swap)

        re, im = moved(re), moved(im)
        re, im = tf.matmul(re, cosine) + tf.matmul(im, sine), tf.matmul(im, cosine) - tf.matmul(re, sine)
        re, im = moved(re), moved(im)
    return re, im


def _product(a: tf.Tensor, b: tf.Tensor, c: tf.Tensor, d: tf.Tensor) -> tuple[tf.Tensor, ...]:
    return a * c - b * d, a * d + b * c


def _quotient(a: tf.Tensor, b: tf.Tensor, c: tf.Tensor, d: tf.Tensor) -> tuple[tf.Tensor, ...]:
    square = c * c + d * d
    return (a * c + b * d) / square, (b * c - a * d) / square


def _magnitude(re: tf.Tensor, im: tf.Tensor) -> tf.Tensor:
    """Without squares of either part, which half precision may not hold."""
    re, im = tf.abs(re), tf.abs(im)
    larger, smaller = tf.maximum(re, im), tf.minimum(re, im)
    ratio = smaller / tf.where(tf.equal(larger, 0), tf.ones_like(larger), larger)
    return larger * tf.sqrt(1 + ratio * ratio)


def _angle(re: tf.Tensor, im: tf.Tensor) -> tf.Tensor:
    return tf.atan2(im, re)
