"""How fast the store is, beside what the disk allows: `python tests/bench/bench_store.py FOLDER [files]`.

FOLDER should lie on the file system that the appliance will use. Every number is wall time until durable; `cp` is
followed by a sync of its file system for the same promise. Each line is the median of three runs in turn.
"""

from __future__ import annotations

import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from appliance.store import Store

RUNS = 3


def make_files(folder: Path, count: int) -> int:
    """`count` small files, log-normal around 4 KiB, a hundred to a folder; the same bytes each time. Their bytes."""
    dice, total = random.Random(20), 0
    for number in range(count):
        data = dice.randbytes(min(int(dice.lognormvariate(8.3, 1.1)), 1 << 20))
        at = folder / f"{number // 100:04d}" / f"{number:06d}.bin"
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_bytes(data)
        total += len(data)
    return total


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def settle(folder: Path) -> None:
    subprocess.run(["sync", "-f", folder], check=True)


def copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-r", source, target], check=True)
    settle(target)


def one_round(folder: Path, files: int) -> dict[str, float]:
    shutil.rmtree(folder, ignore_errors=True)
    source, given = folder / "source", folder / "given"
    make_files(source, files)
    shutil.copytree(source, given)
    settle(folder)
    took = {"cp -r, then sync": seconds(lambda: copy(source, folder / "copy"))}
    store = Store(folder / "store", reserve_mib=0, floor_bytes=0)
    took["put_tree, copying"] = seconds(lambda: store.put_tree(source, move=False))
    took["put_tree again, nothing new"] = seconds(lambda: store.put_tree(source, move=False))
    taker = Store(folder / "taker", reserve_mib=0, floor_bytes=0)
    took["put_tree, taking over"] = seconds(lambda: taker.put_tree(given, move=True))
    root = store.put_tree(source, move=False).root
    (source / "0000" / "000001.bin").write_bytes(b"changed")
    second = store.put_tree(source, move=False).root
    took["view, first time"] = seconds(lambda: store.mount_of(root))
    took["view, again"] = seconds(lambda: store.mount_of(root))
    took["list all"] = seconds(lambda: store.files(root))
    took["diff, one change"] = seconds(lambda: store.diff(root, second))
    took["verify, every byte"] = seconds(lambda: store.verify([root], deep=True))
    took["collect, nothing to do"] = seconds(lambda: store.collect(lambda: [root, second]))
    store.close()
    taker.close()
    settle(folder)
    return took


def main() -> None:
    folder, files = Path(sys.argv[1]) / "bench-store", int(sys.argv[2]) if len(sys.argv) > 2 else 5000
    rounds = [one_round(folder, files) for _ in range(RUNS)]
    shutil.rmtree(folder)
    yardstick = statistics.median(one["cp -r, then sync"] for one in rounds)
    print(f"{files} files; median of {RUNS}")
    for name in rounds[0]:
        took = statistics.median(one[name] for one in rounds)
        print(f"{name:32s} {took:8.3f} s   {took / yardstick:6.2f} x cp")


if __name__ == "__main__":
    main()
