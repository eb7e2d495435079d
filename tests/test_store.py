"""The store as its callers see it: what goes in comes out, is shared, is checked, and can be compared and collected."""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance import errors
from appliance.store import Store, failpoints

pytestmark = pytest.mark.fast


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "store", reserve_mib=1, floor_bytes=0)
    yield opened
    failpoints.arm(None)
    opened.close()


def lay_out(folder: Path, files: dict[str, bytes | None]) -> Path:
    """`folder` with these files; None is an empty directory."""
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        at = folder / path
        at.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            at.mkdir(exist_ok=True)
        else:
            at.write_bytes(content)
    return folder


def content_of(store: Store, root: str) -> dict[str, bytes | None]:
    return {
        entry.path: None if entry.kind == "directory" else b"".join(store.read(root, entry.path))
        for entry in store.files(root)
    }


def objects_of(store: Store) -> set[Path]:
    return {path for path in store.mount_of(put_empty(store)).parents[1].glob("objects/*/*") if path.is_file()}


def put_empty(store: Store) -> str:
    with tempfile.TemporaryDirectory() as empty:
        return store.put_tree(Path(empty), move=False).root


def object_file(tmp_path: Path, tagged: str | None) -> Path:
    assert tagged is not None
    digits = tagged.removeprefix("b3:")
    return tmp_path / "store" / "objects" / digits[:2] / digits


# -- round trip --------------------------------------------------------------------------------------------------------

names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..")
)
folders = st.recursive(
    st.binary(max_size=300) | st.tuples(st.binary(max_size=30), st.just("x")),
    lambda inner: st.dictionaries(names, inner, max_size=5),
    max_leaves=25,
).filter(lambda made: isinstance(made, dict))


def write_out(folder: Path, made: dict[str, object], at: str = "") -> dict[str, tuple[bytes | None, bool]]:
    wanted: dict[str, tuple[bytes | None, bool]] = {}
    for name, inner in made.items():
        path = folder / name
        if isinstance(inner, dict):
            path.mkdir()
            wanted[at + name] = (None, False)
            wanted |= write_out(path, inner, f"{at}{name}/")
        else:
            data, executable = (inner[0], True) if isinstance(inner, tuple) else (inner, False)
            assert isinstance(data, bytes)
            path.write_bytes(data)
            path.chmod(0o755 if executable else 0o644)
            wanted[at + name] = (data, executable)
    return wanted


@given(made=folders, move=st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_folder_comes_back_as_it_went_in(made: dict[str, object], move: bool) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as scratch:
        source = Path(scratch, "source")
        source.mkdir()
        wanted = write_out(source, made)
        store = Store(Path(scratch, "store"), reserve_mib=0, floor_bytes=0)

        tree = store.put_tree(source, move=move)

        listed = store.files(tree.root)
        assert [entry.path.split("/") for entry in listed] == sorted(
            (path.split("/") for path in wanted), key=lambda parts: [os.fsencode(part) for part in parts]
        )
        for entry in listed:
            data, executable = wanted[entry.path]
            assert entry.executable is executable
            if data is not None:
                assert b"".join(store.read(tree.root, entry.path)) == data
                assert entry.hash == f"b3:{blake3(data).hexdigest()}"
        assert tree.file_count == sum(data is not None for data, _ in wanted.values())
        assert tree.size_bytes == sum(len(data) for data, _ in wanted.values() if data is not None)
        store.close()


def test_the_root_does_not_depend_on_time_owner_mode_or_order(store: Store, tmp_path: Path) -> None:
    one = lay_out(tmp_path / "one", {"a": b"1", "b/c": b"2"})
    two = lay_out(tmp_path / "two", {"b/c": b"2", "a": b"1"})
    os.utime(two / "a", (1, 1))
    os.chown(two / "a", 1234, 1234)
    (two / "b").chmod(0o700)
    (two / "b" / "c").chmod(0o6604)

    assert store.put_tree(one, move=False).root == store.put_tree(two, move=False).root


def test_setuid_bits_and_owners_do_not_reach_a_view(store: Store, tmp_path: Path) -> None:
    source = lay_out(tmp_path / "source", {"tool": b"#!/bin/sh\n", "data": b"x"})
    os.chown(source / "tool", 1000, 1000)
    (source / "tool").chmod(0o6755)
    (source / "data").chmod(0o6644)

    view = store.mount_of(store.put_tree(source, move=True).root)

    assert [((view / name).stat().st_mode & 0o7777, (view / name).stat().st_uid) for name in ("tool", "data")] == [
        (0o555, 0),
        (0o444, 0),
    ]


def test_the_root_of_a_known_tree_never_changes(store: Store, tmp_path: Path) -> None:
    source = lay_out(tmp_path / "source", {"a.txt": b"hello\n", "empty": None, "sub/run": b"#!/bin/sh\n"})
    (source / "sub" / "run").chmod(0o755)
    (source / "link").symlink_to("a.txt")

    tree = store.put_tree(source, move=False)

    hello, run, link = (blake3(data).hexdigest().encode() for data in (b"hello\n", b"#!/bin/sh\n", b"a.txt"))
    sub = b"appliance-tree 1 1 1 10\nx 10 " + run + b"\trun\0"
    empty = b"appliance-tree 1 0 0 0\n"
    node = b"".join(
        [
            b"appliance-tree 1 4 3 21\n",
            b"f 6 " + hello + b"\ta.txt\0",
            b"d 0 " + blake3(empty).hexdigest().encode() + b"\tempty\0",
            b"l 5 " + link + b"\tlink\0",
            b"d 10 " + blake3(sub).hexdigest().encode() + b"\tsub\0",
        ]
    )
    assert tree.root == f"b3:{blake3(node).hexdigest()}"
    assert object_file(tmp_path, tree.root).read_bytes() == node


# -- sharing -----------------------------------------------------------------------------------------------------------


def test_equal_bytes_are_stored_once_and_storing_again_writes_nothing(store: Store, tmp_path: Path) -> None:
    source = lay_out(tmp_path / "source", {"a": b"same", "b": b"same", "c/d": b"same", "e": b"other"})
    first = store.put_tree(source, move=False)
    before = {path: path.stat().st_ino for path in objects_of(store)}

    second = store.put_tree(source, move=False)

    assert second.root == first.root
    assert second.added_bytes == 0
    assert {path: path.stat().st_ino for path in objects_of(store)} == before
    assert sum(path.read_bytes() == b"same" for path in before) == 1


def test_a_moved_file_is_taken_over_without_copying_and_its_folder_goes_with_the_commit(
    store: Store, tmp_path: Path
) -> None:
    source = lay_out(tmp_path / "source", {"big": os.urandom(3 << 20)})
    inode = (source / "big").stat().st_ino

    tree = store.put_tree(source, move=True)
    still_there = source.exists()
    store.publish(tree)

    assert still_there
    assert not source.exists()
    assert object_file(tmp_path, store.entry(tree.root, "big").hash).stat().st_ino == inode


def test_a_discarded_tree_leaves_its_source_and_is_collected(store: Store, tmp_path: Path) -> None:
    source = lay_out(tmp_path / "source", {"a": b"1"})
    tree = store.put_tree(source, move=True)

    held = store.collect(list)
    store.discard(tree)
    freed = store.collect(list)

    assert (held.objects, freed.objects) == (0, 2)
    assert (source / "a").read_bytes() == b"1"


def test_many_clients_may_store_the_same_folder_at_once(store: Store, tmp_path: Path) -> None:
    source = lay_out(tmp_path / "source", {f"{number % 7}/{number}": b"%d" % number for number in range(60)})

    with ThreadPoolExecutor(8) as pool:
        trees = list(pool.map(lambda _: store.put_tree(source, move=False), range(16)))

    assert len({tree.root for tree in trees}) == 1
    assert sum(tree.added_bytes for tree in trees) == store.usage().size_bytes
    assert store.verify([trees[0].root], deep=True) == []
    assert list((tmp_path / "store" / "tmp").iterdir()) == []


# -- reading -----------------------------------------------------------------------------------------------------------


def test_files_are_listed_by_folder_and_page_by_page(store: Store, tmp_path: Path) -> None:
    source = lay_out(tmp_path / "source", {"a/1": b"", "a/2": b"", "a-b": b"", "a/sub/3": b"", "z": b"", "e": None})
    root = store.put_tree(source, move=False).root
    everything = [entry.path for entry in store.files(root)]

    pages, after = [], None
    while page := store.files(root, after=after, limit=2):
        after = page[-1].path
        pages += [entry.path for entry in page]

    assert everything == ["a", "a/1", "a/2", "a/sub", "a/sub/3", "a-b", "e", "z"]
    assert pages == everything
    assert [entry.path for entry in store.files(root, "a", recursive=False)] == ["a/1", "a/2", "a/sub"]
    assert [entry.path for entry in store.files(root, "a/sub/")] == ["a/sub/3"]
    assert [entry.path for entry in store.files(root, "z")] == ["z"]
    assert [entry.path for entry in store.files(root, "a", after="a/2")] == ["a/sub", "a/sub/3"]
    with pytest.raises(errors.NotFound, match="no 'a/nothing'"):
        store.files(root, "a/nothing")


def test_parts_of_a_file_can_be_read(store: Store, tmp_path: Path) -> None:
    data = random.Random(1).randbytes((2 << 20) + 77)
    root = store.put_tree(lay_out(tmp_path / "source", {"f": data, "none": b""}), move=False).root

    def read(offset: int, length: int | None) -> bytes:
        return b"".join(store.read(root, "f", offset=offset, length=length))

    assert read(0, None) == data
    assert read(5, 10) == data[5:15]
    assert read(2 << 20, None) == data[2 << 20 :]
    assert read(len(data) + 5, 10) == b""
    assert b"".join(store.read(root, "none")) == b""
    with pytest.raises(errors.NotFound):
        store.read(root, "nothing")
    with pytest.raises(errors.BadRequest):
        store.read(root, "")
    with pytest.raises(errors.BadRequest, match="not the name of a tree"):
        store.files("../../etc")


def test_a_view_is_complete_and_equal_to_what_was_stored(store: Store, tmp_path: Path) -> None:
    source = lay_out(tmp_path / "source", {"a/b/c": b"1", "d": b"2" * 5000, "empty": None, "tool": b"#!/bin/sh\n"})
    (source / "tool").chmod(0o755)
    (source / "copy-of-tool").write_bytes(b"#!/bin/sh\n")
    (source / "link").symlink_to("/etc/shadow")
    root = store.put_tree(source, move=False).root

    with ThreadPoolExecutor(4) as pool:
        views = set(pool.map(store.mount_of, [root] * 8))

    assert len(views) == 1
    view = views.pop()
    assert subprocess.run(["diff", "-r", "--no-dereference", source, view], check=False).returncode == 0
    assert os.access(view / "tool", os.X_OK)
    assert (view / "copy-of-tool").stat().st_mode & 0o777 == 0o444
    assert (view / "link").readlink() == Path("/etc/shadow")
    assert (view / "d").stat().st_ino == object_file(tmp_path, store.entry(root, "d").hash).stat().st_ino


def test_a_view_is_complete_when_an_object_has_no_links_left(store: Store, tmp_path: Path) -> None:
    source = lay_out(tmp_path / "source", {"a": b"crowded", "b": b"crowded", "c": b"crowded"})
    root = store.put_tree(source, move=False).root
    crowded = object_file(tmp_path, store.entry(root, "a").hash)
    links = tmp_path / "links"
    links.mkdir()
    try:
        for number in range(64_998):  # ext4 allows 65,000: the object itself, these, and one more
            os.link(crowded, links / str(number))
    except OSError:
        pass

    view = store.mount_of(root)

    assert [(view / name).read_bytes() for name in "abc"] == [b"crowded"] * 3
    assert len({(view / name).stat().st_ino for name in "abc"}) <= 2


# -- comparing ---------------------------------------------------------------------------------------------------------


def test_a_diff_names_what_was_added_changed_and_removed(store: Store, tmp_path: Path) -> None:
    shared: dict[str, bytes | None] = {"same/x": b"1", "sub/keep": b"2"}
    old = {"sub/edit": b"old", "gone/f": b"3", "turns": b"file", "mode": b"m"}
    new = {"sub/edit": b"new", "come/f": b"3", "turns/into": b"folder", "mode": b"m"}
    one = store.put_tree(lay_out(tmp_path / "one", shared | old), move=False).root
    two_folder = lay_out(tmp_path / "two", shared | new)
    (two_folder / "mode").chmod(0o755)
    two = store.put_tree(two_folder, move=False).root

    found = store.diff(one, two)

    assert [entry.path for entry in found.changed] == ["mode", "sub/edit"]
    assert [entry.path for entry in found.added] == ["come", "come/f", "turns", "turns/into"]
    assert [entry.path for entry in found.removed] == ["gone", "gone/f", "turns"]
    assert store.diff(one, one).added == ()


def test_a_diff_does_not_read_folders_that_are_equal(store: Store, tmp_path: Path) -> None:
    one = store.put_tree(lay_out(tmp_path / "one", {"same/x": b"1", "f": b"1"}), move=False).root
    two = store.put_tree(lay_out(tmp_path / "two", {"same/x": b"1", "f": b"2"}), move=False).root
    object_file(tmp_path, store.entry(one, "same").hash).unlink()

    assert [entry.path for entry in store.diff(one, two).changed] == ["f"]


# -- damage ------------------------------------------------------------------------------------------------------------


def test_one_flipped_bit_is_found_by_verify_and_never_read_as_a_whole_file(store: Store, tmp_path: Path) -> None:
    dice = random.Random(7)
    data = {f"f{number}": dice.randbytes(dice.choice([1, 500, (1 << 20) + 3])) for number in range(6)}
    root = store.put_tree(lay_out(tmp_path / "source", {**data, "sub/deep": b"z"}), move=False).root
    for entry in store.files(root):
        damaged = object_file(tmp_path, entry.hash)
        whole = damaged.read_bytes()
        place = dice.randrange(len(whole))
        damaged.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << dice.randrange(8))]) + whole[place + 1 :])

        problems = store.verify([root], deep=True)
        swept = store.verify(None, deep=True)

        assert [(problem.object, problem.path) for problem in problems] == [(entry.hash, entry.path)]
        assert [problem.object for problem in swept] == [entry.hash]
        got = b""
        with pytest.raises(errors.Corrupt, match=str(entry.hash)):  # noqa: PT012 - how far it came matters
            for chunk in store.read(root, "sub/deep" if entry.path == "sub" else entry.path):
                got += chunk
        assert len(got) < len(whole)
        damaged.write_bytes(whole)
    assert store.verify([root], deep=True) == []


def test_a_lost_object_is_named_and_comes_back_when_its_data_is_stored_again(store: Store, tmp_path: Path) -> None:
    source = lay_out(tmp_path / "source", {"sub/f": b"precious", "g": b"torn"})
    root = store.put_tree(source, move=False).root
    object_file(tmp_path, store.entry(root, "sub/f").hash).unlink()
    object_file(tmp_path, store.entry(root, "g").hash).write_bytes(b"to")

    found = {problem.path: problem.message for problem in store.verify([root], deep=False)}
    with pytest.raises(errors.Corrupt, match="missing"):
        store.read(root, "sub/f")
    store.put_tree(source, move=False)

    assert "missing" in found["sub/f"]
    assert "2 bytes instead of 4" in found["g"]
    assert store.verify([root], deep=True) == []


# -- collecting --------------------------------------------------------------------------------------------------------


def test_a_collection_removes_exactly_what_no_live_version_needs(store: Store, tmp_path: Path) -> None:
    keep = store.put_tree(lay_out(tmp_path / "keep", {"shared": b"s", "mine": b"m"}), move=True)
    drop = store.put_tree(lay_out(tmp_path / "drop", {"shared": b"s", "only/here": b"o"}), move=True)
    for tree in (keep, drop):
        store.publish(tree)
        store.mount_of(tree.root)

    collected = store.collect(lambda: [keep.root])

    assert collected.objects == 3  # the file, its folder, the root
    assert store.verify([keep.root], deep=True) == []
    assert [view.name for view in (tmp_path / "store" / "views").glob("?" * 64)] == [keep.root.removeprefix("b3:")]
    assert store.usage().objects == 3


def test_a_view_that_is_mounted_outlives_its_version(store: Store, tmp_path: Path) -> None:
    tree = store.put_tree(lay_out(tmp_path / "source", {"f": b"still read"}), move=True)
    store.publish(tree)
    view = store.mount_of(tree.root)

    store.collect(list, keep_views=[tree.root])
    kept = (view / "f").read_bytes()
    store.collect(list)

    assert kept == b"still read"
    assert not view.exists()


def test_a_view_that_is_asked_for_while_a_collection_runs_stays(store: Store, tmp_path: Path) -> None:
    old = store.put_tree(lay_out(tmp_path / "old", {"f": b"old"}), move=True)
    new = store.put_tree(lay_out(tmp_path / "new", {"f": b"new"}), move=True)
    views: list[Path] = []

    def rows() -> list[str]:
        store.publish(new)  # committed and mounted just after this reader's snapshot
        views.append(store.mount_of(new.root))
        return [old.root]

    store.collect(rows, keep_views=lambda: [old.root])

    assert (views[0] / "f").read_bytes() == b"new"
    store.collect(lambda: [old.root])
    assert not views[0].exists()


def test_which_views_are_mounted_is_asked_after_the_collection_has_begun(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", reserve_mib=0, floor_bytes=0, views_kept=0)
    tree = store.put_tree(lay_out(tmp_path / "source", {"f": b"1"}), move=False)
    view = store.mount_of(tree.root)
    pins: list[str] = []

    def rows() -> list[str]:
        pins.append(tree.root)  # a job that was prepared before pins its input now
        return [tree.root]

    store.collect(rows, keep_views=lambda: pins)

    assert (view / "f").read_bytes() == b"1"
    store.close()


def test_only_the_views_used_last_are_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", reserve_mib=0, floor_bytes=0, views_kept=2)
    roots = [store.put_tree(lay_out(tmp_path / str(n), {"f": b"%d" % n}), move=False).root for n in range(4)]
    views = [store.mount_of(root) for root in roots]
    store.mount_of(roots[0])

    store.collect(lambda: roots, keep_views=[roots[1]])

    assert [view.exists() for view in views] == [True, True, False, True]
    assert (store.mount_of(roots[2]) / "f").read_bytes() == b"2"
    store.close()


def test_a_file_with_the_bytes_of_a_folder_does_not_hide_what_is_in_that_folder(store: Store, tmp_path: Path) -> None:
    inner = lay_out(tmp_path / "inner", {"child": b"do not lose me"})
    node = object_file(tmp_path, store.put_tree(inner, move=False).root).read_bytes()
    root = store.put_tree(lay_out(tmp_path / "source", {"0": node, "z/child": b"do not lose me"}), move=False).root

    store.collect(lambda: [root])

    assert store.verify([root], deep=True) == []
    assert content_of(store, root)["z/child"] == b"do not lose me"


def test_nothing_is_collected_while_a_live_folder_cannot_be_read(store: Store, tmp_path: Path) -> None:
    live = store.put_tree(lay_out(tmp_path / "live", {"sub/f": b"1"}), move=True)
    dead = store.put_tree(lay_out(tmp_path / "dead", {"f": b"2"}), move=True)
    store.publish(live)
    store.discard(dead)
    object_file(tmp_path, store.entry(live.root, "sub").hash).unlink()

    with pytest.raises(errors.Corrupt):
        store.collect(lambda: [live.root])

    assert b"".join(store.read(dead.root, "f")) == b"2"


def test_a_version_published_while_a_collection_runs_or_after_its_list_was_read_is_kept(
    store: Store, tmp_path: Path
) -> None:
    trees = [store.put_tree(lay_out(tmp_path / name, {name: name.encode()}), move=True) for name in ("one", "two")]

    def rows_before_the_commit() -> list[str]:
        store.publish(trees[0])  # its row came just after this reader's snapshot
        return []

    store.collect(rows_before_the_commit)
    old_list: list[str] = [trees[0].root]
    store.publish(trees[1])
    store.collect(old_list)

    assert store.verify([tree.root for tree in trees], deep=True) == []


def test_a_collection_at_any_moment_of_storing_takes_nothing_that_is_needed(store: Store, tmp_path: Path) -> None:
    source = lay_out(tmp_path / "source", {"old": b"known and dead", "sub/old": b"also"})
    store.discard(store.put_tree(source, move=False))
    lay_out(source, {f"new{number}": b"%d" % number for number in range(5)})
    collections = []

    def collect_now(name: str) -> None:
        if name in ("create", "fsync", "stored"):
            collections.append(store.collect(list).objects)

    failpoints.arm(collect_now)
    tree = store.put_tree(source, move=False)
    failpoints.arm(None)

    assert len(collections) > 10
    assert store.verify([tree.root], deep=True) == []


def test_storing_and_collecting_side_by_side_never_loses_a_version(store: Store, tmp_path: Path) -> None:
    rows: list[str] = []
    done = threading.Event()

    def collect() -> None:
        while not done.is_set():
            store.collect(lambda: list(rows))

    def work(worker: int) -> None:
        dice = random.Random(worker)
        for turn in range(12):
            shared = {f"{n}": b"%d" % dice.randrange(12) for n in range(6)}
            tree = store.put_tree(lay_out(tmp_path / f"{worker}-{turn}", {**shared}), move=True)
            rows.append(tree.root)
            store.publish(tree)
            if dice.random() < 0.5:
                rows.remove(tree.root)

    collector = threading.Thread(target=collect)
    collector.start()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    done.set()
    collector.join()

    store.collect(lambda: list(rows))
    assert store.verify(set(rows), deep=True) == []
    assert store.verify(None, deep=True) == []


# -- the folder itself -------------------------------------------------------------------------------------------------


def test_a_store_of_a_newer_format_is_refused_untouched(tmp_path: Path) -> None:
    Store(tmp_path / "store", reserve_mib=0, floor_bytes=0).close()
    marker = tmp_path / "store" / "FORMAT"
    marker.chmod(0o644)
    marker.write_text("appliance-store 2\n")
    (tmp_path / "store" / "tmp" / "theirs").write_text("x")

    with pytest.raises(errors.PreconditionFailed, match="format 2"):
        Store(tmp_path / "store")

    assert (tmp_path / "store" / "tmp" / "theirs").exists()


def test_a_second_user_of_the_store_is_told_who_has_it(store: Store, tmp_path: Path) -> None:
    with pytest.raises(errors.Conflict, match=f"in use by process {os.getpid()}"):
        Store(tmp_path / "store")


def test_views_of_another_boot_and_leftovers_are_not_trusted(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", reserve_mib=0, floor_bytes=0)
    tree = store.put_tree(lay_out(tmp_path / "source", {"f": b"1"}), move=False)
    view = store.mount_of(tree.root)
    store.close()
    (tmp_path / "store" / "tmp" / "torn").write_text("x")
    (view / "f").unlink()
    (tmp_path / "store" / "views" / ".boot").write_text("another boot")

    store = Store(tmp_path / "store", reserve_mib=0, floor_bytes=0)

    assert list((tmp_path / "store" / "tmp").iterdir()) == []
    assert (store.mount_of(tree.root) / "f").read_bytes() == b"1"
    store.collect(lambda: [tree.root])
    assert list((tmp_path / "store" / "trash").iterdir()) == []
    store.close()


def test_the_page_about_the_format_says_how_to_take_a_tree_out_by_hand(store: Store, tmp_path: Path) -> None:
    source = lay_out(tmp_path / "source", {"a/b": b"1", "empty": None, "t": b"#!/bin/sh\n"})
    (source / "t").chmod(0o755)
    (source / "l").symlink_to("a/b")
    root = store.put_tree(source, move=False).root
    page = Path(failpoints.__file__).with_name("FORMAT.md").read_text()
    script = page.split("python3 - ROOT_DIGITS TARGET_FOLDER <<'EOF'\n")[1].split("    EOF")[0]
    script = "\n".join(line.removeprefix("    ") for line in script.splitlines())

    subprocess.run(
        ["python3", "-c", script, root.removeprefix("b3:"), tmp_path / "out"], cwd=tmp_path / "store", check=True
    )

    assert subprocess.run(["diff", "-r", "--no-dereference", source, tmp_path / "out"], check=False).returncode == 0
    assert os.access(tmp_path / "out" / "t", os.X_OK)
