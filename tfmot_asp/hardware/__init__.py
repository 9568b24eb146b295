"""What sparse Tensor Cores, and the libraries above them, can use, and how long it takes."""

from tfmot_asp.hardware.cost_model import Estimate, estimate
from tfmot_asp.hardware.measurement import measure
from tfmot_asp.hardware.timing_table import TimingTable

__all__ = ["Estimate", "TimingTable", "estimate", "measure"]
