"""From a model to the plain frozen function that every exporter starts with."""
