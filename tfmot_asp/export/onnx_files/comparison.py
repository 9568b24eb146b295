"""Whether an ONNX model computes what the Keras model does, and has kept its sparse kernels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tfmot_asp.export.onnx_files.run import in_file_layout, in_parts, run
from tfmot_asp.graph.compare import largest_difference, relative_error, tolerance
from tfmot_asp.graph.flatten import trace_function
from tfmot_asp.graph.probes import NamedArrays, outputs_of, probes

# Samples whose activations, of all layers, are held in memory at once.
_WATCHED = 2


class OutputCheck:
    """Compares ONNX models with a function of the Keras model, which was run on random inputs of every batch size.

    Attributes:
        pairs: inputs, and the outputs that are expected for them.
    """

    def __init__(self, function: Any, inputs_as_nchw: Sequence[str] = ()) -> None:
        """Runs the function.

        Args:
            function: a ``ConcreteFunction`` of the Keras model as it is.
            inputs_as_nchw: names of inputs that the ONNX models take channels first.
        """
        self.function, self.inputs_as_nchw = function, inputs_as_nchw
        self.pairs = probes(function, batches=(1, 3))
        self._dtypes = {tensor.dtype.name for op in trace_function(function).ops for tensor in op.outputs}

    def add(self, batches: Iterable[NamedArrays]) -> None:
        """Adds inputs to compare on."""
        self.pairs += [(batch, outputs_of(self.function, batch)) for batch in batches]

    def compare(self, runner: Any, half: bool = False) -> float:
        """The largest difference of any output, relative to its largest value.

        Args:
            runner: an onnxruntime session.
            half: whether it computes in float16.

        Raises:
            RuntimeError: if the difference is more than rounding.
        """
        allowed = tolerance("converted", self._dtypes | ({"float16"} if half else set()))
        found = (largest_difference(expected, self._run(runner, batch)) for batch, expected in self.pairs)
        worst, name = max(found, default=(0.0, ""))
        if worst > allowed:
            raise RuntimeError(
                f"the ONNX file does not compute what the model does: its output {name!r} differs by {worst:.1e} of "
                f"its size, where {allowed:g} is allowed"
            )
        return worst

    def relative_error(self, runner: Any, batches: Iterable[NamedArrays]) -> tuple[float, str]:
        """The error on given inputs in the Euclidean norm, and of which output; runs all random inputs too."""
        for batch, _ in self.pairs:
            self._run(runner, batch)  # every batch size, whatever the values
        return relative_error((outputs_of(self.function, batch), self._run(runner, batch)) for batch in batches)

    def in_file_layout(self, batch: NamedArrays) -> NamedArrays:
        """Inputs as the ONNX models take them."""
        return in_file_layout(batch, self.inputs_as_nchw)

    def small_batches(self, batches: Iterable[NamedArrays]) -> Iterator[NamedArrays]:
        """The same inputs, of which a few at a time leave room in memory for all activations."""
        specs = list(self.function.structured_input_signature[0])
        for batch in batches:
            yield from map(self.in_file_layout, in_parts(batch, specs, _WATCHED))

    def _run(self, runner: Any, batch: NamedArrays) -> NamedArrays:
        return run(runner, batch, self.inputs_as_nchw)
