"""Folders made by somebody who means harm, disks that fill up or fail, and programs that try to write to a version."""

from __future__ import annotations

import errno
import os
import random
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from appliance import errors
from appliance.store import Stage, Store, clean_path, failpoints, remove_folder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "store", reserve_mib=1, floor_bytes=0)
    yield opened
    failpoints.arm(None)
    opened.close()


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    made = tmp_path / "source"
    made.mkdir()
    yield made
    remove_folder(made)


def mounted(tmp_path: Path, options: str) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], check=True)
    try:
        yield disk
    finally:
        failpoints.arm(None)
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path, "size=16m")


@pytest.fixture
def disk_of_few_files(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path, "size=16m,nr_inodes=600")


def fill(disk: Path) -> Path:
    """Not a byte is left on `disk`."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(65536)):
            pass
    assert os.statvfs(disk).f_bavail == 0
    return filler


def is_clean(store_folder: Path) -> bool:
    return not list((store_folder / "tmp").iterdir())


# -- hostile folders ---------------------------------------------------------------------------------------------------


def test_a_link_to_the_hosts_secrets_is_stored_as_text(store: Store, source: Path) -> None:
    (source / "shadow").symlink_to("/etc/shadow")
    (source / "etc").symlink_to("/etc")

    root = store.put_tree(source, move=False).root

    assert b"".join(store.read(root, "shadow")) == b"/etc/shadow"
    assert [(entry.path, entry.kind) for entry in store.files(root)] == [("etc", "symlink"), ("shadow", "symlink")]


@pytest.mark.parametrize("kind", ["FIFO", "socket", "device", "block device"])
def test_what_is_no_file_is_refused_by_name_before_anything_is_stored(store: Store, source: Path, kind: str) -> None:
    (source / "a").mkdir()
    (source / "fine").write_bytes(b"x")
    bad = source / "a" / "bad"
    if kind == "FIFO":
        os.mkfifo(bad)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"/proc/self/fd/{os.open(bad.parent, os.O_RDONLY)}/bad")
    else:
        os.mknod(bad, (stat.S_IFCHR if kind == "device" else stat.S_IFBLK) | 0o600, os.makedev(1, 3))

    with pytest.raises(errors.BadRequest, match=f"'a/bad' is a {kind}"):
        store.put_tree(source, move=True)

    assert store.usage().objects == 0
    assert (source / "fine").read_bytes() == b"x"


def test_hard_links_are_stored_as_files_of_their_own_and_never_taken_over(
    store: Store, source: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"reachable from elsewhere" * 5000)
    os.link(outside, source / "a")
    os.link(outside, source / "b")

    tree = store.put_tree(source, move=True)
    outside.write_bytes(b"changed afterwards")

    assert b"".join(store.read(tree.root, "a")) == b"reachable from elsewhere" * 5000
    assert store.verify([tree.root], deep=True) == []


def test_a_folder_that_is_too_deep_is_refused_and_can_be_removed(store: Store, source: Path) -> None:
    fd = os.open(source, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)

    with pytest.raises(errors.BadRequest, match="deeper than 200 folders"):
        store.put_tree(source, move=False)
    remove_folder(source)

    assert not source.exists()


def test_a_path_that_is_too_long_is_refused_and_the_longest_one_can_be_mounted(store: Store, source: Path) -> None:
    def nest(levels: int, name: str) -> None:
        fd = os.open(source, os.O_RDONLY)
        for _ in range(levels):
            with suppress(FileExistsError):
                os.mkdir("n" * 255, dir_fd=fd)
            inner = os.open("n" * 255, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = inner
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.close(fd)

    nest(15, "f" * 255)
    view = store.mount_of(store.put_tree(source, move=False).root)
    nest(16, "f")

    assert (
        subprocess.run(["find", ".", "-name", "f*"], cwd=view, capture_output=True, check=True).stdout.count(b"f") > 1
    )
    with pytest.raises(errors.BadRequest, match="longer than 4096 bytes"):
        store.put_tree(source, move=False)


def test_weird_names_are_kept_and_a_name_that_cannot_be_shown_is_refused(store: Store, source: Path) -> None:
    weird = [
        "a\nb",
        "-rf",
        " ",
        "\t",
        "*",
        "é",
        "e\u0301",
        "\u202etxt.exe",
        "'; rm",
        "a\\b",
        "~",
        "$(id)",
        "\x1b[2J",
        "🎲",
    ]
    for name in weird:
        (source / name).write_text(name)

    root = store.put_tree(source, move=False).root
    (source / os.fsdecode(b"caf\xe9")).write_text("latin")

    assert {entry.path: b"".join(store.read(root, entry.path)).decode() for entry in store.files(root)} == {
        name: name for name in weird
    }
    assert (
        subprocess.run(["diff", "-r", source, store.mount_of(root)], capture_output=True, check=False).returncode == 1
    )
    with pytest.raises(errors.BadRequest, match="is not UTF-8"):
        store.put_tree(source, move=False)


def test_a_sparse_file_larger_than_the_disk_is_refused_at_once(store: Store, source: Path, small_disk: Path) -> None:
    with (small_disk / "huge").open("wb") as file:
        os.truncate(file.fileno(), 1 << 50)

    with pytest.raises(errors.DiskFull, match="more than the whole disk"):
        store.put_tree(small_disk, move=True)


def test_a_file_that_changes_meanwhile_is_stored_as_some_whole_reading_of_it(store: Store, source: Path) -> None:
    (source / "f").write_bytes(b"0" * 200_000)
    opened, done = threading.Event(), threading.Event()

    def scribble() -> None:
        dice = random.Random(3)
        with (source / "f").open("r+b", buffering=0) as file:
            opened.set()
            while not done.is_set():
                file.seek(dice.randrange(200_000))
                file.write(dice.randbytes(1000))
                file.truncate(dice.randrange(100_000, 200_000))

    writer = threading.Thread(target=scribble)
    writer.start()
    opened.wait()
    try:
        roots = [store.put_tree(source, move=number % 2 == 0).root for number in range(20)]
    finally:
        done.set()
        writer.join()

    assert store.verify(roots, deep=True) == []


def test_a_file_that_somebody_opens_for_writing_while_it_is_taken_over_is_refused(store: Store, source: Path) -> None:
    (source / "f").write_bytes(b"mine" * 20_000)

    def open_it(name: str) -> None:
        if name == "chmod":
            with pytest.raises(BlockingIOError):
                os.open(source / "f", os.O_WRONLY | os.O_NONBLOCK)

    failpoints.arm(open_it)
    with pytest.raises(errors.BadRequest, match="'f' changed while it was being stored"):
        store.put_tree(source, move=True)
    failpoints.arm(None)

    assert store.usage().objects == 0
    assert b"".join(store.read(store.put_tree(source, move=True).root, "f")) == b"mine" * 20_000


def test_a_folder_that_is_swapped_for_a_link_is_not_followed(store: Store, source: Path) -> None:
    (source / "1").write_bytes(b"first")
    (source / "sub").mkdir()
    (source / "sub" / "f").write_bytes(b"x")

    def swap(name: str) -> None:
        if name == "create" and not (source / "sub").is_symlink():
            remove_folder(source / "sub")
            (source / "sub").symlink_to("/etc")

    failpoints.arm(swap)
    with pytest.raises(errors.BadRequest, match="'sub' changed"):
        store.put_tree(source, move=False)


def test_a_source_that_is_no_folder_is_not_found(store: Store, source: Path) -> None:
    (source / "link").symlink_to(source)

    for wrong in (source / "nothing", source / "link"):
        with pytest.raises(errors.NotFound):
            store.put_tree(wrong, move=False)


def test_a_process_with_root_cannot_write_through_a_read_only_bind_of_a_view(store: Store, source: Path) -> None:
    (source / "f").write_bytes(b"immutable")
    root = store.put_tree(source, move=False).root
    target = source.parent / "target"
    target.mkdir()
    script = (
        'mount --bind "$1" "$2" && mount -o remount,bind,ro "$2" || exit 9; cd "$2"; '
        "(echo x > f) 2>/dev/null && exit 1; (echo x > new) 2>/dev/null && exit 2; rm -f f 2>/dev/null && exit 3; "
        "chmod 777 f 2>/dev/null && exit 4; ln f g 2>/dev/null && exit 5; truncate -s 0 f 2>/dev/null && exit 6; "
        "cat f"
    )

    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", store.mount_of(root), target], capture_output=True, check=False
    )

    assert (done.returncode, done.stdout) == (0, b"immutable")
    assert store.verify([root], deep=True) == []


# -- disks -------------------------------------------------------------------------------------------------------------


def test_a_full_disk_refuses_new_data_and_keeps_what_was_there(small_disk: Path, source: Path) -> None:
    store = Store(small_disk / "store", reserve_mib=1, floor_bytes=0)
    (source / "f").write_bytes(b"kept")
    kept = store.put_tree(source, move=False)
    for number in range(64):
        (source / f"big{number}").write_bytes(os.urandom(15 << 14))

    with pytest.raises(errors.DiskFull, match="Delete versions"):
        store.put_tree(source, move=False)

    store.publish(kept)
    assert is_clean(small_disk / "store")
    assert store.verify([kept.root], deep=True) == []
    store.collect(lambda: [kept.root])
    assert store.usage().objects == 2
    store.close()


def test_a_disk_without_inodes_refuses_new_files_and_recovers(disk_of_few_files: Path, source: Path) -> None:
    store = Store(disk_of_few_files / "store", reserve_mib=0, floor_bytes=0)
    for number in range(500):
        (source / f"{number}").write_bytes(b"%d" % number)

    with pytest.raises(errors.DiskFull):
        store.put_tree(source, move=False)
    store.collect(list)
    for number in range(400):
        (source / f"{number}").unlink()

    assert is_clean(disk_of_few_files / "store")
    assert store.verify([store.put_tree(source, move=False).root], deep=True) == []
    store.close()


def test_deleting_and_collecting_work_while_the_disk_is_full(small_disk: Path, source: Path) -> None:
    store = Store(small_disk / "store", reserve_mib=2, floor_bytes=0)
    (source / "f").write_bytes(os.urandom(3 << 20))
    tree = store.put_tree(source, move=False)
    store.publish(tree)
    fill(small_disk)

    store.give_up_reserve()
    (small_disk / "journal of a delete").write_bytes(bytes(1 << 20))
    collected = store.collect(list)

    assert collected.size_bytes > 3 << 20
    assert store.usage().reserve_bytes == 2 << 20
    (source / "f").write_bytes(b"small again")
    assert store.verify([store.put_tree(source, move=False).root], deep=True) == []
    store.close()


def test_a_store_opens_on_a_full_disk(small_disk: Path, source: Path) -> None:
    (source / "f").write_bytes(b"1")
    store = Store(small_disk / "store", reserve_mib=1, floor_bytes=0)
    tree = store.put_tree(source, move=False)
    view = store.mount_of(tree.root)
    store.close()
    (small_disk / "store" / "views" / ".boot").write_text("another boot")
    (small_disk / "store" / "tmp" / "torn").mkdir()
    fill(small_disk)

    store = Store(small_disk / "store", reserve_mib=1, floor_bytes=0)

    assert b"".join(store.read(tree.root, "f")) == b"1"
    assert is_clean(small_disk / "store")
    assert not view.exists()
    store.close()


def test_a_view_that_finds_no_room_is_not_there_at_all(disk_of_few_files: Path, source: Path) -> None:
    (source / "sub").mkdir()
    (source / "sub" / "f").write_bytes(b"1")
    store = Store(disk_of_few_files / "store", reserve_mib=0, floor_bytes=0)
    root = store.put_tree(source, move=False).root
    crowd = disk_of_few_files / "crowd"
    crowd.mkdir()
    with suppress(OSError):
        for number in range(600):
            (crowd / str(number)).touch()
    (crowd / "0").unlink()
    (crowd / "1").unlink()

    with pytest.raises(errors.DiskFull, match="building a view"):
        store.mount_of(root)
    nothing = store.usage().views
    remove_folder(crowd)

    assert nothing == 0
    assert is_clean(disk_of_few_files / "store")
    assert (store.mount_of(root) / "sub" / "f").read_bytes() == b"1"
    store.close()


def test_a_disk_that_fills_up_at_any_moment_leaves_nothing_half_done(small_disk: Path, source: Path) -> None:
    for number in range(4):
        (source / f"f{number}").write_bytes(os.urandom(100_000))
    store = Store(small_disk / "store", reserve_mib=0, floor_bytes=0)
    names: list[str] = []
    failpoints.arm(names.append)
    store.discard(store.put_tree(source, move=False))
    store.collect(list)

    refused = 0
    for moment in range(len(names)):
        failpoints.arm(at_hit(moment, lambda: fill(small_disk)))
        try:
            store.discard(store.put_tree(source, move=False))
        except errors.DiskFull:
            refused += 1
        failpoints.arm(None)
        (small_disk / "filler").unlink(missing_ok=True)
        assert is_clean(small_disk / "store")
        assert store.verify(None, deep=True) == []
        store.collect(list)
        assert store.usage().objects == 0
    assert refused > 5
    store.close()


def test_an_fsync_that_fails_ends_the_taking_of_data(tmp_path: Path, source: Path) -> None:
    (source / "sub").mkdir()
    for number in range(3):
        (source / "sub" / f"{number}").write_bytes(b"%d" % number)
    counted: list[str] = []
    failpoints.arm(counted.append)
    fresh = Store(tmp_path / "counted", reserve_mib=0, floor_bytes=0)
    counted.clear()
    fresh.put_tree(source, move=False)
    fresh.close()

    for moment in range(counted.count("fsync")):
        failpoints.arm(None)
        folder = tmp_path / f"store{moment}"
        store = Store(folder, reserve_mib=0, floor_bytes=0)
        failpoints.arm(at_hit(moment, raise_eio, only="fsync"))
        with pytest.raises(errors.DurabilityLost, match="Check the disk"):
            store.put_tree(source, move=False)
        failpoints.arm(None)
        with pytest.raises(errors.DurabilityLost):
            store.put_tree(source, move=False)
        store.close()

        store = Store(folder, reserve_mib=0, floor_bytes=0)
        assert is_clean(folder)
        assert store.verify([store.put_tree(source, move=False).root], deep=True) == []
        store.close()


def raise_eio() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def at_hit(moment: int, then: Callable[[], object], only: str | None = None) -> Callable[[str], None]:
    """A plan: at the hit number `moment` (of those called `only`) it calls `then`."""
    count = -1
    lock = threading.Lock()

    def plan(name: str) -> None:
        nonlocal count
        with lock:
            count += only in (None, name)
            now = count == moment and only in (None, name)
        if now:
            then()

    return plan


# -- stages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/etc/passwd",
        "..",
        "../x",
        "a/../b",
        "a//b",
        "a/",
        "./a",
        "a/.",
        "a\x00b",
        "a\nb",
        "\x7f",
        "\x85",
        "n" * 256,
        "é" * 128,
        "/".join(["n" * 250] * 17),
        "/".join("a" * 201),
        chr(0xDCFF),
    ],
)
def test_a_path_that_could_leave_its_folder_or_not_be_shown_is_refused_in_one_sentence(path: str) -> None:
    with pytest.raises(errors.BadRequest) as refused:
        clean_path(path)

    assert str(refused.value).startswith("The path ")
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "path", ["a", "a/b.txt", "...", "..a", "a b", "é", "e\u0301", "n" * 255, "-rf", "a\\b", ".git/x"]
)
def test_an_ordinary_path_is_taken_as_it_is(path: str) -> None:
    assert clean_path(path) == path


def test_staged_files_become_the_version(store: Store, tmp_path: Path) -> None:
    stage = Stage(tmp_path / "staging" / "v1", floor_bytes=0)

    size = stage.write("a/b/model.onnx", [b"12", b"34"])
    stage.write("run.sh", [b"#!/bin/sh\n"], executable=True)
    stage.write("a/b/model.onnx", [b"replaced"])
    stage.write("a/gone", [b"x"])
    stage.delete("a/gone")
    listed = stage.files()
    tree = store.put_tree(stage.folder, move=True)
    store.publish(tree)

    assert size == 4
    assert [
        (entry.path, entry.size_bytes, entry.executable, entry.hash) for entry in listed if entry.kind == "file"
    ] == [
        ("a/b/model.onnx", 8, False, None),
        ("run.sh", 10, True, None),
    ]
    assert [entry.path for entry in store.files(tree.root)] == ["a", "a/b", "a/b/model.onnx", "run.sh"]
    assert stage.files() == []


def test_deleting_the_last_file_of_a_folder_removes_the_folder(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "v1", floor_bytes=0)
    stage.write("a/b/c", [b"1"])
    stage.write("d/e", [b"1"])

    stage.delete("a/b/c")
    stage.delete("d")

    assert stage.files() == []
    for missing in ("a/b/c", "nothing", "nothing/at/all"):
        with pytest.raises(errors.NotFound):
            stage.delete(missing)


def test_an_upload_that_breaks_off_or_is_too_large_leaves_the_old_file(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "staging" / "v1", floor_bytes=0)
    stage.write("f", [b"old"])

    def broken() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        stage.write("f", broken())
    with pytest.raises(errors.TooLarge, match="'f' is larger than the 5 bytes"):
        stage.write("f", [b"123", b"456"], max_bytes=5)

    assert (stage.folder / "f").read_bytes() == b"old"
    assert [path.name for path in stage.folder.parent.iterdir()] == ["v1"]


def test_a_staged_link_is_never_written_through(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "v1", floor_bytes=0)
    stage.write("f", [b"1"])
    outside = tmp_path / "outside"
    outside.mkdir()
    (stage.folder / "link").symlink_to(outside)
    (outside / "file").write_bytes(b"theirs")
    (stage.folder / "to-file").symlink_to(outside / "file")

    with pytest.raises(errors.Conflict, match="cannot lie beneath it"):
        stage.write("link/f", [b"x"])
    with pytest.raises(errors.Conflict):
        stage.write("f/g", [b"x"])
    with pytest.raises(errors.Conflict):
        stage.delete("link/file")
    stage.write("to-file", [b"mine"])
    stage.write("d/x", [b"1"])
    with pytest.raises(errors.Conflict, match="'d' is a folder"):
        stage.write("d", [b"x"])

    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (outside / "file").read_bytes() == b"theirs"


def test_a_full_disk_refuses_the_upload_and_keeps_what_was_there(small_disk: Path) -> None:
    stage = Stage(small_disk / "v1", floor_bytes=0)
    stage.write("f", [b"old"])

    with pytest.raises(errors.DiskFull):
        stage.write("f", (os.urandom(1 << 20) for _ in range(40)))

    assert (stage.folder / "f").read_bytes() == b"old"
    assert [path.name for path in small_disk.iterdir()] == ["v1"]


def test_data_is_refused_before_the_disk_is_full(tmp_path: Path, source: Path) -> None:
    floor_bytes = 1 << 60
    stage = Stage(tmp_path / "v1", floor_bytes=floor_bytes)
    (source / "f").write_bytes(b"x")
    store = Store(tmp_path / "store", reserve_mib=0, floor_bytes=floor_bytes)

    with pytest.raises(errors.DiskFull, match="the appliance keeps for itself"):
        stage.write("f", [b"x"])
    with pytest.raises(errors.DiskFull, match="the appliance keeps for itself"):
        store.put_tree(source, move=False)
    store.close()
