"""Quantization-aware training that keeps the pattern."""
