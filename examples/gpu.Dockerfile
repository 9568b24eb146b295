# TensorFlow with CUDA, CuPy for the search, TensorRT: the GPU path in one image. Nobody here has built it.
#   docker build -f examples/gpu.Dockerfile -t tfmot-asp . && docker run --gpus all -it tfmot-asp
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends graphviz && rm -rf /var/lib/apt/lists/*
WORKDIR /tfmot_asp
COPY . .
# tensorflow[and-cuda] brings CUDA 12; tensorrt-cu12 brings TensorRT's Python builder.
RUN pip install --no-cache-dir ".[onnx,cuda12,test]" "tensorflow[and-cuda]" tensorrt-cu12
CMD ["python", "-m", "pytest", "tests/gpu"]
