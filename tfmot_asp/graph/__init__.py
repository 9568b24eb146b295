"""A model as one flat graph: tracing, its inputs, its matrix products and their sizes."""
