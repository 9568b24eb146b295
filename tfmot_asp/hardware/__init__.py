"""What sparse Tensor Cores, and the libraries above them, can use, and how long it takes."""

from tfmot_asp.hardware.cost_model import Estimate, estimate

__all__ = ["Estimate", "estimate"]
