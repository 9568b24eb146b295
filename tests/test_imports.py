"""The package's rooms: imports point downwards and make no circle, lazy ones included."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "tfmot_asp"
# Top to bottom. A module may import from its own room and from those below; the package root is below all.
ROOMS = (
    "cli", "export", "loading", "quantization", "training", "calibration", "permutation", "reports", "hardware",
    "graph", "keras_models",
)  # fmt: skip
FACE = "tfmot_asp"  # the public names: above all rooms, and below the command line, which alone uses them


def modules():
    """The name of each module, with its tree."""
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
        yield name, ast.parse(path.read_text())


def type_checking(node):
    """Whether a node is `if TYPE_CHECKING:`, whose imports never run."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imported(node, known):
    """The modules that an import statement loads; dotted names in strings are lazy imports by name."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute in this package"
        return {inner if (inner := f"{node.module}.{alias.name}") in known else node.module for alias in node.names}
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("tfmot_asp."):
        return {node.value}
    return set()


def walk(node):
    """All nodes below, but for those under `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if type_checking(child):
            for other in child.orelse:
                yield from walk(other)
        else:
            yield child
            yield from walk(child)


@pytest.fixture(scope="module")
def imports():
    trees = dict(modules())
    return {
        name: {other for node in walk(tree) for other in imported(node, trees) if other in trees} - {name}
        for name, tree in trees.items()
    }


def room_of(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else None


def test_every_folder_is_a_room_and_the_root_stays_small():
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert folders == set(ROOMS)
    files = {path.name for path in ROOT.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert len(files) <= 6, files


def test_imports_point_downwards(imports):
    order = {room: index for index, room in enumerate(ROOMS)}
    upwards = [
        f"{module} -> {other}"
        for module, others in imports.items()
        for other in others
        if module not in (FACE, "tfmot_asp.__main__")
        and room_of(module) != "cli"
        and (other == FACE or order.get(room_of(other), len(ROOMS)) < order.get(room_of(module), len(ROOMS)))
    ]
    assert upwards == []


def test_no_circle(imports):
    def visit(module, path):
        if module in path:
            raise AssertionError(" -> ".join([*path[path.index(module) :], module]))
        if module not in done:
            for other in sorted(imports[module]):
                visit(other, [*path, module])
            done.add(module)

    done = set()
    for module in imports:
        visit(module, [])


def test_the_test_sees_lazy_imports():
    tree = ast.parse(
        "if TYPE_CHECKING:\n    from a import b\n"
        "def f():\n    import c\n    from d import e\n"
        "HOME = {'x': 'tfmot_asp.files'}\n"
    )
    assert {name for node in walk(tree) for name in imported(node, {"d.e"})} == {"c", "d.e", "tfmot_asp.files"}


def test_no_two_modules_share_a_name():
    """But for each format's conversion in its own folder."""
    names = Counter(path.stem for path in ROOT.rglob("*.py") if path.stem != "__init__")
    assert {name for name, times in names.items() if times > 1} == {"convert"}


def test_no_two_classes_share_a_name():
    names = Counter(node.name for _, tree in modules() for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert {name for name, times in names.items() if times > 1} == set()
