"""Whether an ONNX model computes what the Keras model does, and has kept its sparse kernels."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from tfmot_asp.export.onnx_files.run import in_file_layout, run
from tfmot_asp.graph.compare import SpreadError, SpreadErrors, largest_difference, tolerance
from tfmot_asp.graph.flatten import trace_function
from tfmot_asp.graph.probes import NamedArrays, outputs_of, probes

_SORTING = ("TopK", "NonMaxSuppression", "CombinedNonMaxSuppression")  # their results change places where values tie
# Beside another of spread 1, int8 does not tell a channel that varies less from a constant, nor float16 from zero.
_LEAST_IN_INT8, _LEAST_IN_HALF = 1e-3, 1e-6


class OutputCheck:
    """Compares ONNX models with a function of the Keras model, which was run on random inputs of every batch size.

    Attributes:
        pairs: inputs, and the outputs that are expected for them.
        advice: what to do about outputs that only changed places; empty unless something in the model sorts.
    """

    def __init__(
        self,
        function: Any,
        inputs_as_nchw: Sequence[str] = (),
        outputs_as_nchw: Sequence[str] = (),
        uncompared: Collection[str] = (),
    ) -> None:
        """Runs the function.

        Args:
            function: a ``ConcreteFunction`` of the Keras model as it is.
            inputs_as_nchw: names of inputs that the ONNX models take channels first.
            outputs_as_nchw: names of outputs that they give channels first.
            uncompared: names of outputs that count for nothing.
        """
        self.function, self.inputs_as_nchw, self.outputs_as_nchw = function, inputs_as_nchw, outputs_as_nchw
        self._uncompared = set(uncompared)
        self.pairs = [(batch, self._counting(outputs)) for batch, outputs in probes(function, batches=(1, 3))]
        ops = trace_function(function).ops
        self._dtypes = {tensor.dtype.name for op in ops for tensor in op.outputs}
        sorts = next((op.type for op in ops if op.type.startswith(_SORTING)), None)
        self.advice = "" if sorts is None else f". {sorts} sorts in it: what it only reorders goes into uncompared=..."

    def add(self, batches: Iterable[NamedArrays]) -> None:
        """Adds inputs to compare on."""
        self.pairs += self.expected(batches)

    def compare(self, runner: Any) -> float:
        """The largest difference of any output, relative to its largest value.

        Args:
            runner: an onnxruntime session, of a model in float32.

        Raises:
            RuntimeError: if the difference is more than rounding.
        """
        allowed = tolerance("converted", self._dtypes)
        found = (largest_difference(expected, self._run(runner, batch)) for batch, expected in self.pairs)
        worst, name = max(found, default=(0.0, ""))
        if worst > allowed:
            raise RuntimeError(
                f"the ONNX file does not compute what the model does: its output {name!r} differs by {worst:.1e} of "
                f"its size, where {allowed:g} is allowed{self.advice}"
            )
        return worst

    def spread_error(self, runner: Any, batches: Iterable[NamedArrays]) -> SpreadError:
        """The error on given inputs, by the spread of the outputs; runs all random inputs too."""
        self.run_all(runner)
        return self.errors(runner, self.expected(batches), _LEAST_IN_INT8)[1]

    def errors(
        self, runner: Any, pairs: Iterable[tuple[NamedArrays, NamedArrays]], least: float = _LEAST_IN_HALF
    ) -> tuple[float, SpreadError]:
        """The largest difference relative to an output's largest value, and the error by its spread.

        Args:
            runner: an onnxruntime session, or a ``HalfRunner``.
            pairs: inputs, and the outputs that are expected for them.
            least: the part of the largest spread from which on a channel is measured by its own.
        """
        worst, errors = 0.0, SpreadErrors(least)
        for batch, expected in pairs:
            got = self._run(runner, batch)
            worst = max(worst, largest_difference(expected, got)[0])
            errors.add(expected, got)
        return worst, errors.worst()

    def expected(self, batches: Iterable[NamedArrays]) -> Iterator[tuple[NamedArrays, NamedArrays]]:
        """Inputs with the outputs that the Keras model has for them."""
        for batch in batches:
            yield batch, self._counting(outputs_of(self.function, batch))

    def run_all(self, runner: Any) -> None:
        """Runs a model on the random inputs: every batch size, whatever the values."""
        for batch, _ in self.pairs:
            self._run(runner, batch)

    def in_file_layout(self, batch: NamedArrays) -> NamedArrays:
        """Inputs as the ONNX models take them."""
        return in_file_layout(batch, self.inputs_as_nchw)

    def _run(self, runner: Any, batch: NamedArrays) -> NamedArrays:
        return run(runner, batch, self.inputs_as_nchw, self.outputs_as_nchw)

    def _counting(self, outputs: NamedArrays) -> NamedArrays:
        return {name: value for name, value in outputs.items() if name not in self._uncompared}
