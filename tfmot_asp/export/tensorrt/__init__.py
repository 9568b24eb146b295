"""What TensorRT is told (`trtexec`) and what it says (build logs)."""
