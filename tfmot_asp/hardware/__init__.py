"""What sparse Tensor Cores, and the libraries above them, can use."""
