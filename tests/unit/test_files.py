import errno
import os

import pytest

from tests.messages import refuses
from trainer import files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_project_folder_is_the_checkout_that_holds_setup_cfg():
    assert (files.project_folder() / "setup.cfg").is_file()


def test_the_project_folder_of_an_installed_wheel_is_the_current_one(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PACKAGE", tmp_path / "site-packages" / "trainer")
    monkeypatch.chdir(tmp_path)
    assert files.project_folder() == tmp_path


def test_an_atomic_file_appears_whole_and_leaves_nothing_else(tmp_path):
    files.write_atomic(tmp_path / "a", "first")
    files.write_atomic(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"second"
    assert names(tmp_path) == ["a"]


def test_an_atomic_file_that_fails_half_way_leaves_the_old_one(tmp_path):
    files.write_atomic(tmp_path / "a", "old")
    with pytest.raises(OSError), files.atomic_file(tmp_path / "a") as file:
        file.write(b"new, but")
        raise OSError(errno.ENOSPC, "no space")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_an_atomic_file_may_be_written_beside_its_folder(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    real = os.replace
    seen = []
    monkeypatch.setattr(
        os, "replace", lambda a, b: (seen.append((names(tmp_path), names(tmp_path / "inner"))), real(a, b))
    )
    files.write_atomic(tmp_path / "inner" / "a", "content", partial_in=tmp_path)
    assert seen == [([f".a.partial-{os.getpid()}", "inner"], [])]
    assert names(tmp_path / "inner") == ["a"]
    assert names(tmp_path) == ["inner"]


def test_an_atomic_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    told = []
    real_fsync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (told.append("fsync"), real_fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (told.append("replace"), real_replace(a, b)))
    files.write_atomic(tmp_path / "a", "content")
    assert told == ["fsync", "replace", "fsync"]


def test_a_folder_is_never_replaced(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with pytest.raises(FileExistsError, match="never replaced"):
        files.move_folder(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path) == ["a", "b"]


def test_everything_in_a_folder_is_on_the_disk_before_it_has_its_final_name(tmp_path, monkeypatch):
    (tmp_path / ".staging" / "inner").mkdir(parents=True)
    for name in ("x", "inner/y"):
        (tmp_path / ".staging" / name).write_text(name)
    synced, at_rename = [], []
    real_fsync, real_rename = os.fsync, os.rename
    monkeypatch.setattr(
        os, "fsync", lambda fd: (synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))), real_fsync(fd))
    )
    monkeypatch.setattr(os, "rename", lambda a, b: (at_rename.extend(synced), real_rename(a, b)))
    files.commit_folder(tmp_path / ".staging", tmp_path / "final")
    assert sorted(at_rename) == [".staging", "inner", "x", "y"]
    assert synced[-1] == tmp_path.name
    assert (tmp_path / "final" / "inner" / "y").read_text() == "inner/y"


def test_a_folder_loses_its_name_before_its_content(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("x")
    monkeypatch.setattr("shutil.rmtree", lambda path: (_ for _ in ()).throw(OSError("interrupted")))
    with pytest.raises(OSError, match="interrupted"):
        files.remove_folder(tmp_path / "a")
    assert names(tmp_path) == [".removing-a"]
    monkeypatch.undo()
    (tmp_path / "a").mkdir()
    files.remove_folder(tmp_path / "a")
    assert names(tmp_path) == []


def test_a_folder_set_aside_keeps_its_content_and_never_hides_another(tmp_path):
    made = []
    for content in ("1", "2", "3"):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "x").write_text(content)
        made.append(files.set_aside(tmp_path / "a", "damaged"))
    assert [path.name for path in made] == [".damaged-a", ".damaged-a-2", ".damaged-a-3"]
    assert [(path / "x").read_text() for path in made] == ["1", "2", "3"]


def test_a_symbolic_link_is_pointed_anew_in_one_step(tmp_path):
    for target in ("one", "two"):
        files.point_symlink(tmp_path / "latest", target)
    assert os.readlink(tmp_path / "latest") == "two"
    assert names(tmp_path) == ["latest"]


def test_sha256_is_the_one_of_the_standard(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_free_bytes_are_told_for_a_folder_that_is_not_there_yet(tmp_path):
    assert files.free_bytes(tmp_path / "not" / "yet") > 0


def test_a_file_is_cut_at_its_end(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    files.truncate_file(tmp_path / "a", 4)
    assert (tmp_path / "a").read_bytes() == b"0123"


def test_lines_are_appended_after_one_that_a_crash_cut_short(tmp_path):
    path = tmp_path / "a"
    files.append_lines(path, ["one"])
    files.append_lines(path, ["two", "three"])
    assert path.read_text() == "one\ntwo\nthree\n"
    path.write_text("one\ntw")
    files.append_lines(path, ["three"])
    assert path.read_text() == "one\ntw\nthree\n"


def test_a_line_is_added_in_one_write_after_one_that_was_cut_short(tmp_path, monkeypatch):
    written = []
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda fd, content: (written.append(content), real_write(fd, content))[1])
    path = tmp_path / "lines"
    files.append_line(path, "first")
    files.append_line(path, "second")
    path.write_bytes(path.read_bytes()[:-3])
    files.append_line(path, "third \u00e9")
    assert path.read_text(encoding="utf-8") == "first\nseco\nthird \u00e9\n"
    assert written == [b"first\n", b"second\n", "\nthird \u00e9\n".encode()]


def test_a_line_that_another_process_adds_at_the_same_instant_is_not_overwritten(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    files.append_line(path, "first")
    real_pread = os.pread

    def meanwhile(*words):
        with open(path, "ab") as other:
            other.write(b"second\n")
        return real_pread(*words)

    monkeypatch.setattr(os, "pread", meanwhile)
    files.append_line(path, "third")
    assert path.read_text() == "first\nsecond\nthird\n"


def test_a_line_of_which_a_part_was_written_is_an_error(tmp_path, monkeypatch):
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda fd, content: real_write(fd, content[:2]))
    with refuses(OSError, "part") as caught:
        files.append_line(tmp_path / "lines", "first")
    assert caught.value.errno == errno.ENOSPC


def test_a_file_that_was_forgotten_reads_as_before(tmp_path, monkeypatch):
    advised = []
    real_advise = os.posix_fadvise
    monkeypatch.setattr(os, "posix_fadvise", lambda *words: (advised.append(words[1:]), real_advise(*words)))
    (tmp_path / "a").write_text("content")
    files.fsync_file(tmp_path / "a")
    files.forget_cached(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "content"
    assert advised == [(0, 0, os.POSIX_FADV_DONTNEED)]
