import os
from pathlib import Path

import pytest

from tfmot_asp.files import replacing


def write(path, content, **options):
    with replacing(path, overwrite=True, what="a file", **options) as temporary:
        temporary.write_text(content)


def write_saved_model(path, content):
    with replacing(path, overwrite=True, what="a SavedModel", folder=True) as temporary:
        temporary.mkdir()
        (temporary / "saved_model.pb").write_text(content)


@pytest.mark.parametrize("writer", [write, write_saved_model])
@pytest.mark.parametrize("method", ["rename", "replace"])
@pytest.mark.parametrize("late", [False, True])
def test_ctrl_c_between_the_steps_of_replacing_never_loses_what_was_there(tmp_path, monkeypatch, writer, method, late):
    target = tmp_path / "m"
    writer(target, "old")
    original = getattr(Path, method)

    def interrupted(self, other):
        if late:
            original(self, other)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, method, interrupted)
    if writer is write and method == "rename":
        writer(target, "new")  # a file needs no such step
    else:
        with pytest.raises(KeyboardInterrupt):
            writer(target, "new")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["m"]
    content = (target / "saved_model.pb" if target.is_dir() else target).read_text()
    assert content in ("old", "new")
    assert content == "old" or method == "replace" or writer is write


def test_folders_that_were_made_for_the_file_go_with_it(tmp_path):
    (tmp_path / "kept").mkdir()
    with pytest.raises(RuntimeError, match="no"), replacing(tmp_path / "kept/a/b/m", overwrite=False, what="a file"):
        raise RuntimeError("no")
    assert [path.name for path in tmp_path.rglob("*")] == ["kept"]
    write(tmp_path / "kept/a/b/m", "new")
    assert (tmp_path / "kept/a/b/m").read_text() == "new"


def test_an_empty_folder_is_a_place_for_a_folder(tmp_path):
    (tmp_path / "m").mkdir()
    with pytest.raises(RuntimeError, match="no"), replacing(tmp_path / "m", overwrite=False, what="x", folder=True):
        raise RuntimeError("no")
    assert list(tmp_path.iterdir()) == [tmp_path / "m"]
    with replacing(tmp_path / "m", overwrite=False, what="a SavedModel", folder=True) as temporary:
        temporary.mkdir()
        (temporary / "content").write_text("new")
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["m", "m/content"]
    for overwrite, problem in ((False, "exists; give another path"), (True, "exists and is no SavedModel")):
        with (
            pytest.raises(FileExistsError, match=problem),
            replacing(tmp_path / "m", overwrite=overwrite, what="a SavedModel", folder=True),
        ):
            pass
    (tmp_path / "f").mkdir()
    with pytest.raises(FileExistsError, match="exists and is no file"):
        write(tmp_path / "f", "new")


def test_a_dangling_link_is_not_replaced(tmp_path):
    target = tmp_path / "m"
    target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="exists and is no SavedModel"):
        write_saved_model(target, "new")
    assert target.is_symlink()


@pytest.mark.parametrize("name", ["ä" * 120, "x" * 255, "a b;c", "模型.onnx", "-rf", "~"])
def test_any_name_that_the_file_system_takes(tmp_path, name):
    write(tmp_path / name, "new")
    assert os.listdir(tmp_path) == [name]


def test_a_relative_path_and_a_change_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("m"), "new")
    write(Path("deeper/m"), "new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deeper", "m", "m"]


def test_a_file_is_no_folder_to_write_to(tmp_path):
    (tmp_path / "notes").write_text("kept")
    with pytest.raises(FileExistsError, match=r"cannot be written: '.*notes' is no folder"):
        write(tmp_path / "notes/deeper/m", "new")
    assert (tmp_path / "notes").read_text() == "kept"
