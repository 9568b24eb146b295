"""Models larger than a machine: planned from the architecture alone, searched and written from files of weights."""
