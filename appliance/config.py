"""The one configuration: a frozen `Config`, read once from one TOML file and the environment.

What this keeps true: nothing else in the package reads a configuration file or an `APPLIANCE_` variable of the server,
every value is checked before anything starts, and whatever is wrong is said in one sentence that names its source (the
file or the variable) and the key. Every path of the data and run directories is spelled here and nowhere else.

Order, later wins: the defaults below, the file (`/etc/appliance/appliance.toml`, or the one that `APPLIANCE_CONFIG`
names), the environment (`APPLIANCE_HTTPS_PORT=443`; lists with commas, a range of ports as `9400-9799`).

Why: a typing mistake in a file that is ignored silently costs an evening; settings that are read where they are used
cannot be shown, checked or changed in one place.
"""
# ruff: noqa: RUF009 - `_key` is `dataclasses.field` with the key's comment and bounds.

from __future__ import annotations

import difflib
import fcntl
import ipaddress
import os
import re
import socket
import struct
import tomllib
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from appliance.errors import ParseError

DEFAULT_PATH = Path("/etc/appliance/appliance.toml")
_PREFIX = "APPLIANCE_"
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*")
_SIOCGIFADDR = 0x8915  # linux/sockios.h: an interface's IPv4 address


def machine_name() -> str:
    """The machine's own name in lower case, without its domain."""
    return socket.gethostname().split(".")[0].lower() or "appliance"


def _key(default: Any, comment: str, *, low: int | None = None, high: int | None = None) -> Any:
    metadata = {"comment": comment, "low": low, "high": high}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """What the administrator may choose. Paths are absolute; `names` are further host names or addresses of ours."""

    data_dir: Path = _key(
        Path("/var/lib/appliance"), "Everything that must not be lost: database, store, repositories."
    )
    run_dir: Path = _key(Path("/run/appliance"), "Sockets and pid files; gone after a reboot.")
    log_dir: Path = _key(Path("/var/log/appliance"), "Log files of the daemon, of nginx and of install.sh.")
    prefix: Path = _key(Path("/opt/appliance"), "Where install.sh put the program (its virtual environment is venv/).")
    service_user: str = _key("appliance", "The unprivileged user of nginx's workers, git and parsers.")
    host_name: str = _key(machine_name, "The name by which clients reach this server; NAME.local is accepted as well.")
    names: tuple[str, ...] = _key((), "Further host names or IP addresses by which clients reach it.")
    https_address: str = _key("0.0.0.0", "Where HTTPS listens; 0.0.0.0 is every IPv4 address, :: is IPv6 as well.")  # noqa: S104 - the LAN is who it is for
    https_port: int = _key(8443, "The dashboard, the API and git over HTTPS.", low=1, high=65535)
    http_port: int = _key(8080, "The same in plain HTTP, on this machine's loopback alone.", low=1, high=65535)
    deployment_address: str = _key("127.0.0.1", "Where the deployments' own ports listen.")
    deployment_ports: tuple[int, int] = _key((9400, 9799), "First and last port that deployments are given.")
    network_pool: str = _key("10.213.0.0/16", "Addresses for the containers' networks; must not be used on your LAN.")
    tls_certificate: Path | None = _key(None, "Your own certificate (PEM, with its chain) in place of ours.")
    tls_key: Path | None = _key(None, "The private key of tls_certificate (PEM, without a password).")
    docker_socket: Path = _key(Path("/var/run/docker.sock"), "The Docker engine's socket.")
    base_image: str = _key("appliance/base:latest", "What the other images stand on.")
    serving_image: str = _key("appliance/serving:latest", "What a model is served in.")
    datascience_image: str = _key("appliance/datascience:latest", "Python with numpy, scikit-learn, onnx, JupyterLab.")
    log_retention_days: int = _key(30, "Days for which logs of finished jobs are kept.", low=1, high=36500)
    container_retention_s: int = _key(600, "Seconds for which a finished container is kept.", low=0, high=31_536_000)
    session_idle_hours: int = _key(
        12, "Hours without a request after which a browser signs in again.", low=1, high=8760
    )
    session_max_days: int = _key(7, "Days after which a browser signs in again in any case.", low=1, high=3650)
    max_upload_mib: int = _key(102_400, "The largest single file that can be uploaded, in MiB.", low=1, high=2**30)
    free_floor_mib: int = _key(
        1024, "Uploads and job outputs are refused below so much free disk, in MiB.", low=0, high=2**30
    )

    # The layout of the data directory.

    @property
    def db_path(self) -> Path:
        return self.data_dir / "appliance.db"

    @property
    def store_dir(self) -> Path:
        return self.data_dir / "store"

    @property
    def repos_dir(self) -> Path:
        return self.data_dir / "repos"

    @property
    def staging_dir(self) -> Path:
        return self.data_dir / "staging"

    @property
    def work_dir(self) -> Path:
        return self.data_dir / "work"

    @property
    def volumes_dir(self) -> Path:
        return self.data_dir / "volumes"

    @property
    def logs_dir(self) -> Path:
        return self.data_dir / "logs"

    @property
    def tls_dir(self) -> Path:
        return self.data_dir / "tls"

    @property
    def gateway_dir(self) -> Path:
        return self.data_dir / "gateway"

    @property
    def gateway_log(self) -> Path:
        """What our nginx has to say; its processes are known by having it open."""
        return self.log_dir / "nginx-error.log"

    @property
    def local_admin_key(self) -> Path:
        """The API key, 0600, by which root on this server is known to the daemon."""
        return self.data_dir / "local-admin.key"

    # The layout of the run directory.

    @property
    def daemon_socket(self) -> Path:
        return self.run_dir / "daemon.sock"

    @property
    def holder_socket(self) -> Path:
        return self.run_dir / "holder.sock"

    @property
    def replicas_dir(self) -> Path:
        return self.run_dir / "replicas"

    # How clients reach it.

    @property
    def local_url(self) -> str:
        """The address for whoever is on this machine."""
        return f"http://127.0.0.1:{self.http_port}"

    def dashboard_urls(self) -> tuple[str, ...]:
        """The addresses to type into a browser, best first; the last is for this machine alone."""
        port = "" if self.https_port == 443 else f":{self.https_port}"
        hosts = [self.host_name, *self.names, *self._listening_addresses()]
        return (*(f"https://{_bracketed(host)}{port}" for host in dict.fromkeys(hosts)), self.local_url)

    def accepted_hosts(self) -> frozenset[str]:
        """Lower-case names and addresses (without a port, IPv6 without brackets) that a Host header may name."""
        return frozenset({*self.host_names(), *machine_addresses()})

    def host_names(self) -> tuple[str, ...]:
        """The names (and addresses out of `names`) that are ours by configuration; the certificate carries them."""
        own = [self.host_name] if "." in self.host_name else [self.host_name, f"{self.host_name}.local"]
        return tuple(dict.fromkeys([*own, "localhost", "127.0.0.1", "::1", *self.names]))

    def _listening_addresses(self) -> tuple[str, ...]:
        where = ipaddress.ip_address(self.https_address)
        if not where.is_unspecified:
            return () if where.is_loopback else (str(where),)
        return tuple(
            address
            for address in machine_addresses(bridges=False)
            if not ipaddress.ip_address(address).is_loopback and (where.version == 6 or ":" not in address)
        )


def load(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """Defaults, then the file, then the environment, checked.

    `path` None means the file that `APPLIANCE_CONFIG` names, else the usual one, which may be absent; a file that
    somebody named must be there. Raises ParseError.
    """
    environ = os.environ if environ is None else environ
    named = path or (Path(environ[_PREFIX + "CONFIG"]) if environ.get(_PREFIX + "CONFIG") else None)
    source = named or DEFAULT_PATH
    values = {
        key: (value, f"{source}, key {key!r}") for key, value in _read(source, must_exist=named is not None).items()
    }
    for key in _KEYS:
        text = environ.get(_PREFIX + key.upper())
        if text is not None:
            variable = f"the variable {_PREFIX}{key.upper()}"
            values[key] = (_from_text(key, text, variable), variable)
    chosen = {key: _converted(key, value, where) for key, (value, where) in values.items()}
    config = Config(**chosen)
    _check_together(config, {key: where for key, (_, where) in values.items()}, source)
    return config


def render(config: Config) -> str:
    """The whole configuration as commented TOML; values that are defaults are commented out, so that they can move."""
    default = Config()
    lines = [
        "# The configuration of Appliance. Change what you like, then run `applianced reconfigure`.",
        "# A line that starts with # shows the default.",
    ]
    for key, spec in _KEYS.items():
        value = getattr(config, key)
        mark = "# " if value == getattr(default, key) else ""
        lines += ["", f"# {spec.metadata['comment']}", f"{mark}{key} = {_toml(value)}"]
    return "\n".join(lines) + "\n"


def machine_addresses(*, bridges: bool = True) -> tuple[str, ...]:
    """This machine's IP addresses, IPv4 first, without link-local ones; on request without containers' bridges."""

    def wanted(interface: str) -> bool:
        return bridges or not interface.startswith(("docker", "br-", "veth", "virbr"))

    found = [_ipv4_of(name) for _, name in socket.if_nameindex() if wanted(name)]
    found += [address for name, address in _ipv6_addresses() if wanted(name)]
    return tuple(dict.fromkeys(each for each in found if each and not ipaddress.ip_address(each).is_link_local))


# -- reading -----------------------------------------------------------------------------------------------------------

_KEYS: Mapping[str, Field[Any]] = {each.name: each for each in fields(Config)}


def _read(path: Path, *, must_exist: bool) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        if must_exist:
            raise ParseError(f"There is no configuration file {path}; create it or unset APPLIANCE_CONFIG.") from error
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ParseError(f"The configuration file {path} cannot be read: {error}.") from error
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ParseError(f"The configuration file {path} is not valid TOML: {error}.") from error
    for key in found:
        if key not in _KEYS:
            raise ParseError(f"{path}, key {key!r}: there is no such key{_did_you_mean(key)}.")
    return found


def _did_you_mean(key: str) -> str:
    close = difflib.get_close_matches(key, _KEYS, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _from_text(key: str, text: str, where: str) -> Any:
    """What a variable's text means for the key's type; `_converted` then checks it as if it came from the file."""
    kind = _KEYS[key].type
    if kind == "int":
        return _integer(text, where)
    if kind == "tuple[str, ...]":
        return [part.strip() for part in text.split(",") if part.strip()]
    if kind == "tuple[int, int]":
        return [_integer(part, where) for part in text.split("-")]
    return text


def _integer(text: str, where: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ParseError(f"{where}: {text!r} is not a whole number.") from error


def _converted(key: str, value: Any, where: str) -> Any:
    """`value` as the field's type and within its bounds. Raises ParseError."""
    spec = _KEYS[key]
    match spec.type:
        case "int":
            if not isinstance(value, int) or isinstance(value, bool):
                raise ParseError(f"{where}: {value!r} is not a whole number.")
            low, high = spec.metadata["low"], spec.metadata["high"]
            if not low <= value <= high:
                raise ParseError(f"{where}: {value} is not between {low} and {high}.")
            return value
        case "tuple[int, int]":
            if not (isinstance(value, list) and len(value) == 2 and all(type(each) is int for each in value)):
                raise ParseError(f"{where}: {value!r} is not a pair of ports such as [9400, 9799].")
            if not 1 <= value[0] <= value[1] <= 65535:
                raise ParseError(f"{where}: {value!r} must be two ports from 1 to 65535, the lower one first.")
            return tuple(value)
        case "tuple[str, ...]":
            if not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
                raise ParseError(f"{where}: {value!r} is not a list of texts.")
            return tuple(_host(each, where) for each in value)
        case "Path | None" if value == "":
            return None
        case "Path" | "Path | None":
            if not (isinstance(value, str) and value.startswith("/")) or "\n" in value:
                raise ParseError(f"{where}: {value!r} is not an absolute path.")
            return Path(value)
    if not (isinstance(value, str) and value):
        raise ParseError(f"{where}: {value!r} is not a text.")
    return _text(key, value, where)


def _text(key: str, value: str, where: str) -> str:
    try:
        match key:
            case "host_name":
                return _host(value, where)
            case "https_address" | "deployment_address":
                return str(ipaddress.ip_address(value))
            case "network_pool":
                pool = ipaddress.IPv4Network(value)
                if not (pool.is_private and pool.prefixlen <= 22):
                    raise ValueError("it must be a private IPv4 range of at least a /22")
                return str(pool)
            case "service_user":
                if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", value):
                    raise ValueError("it is not a user's name")
    except ValueError as error:
        raise ParseError(f"{where}: {value!r} cannot be used: {error}.") from error
    return value


def _host(value: str, where: str) -> str:
    value = value.strip().lower().rstrip(".")
    try:
        return str(ipaddress.ip_address(value.strip("[]")))
    except ValueError:
        if not _HOST.fullmatch(value):
            raise ParseError(f"{where}: {value!r} is neither a host name nor an IP address.") from None
        return value


def _check_together(config: Config, wheres: Mapping[str, str], source: Path) -> None:
    """What no single key can show. Raises ParseError."""

    def where(*keys: str) -> str:
        return next((wheres[key] for key in keys if key in wheres), str(source))

    if config.https_port == config.http_port:
        raise ParseError(
            f"{where('http_port', 'https_port')}: http_port and https_port are both {config.http_port}; change one."
        )
    first, last = config.deployment_ports
    for key in ("https_port", "http_port"):
        if first <= getattr(config, key) <= last:
            raise ParseError(
                f"{where(key, 'deployment_ports')}: {key} {getattr(config, key)} lies within deployment_ports "
                f"{first} to {last}; change one of them."
            )
    if (config.tls_certificate is None) != (config.tls_key is None):
        raise ParseError(
            f"{where('tls_certificate', 'tls_key')}: tls_certificate and tls_key go together; one is missing."
        )


def _toml(value: Any) -> str:
    if value is None:
        return '""'
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _ipv4_of(interface: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        except OSError:  # an interface without an address
            return None
    return socket.inet_ntoa(answer[20:24])


def _ipv6_addresses() -> list[tuple[str, str]]:
    try:
        lines = Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines()
    except OSError:  # a kernel without IPv6
        return []
    rows = [line.split() for line in lines]
    return [(row[5], str(ipaddress.IPv6Address(int(row[0], 16)))) for row in rows]
