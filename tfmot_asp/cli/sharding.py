"""``tfmot-asp permute-shards``: weights in files that need not fit in memory."""

from __future__ import annotations

import argparse

from tfmot_asp.cli.commands import PERMUTATION, permutation_data, search_options, stored_report, written
from tfmot_asp.cli.options import import_modules, input_shapes, policy, times_of_policy
from tfmot_asp.cli.terminal import Console, load_tensorflow


def permute_shards(arguments: argparse.Namespace, console: Console) -> int:
    """Permutes, and prunes if asked to, from files of weights to files of weights."""
    times_of_policy(arguments)
    if not arguments.model.exists():
        raise FileNotFoundError(f"there is no file {str(arguments.model)!r}")
    load_tensorflow()
    import_modules(arguments.imports)
    import tfmot_asp
    from tfmot_asp.keras_models.without_weights import without_weights
    from tfmot_asp.loading.architecture import load_architecture
    from tfmot_asp.permutation.shards.permute_shards import REPORT

    report = stored_report(arguments)
    with without_weights():  # its layers, for --skip
        model = load_architecture(arguments.model, allow_unsafe=arguments.allow_unsafe)
    done = tfmot_asp.permute_shards(
        lambda: model,
        arguments.weights,
        arguments.output,
        prune=arguments.prune,
        report=report,
        policy=policy(arguments, model),
        input_shapes=input_shapes(arguments.input_shape),
        sparsity_m_by_n=arguments.pattern,
        **search_options(arguments, console),
    )
    data = {"output": str(arguments.output), "pruned": arguments.prune, "permutation": permutation_data(done)}
    document = done.document().titled(PERMUTATION).with_line(f"The report with all orders: {arguments.output / REPORT}")
    console.result(written(arguments, document), data)
    return 0
