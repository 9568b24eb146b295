import errno
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tfmot_asp.files import check_writable, replacing, reserve, temporary_folder


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


@pytest.mark.parametrize("function", ["mkdir", "open", "close", "unlink", "rmdir"])
def test_ctrl_c_while_the_temporary_folder_comes_or_goes_leaves_nothing_of_it(tmp_path, monkeypatch, function):
    write_saved_model(tmp_path / "m", "old")
    original = getattr(os, function)

    def interrupted(*args, **options):
        original(*args, **options)
        monkeypatch.undo()
        raise KeyboardInterrupt

    def write_new():
        with replacing(tmp_path / "m", overwrite=True, what="a SavedModel", folder=True) as written:
            written.mkdir()
            (written / "saved_model.pb").write_text("new")
            monkeypatch.setattr(os, function, interrupted)

    comes = function in ("mkdir", "open")
    if comes:
        monkeypatch.setattr(os, function, interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_new()
    assert os.listdir(tmp_path) == ["m"]
    assert (tmp_path / "m" / "saved_model.pb").read_text() == ("old" if comes else "new")


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


# What is left of processes that were killed.

KILLED = """
import os, signal, sys
from pathlib import Path
from tfmot_asp import files
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
path, when = Path(sys.argv[1]), sys.argv[2]
if when == "between":
    Path.replace = die
with files.replacing(path, overwrite=True, what="a SavedModel", folder=True) as written:
    written.mkdir()
    (written / "saved_model.pb").write_text("new")
    if when == "writing":
        die()
"""


@pytest.mark.parametrize("when", ["writing", "between"])
def test_what_a_killed_process_left_goes_with_the_next_run(tmp_path, when):
    target, other = tmp_path / "m", tmp_path / "n"
    for path in (target, other):
        write_saved_model(path, "old")
        command = [sys.executable, "-c", KILLED, str(path), when]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        assert done.returncode == -signal.SIGKILL
        assert path.exists() == (when == "writing")
    with replacing(target, overwrite=True, what="x", folder=True) as written:
        assert (target / "saved_model.pb").read_text() == "old"  # put back, where it had been taken away
        written.mkdir()
        (written / "saved_model.pb").write_text("newer")
    assert (target / "saved_model.pb").read_text() == "newer"
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left[0].startswith(".n.tfmot-asp-")  # another target is none of its business
    write_saved_model(other, "newer")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "n"]


def test_what_a_living_process_holds_stays(tmp_path):
    with replacing(tmp_path / "m", overwrite=True, what="a file") as first:
        first.write_text("first")
        write(tmp_path / "m", "second")
        assert first.read_text() == "first"
        assert (tmp_path / "m").read_text() == "second"
    assert (tmp_path / "m").read_text() == "first"


def test_only_its_own_folders_are_removed(tmp_path):
    for name in (".m.tfmot-asp-1", ".m.tfmot-asp-2", ".m-abcdefgh", "m.tfmot-asp-3"):
        (tmp_path / name).mkdir()
    (tmp_path / ".m.tfmot-asp-file").write_text("lock")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "lock").write_text("")
    (tmp_path / ".m.tfmot-asp-link").symlink_to("elsewhere")
    (tmp_path / ".m.tfmot-asp-1" / "lock").symlink_to("../elsewhere/lock")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    write(tmp_path / "m", "new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([*before, "m"])


def test_temporary_folders_of_the_system(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / ".tfmot-asp-stale").mkdir()
    (tmp_path / ".tfmot-asp-stale" / "lock").write_text("")
    with temporary_folder() as folder:
        assert folder.parent == tmp_path
        assert [path for path in tmp_path.iterdir() if path != folder] == []
    assert list(tmp_path.iterdir()) == []


# Places that cannot be written to.


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("Can't write data (errno = 28, error message = 'No space left on device')"),
        RuntimeError("UNKNOWN: /somewhere; No space left on device [Op:SaveV2]"),
    ],
)
def test_a_full_disk_is_named_after_the_file(tmp_path, error):
    with pytest.raises(OSError, match="No space left") as raised, replacing(tmp_path / "m", overwrite=True, what="x"):
        raise error
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "m"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_written_to(tmp_path, monkeypatch):
    mkdir = os.mkdir

    def refuse(path, *args):
        if ".tfmot-asp-" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        mkdir(path, *args)

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(PermissionError) as raised, replacing(tmp_path / "a/m", overwrite=True, what="x"):
        pass
    assert raised.value.filename == str(tmp_path / "a/m")
    assert list(tmp_path.iterdir()) == []


def test_errors_of_other_files_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError) as raised, replacing(tmp_path / "m", overwrite=True, what="x"):
        (tmp_path / "typical inputs").read_text()
    assert raised.value.filename == str(tmp_path / "typical inputs")


@pytest.mark.skipif(sys.platform != "linux", reason="how a process is kept from writing large files")
def test_room_is_asked_for(tmp_path):
    import resource

    reserve(tmp_path / "m", 1 << 20)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            reserve(tmp_path / "m", 1 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_folders_are_looked_at_before_long_work(tmp_path):
    check_writable(tmp_path / "a/b/m")
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="a/b/m"):
        check_writable(tmp_path / "a/b/m")
