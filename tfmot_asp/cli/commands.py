"""What the commands on models do. Each takes the parsed arguments and the console, and returns the exit code."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from tfmot_asp.cli.options import import_modules, input_shapes, policy, read_array, times, times_of_policy
from tfmot_asp.cli.terminal import Console, load_tensorflow
from tfmot_asp.cli.writing import MODEL_FORMATS, check_output, write_model
from tfmot_asp.files import check_writable
from tfmot_asp.reports.document import Document, Table

SPARSITY, PERMUTATION = "Sparsity", "Permutation"  # titles of tables

_NOT_PLANNED = "No permutation could be planned: "


def inspect(arguments: argparse.Namespace, console: Console) -> int:
    """What would be pruned and permuted, and what not, and why. Changes nothing."""
    timed = times(arguments)
    model = load(arguments)
    from tfmot_asp.keras_models.quantized import quantized_layers
    from tfmot_asp.reports.sparsity import sparsity_report

    rule, shapes = policy(arguments, model), input_shapes(arguments.input_shape)
    report = sparsity_report(
        model,
        policy=rule,
        sparsity_m_by_n=arguments.pattern,
        batch_size=arguments.batch_size or 1,
        input_shapes=shapes,
        **timed,
    )
    plan, refused = _planned(model, rule, shapes, arguments.pattern), _why_not_pruned(model, rule)
    refusal = [f"`prune` refuses this model: {refused}"] if refused not in (None, plan["refused"]) else []
    parts, quantization = [report.document().titled(SPARSITY), _plan_document(plan), Document(refusal)], None
    if quantized_layers(model):
        from tfmot_asp.quantization.quantization_report import quantization_report

        found = quantization_report(model, sparsity_m_by_n=arguments.pattern)
        quantization = found.to_dict()
        parts.append(found.document().titled("Quantization"))
    data = {"model": str(arguments.model), "sparsity": report.to_dict(), "permutation": plan}
    console.result(Document.joined(*parts), {**data, "pruning": {"refused": refused}, "quantization": quantization})
    return 0


def permute(arguments: argparse.Namespace, console: Console) -> int:
    """Reorders the channels of a model; the weights stay dense."""
    check_output(arguments.output, arguments.model, force=arguments.force, formats=MODEL_FORMATS)
    for extra in (arguments.report, arguments.plot):
        if extra is not None and extra.exists() and not arguments.force:
            raise FileExistsError(f"{str(extra)!r} exists; give another name, or --force to replace it")
        if extra is not None:
            check_writable(extra)
    times_of_policy(arguments)
    given = stored_report(arguments)
    model = load(arguments)
    rule, shapes = policy(arguments, model), input_shapes(arguments.input_shape)
    if given is not None:
        report = given.apply_to(model, policy=rule, input_shapes=shapes)
        if arguments.plot is not None:
            report.plot(arguments.plot)
    else:
        import tfmot_asp

        report = tfmot_asp.permute(
            model,
            policy=rule,
            input_shapes=shapes,
            sparsity_m_by_n=arguments.pattern,
            plot_to_file=arguments.plot,
            **search_options(arguments, console),
        )
    write(model, arguments)
    if arguments.report is not None:
        report.save(arguments.report)
    data = permutation_data(report)
    console.result(written(arguments, report.document()), {"output": str(arguments.output), "permutation": data})
    return 0


def prune(arguments: argparse.Namespace, console: Console) -> int:
    """Permutes a model, then prunes it: on data if there is some, else by setting the smallest weights to zero."""
    check_output(arguments.output, arguments.model, force=arguments.force, formats=MODEL_FORMATS)
    if arguments.samples is not None and arguments.calibration_data is None:
        raise ValueError("--samples counts those of --calibration FILE, which was not given")
    timed = times(arguments)
    data = None if arguments.calibration_data is None else read_array(arguments.calibration_data)
    model = load(arguments)
    import tfmot_asp

    shapes = input_shapes(arguments.input_shape)
    options = {**search_options(arguments, console), "input_shapes": shapes}
    rule, pattern = policy(arguments, model), arguments.pattern
    pruned = tfmot_asp.prune_trained_model(
        model,
        policy=rule,
        permute=options if arguments.permute else False,
        sparsity_m_by_n=pattern,
        calibration_data=data,
        calibration_samples=arguments.samples,
        effort=arguments.effort,
        progress=options["progress"],
    )
    pruned.remove()
    permutation = pruned.permutation
    batch = arguments.batch_size or (1 if timed else None)
    report = tfmot_asp.sparsity_report(
        model, policy=rule, sparsity_m_by_n=pattern, batch_size=batch, input_shapes=shapes, **timed
    )
    if batch is None:
        report = dataclasses.replace(report, notes=())  # that sizes were left out; `inspect` has them
    write(model, arguments)
    parts = [] if permutation is None else [permutation.document().titled(PERMUTATION)]
    parts += [] if pruned.calibration is None else [pruned.calibration.document().titled("Pruning on data")]
    console.result(
        written(arguments, *parts, report.document().titled(SPARSITY)),
        {
            "output": str(arguments.output),
            "permutation": None if permutation is None else permutation_data(permutation),
            "calibration": None if pruned.calibration is None else pruned.calibration.to_dict(),
            "sparsity": report.to_dict(),
        },
    )
    console.note(
        "Pruned in one shot by magnitude, which costs accuracy: give --calibration FILE with a few hundred typical "
        "inputs, or fine-tune it: tfmot_asp.prune_trained_model(model, permute=False)"
        if data is None
        else "Pruned in one shot on data. Measure its accuracy on other data before you use it."
    )
    return 0


def verify(arguments: argparse.Namespace, console: Console) -> int:
    """Checks the pattern in a written file. Returns 1 if it does not hold."""
    import_modules(arguments.imports)
    if arguments.file.suffix.lower() != ".onnx":  # which is read without it
        load_tensorflow()
    from tfmot_asp import export

    report = export.verify(arguments.file, sparsity_m_by_n=arguments.pattern, allow_unsafe=arguments.allow_unsafe)
    if arguments.tensorrt_log is not None:
        report = export.parse_tensorrt_log(arguments.tensorrt_log, report).report or report
    document, data, ok = report.document(), report.to_dict(), report.ok
    if arguments.tensorrt:
        taken = export.check_with_tensorrt(arguments.file)
        document = Document.joined(document, taken.document())
        data, ok = {**data, "tensorrt": taken.to_dict()}, ok and taken.ok
    if arguments.on_gpu:
        ran = export.run_sparse(arguments.file, allow_unsafe=arguments.allow_unsafe)
        document = Document.joined(document, ran.document())
        data, ok = {**data, "on_gpu": ran.to_dict()}, ok and ran.ok
    console.result(document, data)
    return 0 if ok else 1


def plot(arguments: argparse.Namespace, console: Console) -> int:
    """Draws what would be permuted, and what blocks the rest."""
    if arguments.output.exists() and not arguments.force:
        raise FileExistsError(f"{str(arguments.output)!r} exists; give another -o, or --force to replace it")
    check_writable(arguments.output)
    times_of_policy(arguments)
    load_tensorflow()
    from tfmot_asp.permutation.picture.outline import outline
    from tfmot_asp.permutation.picture.plot import check_plot_path
    from tfmot_asp.permutation.picture.plot import plot as draw
    from tfmot_asp.permutation.plan import plan_model

    check_plot_path(arguments.output)
    model = load(arguments)
    plan = plan_model(
        model,
        policy=policy(arguments, model),
        input_shapes=input_shapes(arguments.input_shape),
        sparsity_m_by_n=arguments.pattern,
        may_be_empty=True,
    )
    picture = outline(plan, model, planned=True)
    draw(picture, arguments.output)
    data = {"output": str(arguments.output), "ops": len(picture.ops)}
    console.result(Document([picture.title, f"Drew {len(picture.ops)} ops to {arguments.output}"]), data)
    return 0


def stored_report(arguments: argparse.Namespace) -> Any:
    """The report that ``--apply`` names; None without it."""
    if arguments.apply is None:
        return None
    load_tensorflow()
    from tfmot_asp.permutation.report import PermutationReport

    return PermutationReport.load(arguments.apply)


def load(arguments: argparse.Namespace) -> Any:
    """The model of the MODEL argument. Checks first what needs no TensorFlow."""
    from tfmot_asp.loading import load_model
    from tfmot_asp.loading.formats import detect

    detect(arguments.model)
    load_tensorflow()
    import_modules(arguments.imports)
    return load_model(arguments.model, allow_unsafe=arguments.allow_unsafe)


def write(model: Any, arguments: argparse.Namespace) -> None:
    write_model(model, arguments.output, force=arguments.force, allow_unsafe=arguments.allow_unsafe)


def written(arguments: argparse.Namespace, *documents: Document) -> Document:
    """Documents, and what was written below their summaries."""
    return Document.joined(*documents, Document([f"Wrote {arguments.output}"]))


def search_options(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    return {
        "device": arguments.device,
        "effort": arguments.effort,
        "seed": arguments.seed,
        "progress": console.progress,
    }


def permutation_data(report: Any) -> dict[str, Any]:
    """The report without the outline of the model's ops, which is for drawing."""
    data: dict[str, Any] = dataclasses.replace(report, outline=None).to_dict()
    del data["outline"]
    return data


def _planned(model: Any, rule: Any, shapes: Any, pattern: Any) -> dict[str, Any]:
    """What `permute` would do, from the plan alone; ``"refused"`` says why there is none."""
    from tfmot_asp.permutation.memory import memory_needed
    from tfmot_asp.permutation.plan import plan_model

    try:
        planned = plan_model(model, policy=rule, input_shapes=shapes, sparsity_m_by_n=pattern)
    except ValueError as error:
        return {"refused": str(error), "layers": [], "groups": [], "memory": None}
    plan = planned.plan
    layers = [
        {
            "name": kernel.name,
            "kind": planned.kinds[i],
            "status": plan.status(i),
            "size": kernel.reduction_size,
            "movable": plan.movable[i],
            "reason": None if plan.reasons[i] is None else str(plan.reasons[i]),
        }
        for i, kernel in enumerate(plan.kernels)
    ]
    layers += [
        {
            "name": layer.name,
            "kind": layer.kind,
            "status": "fixed",
            "size": None,
            "movable": 0,
            "reason": str(layer.reason),
        }
        for layer in planned.unused
    ]
    groups = [
        {"name": group.name, "size": group.size, "layers": [plan.kernels[index].name for index in group.kernels]}
        for group in plan.groups
    ]
    return {"refused": None, "layers": layers, "groups": groups, "memory": memory_needed(planned)}


def _why_not_pruned(model: Any, rule: Any) -> str | None:
    """Why `prune` would refuse the model; None if it would not."""
    from tfmot_asp.training.trained import kernels_to_prune

    try:
        kernels_to_prune(model, rule)
    except ValueError as error:
        return str(error)
    return None


def _plan_document(plan: dict[str, Any]) -> Document:
    if plan["refused"] is not None:
        return Document([_NOT_PLANNED + plan["refused"]])
    rows = [
        (
            layer["name"],
            layer["kind"],
            layer["status"],
            "-" if layer["size"] is None else f"{layer['movable']} of {layer['size']}",
            layer["reason"] or "",
        )
        for layer in plan["layers"]
    ]
    movable = sum(layer["status"] != "fixed" for layer in plan["layers"])
    count = len(plan["groups"])
    summary = f"{movable} of {len(rows)} prunable kernels would be permuted, in {count} group{'s' * (count != 1)}"
    summary += f"; `permute` needs up to {plan['memory'] / 1e9:.2g} GB of memory beside the model"
    header = ("layer", "kind", "would be", "input channels", "why not")
    return Document([summary], [Table(header, rows, PERMUTATION)])
