"""The store: immutable trees of files, named by what they hold.

What this keeps true: a tree that `put_tree` returned survives a power cut, whole, until a `collect` that is not told of
it; equal bytes are kept once; nothing that was stored is ever changed. Its format is FORMAT.md; what a version is, and
which trees are needed, is known above and told here.

Why: versions, models, outputs and inputs are all trees, so they share their bytes, their checks and their clean-up.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from appliance import clock, errors
from appliance.records import FileEntry, Tree
from appliance.store import disk, failpoints, ingest, tree
from appliance.store.layout import Layout
from appliance.store.objects import Claim, Objects
from appliance.store.verify import Problem, verify
from appliance.store.view import Views

# A list of live roots that was read before a version was published does not name it. Such a list may be this old.
LIST_AGE_S = 60.0


@dataclass(frozen=True)
class Diff:
    """What differs between two trees. `changed` holds the new entries of paths that were not directories before."""

    added: tuple[FileEntry, ...]
    changed: tuple[FileEntry, ...]
    removed: tuple[FileEntry, ...]


@dataclass(frozen=True)
class Collected:
    """What a collection removed."""

    objects: int
    size_bytes: int


@dataclass(frozen=True)
class Usage:
    """The store's size and its disk's. `floor_bytes`: new data is refused that would leave less than this free."""

    objects: int
    size_bytes: int
    views: int
    reserve_bytes: int
    free_bytes: int
    total_bytes: int
    floor_bytes: int


class Store:
    """The store in `root`, held by this process until `close`. Any number of threads at once."""

    def __init__(self, root: Path, reserve_mib: int = 64, *, floor_bytes: int = disk.GIB, views_kept: int = 64) -> None:
        """Opens or makes it. Raises Conflict if another process has it, PreconditionFailed if its format is newer."""
        self._layout = Layout(root, reserve_mib << 20, floor_bytes)
        self._floor_bytes = floor_bytes
        self._views_kept = views_kept
        self._objects = Objects(self._layout.objects)
        self._views = Views(self._layout, self._objects, floor_bytes)
        self._lock = threading.Lock()
        self._collecting = threading.Lock()
        self._stored: dict[str, list[Claim]] = defaultdict(list)
        self._published: dict[str, float] = {}
        self._lost: errors.DurabilityLost | None = None
        with disk.translated("opening the store"):
            self._objects.make()
            self._views.make()

    def close(self) -> None:
        """Another process may open the store. Call it when no thread uses it any more."""
        self._layout.close()

    # -- storing ---------------------------------------------------------------------------------------------------

    def put_tree(self, source: Path, *, move: bool) -> Tree:
        """The folder `source`, stored durably; no `collect` removes it until `publish` or `discard`.

        With `move` the files are taken over instead of copied where that is safe, and `publish` removes the source:
        only then, so that a crash before the caller's commit loses nothing and the same call can be made again.
        Raises BadRequest (naming what cannot be stored), DiskFull, DurabilityLost; nothing is visible then.
        """
        self._refuse_if_lost()
        claim = self._objects.claim(source if move else None)
        try:
            stored = self._put(source, claim, move)
        except BaseException as error:
            self._objects.let_go(claim)
            if isinstance(error, errors.DurabilityLost):
                self._lost = error
            raise
        with self._lock:
            self._stored[stored.root].append(claim)
        return stored

    def _put(self, source: Path, claim: Claim, move: bool) -> Tree:
        found, size_bytes = ingest.scan(source)
        if size_bytes > disk.room(self._layout.root).total_bytes:
            raise errors.DiskFull(
                f"The folder's files claim {size_bytes} bytes (holes count in full), which is more than the whole disk "
                "has. Store less, or delete what is not needed."
            )
        work = self._layout.tmp / f"put-{os.urandom(8).hex()}"
        with disk.translated("storing the folder"):
            writer = ingest.Writer(self._objects, claim, work, self._floor_bytes)
            try:
                digits, node = ingest.store_folder(writer, source, found, move=move)
            finally:
                writer.close()
            self._objects.sync(claim)
        failpoints.hit("stored")
        return Tree(tree.TAG + digits, node.file_count, node.size_bytes, claim.added_bytes)

    def _refuse_if_lost(self) -> None:
        if self._lost is not None:
            raise errors.DurabilityLost(self._lost.message)

    def publish(self, stored: Tree) -> None:
        """The row that names the tree is committed: from now on `live_roots` names it. A moved source is gone."""
        claim = self._forget(stored, published=True)
        if claim is not None and claim.source is not None:
            disk.remove_folder(claim.source)

    def discard(self, stored: Tree) -> None:
        """The tree will never be named; the next `collect` removes what only it needs. A moved source stays."""
        self._forget(stored, published=False)

    def _forget(self, stored: Tree, *, published: bool) -> Claim | None:
        with self._lock:
            claims = self._stored.get(stored.root)
            claim = claims.pop() if claims else None
            if not claims:
                self._stored.pop(stored.root, None)
            if published:
                self._published[stored.root] = clock.monotonic()
        if claim is not None:
            self._objects.let_go(claim)
        return claim

    # -- reading ---------------------------------------------------------------------------------------------------

    def files(
        self, root: str, prefix: str = "", *, recursive: bool = True, after: str | None = None, limit: int | None = None
    ) -> list[FileEntry]:
        """What lies in the folder `prefix` ("" is the whole tree): a directory before its contents, names in byte order.

        `after` is the path of the last entry of the page before; at most `limit` entries. A `prefix` that is a file
        gives that file alone. Raises NotFound when there is no such place.
        """
        base = tree.parts_of(prefix)
        row = tree.find(self._objects.known_node, tree.digits_of(root), base)
        if row.kind != tree.FOLDER:
            return [tree.entry_of(base, row)]
        start = tree.parts_of(after) if after is not None else ()
        walked = tree.walk(self._objects.node, row.digits, base, recursive=recursive, after=start)
        return [tree.entry_of(parts, found) for parts, found in islice(walked, limit)]

    def entry(self, root: str, path: str) -> FileEntry:
        """The one entry at `path`; raises NotFound."""
        parts = tree.parts_of(path)
        digits = tree.digits_of(root)
        if not parts:
            return FileEntry("", "directory", self._objects.known_node(digits).size_bytes, False, root)
        return tree.entry_of(parts, tree.find(self._objects.known_node, digits, parts))

    def read(self, root: str, path: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes of the file at `path` (of a symbolic link: its target's text) in chunks of at most 1 MiB.

        A whole file is checked against its hash, and its last chunk is held back until it proved right; a part cannot
        be checked. Raises NotFound, BadRequest for a directory, and Corrupt, naming the object.
        """
        found = self.entry(root, path)
        if found.kind == "directory" or found.hash is None:
            raise errors.BadRequest(f"{path!r} is a folder; ask for the files in it.")
        if offset < 0 or (length is not None and length < 0):
            raise errors.BadRequest("Offset and length cannot be negative.")
        digits = found.hash[len(tree.TAG) :]
        wanted = found.size_bytes - offset if length is None else length
        if offset == 0 and wanted >= found.size_bytes:
            return self._objects.read(digits)
        return self._objects.slice(digits, offset, max(wanted, 0))

    def mount_of(self, root: str) -> Path:
        """A folder with the complete tree, to be mounted **read-only**: its files are the store's own.

        Built once, then found; a `collect` may remove it unless told to keep it. Folders are 0555, files 0444 or 0555.
        """
        return self._views.folder_of(tree.digits_of(root))

    def diff(self, old_root: str, new_root: str) -> Diff:
        """What differs; folders that are equal are not read, so it costs what changed."""
        old, new = tree.digits_of(old_root), tree.digits_of(new_root)
        added, changed, removed = tree.compare(self._objects.node, old, new)
        return Diff(tuple(added), tuple(after for _, after in changed), tuple(removed))

    # -- keeping ---------------------------------------------------------------------------------------------------

    def verify(self, roots: Iterable[str] | None, *, deep: bool) -> list[Problem]:
        """What is wrong with these trees, or with every object when None; `deep` reads every byte."""
        return verify(self._objects, roots, deep=deep)

    def collect(
        self,
        live_roots: Iterable[str] | Callable[[], Iterable[str]],
        *,
        keep_views: Iterable[str] | Callable[[], Iterable[str]] = (),
    ) -> Collected:
        """Objects that no live root and no tree being stored needs are gone; so are views without use.

        Give a function: it is called after the collection has begun, so a version published meanwhile is either in its
        answer or still held. Of a list only this is known: what was published in the last minute may be missing in it,
        and is kept. `keep_views` are roots whose views are mounted, as a list or (better) a function too; a view that
        `mount_of` gave out since the collection began stays in any case. Works on a full disk. Raises Corrupt, and removes
        nothing, when a live directory cannot be read.
        """
        with self._collecting, disk.translated("collecting what is no longer needed"):
            if self._layout.is_short():
                self._layout.give_up_reserve()
            self._layout.empty_trash()
            self._views.begin_trim()
            self._objects.begin_sweep()
            try:
                live = {tree.digits_of(root) for root in self._live(live_roots)}
                reached = tree.reach(self._objects.node, live)
                mounted = keep_views() if callable(keep_views) else keep_views
                self._views.trim(live, {tree.digits_of(root) for root in mounted}, self._views_kept)
                count, size_bytes = self._objects.sweep(reached)
            finally:
                self._objects.end_sweep()
            self._layout.empty_trash()
            self._layout.make_reserve()
        return Collected(count, size_bytes)

    def _live(self, live_roots: Iterable[str] | Callable[[], Iterable[str]]) -> set[str]:
        if callable(live_roots):
            with self._lock:
                self._published.clear()
            return set(live_roots())
        named = set(live_roots)
        with self._lock:
            oldest = clock.monotonic() - LIST_AGE_S
            self._published = {root: at for root, at in self._published.items() if at >= oldest}
            return named | self._published.keys()

    def give_up_reserve(self) -> None:
        """The reserve's bytes are free, for a caller who must write in order to delete; `collect` makes it again."""
        self._layout.give_up_reserve()

    def usage(self) -> Usage:
        """How much there is. The first call counts every object; later ones are at once."""
        with disk.translated("counting the objects"):
            count, size_bytes = self._objects.totals()
            views, reserve_bytes = self._views.count(), self._layout.reserve_bytes
        has = disk.room(self._layout.root)
        floor_bytes = max(has.total_bytes // 50, self._floor_bytes)
        return Usage(count, size_bytes, views, reserve_bytes, has.free_bytes, has.total_bytes, floor_bytes)
