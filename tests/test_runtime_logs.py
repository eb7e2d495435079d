"""The log store: numbered lines in segments, resumed after a crash without losing or doubling one."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import wait_until

from appliance.errors import DiskFull, NotFound
from appliance.runtime.engine import LogEntry
from appliance.runtime.logs import LogStore, printable

pytestmark = pytest.mark.fast


def entries(*texts: str, start: int = 0, stream: str = "stdout") -> list[LogEntry]:
    """One entry each millisecond."""
    return [LogEntry(at(start + i), stream, text) for i, text in enumerate(texts)]


def at(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    return f"2026-01-01T00:{minutes:02d}:{seconds:02d}.{rest:03d}000000Z"


def texts(store: LogStore, container_id: str = "ctr1", after: int = -1, limit: int = 10**6) -> list[str]:
    return [line.text for line in store.read(container_id, after, limit)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LogStore]:
    it = LogStore(tmp_path, segment_bytes=1000)
    yield it
    it.close()


def test_lines_are_numbered_and_read_by_pages(store: LogStore) -> None:
    store.capture("ctr1", entries(*(f"line {i}" for i in range(500))))

    page = store.read("ctr1", after=249, limit=3)

    assert [(line.number, line.text, line.stream) for line in page] == [
        (250, "line 250", "stdout"),
        (251, "line 251", "stdout"),
        (252, "line 252", "stdout"),
    ]
    assert page[0].at == "2026-01-01T00:00:00.250Z"
    assert store.count("ctr1") == 500
    assert texts(store) == [f"line {i}" for i in range(500)]
    assert store.read("ctr1", after=499) == []


def test_a_sealed_log_reads_the_same_and_takes_nothing_more(store: LogStore, tmp_path: Path) -> None:
    store.capture("ctr1", entries(*(f"line {i}" for i in range(100))))

    store.seal("ctr1")
    store.seal("ctr1")

    store.capture("ctr1", entries("late", start=5000))
    store.note("ctr1", "later")
    assert texts(LogStore(tmp_path), after=97) == ["line 98", "line 99"]
    assert store.count("ctr1") == 100
    assert {path.suffix for path in (tmp_path / "ctr1").iterdir()} == {".gz", ""}


def test_a_page_costs_one_segment_however_long_the_log_is(store: LogStore, tmp_path: Path) -> None:
    store.capture("ctr1", entries(*(f"line {i}" for i in range(400))))
    store.seal("ctr1")
    segments = sorted((tmp_path / "ctr1").glob("*.gz"))
    assert len(segments) > 10

    for segment in [*segments[:5], *segments[7:]]:
        segment.write_bytes(b"not read")

    first = int(segments[5].name.split(".")[0])
    assert texts(store, after=first - 1, limit=2) == [f"line {first}", f"line {first + 1}"]


def test_capturing_goes_on_after_a_restart_without_losing_or_doubling_a_line(tmp_path: Path) -> None:
    written = entries(*(f"line {i}" for i in range(3000)))
    first = LogStore(tmp_path, segment_bytes=1000)
    first.capture("ctr1", written[:1700])

    second = LogStore(tmp_path, segment_bytes=1000)
    since = second.since("ctr1") or ""
    second.capture("ctr1", [entry for entry in written if entry.at >= since])

    assert since == at(699)
    assert texts(second) == [f"line {i}" for i in range(3000)]
    first.close()
    second.close()


@given(seed=st.integers(0, 2**32), cuts=st.lists(st.integers(0, 400), max_size=4))
@settings(max_examples=40, deadline=None)
def test_any_cut_of_two_interleaved_streams_is_stored_once(
    tmp_path_factory: pytest.TempPathFactory, seed: int, cuts: list[int]
) -> None:
    # Two streams, each in order of time; in the engine's file they may be out of order by some milliseconds, and
    # lines of one stream may have the same time.
    chance = random.Random(seed)
    times = sorted(chance.choices(range(4000), k=400))
    streams = [chance.choice(["stdout", "stderr"]) for _ in times]
    file = [LogEntry(at(t), s, f"{i}") for i, (t, s) in enumerate(zip(times, streams, strict=True))]
    for i in range(0, 398, 7):
        if file[i].stream != file[i + 1].stream:
            file[i], file[i + 1] = file[i + 1], file[i]
    folder = tmp_path_factory.mktemp("logs")

    for cut in [*sorted(cuts), 400]:
        store = LogStore(folder, segment_bytes=2000)
        since = store.since("ctr1") or ""
        store.capture("ctr1", [entry for entry in file[:cut] if entry.at >= since])
        store.close()

    assert texts(LogStore(folder)) == [entry.text for entry in file]


def test_a_half_written_line_is_cut_off_and_comes_again(tmp_path: Path) -> None:
    first = LogStore(tmp_path)
    first.capture("ctr1", entries("one", "two"))
    first.close()
    (segment,) = (tmp_path / "ctr1").glob("*.log")
    segment.write_bytes(segment.read_bytes() + b"2026-01-01T00:00:00.002000000Z o thr")

    assert texts(LogStore(tmp_path)) == ["one", "two"]
    second = LogStore(tmp_path)
    second.capture("ctr1", entries("one", "two", "three"))

    assert texts(second) == ["one", "two", "three"]
    second.close()


def test_a_crash_between_compressing_and_removing_a_segment_harms_nothing(tmp_path: Path) -> None:
    first = LogStore(tmp_path, segment_bytes=300)
    first.capture("ctr1", entries(*(f"line {i}" for i in range(20))))
    first.close()
    folder = tmp_path / "ctr1"
    compressed = sorted(folder.glob("*.gz"))[0]
    (folder / compressed.stem).write_bytes(b"stale\n")
    (folder / "000000000099.log.gz.tmp").write_bytes(b"half")

    second = LogStore(tmp_path, segment_bytes=300)
    second.capture("ctr1", entries(*(f"line {i}" for i in range(25))))

    assert texts(second) == [f"line {i}" for i in range(25)]
    assert not (folder / compressed.stem).exists()
    assert not list(folder.glob("*.tmp"))
    second.close()


def test_a_log_ends_at_its_limit_with_a_line_that_says_so(tmp_path: Path) -> None:
    store = LogStore(tmp_path, limit_bytes=5000, segment_bytes=1000)
    flood = iter(entries(*(f"line {i}" for i in range(1000))))

    assert store.capture("ctr1", flood) is False

    assert next(flood).text != "line 999"  # it did not wait for the flood's end
    lines = texts(store)
    assert lines[-1] == "[The log has reached 0.00476837 MiB; what follows is not kept.]"
    again = LogStore(tmp_path, limit_bytes=5000, segment_bytes=1000)
    assert again.capture("ctr1", entries("more", start=60_000)) is False
    assert texts(again) == lines
    store.close()
    again.close()


def test_secrets_are_masked_before_anything_is_written(store: LogStore, tmp_path: Path) -> None:
    store.capture("ctr1", entries("password=hunter2hunter2"), mask=lambda it: it.replace("hunter2hunter2", "***"))

    assert texts(store) == ["password=***"]
    assert b"hunter2" not in b"".join(path.read_bytes() for path in (tmp_path / "ctr1").iterdir())


def test_a_note_of_ours_stands_among_the_lines_and_does_not_move_the_engines_time(store: LogStore) -> None:
    store.note("ctr1", "Pulling busybox")
    assert store.since("ctr1") is None
    store.capture("ctr1", entries("one"))
    store.note("ctr1", "It was stopped.")

    assert texts(store) == ["Pulling busybox", "one", "It was stopped."]
    assert store.last_at("ctr1") == at(0)


def test_a_follower_sees_what_is_there_and_what_comes_and_ends_with_the_seal(store: LogStore) -> None:
    store.capture("ctr1", entries("one"))
    seen: list[str] = []
    follower = threading.Thread(target=lambda: seen.extend(line.text for line in store.follow("ctr1")))
    follower.start()
    wait_until(lambda: seen == ["one"], 5, "the follower has what was there")

    store.capture("ctr1", entries("two", start=1))
    wait_until(lambda: seen == ["one", "two"], 2, "the follower has what came")
    store.seal("ctr1")

    follower.join(2)
    assert not follower.is_alive()


def test_a_follower_that_is_told_to_stop_stops(store: LogStore) -> None:
    stop = threading.Event()
    follower = threading.Thread(target=lambda: list(store.follow("ctr1", stop=stop)))
    follower.start()

    stop.set()
    store.wake()

    follower.join(2)
    assert not follower.is_alive()


def test_waiting_for_a_line_ends_in_time_without_one(store: LogStore) -> None:
    assert store.wait("ctr1", after=-1, timeout_s=0.05) is False
    store.note("ctr1", "here")
    assert store.wait("ctr1", after=-1, timeout_s=5) is True


def test_control_characters_are_kept_as_written_and_shown_only_by_name(store: LogStore) -> None:
    store.capture("ctr1", entries("\x1b[31mred\x1b[0m\ttab \x1b]0;title\x07 50%\r100%"))

    (text,) = texts(store)

    assert text == "\x1b[31mred\x1b[0m\ttab \x1b]0;title\x07 50%\r100%"
    assert printable(text) == "\x1b[31mred\x1b[0m\ttab \\x1b]0;title\\x07 50%\\x0d100%"


def test_a_full_disk_keeps_what_was_stored_and_the_log_goes_on_later(
    store: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.capture("ctr1", entries("one"))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(DiskFull, match="free some space"):
            store.capture("ctr1", entries("one", "two"))

    store.capture("ctr1", entries("one", "two"))
    assert texts(store) == ["one", "two"]


def test_a_removed_log_is_gone_and_an_unknown_one_is_empty(store: LogStore) -> None:
    store.capture("ctr1", entries("one"))

    store.remove("ctr1")
    store.remove("ctr1")

    assert store.read("ctr1") == []
    assert store.count("ctr1") == 0
    assert not store.is_sealed("ctr1")


@pytest.mark.parametrize("name", ["../etc", "", ".", "a/b", "a\n"])
def test_no_name_reaches_outside_the_folder(store: LogStore, name: str) -> None:
    with pytest.raises(NotFound):
        store.read(name)
