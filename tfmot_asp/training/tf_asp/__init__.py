"""TF-ASP's interface: `AspOptimizerWrapperV2`, its log levels and lines."""
