"""Which TensorFlow ops and functions a model file may use: those that compute, and none that reach outside the graph.

An op without state computes outputs from inputs, with few exceptions, and those are listed. Of the ops with state only
variables, lookup tables, control flow, random numbers and tensor arrays are listed as harmless: all others (files,
Python callbacks, networks, data sets, queues, device setup) are refused, including those that do not exist yet.
"""

from __future__ import annotations

import re
from typing import Any

# Ops that read or write checkpoints. A SavedModel has them for its saver, and nothing else may use them.
CHECKPOINT_OPS = frozenset(
    {"MergeV2Checkpoints", "Restore", "RestoreSlice", "RestoreV2", "Save", "SaveSlices", "SaveV2"}
)
RESTORE_OPS = frozenset({"Restore", "RestoreSlice", "RestoreV2"})

# Stateless by their registration, and yet they read files, write them, call Python or foreign code, or end the process.
_REFUSED_STATELESS = re.compile(
    r"""
    ReadFile | MatchingFiles | ImmutableConst | GenerateVocabRemapping | InitializeTableFromTextFile  # read files
    | PyFunc.* | .*CustomCall.* | MlirPassthroughOp | Abort             # run code that is not in the graph, or none
    | Debug.* | Copy | CopyHost                                         # can send tensors to debug_urls, files included
    | .*Dataset.* | .*Iterator.* | .*Reader.* | .*Optional.*            # data pipelines have their own readers
    | Tpu.* | TPU.* | Rpc.* | RemoteFused.*
    """,
    re.VERBOSE,
)

_ALLOWED_STATEFUL = re.compile(
    r"""
    Var(iable)?(V2)? | VarHandleOp | _VarHandlesOp | ReadVariableOp | _ReadVariablesOp | VariableShape
    | Assign(Add|Sub)?VariableOp | VarIsInitializedOp | DestroyResourceOp | DisableCopyOnRead | GuaranteeConst
    | TemporaryVariable | IsResourceHandleRefCounting
    | Resource(Apply|SparseApply|Scatter|Gather|StridedSliceAssign|CountUpTo).*
    | StatefulPartitionedCall | _?If | _?While | Case | Assert | CheckNumerics(V2)? | _Arg | _Retval | DeviceIndex
    | RandomUniform(Int)? | RandomStandardNormal | TruncatedNormal | ParameterizedTruncatedNormal | RandomGamma
    | RandomPoisson(V2)? | RandomShuffle | RandomCrop | Multinomial | NonDeterministicInts
    | Stateful(Standard|Uniform|Truncated|Random).* | RngSkip | RngReadAndSkip | StatelessRandomGetAlg
    | SampleDistortedBoundingBox(V2)? | (Uniform|LogUniform|LearnedUnigram|All)CandidateSampler
    | (Anonymous)?(Mutable)?(Dense)?HashTable(OfTensors)?(V2)?
    | InitializeTableV2 | LookupTable(Export|Find|Import|Insert|Remove|Size)V2
    | TensorArray.* | Stack(Push|Pop|Close)?(V2)? | CudnnRNN.* | Empty | DeepCopy | Timestamp
    | Print
    """,
    re.VERBOSE,
)

_STANDARD_STREAMS = re.compile(rb"(stdout|stderr|log\((info|warning|error)\))?")


def why_refused(node: Any) -> str | None:
    """Why a graph node must not run, in words; None if it may.

    Args:
        node: a ``NodeDef`` that is no call of a library function.
    """
    from tensorflow.python.framework import op_def_registry

    name = node.op
    definition = op_def_registry.get(name)
    if definition is None:
        return "is not known to this TensorFlow; it may come from a custom library"
    if name == "PrintV2":
        stream = node.attr["output_stream"].s if "output_stream" in node.attr else b""
        return None if _STANDARD_STREAMS.fullmatch(stream) else f"writes to {stream.decode(errors='replace')!r}"
    if name in ("DecodeProtoV2", "EncodeProto"):
        source = node.attr["descriptor_source"].s if "descriptor_source" in node.attr else b""
        return None if source in (b"", b"local://") else f"reads {source.decode(errors='replace')!r}"
    if definition.is_stateful:
        return None if _ALLOWED_STATEFUL.fullmatch(name) else "can reach outside the graph"
    return "can reach outside the graph" if _REFUSED_STATELESS.fullmatch(name) else None


_SYMBOL_NAMESPACES = re.compile(
    r"(math|nn|linalg|signal|strings|image|random|bitwise|sparse|ragged|sets|quantization|__operators__"
    r"|experimental\.numpy|keras\.activations)\.(?!fixed_unigram_candidate_sampler)\w+"
)
_ASSERTIONS = re.compile(r"debugging\.(assert_\w+|check_numerics)")
_TOP_LEVEL = frozenset(
    re.findall(
        r"[\w.]+",
        """
        abs acos acosh add add_n argmax argmin argsort as_string asin asinh atan atan2 atanh batch_gather
        batch_to_space batch_to_space_nd bitcast boolean_mask broadcast_dynamic_shape broadcast_static_shape
        broadcast_to cast ceil clip_by_norm clip_by_value complex concat constant convert_to_tensor cos cosh cumprod
        cumsum depth_to_space digamma div div_no_nan divide dynamic_partition dynamic_stitch einsum ensure_shape
        equal erf erfc exp expand_dims expm1 eye fill floor floordiv floormod gather gather_nd greater greater_equal
        histogram_fixed_width identity identity_n is_finite is_inf is_nan less less_equal lgamma linspace log log1p
        log_sigmoid logical_and logical_not logical_or logical_xor matmul matrix_band_part matrix_diag maximum
        meshgrid minimum mod multiply negative norm not_equal one_hot ones ones_like pad pow range rank real realdiv
        reciprocal reduce_all reduce_any reduce_join reduce_logsumexp reduce_max reduce_mean reduce_min reduce_prod
        reduce_sum repeat reshape reverse reverse_sequence rint roll round rsqrt saturate_cast scalar_mul scatter_nd
        searchsorted segment_max segment_mean segment_min segment_prod segment_sum sequence_mask shape shape_n
        sigmoid sign sin sinh size slice sort space_to_batch space_to_batch_nd space_to_depth split sqrt square
        squared_difference squeeze stack stop_gradient strided_slice string_split string_to_number subtract tan tanh
        tensor_scatter_nd_add tensor_scatter_nd_update tensordot tile transpose truediv truncatediv truncatemod
        unique unique_with_counts unsorted_segment_sum unstack where zeros zeros_like
        """,
    )
)


def is_pure_symbol(symbol: Any) -> bool:
    """Whether a public TensorFlow symbol, such as ``"math.add"``, only computes tensors from tensors."""
    if not isinstance(symbol, str):
        return False
    name = symbol.removeprefix("tf.").removeprefix("compat.v1.").removeprefix("keras.backend.")
    return (
        name in _TOP_LEVEL or _SYMBOL_NAMESPACES.fullmatch(name) is not None or _ASSERTIONS.fullmatch(name) is not None
    )
