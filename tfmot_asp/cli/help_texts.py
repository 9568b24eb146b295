"""The examples in the help of each command."""

from __future__ import annotations

EPILOG = """\
examples:
  tfmot-asp inspect model.keras
  tfmot-asp prune model.keras -o sparse.keras
  tfmot-asp verify sparse.keras

exit codes: 0 done; 1 the pattern does not hold (verify); 2 wrong usage or bad input; 130 interrupted.
`tfmot-asp help COMMAND` has the options and examples of a command.
"""

INSPECT = """\
examples:
  tfmot-asp inspect model.keras
  tfmot-asp inspect model.keras --batch-size 32 --min-channels 256
  tfmot-asp inspect model.keras --batch-size 32 --gpu H100 --precision int8
  tfmot-asp inspect model.keras --batch-size 32 --min-gain 1.05
  tfmot-asp inspect any_size.keras --input-shape 1,64,64,3
  tfmot-asp inspect model.keras --json
"""

PERMUTE = """\
examples:
  tfmot-asp permute model.keras -o permuted.keras
  tfmot-asp permute model.h5 -o permuted.h5 --effort fast --report permuted.json
  tfmot-asp permute copy.keras -o permuted_copy.keras --apply permuted.json
"""

PRUNE = """\
examples:
  tfmot-asp prune model.keras -o sparse.keras --calibration images.npy
  tfmot-asp prune model.keras -o sparse.h5 --skip head --skip "stem*" --min-channels 16
  tfmot-asp prune model.keras -o sparse_model --no-permute

With --calibration the kept weights are refitted on the data; without, the smallest weights go, and the result must be
fine-tuned (docs/training.md). Optimizer state is not kept.
"""

VERIFY = """\
examples:
  tfmot-asp verify exported
  tfmot-asp verify sparse.keras --json
  tfmot-asp verify model.onnx --tensorrt
  tfmot-asp verify model.onnx --tensorrt-log build.log

The exit code is 0 if some weight has the pattern, none has it in part, and all could be read; 1 if not. With --on-gpu
(needs what `measure` needs) also if a product, run 2:4 by cuSPARSELt, differs from the dense one, with --tensorrt
(needs pip install "tfmot-asp[tensorrt]") also if TensorRT refuses the file.
"""

PLOT = """\
examples:
  tfmot-asp plot model.keras -o graph.dot
  tfmot-asp plot model.keras -o graph.svg

.svg, .png and .pdf need Graphviz; .dot does not.
"""

EXPORT = """\
examples:
  tfmot-asp export sparse.keras --to saved_model -o exported --batch-size 8
  tfmot-asp export sparse.keras --to onnx -o model.onnx --precision fp16
  tfmot-asp export sparse.keras --to onnx -o model.onnx --precision int8 --calibration images.npy
  tfmot-asp export sparse.keras --to tflite -o model.tflite --precision int8 --calibration images.npy
  tfmot-asp export exported --to tftrt -o converted --precision fp16

The file is read back and checked before it takes its place. ONNX needs:

  pip install "tfmot-asp[onnx]"
"""

SEARCH = """\
examples:
  tfmot-asp search matrix.npy -o order.npy
  tfmot-asp search conv_kernel.npy --axis 2 --effort thorough
  tfmot-asp search matrix.npy --pattern 1:4 --json

Of a matrix the columns are the channels, and the order is of the columns: new = old[:, order]. Of a Keras kernel, name
the axis that is summed over: 0 of a Dense kernel (inputs, outputs), 2 of a Conv2D kernel (height, width, inputs,
outputs). Needs no TensorFlow.
"""

MEASURE = """\
examples:
  tfmot-asp measure -o mine.json
  tfmot-asp measure -o mine.json --precision fp16 --force

Needs Linux and an NVIDIA GPU of compute capability 8.0 or newer, which nothing else uses meanwhile; a few minutes:

  pip install "tfmot-asp[cuda12]" nvidia-cusparselt-cu12 (or the two for CUDA 13)
"""

PERMUTE_SHARDS = """\
examples:
  tfmot-asp permute-shards model.json model.weights.h5 -o permuted_weights
  tfmot-asp permute-shards model.json model.weights.h5 -o pruned_weights --prune --effort fast

For models that need not fit in memory (docs/large_models.md). Run again after a kill with the same arguments, it goes
on where it was. MODEL is what model.to_json() gives, or a .keras file, whose weights are not read.
"""

STRIP = """\
examples:
  tfmot-asp strip wrapped.keras -o sparse.keras

Of a model that was saved with pruning wrappers, ours or tfmot's: masks are applied, and completed where training
stopped short of the pattern.
"""

QUANTIZE = """\
examples:
  tfmot-asp quantize sparse.keras -o quantized.keras

The result is to be trained: load it with tfmot_asp.loading.load_model, call tfmot_asp.keep_sparsity(model), fit, and
save it; `inspect` says of the file what is in 8 bits, and `export --to tflite --precision int8` writes it. Without
training, `export --precision int8 --calibration FILE` needs no `quantize`.
"""

ESTIMATE = """\
examples:
  tfmot-asp estimate 6272 256 2304
  tfmot-asp estimate 8192 4096 4096 --gpu H100 --precision int8

M rows (batch times tokens, or times pixels), N output channels, sums over K. Needs no GPU and no TensorFlow.
"""

COMPLETION = """\
examples:
  tfmot-asp completion bash > ~/.local/share/bash-completion/completions/tfmot-asp
  tfmot-asp completion zsh > ~/.zfunc/_tfmot-asp
  tfmot-asp completion fish > ~/.config/fish/completions/tfmot-asp.fish

Needs:

  pip install "tfmot-asp[completion]"
"""

HELP = """\
examples:
  tfmot-asp help
  tfmot-asp help prune
"""
