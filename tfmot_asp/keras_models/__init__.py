"""The one place that knows Keras: layers, kernels, optimizer slots, constraints."""
