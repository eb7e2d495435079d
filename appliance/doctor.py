"""What is wrong with this machine, and what to do about it: `applianced doctor`.

What this keeps true: it changes nothing, it works while the daemon is down, one check that cannot be made hides no other,
and every finding that is not `ok` comes with what to do. A `problem` keeps something from working; a `warning` does not,
or not yet.

Why: whoever installs this has one server and one evening; a list of what was looked at, with its remedies, is shorter
than every page of troubleshooting.
"""

from __future__ import annotations

import ctypes
import http.client
import ipaddress
import json
import os
import pwd
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

from pysqlite3.dbapi2 import sqlite_version_info

from appliance import clock, db, ports, tls
from appliance.config import Config, machine_addresses
from appliance.errors import ApplianceError
from appliance.runtime import images
from appliance.runtime.docker import DockerEngine
from appliance.runtime.gpus import Gpus

State = Literal["ok", "warning", "problem"]

_OLDEST_GIT = (2, 36)  # core.fsync, with which a push is on the disk when it is acknowledged
_OLDEST_NGINX = (1, 18)
_OLDEST_TOOLKIT = (1, 18)  # NVIDIA's container toolkit: older ones have known ways out of a container
_NVIDIA = "0x10de"
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_UNITS = ("appliance.service", "appliance-holder.service", "appliance-gateway.service")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `remedy` is None exactly where the state is ok."""

    check: str
    state: State
    text: str
    remedy: str | None = None


def examine(config: Config, names: Sequence[str] | None = None) -> list[Finding]:
    """Every finding, in the order of the checks; `names` limits it to these checks. Takes seconds, changes nothing."""
    found: list[Finding] = []
    for name, check in CHECKS.items():
        if names is None or name in names:
            found += _made(name, check, config)
    return found


def worst(findings: Sequence[Finding]) -> State:
    """The state of the whole."""
    order: tuple[State, ...] = ("problem", "warning")
    return next((state for state in order if any(each.state == state for each in findings)), "ok")


Check = Callable[[Config], Iterator[Finding]]


def _made(name: str, check: Check, config: Config) -> list[Finding]:
    try:
        return list(check(config))
    except ApplianceError as error:
        return [Finding(name, "problem", error.message, "Do what the sentence says, then ask the doctor again.")]
    except Exception as error:  # one check that fails must not hide the others
        remedy = "Run it as root." if os.geteuid() else "Report it, with this sentence."
        return [Finding(name, "problem", f"This could not be examined: {type(error).__name__}: {error}.", remedy)]


# -- the engine and what runs on it ------------------------------------------------------------------------------------


def _engine(config: Config) -> Iterator[Finding]:
    remedy = f"{_start('docker')}; then see its log."
    if away := _why_away(config.docker_socket):
        yield Finding("engine", "problem", f"No Docker engine answers at {config.docker_socket} ({away}).", remedy)
        return
    engine = DockerEngine("doctor", pool=config.network_pool, socket=config.docker_socket)
    try:
        health = engine.health()
    finally:
        engine.close()
    if not health.ok:
        yield Finding("engine", "problem", health.problem or "The Docker engine does not answer.", remedy)
        return
    yield Finding("engine", "ok", f"Docker {health.version} answers.")
    for warning in health.warnings:
        yield Finding("engine", "warning", warning, "It works without; do it when Docker may restart.")


def _images(config: Config) -> Iterator[Finding]:
    del config  # their names are the builder's own
    remedy = "Run ./install.sh again, or `python -m appliance.runtime.images build` with its Python."
    for image in images.status(images.has_nvidia()):
        match image.state:
            case "current":
                yield Finding("images", "ok", f"{image.name} is current ({(image.size_bytes or 0) / 1e6:.0f} MB).")
            case "outdated":
                yield Finding("images", "warning", f"{image.name} was made of an older recipe or code.", remedy)
            case _:
                yield Finding("images", "problem", f"{image.name} is missing.", remedy)


def _cards(config: Config) -> Iterator[Finding]:
    del config
    gpus = Gpus()
    try:
        driver, cards = gpus.driver(), gpus.inventory()
    finally:
        gpus.close()
    if driver.problem:
        if not _has_nvidia_card():
            yield Finding("gpu", "ok", "There is no NVIDIA card in this machine; everything runs on its processors.")
            return
        remedy = "Install NVIDIA's driver (Debian: nvidia-driver from non-free), reboot, and run ./install.sh again."
        yield Finding("gpu", "problem", f"There is an NVIDIA card, but {driver.problem}.", remedy)
        return
    yield Finding("gpu", "ok", f"NVIDIA's driver {driver.version} shows {len(cards)} card(s).")
    for card in cards:
        if not card.healthy:
            text = f"Card {card.index} ({card.name}, {card.uuid}) is unhealthy: {card.problem}."
            yield Finding("gpu", "problem", text, "It is given to nobody until it answers again.")
    yield _toolkit()


def _toolkit() -> Finding:
    remedy = "Install nvidia-container-toolkit from NVIDIA's repository, then restart Docker."
    if not (shutil.which("nvidia-container-runtime-hook") or shutil.which("nvidia-ctk")):
        return Finding("gpu", "problem", "Docker cannot hand a card to a container: there is no toolkit.", remedy)
    version = _version_of(["nvidia-ctk", "--version"])
    if version and version < _OLDEST_TOOLKIT:
        return Finding("gpu", "warning", f"NVIDIA's container toolkit is old ({_dotted(version)}).", remedy)
    return Finding("gpu", "ok", f"NVIDIA's container toolkit is there ({_dotted(version) if version else 'unknown'}).")


def _has_nvidia_card() -> bool:
    """A display or 3D controller (PCI class 03) of NVIDIA's on the bus, whether or not it has a driver."""
    for device in Path("/sys/bus/pci/devices").glob("*"):
        if (device / "vendor").read_text().strip() == _NVIDIA and (device / "class").read_text().startswith("0x03"):
            return True
    return False


# -- the machine -------------------------------------------------------------------------------------------------------


def _disk(config: Config) -> Iterator[Finding]:
    folder = next(each for each in (config.data_dir, *config.data_dir.parents) if each.exists())
    usage = shutil.disk_usage(folder)
    free_mib, share = usage.free // 2**20, usage.free / usage.total
    text = f"{free_mib} MiB ({share:.0%}) are free at {folder}."
    remedy = "Delete dataset versions, models or runs that nobody needs, or give the folder a larger disk."
    if free_mib < config.free_floor_mib:
        yield Finding("disk", "problem", f"{text} Uploads and outputs are refused.", remedy)
    elif free_mib < 5 * config.free_floor_mib or share < 0.05:
        yield Finding("disk", "warning", text, remedy)
    else:
        yield Finding("disk", "ok", text)
    inodes = os.statvfs(folder)
    if inodes.f_files and inodes.f_favail < 10_000:
        yield Finding("disk", "warning", f"Only {inodes.f_favail} more files fit on the disk of {folder}.", remedy)


def _clock(config: Config) -> Iterator[Finding]:
    now = clock.now().timestamp()
    remedy = "Set the clock (timedatectl set-ntp true, or `date`), then restart the daemon."
    seen = [path for path in (config.db_path, config.logs_dir, config.log_dir) if path.exists()]
    newest = max((path.stat().st_mtime for path in seen), default=now)
    if newest > now + 300:
        text = f"The clock says {clock.stamp()}, but files were written later than that."
        yield Finding("clock", "problem", text, remedy)
    elif ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512)) == _TIME_ERROR:
        yield Finding("clock", "warning", "No time server keeps the clock right.", remedy)
    else:
        yield Finding("clock", "ok", "The clock is kept by a time server.")


def _network(config: Config) -> Iterator[Finding]:
    pool = ipaddress.ip_network(config.network_pool)
    ours = [each for each in machine_addresses(bridges=False) if ":" not in each and ipaddress.ip_address(each) in pool]
    if ours:
        text = f"network_pool {pool} contains this machine's own address {ours[0]}."
        yield Finding("network", "problem", text, "Choose another network_pool, then `applianced reconfigure`.")
    else:
        yield Finding("network", "ok", f"Containers get addresses out of {pool}.")


def _permissions(config: Config) -> Iterator[Finding]:
    if not config.data_dir.is_dir():
        text = f"There is no data directory {config.data_dir}."
        yield Finding("permissions", "problem", text, "Run ./install.sh again, or correct data_dir.")
        return
    private = [config.data_dir, config.local_admin_key, config.tls_dir / "ca.key", config.tls_dir / "server.key"]
    open_ones = [path for path in private if path.exists() and path.stat().st_mode & 0o077]
    for path in open_ones:
        text = f"{path} can be read or entered by others (mode {path.stat().st_mode & 0o777:o})."
        yield Finding("permissions", "problem", text, f"chmod go= {path}")
    if config.data_dir.stat().st_uid not in (0, os.geteuid()):
        text = f"{config.data_dir} does not belong to root."
        yield Finding("permissions", "problem", text, f"chown root: {config.data_dir}")
    elif not open_ones:
        yield Finding("permissions", "ok", f"{config.data_dir} is closed to others.")


# -- programs ----------------------------------------------------------------------------------------------------------


def _sqlite(config: Config) -> Iterator[Finding]:
    del config
    version = sqlite_version_info
    if version < db.OLDEST_SQLITE:
        text = f"SQLite {_dotted(version)} can corrupt the database, and the daemon refuses to start with it."
        yield Finding("sqlite", "problem", text, "Install pysqlite3 0.6.1 or newer: run ./install.sh again.")
    else:
        yield Finding("sqlite", "ok", f"SQLite {_dotted(version)}.")


def _git(config: Config) -> Iterator[Finding]:
    del config
    version = _version_of(["git", "--version"])
    if version is None:
        yield Finding("git", "problem", "There is no git on this machine.", "apt-get install git")
    elif version < _OLDEST_GIT:
        yield Finding("git", "warning", f"git {_dotted(version)} is old.", f"Install {_dotted(_OLDEST_GIT)} or newer.")
    else:
        yield Finding("git", "ok", f"git {_dotted(version)}.")


def _nginx(config: Config) -> Iterator[Finding]:
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    version = _version_of([program, "-v"]) if program else None
    if program is None or version is None:
        yield Finding("nginx", "problem", "There is no nginx on this machine.", "apt-get install nginx")
        return
    if version < _OLDEST_NGINX:
        yield Finding("nginx", "warning", f"nginx {_dotted(version)} is old.", "Bring the system up to date.")
    conf = config.gateway_dir / "nginx.conf"
    if not conf.exists() or not config.run_dir.is_dir() or not (config.log_dir / "gateway").is_dir():
        text = f"nginx was not started since the last boot, or never ({conf}, {config.run_dir})."
        yield Finding("nginx", "warning", text, f"{_start('appliance-gateway')}.")
        return
    done = _run([program, "-t", "-q", "-c", str(conf), "-p", str(config.gateway_dir), "-e", "stderr"])
    if done is None or done.returncode:
        why = done.stderr.strip().splitlines()[0] if done and done.stderr.strip() else "it does not answer"
        yield Finding("nginx", "problem", f"nginx refuses {conf}: {why}", "Run `applianced reconfigure`.")
    else:
        yield Finding("nginx", "ok", f"nginx {_dotted(version)} accepts its configuration.")


def _ports(config: Config) -> Iterator[Finding]:
    for key in ("https_port", "http_port"):
        port = getattr(config, key)
        holder = ports.find_listener(port)
        if holder is None:
            text = f"Nobody listens on port {port} ({key})."
            yield Finding("ports", "problem", text, f"{_start('appliance-gateway')}.")
            continue
        if holder.pid and ports.has_open(holder.pid, config.gateway_log):
            yield Finding("ports", "ok", f"Port {port} ({key}) is ours.")
        else:
            remedy = f"Stop it, or choose another {key} and run `applianced reconfigure`."
            yield Finding("ports", "problem", f"Port {port} ({key}) is held by {holder}.", remedy)


# -- our own processes -------------------------------------------------------------------------------------------------


def _daemon(config: Config) -> Iterator[Finding]:
    remedy = f"{_start('appliance')}; its log says why it ended."
    try:
        status, body = _ask(config.daemon_socket, "/health")
    except OSError as error:
        yield Finding("daemon", "problem", f"The daemon does not answer ({error.strerror or error}).", remedy)
        return
    if status == 200:
        yield _reachable(config) or Finding("daemon", "ok", "The daemon answers.")
    else:
        yield Finding("daemon", "warning", f"The daemon says that it is not well: {_message(body)}", remedy)


def _reachable(config: Config) -> Finding | None:
    """The gateway's workers, which are not root, may use the daemon's socket."""
    user = pwd.getpwnam(config.service_user)
    socket_ = config.daemon_socket.stat()
    if user.pw_uid == 0 or (socket_.st_gid == user.pw_gid and socket_.st_mode & 0o060 == 0o060):
        return None
    text = f"The daemon answers root, but not nginx: {config.daemon_socket} is closed to the user {user.pw_name}."
    return Finding("daemon", "problem", text, "Restart the daemon; its log says why.")


def _holder(config: Config) -> Iterator[Finding]:
    if away := _why_away(config.holder_socket):
        text = f"The holder of the deployments' sockets does not answer ({away})."
        yield Finding("holder", "problem", text, f"{_start('appliance-holder')}.")
        return
    yield Finding("holder", "ok", "The holder of the deployments' sockets answers.")


def _certificates(config: Config) -> Iterator[Finding]:
    found = tls.find(config)
    if found is None:
        yield Finding("certificates", "warning", "There is no certificate yet.", f"{_start('appliance-gateway')}.")
        return
    left = found.expires_at - clock.now()
    text = f"The certificate {found.certificate} is valid until {found.expires_at:%Y-%m-%d}."
    ours = "Restart the daemon, which renews it."
    remedy = "Renew it." if found.ca is None else ours
    if left < timedelta(0):
        yield Finding("certificates", "problem", text.replace("is valid until", "expired on"), remedy)
    elif left < timedelta(days=14):
        yield Finding("certificates", "warning", text, remedy)
    else:
        yield Finding("certificates", "ok", text)


def _units(config: Config) -> Iterator[Finding]:
    del config
    if not systemd_runs():
        text = "systemd does not run here: after a reboot, `./install.sh --start` starts everything."
        yield Finding("units", "ok", text)
        return
    for unit in _UNITS:
        done = _run(["systemctl", "show", "--property=LoadState,ActiveState,UnitFileState", unit])
        shown = dict(line.split("=", 1) for line in (done.stdout if done else "").splitlines() if "=" in line)
        if shown.get("LoadState") != "loaded":
            yield Finding("units", "problem", f"systemd does not know {unit}.", "Run ./install.sh again.")
        elif shown.get("ActiveState") != "active":
            text = f"{unit} is {shown.get('ActiveState')}."
            yield Finding("units", "problem", text, f"systemctl start {unit}; its log: journalctl -u {unit}")
        elif shown.get("UnitFileState") != "enabled":
            yield Finding("units", "warning", f"{unit} does not start with the machine.", f"systemctl enable {unit}")
        else:
            yield Finding("units", "ok", f"{unit} is active.")


CHECKS: dict[str, Check] = {
    "engine": _engine,
    "gpu": _cards,
    "images": _images,
    "disk": _disk,
    "permissions": _permissions,
    "clock": _clock,
    "network": _network,
    "sqlite": _sqlite,
    "git": _git,
    "nginx": _nginx,
    "certificates": _certificates,
    "ports": _ports,
    "holder": _holder,
    "daemon": _daemon,
    "units": _units,
}


# -- looking -----------------------------------------------------------------------------------------------------------


def systemd_runs() -> bool:
    """As sd_booted(3) decides it."""
    return Path("/run/systemd/system").is_dir()


def _start(unit: str) -> str:
    return f"systemctl start {unit}" if systemd_runs() else "./install.sh --start"


def _run(command: list[str]) -> subprocess.CompletedProcess[str] | None:
    """None where there is no such program, or it does not end."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def _version_of(command: list[str]) -> tuple[int, ...] | None:
    done = _run(command)
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", done.stdout + done.stderr) if done else None
    return tuple(int(part) for part in found.groups() if part) if found else None


def _dotted(version: Sequence[int]) -> str:
    return ".".join(str(part) for part in version)


def _why_away(path: Path) -> str | None:
    """Why nobody answers on a Unix socket; None when somebody accepts."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        try:
            probe.connect(str(path))
        except OSError as error:
            return error.strerror or str(error)
    return None


def _ask(path: Path, target: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("localhost", timeout=5)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(5)
    try:
        connection.sock.connect(str(path))
        connection.request("GET", target)
        answer = connection.getresponse()
        return answer.status, answer.read(100_000)
    except http.client.HTTPException as error:
        raise OSError(f"it does not speak HTTP: {error}") from error
    finally:
        connection.close()


def _message(body: bytes) -> str:
    try:
        found = json.loads(body)
        return str(found.get("message", found)) if isinstance(found, dict) else str(found)
    except ValueError:
        return body[:200].decode(errors="replace")
