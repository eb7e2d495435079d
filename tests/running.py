"""A whole appliance as processes of their own: holder, daemon and nginx, on ports and folders of the test's.

Used by the journeys. It is the real program, started as install.sh starts it where no systemd runs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
from waiting import wait_until

from appliance.client import Client

ROOT = Path(__file__).parents[1]
APPLIANCED = Path(sys.executable).with_name("applianced")
FINAL = {"Succeeded", "Failed", "Canceled"}


def require_engine() -> None:
    """Fails when no Docker engine answers or our images are missing: tests/run provides both."""
    done = subprocess.run(["docker", "image", "ls", "--format", "{{.Repository}}"], capture_output=True, text=True)
    assert done.returncode == 0, f"no Docker engine answers ({done.stderr.strip()}); start one, or use tests/run"
    missing = {"appliance/base", "appliance/serving", "appliance/datascience"} - set(done.stdout.split())
    assert not missing, f"the images {sorted(missing)} are missing; tests/run builds them"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def free_range(count: int) -> tuple[int, int]:
    """`count` ports in a row that were free a moment ago."""
    for _ in range(100):
        first = free_port()
        if first + count < 65000 and all(is_free(port) for port in range(first, first + count)):
            return first, first + count - 1
    raise AssertionError("no free range of ports")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Running:
    """`start`, `kill9`, `stop` the daemon as often as wanted; `destroy` once."""

    def __init__(self, folder: Path, environment: dict[str, str] | None = None, **settings: Any) -> None:
        self.folder = folder
        self.data, self.log = folder / "data", folder / "log"
        # Unix sockets have at most 107 letters; pytest's folders can be longer.
        self.run_dir = Path(tempfile.mkdtemp(prefix="ap-run-", dir="/tmp"))
        self.run_dir.chmod(0o755)
        self.http_port, self.https_port = free_port(), free_port()
        self.ports = free_range(12)
        self.log.mkdir(parents=True, exist_ok=True)
        chosen = {
            "data_dir": str(self.data),
            "run_dir": str(self.run_dir),
            "log_dir": str(self.log),
            "http_port": self.http_port,
            "https_port": self.https_port,
            "https_address": "127.0.0.1",
            "host_name": "localhost",
            "deployment_ports": list(self.ports),
            "network_pool": "10.214.0.0/16",
            "service_user": "nobody",
            "container_retention_s": 3600,
            "free_floor_mib": 64,
            **settings,
        }
        self.config_path = folder / "appliance.toml"
        self.config_path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in chosen.items()))
        self.environment = {
            **os.environ,
            "APPLIANCE_CONFIG": str(self.config_path),
            "HOME": str(folder / "home"),
            **(environment or {}),
        }
        (folder / "home").mkdir(exist_ok=True)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def key(self) -> str:
        return (self.data / "local-admin.key").read_text().strip()

    def client(self, key: str | None = None) -> Client:
        return Client(self.url, key or self.key)

    def start(self) -> None:
        """Holder, daemon and nginx run, and the daemon answers through nginx."""
        self._spawn("holder")
        wait_until((self.run_dir / "holder.sock").exists, 10, "the holder listens")
        self.start_daemon()
        self._spawn("gateway")
        wait_until(self.is_healthy, 20, "the daemon answers through nginx")

    def begin_daemon(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start it and do not wait for its first answer."""
        self._spawn("run", environment)
        return self.processes["run"]

    def start_daemon(self, **environment: str) -> None:
        self.begin_daemon(**environment)
        wait_until(self._answers, 20, "the daemon answers on its socket")

    def kill9(self) -> None:
        self._end("run", signal.SIGKILL)

    def stop_daemon(self) -> int:
        return self._end("run", signal.SIGTERM)

    def is_healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def admin(self, *arguments: str, input_text: str | None = None) -> subprocess.CompletedProcess[str]:
        """`applianced ARGUMENTS` on this appliance."""
        return subprocess.run(
            [str(APPLIANCED), *arguments],
            env=self.environment,
            input=input_text,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def cli(self, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """`appliance ARGUMENTS` as root on this server."""
        program = str(APPLIANCED.with_name("appliance"))
        return subprocess.run(
            [program, *arguments], env=self.environment, capture_output=True, text=True, timeout=timeout_s
        )

    def containers(self) -> list[str]:
        """Every container of this instance, in any state."""
        done = subprocess.run(
            ["docker", "ps", "-aq", "--filter", f"label=appliance.instance={self.instance()}"],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split()

    def instance(self) -> str:
        import pysqlite3.dbapi2 as sqlite

        connection = sqlite.connect(f"file:{self.data / 'appliance.db'}?mode=ro", uri=True)
        try:
            return str(connection.execute("SELECT value FROM settings WHERE name = 'instance'").fetchone()[0])
        finally:
            connection.close()

    def rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        """What the database says, read beside the daemon."""
        import pysqlite3.dbapi2 as sqlite

        connection = sqlite.connect(f"file:{self.data / 'appliance.db'}?mode=ro", uri=True)
        connection.row_factory = sqlite.Row
        try:
            return [dict(row) for row in connection.execute(sql, values)]
        finally:
            connection.close()

    def finished(self, run_id: str, within_s: float = 120) -> dict[str, Any]:
        """The run, when it has ended."""
        with self.client() as client:

            def ended() -> dict[str, Any] | None:
                run = client.runs.get(run_id)
                return run if run["status"]["phase"] in FINAL else None

            return wait_until(ended, within_s, f"run {run_id} ends", every_s=0.1)

    def log_text(self, run_id: str, job: str) -> str:
        with self.client() as client:
            return "\n".join(line["message"] for line in client.runs.logs(run_id, job))

    def story(self) -> str:
        """What happened, for the report of a test that failed."""
        parts = []
        for name in ("run", "gateway", "holder"):
            path = self.log / f"{name}.log"
            if path.exists():
                parts.append(f"--- {name}.log\n" + "\n".join(path.read_text().splitlines()[-60:]))
        for table in ("events", "runs", "jobs", "attempts", "containers", "deployment_specs"):
            try:
                rows = self.rows(f"SELECT * FROM {table} ORDER BY rowid DESC LIMIT 15")
            except Exception as error:
                rows = [{"error": str(error)}]
            parts.append(f"--- {table}\n" + "\n".join(str(row)[:600] for row in rows))
        for path in sorted((self.data / "logs").glob("*/*.log")):
            parts.append(f"--- {path.parent.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-20:]))
        return "\n".join(parts)

    def destroy(self) -> None:
        """Every process, container, network and folder of this appliance is gone."""
        label = f"label=appliance.instance={self.instance()}" if (self.data / "appliance.db").exists() else None
        for name in ("run", "gateway", "holder"):
            if name in self.processes:
                self._end(name, signal.SIGTERM)
        if label is not None:
            for kind, options in (("container", ["-aq"]), ("network", ["-q"])):
                listed = subprocess.run(
                    ["docker", kind, "ls", *options, "--filter", label], capture_output=True, text=True
                ).stdout.split()
                if listed:
                    force = ["-f"] if kind == "container" else []
                    subprocess.run(["docker", kind, "rm", *force, *listed], capture_output=True)
        shutil.rmtree(self.run_dir, ignore_errors=True)

    def _answers(self) -> bool:
        process = self.processes["run"]
        assert process.poll() is None, f"the daemon ended with {process.returncode}:\n{self.story()}"
        # Not with httpx: it leaves the socket of a refused connection to the garbage collector, which warns.
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
                line.settimeout(5)
                line.connect(str(self.run_dir / "daemon.sock"))
                line.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                return line.recv(100).startswith(b"HTTP/1.1 200 ")
        except OSError:
            return False

    def _spawn(self, name: str, environment: dict[str, str] | None = None) -> None:
        with (self.log / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [str(APPLIANCED), name],
                env={**self.environment, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _end(self, name: str, number: signal.Signals) -> int:
        process = self.processes.pop(name)
        process.send_signal(number)
        try:
            return process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
