"""The tables of trained models in docs/models.md and, shorter, in README.md, from results/models.json.

    python benchmarks/models_table.py [--short]

A line per model with one figure: per cent, or decibels; mean ± standard error over seeds.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from measured import Measured

RESULTS = pathlib.Path(__file__).parent / "results" / "models.json"
TFMOT = "tfmot's 2:4"
METHODS = ("dense", TFMOT, "2:4", "2:4, permuted", "with data", "fine-tuned")
SHORT = ("dense", TFMOT, "with data")
FIGURES = {"denoiser": "dB to the clean image"}  # what to show where it is not the first figure
NAMES = {
    "photo-classes": "MobileNetV2 (nsfwjs), photos",
    "expressions": "mini-Xception (fer), faces",
    "text-direction": "MobileNetV3 (PP-OCR), direction of text",
    "text-recognition": "recogniser with attention (PP-OCR v4), text",
    "splice-sites": "dilated Conv1D (SpliceAI), made-up DNA",
    "antibodies": "BERT of 8 x 512 (AntiBERTy), proteins",
    "next-letter": "transformer of 3 x 128, letters",
    "digits-resnet20": "ResNet-20, digits",
    "denoiser": "U-Net, noise of photos",
}


def table(results: dict[str, Any], methods: Sequence[str] = METHODS) -> list[str]:
    """Lines of the table in Markdown."""
    lines = [f"| model | figure | {' | '.join(methods)} |", f"| --- | --- |{' ---: |' * len(methods)}"]
    for name, case in results["cases"].items():
        measured = Measured(**case)
        figure = FIGURES.get(name, measured.figures[0])
        cells = [_cell(measured, method, figure) for method in methods]
        lines.append(f"| {NAMES[name]}, {measured.weights / 1e6:.2f} M | {figure} | {' | '.join(cells)} |")
    return lines


def _cell(measured: Measured, method: str, figure: str) -> str:
    if not measured.rows[method]:
        return "-"
    if method == TFMOT and not measured.tfmot_kernels:
        return "prunes nothing"
    at, share = measured.figures.index(figure), 1 if figure.startswith("dB") else 100
    cell = f"{share * measured.mean(method)[at]:.1f} ± {share * measured.error(method)[at]:.1f}"
    if method == TFMOT and measured.tfmot_kernels < measured.kernels:
        cell += f" ({measured.tfmot_kernels} of {measured.kernels} kernels)"
    return cell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="that of README.md")
    methods = SHORT if parser.parse_args().short else METHODS
    print("\n".join(table(json.loads(RESULTS.read_text()), methods)))


if __name__ == "__main__":
    main()
