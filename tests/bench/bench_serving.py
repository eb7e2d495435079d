"""Requests per second of one serving process, asked by wrk: `python tests/bench/bench_serving.py [rounds]`.

A small classifier (4 → 16 → 3), one key, answered over HTTP as JSON and with the binary tensor extension, at one and at
eight connections; each number is the median of the rounds (default 5) of two seconds, the cells in turn. wrk runs on
the same cores, so the numbers compare with one another on one machine and with nothing else.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from inference_help import KEY, digest, iris, listening, port_of, replica

SCRIPT = """
wrk.method = "POST"
wrk.headers["Authorization"] = "Bearer {key}"
{header}
local file = io.open("{body}", "rb")
wrk.body = file:read("*all")
function done(summary, latency)
  io.write(string.format("RESULT %d %d %d\\n", summary.requests * 1e6 / summary.duration, latency:percentile(50), summary.errors.status))
end
"""


def scripts(folder: Path) -> dict[str, Path]:
    tensor = {"name": "features", "shape": [1, 4], "datatype": "FP32"}
    plain = json.dumps({"inputs": [tensor | {"data": [5.1, 3.5, 1.4, 0.2]}]}).encode()
    text = json.dumps(
        {"inputs": [tensor | {"parameters": {"binary_data_size": 16}}], "parameters": {"binary_data_output": True}}
    ).encode()
    raw = np.array([5.1, 3.5, 1.4, 0.2], np.float32).tobytes()
    made = {}
    for name, body, header in (
        ("JSON", plain, 'wrk.headers["Content-Type"] = "application/json"'),
        ("binary", text + raw, f'wrk.headers["Inference-Header-Content-Length"] = "{len(text)}"'),
    ):
        (folder / f"{name}.body").write_bytes(body)
        made[name] = folder / f"{name}.lua"
        made[name].write_text(SCRIPT.format(key=KEY, header=header, body=folder / f"{name}.body"))
    return made


def measure(port: int, script: Path, connections: int) -> tuple[int, int]:
    """Requests per second and the median latency in microseconds; an answer that is not 200 ends the benchmark."""
    url = f"http://127.0.0.1:{port}/v2/models/m/infer"
    command = ["wrk", "--threads=1", f"--connections={connections}", "--duration=2s", f"--script={script}", url]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    found = re.search(r"RESULT (\d+) (\d+) (\d+)", output)
    if found is None or found[3] != "0" or found[1] == "0":
        raise SystemExit(f"wrk met errors:\n{output}")
    return int(found[1]), int(found[2])


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name, listening() as sock:
        folder = Path(name)
        with replica(folder / "r", iris(folder / "m"), keys=[digest(KEY)]) as one:
            one.serve_on(sock)
            cells = [(kind, script, count) for kind, script in scripts(folder).items() for count in (1, 8)]
            results: dict[tuple[str, int], list[tuple[int, int]]] = {}
            for _ in range(rounds):
                for kind, script, count in cells:
                    results.setdefault((kind, count), []).append(measure(port_of(sock), script, count))
            memory = next(
                line for line in Path(f"/proc/{one.process.pid}/status").read_text().splitlines() if "VmRSS" in line
            )
    for (kind, count), found in results.items():
        rate, middle = (round(statistics.median(each)) for each in zip(*found, strict=True))
        print(f"{kind:6} c{count}: {rate:6} requests/s, median {middle:4} µs")
    print(f"resident: {int(memory.split()[1]) // 1024} MiB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
