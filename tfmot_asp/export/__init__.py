"""Write pruned models for deployment, and verify what was written: ``saved_model(model, path)``, ``verify(path)``."""

# Imported here and not on first use: importing a submodule later would put the module over the function of its name.
from tfmot_asp.export.saved_model import saved_model
from tfmot_asp.export.verify import VerificationReport, VerifiedLayer, verify

__all__ = ["VerificationReport", "VerifiedLayer", "saved_model", "verify"]
