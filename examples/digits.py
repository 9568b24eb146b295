"""What the examples share: handwritten digits, what a model makes of them, and the arguments that all of them take.

The digits are scikit-learn's (1,797 scans of 8 × 8 pixels, real data that the package ships): nothing is downloaded.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Data = tuple[np.ndarray, np.ndarray]


def load(count: int | None = None) -> tuple[Data, Data]:
    """(images, labels) to train and to test on; images are (samples, 8, 8, 1), from 0 to 1.

    Args:
        count: how many digits in all; None for every one.
    """
    images, labels = load_digits(return_X_y=True)
    images, labels = (images[:count].reshape(-1, 8, 8, 1) / 16).astype(np.float32), labels[:count]
    x_train, x_test, y_train, y_test = train_test_split(images, labels, test_size=0.3, random_state=0, stratify=labels)
    return (x_train, y_train), (x_test, y_test)


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Per cent of the digits that a model names right, by its outputs (samples, classes)."""
    return 100 * float(np.mean(logits.argmax(-1) == labels))


def arguments(doc: str | None, epochs: int, fine_tune_epochs: int, out: str) -> argparse.ArgumentParser:
    """The arguments of every example.

    Args:
        doc: the example's docstring, shown by --help.
        epochs: of dense training, by default. fine_tune_epochs: of training with the 2:4 masks.
        out: what to call the file or folder that is written, in a temporary directory if --out is not given.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=epochs, help="of dense training")
    parser.add_argument("--fine-tune-epochs", type=int, default=fine_tune_epochs, help="of training with the 2:4 masks")
    parser.add_argument("--out", type=pathlib.Path, help=f"what to write (default: {out} in a temporary directory)")
    parser.set_defaults(name=out)
    return parser


def target(args: argparse.Namespace) -> pathlib.Path:
    """Where to write."""
    return args.out or pathlib.Path(tempfile.mkdtemp()) / args.name


def show(results: dict[str, float], count: int) -> None:
    """Prints accuracies, in per cent of ``count`` test digits."""
    width = max(map(len, results)) + 4
    for name, value in results.items():
        print(f"{name:<{width}}{value:6.2f} % of {count} test digits")
