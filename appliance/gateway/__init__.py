"""The door: an nginx of our own, with a configuration made from the wanted routes.

What this keeps true: the machine's own nginx and /etc/nginx are never touched; a configuration takes effect only after
`nginx -t` accepted it, and a reload drops no connection.

Order of effects: the certificate, the temporary file, `nginx -t`, the rename, the signal. A crash before the rename
leaves the old configuration; a crash after it is made good by the next `write`, which compares with what nginx was
last told, not with the file alone.

Why: reverse proxying is not what this project exists for, and nginx does it well.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import hashlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from appliance import clock, ports, tls
from appliance.config import Config
from appliance.errors import PreconditionFailed
from appliance.gateway.conf import Facts, Route, bodies_dir, render, routes_of

__all__ = ["Facts", "Gateway", "Route", "render"]

_RELOAD_EVERY_S = 1.0
_STOP_WITHIN_S = 10.0
_TOLD = "nginx.told"


class Gateway:
    """One running nginx for one data directory; holds what nginx was last told, and when."""

    def __init__(self, config: Config, *, header_timeout_s: int = 10) -> None:
        self._config = config
        self._header_timeout_s = header_timeout_s
        self._told: str | None = None
        self._told_at: float | None = None

    @property
    def conf_path(self) -> Path:
        return self._config.gateway_dir / "nginx.conf"

    @property
    def pid_path(self) -> Path:
        return self._config.run_dir / "nginx.pid"

    def write(self, routes: Sequence[Route]) -> float:
        """Make `routes` the wanted ones; a running nginx is told when anything changed, at most once a second.

        Returns the seconds after which to call again because a reload was put off; 0 when nothing is left to do.
        May be called at any time; also renews the certificate. Raises PreconditionFailed, and then what was in effect
        stays in effect.
        """
        with self._alone():
            return self._write(routes)

    def _write(self, routes: Sequence[Route]) -> float:
        text = render(routes, self._config, self._facts())
        if text != _text_of(self.conf_path):
            self._replace(text)
        return self._tell(text)

    def last_routes(self) -> tuple[Route, ...]:
        """The routes of the last `write`, by whichever process; none before the first."""
        return routes_of(_text_of(self.conf_path) or "")

    def start_if_absent(self) -> bool:
        """Start nginx in the background unless it runs; True when it was started. Needs a configuration (`write`).

        Not for a machine with systemd, where the unit appliance-gateway runs it (`run`).
        """
        if self.pid() is not None:
            return False
        self._end_orphans()
        self.check_ports()
        self.pid_path.unlink(missing_ok=True)
        self._nginx("cannot be started")
        self._told, self._told_at = _text_of(self.conf_path), clock.monotonic()
        self._note_told(self.pid() or 0, self._told or "")
        return True

    def run(self) -> NoReturn:
        """Become nginx, in the foreground, with today's configuration and the routes that were written last."""
        with self._alone():
            self._write(self.last_routes())
        self._end_orphans()
        self.check_ports()
        self._note_told(os.getpid(), _text_of(self.conf_path) or "")
        command = [*self._command(), "-g", "daemon off;"]
        os.execv(command[0], command)  # noqa: S606 - a list of arguments, no shell

    def pid(self) -> int | None:
        """The master process that runs with our configuration; None when there is none."""
        try:
            pid = int(self.pid_path.read_text())
        except (OSError, ValueError):
            return None
        command = ports.command_of(pid)
        return pid if command and "nginx" in command and str(self.conf_path) in command else None

    def stop(self) -> None:
        """No nginx of ours runs any more. May be called when none does."""
        pid = self.pid()
        if pid is None:
            return
        os.kill(pid, signal.SIGTERM)
        self._wait(lambda: not ports.is_alive(pid), f"nginx (process {pid}) and its workers do not stop")

    def check_ports(self) -> None:
        """Both ports are free, or ours already. Raises PreconditionFailed that names the holder."""
        for key in ("https_port", "http_port"):
            port = getattr(self._config, key)
            holder = ports.find_listener(port)
            if holder and not (holder.pid and self._is_ours(holder.pid)):
                raise PreconditionFailed(
                    f"Port {port} ({key}) is held by {holder}; stop it, or choose another {key} in appliance.toml and "
                    "run `applianced reconfigure`."
                )

    # -- the parts of it ---------------------------------------------------------------------------------------------

    def _is_ours(self, pid: int) -> bool:
        """An nginx process that writes into our error log: the master, or a worker, with or without its master."""
        return "nginx" in (ports.command_of(pid) or "") and ports.has_open(pid, self._config.gateway_log)

    def _end_orphans(self) -> None:
        """Workers outlive a master that was killed, and keep its ports and its old configuration."""
        if self.pid() is not None:
            return
        orphans = [pid for pid in ports.processes() if self._is_ours(pid)]
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._wait(lambda: not any(ports.is_alive(pid) for pid in orphans), f"nginx's workers {orphans} do not end")

    def _wait(self, done: Callable[[], bool], otherwise: str) -> None:
        deadline = clock.monotonic() + _STOP_WITHIN_S
        while not done():
            if clock.monotonic() > deadline:
                raise PreconditionFailed(f"{otherwise}; end them with `kill -9`.")
            time.sleep(0.02)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Daemon and gateway start at the same time, and neither may write routes that it read before the other wrote."""
        self._prepare()
        with (self._config.gateway_dir / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _prepare(self) -> None:
        self._config.gateway_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._config.run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._config.log_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        bodies_dir(self._config).mkdir(mode=0o755, exist_ok=True)

    def _facts(self) -> Facts:
        certificates = tls.ensure(self._config)
        return Facts(
            certificate=certificates.certificate,
            key=certificates.key,
            fingerprint=f"{certificates.fingerprint} until {clock.stamp(certificates.expires_at)}",
            ca_pem=certificates.ca.read_text() if certificates.ca else None,
            user=_user(self._config),
            ipv6=_has_ipv6_loopback(),
            header_timeout_s=self._header_timeout_s,
        )

    def _replace(self, text: str) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=self.conf_path.parent, prefix=".nginx.conf.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            self._nginx("refuses the configuration that was made for it", "-t", "-q", conf=Path(temporary))
            Path(temporary).replace(self.conf_path)
        finally:
            Path(temporary).unlink(missing_ok=True)

    def _tell(self, text: str) -> float:
        pid = self.pid()
        if pid is None or text == self._told or self._was_told(pid, text):
            return 0.0
        if self._told_at is not None:
            early = self._told_at + _RELOAD_EVERY_S - clock.monotonic()
            if early > 0:
                return early
        os.kill(pid, signal.SIGHUP)
        self._told, self._told_at = text, clock.monotonic()
        self._note_told(pid, text)
        return 0.0

    def _was_told(self, pid: int, text: str) -> bool:
        """Whether another process of ours told this nginx just that: a new daemon reloads nothing (a reload ends idle
        connections, and with them now and then a request that was on its way)."""
        return _text_of(self._config.run_dir / _TOLD) == _note(pid, text)

    def _note_told(self, pid: int, text: str) -> None:
        fresh = self._config.run_dir / f"{_TOLD}.new"
        fresh.write_text(_note(pid, text), encoding="utf-8")
        fresh.replace(self._config.run_dir / _TOLD)

    def _command(self, conf: Path | None = None) -> list[str]:
        program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if program is None:
            raise PreconditionFailed("There is no nginx on this machine; install it with `apt-get install nginx`.")
        where = ["-p", str(self._config.gateway_dir), "-e", str(self._config.gateway_log)]
        return [program, "-c", str(conf or self.conf_path), *where]

    def _nginx(self, what_failed: str, *options: str, conf: Path | None = None) -> None:
        """Run nginx until it answers (in the background it answers when its ports are bound)."""
        command = [*self._command(conf), *options]
        with tempfile.TemporaryFile() as said:  # a pipe would stay open in the background process
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, timeout=60, check=False)
            said.seek(0)
            lines = said.read().decode(errors="replace").splitlines()
        if done.returncode != 0:
            why = next((line for line in lines if "[emerg]" in line), lines[-1] if lines else "it says nothing")
            raise PreconditionFailed(f"nginx {what_failed}: {why.partition('[emerg] ')[2] or why}.")


# -- the machine -------------------------------------------------------------------------------------------------------


def _user(config: Config) -> str:
    try:
        pwd.getpwnam(config.service_user)
    except KeyError as error:
        raise PreconditionFailed(
            f"There is no user {config.service_user!r} on this machine; make it with "
            f"`useradd --system --shell /usr/sbin/nologin {config.service_user}`, or run install.sh again."
        ) from error
    return f"{config.service_user} {_group_of(config.service_user)}"


def _group_of(user: str) -> str:

    return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name


def _has_ipv6_loopback() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def _note(pid: int, text: str) -> str:
    return f"{pid} {hashlib.sha256(text.encode()).hexdigest()}\n"


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
