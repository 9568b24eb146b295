"""Logs in the forms that TensorRT 8 and 10, trtexec and polygraphy print, and the command that makes them."""

import json
import shlex
import sys

import numpy as np
import pytest
import tf_keras
from tf_keras import layers

import tfmot_asp
from tests.small_models import convnet, mlp

onnx = pytest.importorskip("onnx")
pytest.importorskip("tf2onnx")

parse = tfmot_asp.export.parse_tensorrt_log
command = tfmot_asp.export.trtexec_command

TENSORRT_8 = """
[05/08/2024-12:06:54] [I] [TRT] Total Activation Memory: 7864832
[05/08/2024-12:06:54] [I] [TRT] (Sparsity) Layers eligible for sparse math: Conv_0, Conv_2 + Relu_3, fc/MatMul + fc/Relu
[05/08/2024-12:06:54] [I] [TRT] (Sparsity) TRT inference plan picked sparse implementation for layers: Conv_2 + Relu_3
[05/08/2024-12:06:54] [I] Engine built in 31.1935 sec.
"""
TENSORRT_10 = (
    "[03/01/2026-09:12:01] [V] [TRT] (Sparsity) Found 3 layer(s) eligible to use sparse tactics: "
    "Conv_0, Conv_2 + Relu_3, fc/MatMul + fc/Relu\n"
    "[03/01/2026-09:12:01] [V] [TRT] (Sparsity) Chose 1 layer(s) using sparse tactics: Conv_2 + Relu_3\n"
)


@pytest.mark.parametrize("log", [TENSORRT_8, TENSORRT_10], ids=["8", "10"])
def test_both_wordings(log):
    result = parse(log)
    assert result.eligible == ("Conv_0", "Conv_2 + Relu_3", "fc/MatMul + fc/Relu")
    assert result.picked == ("Conv_2 + Relu_3",)
    assert (result.eligible_count, result.picked_count) == (3, 1)
    assert str(result).splitlines() == [
        "TensorRT: 3 layers eligible for sparse kernels, 1 of them use one",
        "",
        "layer                kernel",
        "Conv_0               dense",
        "Conv_2 + Relu_3      sparse",
        "fc/MatMul + fc/Relu  dense",
    ]
    assert json.loads(json.dumps(result.to_dict()))["picked"] == ["Conv_2 + Relu_3"]


ELIGIBLE, PICKED = (
    "(Sparsity) Layers eligible for sparse math:",
    "(Sparsity) TRT inference plan picked sparse implementation for layers:",
)

FORMS = {
    "nothing picked": (f"{ELIGIBLE} a, b\n{PICKED}", ("a", "b"), ()),
    "nothing picked, blank at the end": (f"{ELIGIBLE} a, b \n{PICKED} ", ("a", "b"), ()),
    "empty": (f"[I] [TRT] {ELIGIBLE}\n[I] [TRT] {PICKED}", (), ()),
    "python logger": (f"[TensorRT] INFO: {ELIGIBLE} a\n[TensorRT] INFO: {PICKED} a", ("a",), ("a",)),
    "polygraphy": (f"[I]     {ELIGIBLE} a\n[I]     {PICKED} a", ("a",), ("a",)),
    "colours": (f"\x1b[38;5;13m[V] {ELIGIBLE} a, b\x1b[0m\n\x1b[0m{PICKED} b\x1b[0m", ("a", "b"), ("b",)),
    "windows": (f"{ELIGIBLE} a, b\r\n{PICKED} a\r\n", ("a", "b"), ("a",)),
    "commas in brackets": (
        f"{ELIGIBLE} PWN(a, b), {{ForeignNode[c...d, e]}}, f\n{PICKED} PWN(a, b)",
        ("PWN(a, b)", "{ForeignNode[c...d, e]}", "f"),
        ("PWN(a, b)",),
    ),
    "several engines": (f"{ELIGIBLE} a\n{PICKED} a\n{ELIGIBLE} a, b\n{PICKED}", ("a", "b"), ("a",)),
    "cut in a name": (f"{ELIGIBLE} a, b\n{PICKED} a, long_na", ("a", "b"), ("a", "long_na")),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_lines(form):
    text, eligible, picked = FORMS[form]
    result = parse(text)
    assert (result.eligible, result.picked) == (eligible, picked)
    assert (result.eligible_count, result.picked_count) == (len(eligible), len(picked))


def test_counts_without_names_are_the_largest_that_is_stated():
    text = "(Sparsity) Found {} layer(s) eligible to use sparse tactics\n"
    text += "(Sparsity) Chose {} layer(s) using sparse tactics\n"
    result = parse(text.format(3, 0) + text.format(39, 7))
    assert (result.eligible, result.picked, result.eligible_count, result.picked_count) == ((), (), 39, 7)


def test_a_log_can_be_a_file_also_one_of_powershell(tmp_path):
    for name, encoding in (("utf-8.log", "utf-8"), ("utf-16.log", "utf-16")):
        (tmp_path / name).write_bytes(TENSORRT_8.encode(encoding))
        assert parse(tmp_path / name).picked == ("Conv_2 + Relu_3",)
    (tmp_path / "raw.log").write_bytes(b"\xff\xfa broken\n" + TENSORRT_8.encode())
    assert parse(tmp_path / "raw.log").eligible_count == 3
    with pytest.raises(FileNotFoundError):
        parse(tmp_path / "nowhere.log")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "no line with TensorRT's '\\(Sparsity\\)'. It needs --sparsity=enable .* compute capability 8.0"),
        ("[I] Sparsity: Disabled\n[I] Engine built", "it was built without --sparsity=enable"),
        (
            "[I] Compute Capability: 7.5\n[I] Engine built",
            "compute capability is 7.5; sparse Tensor Cores come with 8.0",
        ),
        ("[I] Compute Capability: 12.0\n[I] Engine built", "It needs --sparsity=enable"),
        (f"[I] {ELIGIBLE} a, b", "the log ends before TensorRT says which layers use sparse kernels"),
        (f"[I] {PICKED} a, b", "no line with"),
    ],
)
def test_logs_without_the_lines_say_why(text, match):
    with pytest.raises(ValueError, match=match):
        parse(text)


def test_other_things_than_text_are_refused():
    with pytest.raises(TypeError, match=r"log as str, or its path as pathlib\.Path; got a bytes"):
        parse(b"log")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model = tfmot_asp.strip_pruning(tfmot_asp.prune_low_magnitude(convnet(), permute=False))
    path = tmp_path_factory.mktemp("log") / "m.onnx"
    return path, tfmot_asp.export.onnx(model, path)


def test_a_report_is_filled_in_by_the_names_of_nodes(exported):
    _, report = exported
    op = {row.name: row.op for row in report.layers}
    text = (
        f"{ELIGIBLE} conv.weight + QuantizeLinear_7 + {op['conv/kernel']} + add, {op['fc/kernel']}, strange + other\n"
        f"{PICKED} {op['fc/kernel']}"
    )
    result = parse(text, report)
    found = {row.name: (row.eligible, row.picked) for row in result.report.layers}
    assert found == {
        "stem/kernel": (False, False),
        "conv/kernel": (True, False),
        "fc/kernel": (True, True),
        "head/kernel": (False, False),
    }
    assert result.unmatched == ("strange + other",)
    table = str(result).splitlines()
    header = table[table.index("") + 1]
    assert "eligible" in header
    assert "picked" in header
    assert any("In the log, but not in this file: strange + other" in line for line in table)
    assert any("3 layers eligible for sparse kernels, 1 of them use one" in line for line in table)
    assert all(row.eligible is None for row in report.layers), "the given report was changed"
    assert json.loads(json.dumps(result.to_dict()))["report"]["layers"][1]["eligible"] is True


def test_a_name_that_begins_like_another_is_another(exported):
    _, report = exported
    op = report.layers[1].op
    result = parse(f"{ELIGIBLE} {op}_1, x{op}\n{PICKED}", report)
    assert not any(row.eligible for row in result.report.layers)
    assert len(result.unmatched) == 2


def test_layers_joined_side_by_side_and_in_pointwise_names_count(exported):
    _, report = exported
    first, second, third = (row.op for row in report.layers[1:])
    result = parse(f"{ELIGIBLE} {first} || {second}, PWN({third}, relu)\n{PICKED} {first} || {second}", report)
    assert [row.eligible for row in result.report.layers] == [False, True, True, True]
    assert [row.picked for row in result.report.layers] == [False, True, True, False]


def test_a_log_without_names_leaves_the_rows_open_and_says_so(exported):
    _, report = exported
    text = (
        "(Sparsity) Found 3 layer(s) eligible to use sparse tactics\n(Sparsity) Chose 1 layer(s) using sparse tactics"
    )
    result = parse(text, report)
    assert all(row.eligible is None for row in result.report.layers)
    assert "which ones, the log does not say: build with --verbose" in result.report.notes[-1]


# The command


def words(path, **options):
    return shlex.split(command(path, **options))


def test_the_command_names_the_file_sparsity_and_shapes(exported):
    path, report = exported
    assert words(path) == [
        "trtexec",
        f"--onnx={path}",
        f"--saveEngine={path.with_suffix('.plan')}",
        "--sparsity=enable",
        "--verbose",
        "--stronglyTyped",
        "--minShapes=image:1x8x8x3",
        "--optShapes=image:32x8x8x3",
        "--maxShapes=image:64x8x8x3",
    ]
    assert "--maxShapes=image:7x8x8x3" in words(path, batch_sizes=(1, 2, 7))
    assert command(path) in report.notes[-1]


PRECISION_FLAGS = {
    ("fp32", 8): {"--fp16"},
    ("fp32", "10.3"): {"--fp16"},
    ("fp32", 11): set(),
    ("fp16", "8.6.1"): {"--fp16"},
    ("fp16", 10): {"--stronglyTyped"},
    ("fp16", "11.0"): set(),
    ("int8", 8): {"--int8", "--fp16"},
    ("int8", 10): {"--stronglyTyped"},
    ("int8", 11): set(),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, model = tmp_path_factory.mktemp("precisions"), mlp()
    data = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    for precision in ("fp32", "fp16", "int8"):
        options = {"calibration_data": data} if precision == "int8" else {}
        tfmot_asp.export.onnx(model, folder / f"{precision}.onnx", precision=precision, batch_size=4, **options)
    return folder


@pytest.mark.parametrize(("precision", "version"), PRECISION_FLAGS)
def test_each_version_gets_the_flags_that_it_has(precision, version, files):
    given = set(words(files / f"{precision}.onnx", tensorrt=version))
    known = {"--fp16", "--int8", "--stronglyTyped"}
    assert given & known == PRECISION_FLAGS[precision, version]
    assert not any(word.startswith(("--minShapes", "--sparsity=force")) for word in given)
    assert "--sparsity=enable" in given


POLYGRAPHY_FLAGS = {
    ("fp32", 10): {"--fp16"},
    ("fp16", "8.6"): {"--fp16"},
    ("fp16", 10): {"--strongly-typed"},
    ("fp16", 11): set(),
    ("int8", "8.6"): {"--int8", "--fp16"},
    ("int8", 10): {"--strongly-typed"},
    ("int8", 11): set(),
}


@pytest.mark.parametrize(("precision", "version"), POLYGRAPHY_FLAGS)
def test_polygraphy(precision, version, files, exported):
    given = words(files / f"{precision}.onnx", tensorrt=version, tool="polygraphy")
    assert given[:3] == ["polygraphy", "convert", str(files / f"{precision}.onnx")]
    assert {"--sparse-weights", "-vv"} < set(given)
    assert set(given) & {"--fp16", "--int8", "--strongly-typed"} == POLYGRAPHY_FLAGS[precision, version]
    given = words(exported[0], tool="polygraphy", batch_sizes=(1, 2, 7))
    assert given[given.index("--trt-max-shapes") + 1] == "image:[7,8,8,3]"


@pytest.mark.parametrize(("precision", "version"), POLYGRAPHY_FLAGS)
def test_in_a_container(precision, version, files):
    path = files / f"{precision}.onnx"
    given = words(path, tensorrt=version, tool="docker")
    image = given.index("$TENSORRT_IMAGE")
    assert {"--rm", "--gpus=all", f"--volume={files}:/models", "--workdir=/models"} <= set(given[:image])
    outside = words(path, tensorrt=version)
    inside = [word.replace(str(files) + "/", "") for word in outside]
    assert given[image + 1 :] == inside


class Recorder:
    """Stands in for TensorRT's Python module and everything in it: notes what is called."""

    def __init__(self, calls, name="trt"):
        self.calls, self.name = calls, name

    def __getattr__(self, name):
        return Recorder(self.calls, name)

    def __call__(self, *given):
        self.calls.append((self.name, given))
        return b"engine" if self.name == "build_serialized_network" else Recorder(self.calls, self.name)

    def __int__(self):
        return {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}[self.name]


@pytest.mark.parametrize(("precision", "version"), POLYGRAPHY_FLAGS)
def test_python(precision, version, files, monkeypatch):
    calls, path = [], files / f"{precision}.onnx"
    monkeypatch.setitem(sys.modules, "tensorrt", Recorder(calls))
    exec(command(path, tensorrt=version, tool="python"), {})
    assert path.with_suffix(".plan").read_bytes() == b"engine"
    flags = {given[0].name for name, given in calls if name == "set_flag"}
    assert "SPARSE_WEIGHTS" in flags
    wanted = POLYGRAPHY_FLAGS[precision, version]
    assert {f"--{flag.lower()}" for flag in flags - {"SPARSE_WEIGHTS"}} == wanted - {"--strongly-typed"}
    (created,) = (given[0] for name, given in calls if name == "create_network")
    assert created == (1 if version == "8.6" else 2 if "--strongly-typed" in wanted else 0)
    assert ("parse_from_file", (str(path),)) in calls
    assert "set_shape" not in dict(calls)


def test_python_gives_shapes_where_the_batch_is_open(exported, monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "tensorrt", Recorder(calls))
    exec(command(exported[0], tool="python"), {})
    assert ("set_shape", ("image", (1, 8, 8, 3), (32, 8, 8, 3), (64, 8, 8, 3))) in calls


def test_an_unknown_tool(exported):
    with pytest.raises(ValueError, match=r"tool must be one of 'trtexec', 'docker', .*, got 'onnxsim'"):
        command(exported[0], tool="onnxsim")


def test_paths_and_names_are_quoted(tmp_path):
    folder = tmp_path / "it's a model; rm -rf $HOME"
    folder.mkdir()
    value = onnx.helper.make_tensor_value_info("x:0", onnx.TensorProto.FLOAT, [None, 4])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None, 4])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x:0"], ["y"])], "g", [value], [result])
    onnx.save(onnx.helper.make_model(graph), folder / "m.onnx")
    found = words(folder / "m.onnx")
    assert found[1] == f"--onnx={folder / 'm.onnx'}"
    assert found[-1] == "--maxShapes='x:0':64x4"


def test_all_open_axes_are_asked_for_at_once(tmp_path):
    x = layers.Input((None, None, 16))
    image = tf_keras.Model(x, layers.Conv2D(8, 3)(x))
    asked = r"shapes=\{'height': \(smallest, most frequent, largest\), 'width': \(smallest, most frequent, largest\)\}"
    tfmot_asp.export.onnx(image, tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=asked):
        command(tmp_path / "m.onnx")
    assert "5x6x7x16" in command(
        tmp_path / "m.onnx", shapes={"height": (6, 6, 6), "width": (7, 7, 7)}, batch_sizes=(5, 5, 5)
    )


def test_axes_other_than_the_batch_need_shapes(tmp_path):
    x = layers.Input((None, 16), name="sequence")
    tfmot_asp.export.onnx(tf_keras.Model(x, layers.Dense(8)(x)), tmp_path / "m.onnx")
    with pytest.raises(
        ValueError, match=r"input 'sequence' is \?x\?x16: open beyond the batch, so give shapes=\{'sequence_sequence':"
    ):
        command(tmp_path / "m.onnx")
    found = words(tmp_path / "m.onnx", shapes={"sequence": [(1, 8, 16), (4, 128, 16), (8, 512, 16)]})
    assert found[-3:] == [
        "--minShapes=sequence:1x8x16",
        "--optShapes=sequence:4x128x16",
        "--maxShapes=sequence:8x512x16",
    ]
    assert words(tmp_path / "m.onnx", shapes={"sequence": (2, 9, 16)})[-1] == "--maxShapes=sequence:2x9x16"
    for shapes, match in (
        (
            {"sequence": (2, 9, 17)},
            r"shapes\['sequence'\] must be one shape or three that fit \?x\?x16, got \(2, 9, 17\)",
        ),
        ({"sequence": [(1, 8, 16)]}, "must be one shape or three"),
        ({"sequence": "2x9x16"}, "must be one shape or three"),
        ({"sequence": (0, 9, 16)}, "must be one shape or three"),
        ({"tokens": (1, 2)}, r"shapes names \['tokens'\], which is no input; the file has \['sequence'\]"),
    ):
        with pytest.raises(ValueError, match=match):
            command(tmp_path / "m.onnx", shapes=shapes)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"tensorrt": 7}, "a version from 8 on, which is the first with sparse kernels; got 7"),
        ({"tensorrt": "new"}, "a version from 8 on, .*; got 'new'"),
        ({"batch_sizes": (1, 2)}, r"three integers: smallest, most frequent, largest; got \(1, 2\)"),
        ({"batch_sizes": 8}, "three integers"),
        ({"batch_sizes": (4, 2, 8)}, r"positive and not decrease, got \(4, 2, 8\)"),
        ({"batch_sizes": (0, 2, 8)}, "positive and not decrease"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, match, exported):
    with pytest.raises(ValueError, match=match):
        command(exported[0], **options)


def test_a_file_that_is_no_onnx_is_named(tmp_path):
    (tmp_path / "m.onnx").write_text("text")
    with pytest.raises(ValueError, match=r"m\.onnx' (cannot be read as an|is no complete) ONNX model"):
        command(tmp_path / "m.onnx")
