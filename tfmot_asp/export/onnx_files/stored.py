"""The tensors that an ONNX file stores: checked against what their descriptions say, and read from external files.

External data are read here, not by onnx: versions of it that are allowed read files that are too short without a word,
or follow links out of the folder.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np

from tfmot_asp.graph import budget

if TYPE_CHECKING:
    import onnx

_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}  # of those that share bytes


def check_stored(model: onnx.ModelProto, folder: Path) -> None:
    """Checks all tensors of a model, and puts external data in their place.

    Args:
        model: from a file; its tensors hold their data afterwards.
        folder: in which external files must lie.

    Raises:
        ValueError: for a dtype or a shape that none can have, for data of another size than these say, and for external
            data that are missing, too short, or not in a file of the folder.
        OverBudgetError: for more data than the files' sizes explain.
    """
    tensors = list(_tensors(model))
    for tensor in tensors:
        if tensor.dims and min(tensor.dims) < 0:
            raise ValueError(f"the file says that its tensor {_name(tensor)!r} has the shape {list(tensor.dims)}")
    dense = [tensor for tensor in tensors if hasattr(tensor, "raw_data")]
    for tensor in dense:
        _bits(tensor)
    external = [tensor for tensor in dense if tensor.data_location == tensor.EXTERNAL]
    places = [_Place(tensor, folder) for tensor in external]
    budget.allow(sum({place.path: place.size for place in places}.values()))
    for tensor, place in zip(external, places, strict=True):
        budget.spend(place.length, f"the external data of {tensor.name!r}")
        tensor.raw_data = place.read()
        del tensor.external_data[:]
        tensor.data_location = tensor.DEFAULT
    for tensor in dense:
        needed = math.ceil(math.prod(tensor.dims) * _bits(tensor) / 8)
        if tensor.HasField("raw_data") and len(tensor.raw_data) != needed:
            raise ValueError(
                f"its tensor {tensor.name!r} of shape {list(tensor.dims)} needs {needed:,} bytes, and "
                f"{len(tensor.raw_data):,} are stored"
            )


def array_of(tensor: Any) -> np.ndarray:
    """The array of a ``TensorProto`` or ``SparseTensorProto``.

    Raises:
        ValueError: if what is stored does not fit its shape.
        OverBudgetError: if a sparse tensor would be larger than the file's size explains.
    """
    from onnx import SparseTensorProto, numpy_helper

    if not isinstance(tensor, SparseTensorProto):
        return numpy_helper.to_array(tensor)
    values, indices = numpy_helper.to_array(tensor.values), numpy_helper.to_array(tensor.indices)
    shape = tuple(tensor.dims)
    budget.spend(math.prod(shape) * values.itemsize, f"the sparse tensor {_name(tensor)!r} of shape {shape}")
    if indices.size and indices.min() < 0:
        raise ValueError(f"its sparse tensor {_name(tensor)!r} has the index {indices.min()}")
    dense = np.zeros(shape, values.dtype)
    try:
        if indices.ndim == 2:  # one row of coordinates per value, instead of positions in the flattened tensor
            indices = np.ravel_multi_index(tuple(indices.T), dense.shape)
        dense.reshape(-1)[indices] = values
    except IndexError as error:
        raise ValueError(f"its sparse tensor {_name(tensor)!r} does not fit its shape: {error}") from error
    return dense


class _Place:
    """Where the external data of a tensor are; ``ValueError`` if they may not or cannot be read."""

    def __init__(self, tensor: onnx.TensorProto, folder: Path) -> None:
        given = {entry.key: entry.value for entry in tensor.external_data}
        location, name = given.get("location", ""), tensor.name
        parts = {*PurePosixPath(location).parts, *PureWindowsPath(location).parts}
        if not location or ".." in parts or PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor:
            raise ValueError(f"the external data of {name!r} are at {location!r}, which is not in its folder")
        self.path = Path(os.path.realpath(folder / location))
        if Path(os.path.realpath(folder)) not in self.path.parents:
            raise ValueError(
                f"the external data of {name!r} are at {location!r}, a link out of its folder to {str(self.path)!r}"
            )
        try:
            status = self.path.stat()
        except OSError as error:
            raise ValueError(f"the external data of {name!r} cannot be read: {location!r}: {error.strerror}") from error
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"the external data of {name!r} are at {location!r}, which is no file")
        self.size = status.st_size
        try:
            self.offset = int(given.get("offset") or 0)
            self.length = int(given["length"]) if given.get("length") else self.size - self.offset
        except ValueError:
            raise ValueError(f"the external data of {name!r} have no number as offset or length") from None
        if self.offset < 0 or self.length < 0 or self.offset + self.length > self.size:
            raise ValueError(
                f"the external data of {name!r} would be bytes {self.offset} to {self.offset + self.length} of "
                f"{location!r}, which has {self.size}"
            )

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.length)


def _bits(tensor: onnx.TensorProto) -> int:
    """How many bits a stored value takes.

    Raises:
        ValueError: for a dtype that this onnx does not know.
    """
    import onnx

    try:
        known = onnx.TensorProto.DataType.Name(tensor.data_type)
        return _BITS.get(known) or onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * 8
    except (KeyError, ValueError, TypeError):
        raise ValueError(
            f"the file says that its tensor {tensor.name!r} has the dtype {tensor.data_type}, which this onnx has not"
        ) from None


def _name(tensor: Any) -> str:
    return tensor.values.name if hasattr(tensor, "values") else tensor.name


def _tensors(message: Any) -> Iterator[Any]:
    """All dense and sparse tensors in a message, wherever they are."""
    from onnx import SparseTensorProto, TensorProto

    stack = [message]
    while stack:  # no recursion: graphs may be nested
        current = stack.pop()
        if isinstance(current, (TensorProto, SparseTensorProto)):
            yield current
        if isinstance(current, TensorProto):
            continue
        for field, value in current.ListFields():
            if field.type == field.TYPE_MESSAGE:
                stack += list(value) if hasattr(value, "__len__") and not hasattr(value, "ListFields") else [value]
