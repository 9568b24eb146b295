"""What a ``tf.Module`` holds, found whatever caches its layers keep beside it.

``tf.Module`` flattens each attribute of each module to find the modules and variables in it, and raises for one that is
no structure to flatten: tf_keras' recurrent cells keep their dropout masks in a dict whose keys, graphs, have no order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def modules_in(module: Any) -> list[Any]:
    """The modules in a ``tf.Module``, each once, in the order of its ``submodules``; none in what is no module."""
    import tensorflow as tf

    return [leaf for leaf in _leaves(module) if isinstance(leaf, tf.Module)]


def all_variables(model: Any) -> list[Any]:
    """The variables of a model, a layer or a module, as it holds them; some may be there twice."""
    import tensorflow as tf

    if hasattr(model, "weights"):
        return [*getattr(model, "variables", ()), *model.weights]
    return [leaf for leaf in _leaves(model) if isinstance(leaf, tf.Variable)]


def _leaves(module: Any) -> Iterator[Any]:
    """What the attributes of a module hold, and those of the modules among it, each once."""
    import tensorflow as tf

    seen = {id(module)}
    stack = [module] if isinstance(module, tf.Module) else []
    while stack:
        node = stack.pop()
        ignored = getattr(node, "_TF_MODULE_IGNORED_PROPERTIES", ())
        modules = []
        for name, value in sorted(vars(node).items()):
            try:
                leaves = [] if name in ignored else tf.nest.flatten(value)
            except (TypeError, ValueError):
                continue  # a cache, with keys that cannot be sorted
            for leaf in leaves:
                if id(leaf) not in seen:
                    seen.add(id(leaf))
                    yield leaf
                    modules += [leaf] if isinstance(leaf, tf.Module) else []
        stack.extend(reversed(modules))
