"""Workload networks: which subnet a new one gets, and the packet filter that keeps workloads to themselves.

What this keeps true, for every address of our pool: out to the internet, yes; within one network, yes; to another
network of the pool or of Docker, to any service of this machine, and to link-local addresses (a cloud's metadata
service is one), no. What is refused is rejected, not dropped, so a program sees at once that it may not.

The rules are two chains of our own, one hooked into Docker's DOCKER-USER (what is forwarded) and one into INPUT (what
is meant for this machine). They speak of the pool alone, never of one network, so they are the same before and after
any network comes or goes, and can be asserted at any moment: whoever flushed them, the next `Isolation.hold` puts
them back. Answers to connections that this machine opened (the dashboard reaching JupyterLab) always pass.

Why not Docker's own isolation alone: it parts networks, but leaves the machine's own services and the metadata
address open to every container.
"""

from __future__ import annotations

import ipaddress
import re
import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path

from appliance.errors import EngineBusy, EngineRefused

_TIMEOUT_S = 10.0
# A reset for TCP, since the kernel sends only so many ICMP answers a second and the rest of the callers would wait.
_REJECT = ("-p tcp -j REJECT --reject-with tcp-reset", "-j REJECT --reject-with icmp-port-unreachable")
_PREFIX_LENGTH = 28  # 13 containers each; 4,096 networks in a /16

IPv4Network = ipaddress.IPv4Network


def choose_subnet(pool: IPv4Network, taken: Iterable[IPv4Network]) -> IPv4Network | None:
    """The first /28 of `pool` that overlaps nothing taken; None when there is none."""
    busy = sorted((max(int(net.network_address), 0), int(net.broadcast_address)) for net in taken if net.overlaps(pool))
    step = 2 ** (32 - _PREFIX_LENGTH)
    candidate = int(pool.network_address)
    for first, last in busy:
        if candidate + step - 1 < first:
            break
        if last >= candidate:
            candidate = (last // step + 1) * step
    if candidate + step - 1 > int(pool.broadcast_address):
        return None
    return IPv4Network((candidate, _PREFIX_LENGTH))


def routed_subnets(table: str) -> list[IPv4Network]:
    """The networks that `table` (the text of /proc/net/route) sends somewhere, but for the default route."""
    nets = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        destination, mask = (int.from_bytes(bytes.fromhex(fields[i])[::-1], "big") for i in (1, 7))
        if mask:
            nets.append(IPv4Network((destination, mask.bit_count())))
    return nets


def own_routes() -> list[IPv4Network]:
    """What this machine already routes; a subnet of ours must not hide any of it."""
    return routed_subnets(Path("/proc/net/route").read_text())


def chain_names(pool: IPv4Network) -> tuple[str, str]:
    """Our chains for what is forwarded and for what is meant for this machine; at most 28 characters."""
    stem = f"APL-{pool.network_address}-{pool.prefixlen}"
    return f"{stem}-FWD", f"{stem}-IN"


def filter_rules(pool: IPv4Network, nameservers: Iterable[str]) -> str:
    """Both chains as iptables-restore's text. `nameservers` are this machine's; one that is itself must stay in reach."""
    forward, own = chain_names(pool)
    answers = "-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN"
    barred = (f"-d {pool}", "-d 169.254.0.0/16", "-o docker0", "-o br-+", "-o docker_gwbridge")
    lines = [
        "*filter",
        f":{forward} - [0:0]",
        f":{own} - [0:0]",
        # Two containers of one network: their frames cross the bridge and are not routed.
        f"-A {forward} -m physdev --physdev-is-bridged -j RETURN",
        f"-A {forward} {answers}",
        *(f"-A {forward} {what} {how}" for what in barred for how in _REJECT),
        f"-A {own} {answers}",
        *(f"-A {own} -d {server}/32 -p {protocol} -m {protocol} --dport 53 -j RETURN"
          for server in nameservers for protocol in ("udp", "tcp")),
        *(f"-A {own} {how}" for how in _REJECT),
        "COMMIT",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def nameservers(resolv_conf: str) -> list[str]:
    """The IPv4 name servers that /etc/resolv.conf names, but for loopback ones: those Docker asks on our behalf."""
    found = re.findall(r"^\s*nameserver\s+(\d+\.\d+\.\d+\.\d+)\s*$", resolv_conf, re.MULTILINE)
    return [server for server in found if not ipaddress.ip_address(server).is_loopback]


class Isolation:
    """The rules for one pool, and what they looked like when they were last put. Any thread may call."""

    def __init__(self, pool: IPv4Network) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._listed: list[str] = []

    def hold(self) -> bool:
        """The rules stand as this page says; False when they had to be put (back). May be called at any time.

        One look (10 ms) where nothing has changed. Otherwise the chains are replaced in one step, so there is no moment
        without them. `EngineRefused` where the packet filter cannot be set: no network must be given out then.
        """
        with self._lock:
            wanted = filter_rules(self._pool, nameservers(_read("/etc/resolv.conf")))
            if self._listed and self._listed == self._look(wanted):
                return True
            forward, own = chain_names(self._pool)
            _run(["iptables-restore", "--noflush", "--wait", "5"], wanted)
            _hook("DOCKER-USER", self._pool, forward)
            _hook("INPUT", self._pool, own)
            self._listed = self._look(wanted)
            return False

    def _look(self, wanted: str) -> list[str]:
        """What is wanted, and every rule that names our chains as iptables shows it now."""
        shown = _call(["iptables", "-w", "5", "-S"]).stdout.splitlines()
        names = chain_names(self._pool)
        return [wanted, *(line for line in shown if any(name in line.split() for name in names))]


def remove_isolation(pool: IPv4Network) -> None:
    """Our chains are gone (for `--uninstall` and tests). Missing ones: nothing happens."""
    forward, own = chain_names(pool)
    for chain, ours in (("DOCKER-USER", forward), ("FORWARD", forward), ("INPUT", own)):
        while _ok(["iptables", "-w", "5", "-D", chain, "-s", str(pool), "-j", ours]):
            pass
    for ours in (forward, own):
        _ok(["iptables", "-w", "5", "-F", ours])
        _ok(["iptables", "-w", "5", "-X", ours])


def _hook(chain: str, pool: IPv4Network, ours: str) -> None:
    """`chain` begins with a jump into `ours`."""
    if chain == "DOCKER-USER" and not _ok(["iptables", "-w", "5", "-S", chain]):
        chain = "FORWARD"  # Docker was told not to touch the packet filter, so its chain is not there
    jump = ["-s", str(pool), "-j", ours]
    if not _ok(["iptables", "-w", "5", "-C", chain, *jump]):
        _run(["iptables", "-w", "5", "-I", chain, "1", *jump])


def _ok(command: list[str]) -> bool:
    return _call(command).returncode == 0


def _run(command: list[str], text: str | None = None) -> None:
    done = _call(command, text)
    if done.returncode != 0:
        raise EngineRefused(
            f"The packet filter that keeps containers apart could not be set ({done.stderr.strip() or command[0]}); "
            "without it no workload network is made. The daemon must be root and iptables must work."
        )


def _call(command: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except FileNotFoundError as cause:
        raise EngineRefused(
            f"{command[0]} is not installed, and without it containers cannot be kept apart: apt-get install iptables."
        ) from cause
    except subprocess.TimeoutExpired as cause:
        raise EngineBusy(f"{command[0]} did not answer within {_TIMEOUT_S:.0f} s; it is tried again.") from cause


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
