"""Packs a tensor as TFLite's SparsityParameters say, one element at a time: the naive counterpart of the reader."""

import flatbuffers
import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

_VECTORS = {
    np.uint8: (schema.SparseIndexVector.Uint8Vector, schema.Uint8VectorT),
    np.uint16: (schema.SparseIndexVector.Uint16Vector, schema.Uint16VectorT),
    np.int32: (schema.SparseIndexVector.Int32Vector, schema.Int32VectorT),
}


def random_sparse_tensor(seed):
    """A random tensor, its ``SparsityParameters`` table, and the values that are stored, in their order."""
    generator = np.random.default_rng(seed)
    rank = int(generator.integers(1, 4))
    shape = tuple(int(generator.choice([2, 4, 6])) for _ in range(rank))
    dense = generator.standard_normal(shape).astype(np.float32) * (generator.random(shape) < 0.4)
    blocked = [int(generator.integers(rank))] if generator.random() < 0.5 else []
    sizes = [size // 2 if axis in blocked else size for axis, size in enumerate(shape)] + [2] * len(blocked)
    order = [*generator.permutation(rank).tolist(), *range(rank, rank + len(blocked))]
    compressed = [axis < rank and bool(generator.random() < 0.5) for axis in order]

    def element(place):
        index = [place[axis] * 2 + place[rank] if axis in blocked else place[axis] for axis in range(rank)]
        return dense[tuple(index)]

    def occupied(fixed):
        """Whether any element below these coordinates is nonzero."""
        free = [axis for axis in range(len(sizes)) if axis not in fixed]
        for rest in np.ndindex(*[sizes[axis] for axis in free]):
            if element({**fixed, **dict(zip(free, rest, strict=True))}) != 0:
                return True
        return False

    parents, metadata = [{}], []
    for axis, sparse in zip(order, compressed, strict=True):
        level = schema.DimensionMetadataT()
        children, segments, indices = [], [0], []
        for parent in parents:
            for i in range(sizes[axis]):
                if not sparse or occupied({**parent, axis: i}):
                    children.append({**parent, axis: i})
                    indices.append(i)
            segments.append(len(indices))
        if sparse:
            level.format = schema.DimensionType.SPARSE_CSR
            dtype = generator.choice([np.uint8, np.uint16, np.int32]) if len(indices) < 256 else np.int32
            for name, values in (("arraySegments", segments), ("arrayIndices", indices)):
                number, vector = _VECTORS[dtype]
                packed = vector()
                packed.values = np.asarray(values, dtype)
                setattr(level, name, packed)
                setattr(level, f"{name}Type", number)
        else:
            level.format, level.denseSize = schema.DimensionType.DENSE, sizes[axis]
        metadata.append(level)
        parents = children
    parameters = schema.SparsityParametersT()
    parameters.traversalOrder, parameters.blockMap = np.int32(order), np.int32(blocked)
    parameters.dimMetadata = metadata
    builder = flatbuffers.Builder(256)
    builder.Finish(parameters.Pack(builder))
    stored = np.array([element(place) for place in parents], np.float32)
    return dense, schema.SparsityParameters.GetRootAs(builder.Output(), 0), stored
