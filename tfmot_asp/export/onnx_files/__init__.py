"""Reading, rewriting, converting and running ONNX files."""
