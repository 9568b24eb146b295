"""Trained models in 2:4: what is left of each of them, by tfmot, by magnitude, with data, and fine-tuned.

    python benchmarks/models.py --packages PACKAGES [--cases digits-resnet20 antibodies] [--seeds 3]

The models, and how to bring them, are in trained_models.py and browser_models.py. What is measured goes into
results/models.json, a case at a time: those that are not named stay as they were measured. models_table.py makes tables
of it. Each seed takes other samples to calibrate with, another order of training, and, for the digits, another model.
Figures are of samples that nothing else has seen.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
from typing import Any

from calibration import METHODS as ONE_SHOT
from calibration import add_places, machine, measure, show
from models_table import METHODS, NAMES, RESULTS
from trained_models import Case, Places

import tfmot_asp


def fine_tuned(case: Case, policy: Any) -> None:
    """On data, then with labels, the pattern being kept in every step."""
    if case.fine_tune is None:
        raise ValueError("no labels")
    pruned = tfmot_asp.prune_trained_model(case.model, policy=policy, calibration_data=case.calibration)
    case.fine_tune(case.model)
    dense = [layer.name for layer in pruned.report.layers if layer.prunable and not layer.holds]
    if dense:
        raise RuntimeError(f"training has left the pattern in {dense}")
    pruned.remove()


HOW = (
    None,
    ONE_SHOT["tfmot 2:4"],
    ONE_SHOT["magnitude"],
    ONE_SHOT["magnitude, permuted"],
    ONE_SHOT["the same, permuted"],
    fine_tuned,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_places(parser)
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"cases": {}}
    print(f"$ python benchmarks/models.py {' '.join(sys.argv[1:])}".rstrip())
    print(machine())
    print("mean ± standard error over seeds of figures on samples that no method has seen")
    for name in args.cases or NAMES:
        places = Places(args.packages, args.trained)
        measured = measure(name, places, range(args.seeds), dict(zip(METHODS, HOW, strict=True)))
        show(name, measured)
        found = results["cases"] | {name: dataclasses.asdict(measured)}
        results = {
            "command": "python benchmarks/models.py --packages PACKAGES",
            "machine": machine(),
            "date": datetime.date.today().isoformat(),
            "cases": {case: found[case] for case in NAMES if case in found},
        }
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
