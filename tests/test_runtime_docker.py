"""What holds of Docker alone: profiles, isolation, cards, long lines, and an engine that is killed."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nvml_standin
import pytest
from test_runtime_conformance import IMAGE, ended, remove_all, sight, spec, test_image
from waiting import wait_until

from appliance.errors import EngineBusy, EngineRefused, ImageNotFound
from appliance.records import Mount
from appliance.runtime import networks
from appliance.runtime.answers import checked_image, image_not_found, refusal, with_tag
from appliance.runtime.docker import DockerEngine
from appliance.runtime.kernel import blames_memory
from appliance.states import Seen

POOL = "10.215.0.0/16"
INSTANCE = "dockertest"
SECCOMP = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["connect"], "action": "SCMP_ACT_ERRNO"}]}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[DockerEngine]:
    test_image()
    remove_all(INSTANCE)
    profile = tmp_path / "seccomp.json"
    profile.write_text(json.dumps(SECCOMP))
    it = DockerEngine(INSTANCE, POOL, serving_seccomp=profile)
    yield it
    it.close()
    remove_all(INSTANCE)
    networks.remove_isolation(ipaddress.IPv4Network(POOL))


def output(engine: DockerEngine, container_id: str = "ctr1") -> str:
    ended(engine, container_id)
    return "\n".join(line.text for line in engine.logs(container_id))


# -- profiles ----------------------------------------------------------------------------------------------------------


@pytest.mark.docker
def test_a_workload_is_root_with_less_than_dockers_capabilities(engine: DockerEngine) -> None:
    engine.create(
        spec("id -u; grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status; ls /dev; ls /run /var/run 2>&1")
    )
    engine.start("ctr1")

    shown = output(engine)

    capabilities = int(re.search(r"CapEff:\s*(\w+)", shown)[1], 16)  # type: ignore[index]
    held = {number for number in range(41) if capabilities >> number & 1}
    # linux/capability.h: Docker's fourteen less NET_RAW 13, SYS_CHROOT 18, MKNOD 27, AUDIT_WRITE 29
    assert held == {0, 1, 3, 4, 5, 6, 7, 8, 10, 31}
    assert re.search(r"^0$", shown, re.MULTILINE)
    assert re.search(r"NoNewPrivs:\s*1", shown)
    assert re.search(r"Seccomp:\s*2", shown)
    assert "docker.sock" not in shown
    assert not re.search(r"^(sd|vd|nvme|loop|kmsg|fuse)", shown, re.MULTILINE)


@pytest.mark.docker
def test_a_serving_container_is_nobody_without_network_or_a_writable_root(engine: DockerEngine) -> None:
    probe = (
        "id -u; grep CapEff /proc/self/status; touch /here 2>&1; touch /tmp/there && echo wrote;"
        " ls /sys/class/net; nc -w 1 127.0.0.1 9 2>&1"
    )
    engine.create(spec(probe, profile="serving", network="ignored"))
    engine.start("ctr1")

    shown = output(engine)

    assert shown.startswith("65534\n")
    assert re.search(r"CapEff:\s*0+$", shown, re.MULTILINE)
    assert "/here: Read-only file system" in shown
    assert "wrote" in shown
    assert re.search(r"^lo$", shown, re.MULTILINE)
    assert "eth0" not in shown
    assert "Operation not permitted" in shown  # connect


@pytest.mark.docker
def test_a_serving_container_is_refused_without_its_profile() -> None:
    test_image()
    engine = DockerEngine(INSTANCE, POOL)

    with pytest.raises(EngineRefused, match="seccomp"):
        engine.create(spec("true", profile="serving"))

    engine.close()


@pytest.mark.docker
def test_mounts_are_bound_as_said_and_a_missing_source_is_refused(engine: DockerEngine, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "data").write_text("given")
    (tmp_path / "out").mkdir()
    bound = (Mount(str(tmp_path / "in"), "/inputs/a", True), Mount(str(tmp_path / "out"), "/outputs/b", False))
    engine.create(spec("cat /inputs/a/data; touch /inputs/a/x 2>&1; echo made > /outputs/b/file", mounts=bound))
    engine.start("ctr1")

    shown = output(engine)

    assert shown.startswith("given")
    assert "Read-only" in shown
    assert (tmp_path / "out" / "file").read_text() == "made\n"
    missing = Mount(str(tmp_path / "missing"), "/inputs/c", True)
    with pytest.raises(EngineRefused, match="missing"):
        engine.create(spec("true", "ctr2", mounts=(missing,)))
    assert not (tmp_path / "missing").exists()


@pytest.mark.docker
def test_what_workloads_inherit_is_there_and_serving_gets_none_of_it(tmp_path: Path) -> None:
    test_image()
    remove_all(INSTANCE)
    (tmp_path / "own.crt").write_text("certificates")
    inherited = Mount(str(tmp_path / "own.crt"), "/etc/appliance/ca-certificates.crt", True)
    engine = DockerEngine(INSTANCE, POOL, environment={"PIP_INDEX_URL": "https://mirror.example"}, mounts=(inherited,))
    engine.create(spec('echo "$PIP_INDEX_URL"; cat /etc/appliance/ca-certificates.crt'))
    engine.start("ctr1")

    assert output(engine) == "https://mirror.example\ncertificates"

    remove_all(INSTANCE)
    engine.close()


@pytest.mark.docker
def test_somebody_elses_container_of_our_name_is_named_and_left_alone(engine: DockerEngine) -> None:
    name = f"appliance-{INSTANCE}-ctr1"
    command = ["docker", "create", "--label", f"appliance.instance={INSTANCE}", "--name", name, IMAGE, "true"]
    subprocess.run(command, check=True, capture_output=True, timeout=30)

    with pytest.raises(EngineRefused, match=f"{name}; remove or rename it"):
        engine.create(spec("true"))

    engine.remove("ctr1")
    assert subprocess.run(["docker", "inspect", name], capture_output=True, timeout=30, check=False).returncode == 0


# -- logs --------------------------------------------------------------------------------------------------------------


@pytest.mark.docker
def test_long_lines_odd_bytes_and_unended_lines_arrive_whole(engine: DockerEngine) -> None:
    engine.create(spec(r"head -c 40000 /dev/zero | tr '\0' x; echo; printf 'a\r\n\377b\n\tc\n\nend'"))
    engine.start("ctr1")
    ended(engine)

    lines = [line.text for line in engine.logs("ctr1")]

    assert lines == ["x" * 40000, "a", "\ufffdb", "\tc", "", "end"]


@pytest.mark.docker
def test_a_line_without_an_end_is_cut_and_never_fills_the_memory(engine: DockerEngine) -> None:
    engine.create(spec(r"head -c 200000 /dev/zero | tr '\0' x", memory_mib=64))
    engine.start("ctr1")
    ended(engine)

    lines = [line.text for line in engine.logs("ctr1")]

    assert "".join(lines) == "x" * 200000
    assert max(map(len, lines)) <= 96 * 1024


@pytest.mark.fast
def test_the_kernels_log_that_cannot_be_read_blames_nothing(tmp_path: Path) -> None:
    assert blames_memory("abc", str(tmp_path / "missing")) is None
    (tmp_path / "kmsg").write_text("6,1,1,-;oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/docker/abc\n")
    assert blames_memory("abc", str(tmp_path / "kmsg")) is True
    assert blames_memory("def", str(tmp_path / "kmsg")) is False


# -- images ------------------------------------------------------------------------------------------------------------


@pytest.mark.docker
def test_pulling_what_no_registry_has_says_what_to_do(engine: DockerEngine) -> None:
    told: list[str] = []
    engine.pull(IMAGE, told.append)
    assert told == []

    # Nobody listens on port 9 of this machine's loopback.
    with pytest.raises(ImageNotFound, match=r"127\.0\.0\.1:9/none/such.*docker load"):
        engine.pull("127.0.0.1:9/none/such:1", told.append)


@pytest.mark.fast
@pytest.mark.parametrize(
    "name", ["", "../containers/x", "a//b", "a b", "x\n", "-x", "x:", "x/../y", "x?y=1", "x" * 600]
)
def test_what_is_no_image_name_never_reaches_docker(name: str) -> None:
    engine = DockerEngine(INSTANCE, socket=Path("/nowhere/docker.sock"))

    assert engine.image_exists(name) is False
    for refused in (engine.pull, lambda image: engine.create(spec("true", image=image))):
        with pytest.raises(ImageNotFound, match="no image's name"):
            refused(name)


@pytest.mark.fast
@pytest.mark.parametrize("name", ["python", "Registry.example:5000/team/x_y:1.0-rc", f"a/b@sha256:{'0' * 64}"])
def test_an_image_name_passes(name: str) -> None:
    assert checked_image(name) == name


@pytest.mark.fast
def test_an_image_of_our_own_says_how_to_build_it() -> None:
    assert "appliance.runtime.images build" in str(image_not_found("appliance/serving:latest", "No such image"))


@pytest.mark.fast
@pytest.mark.parametrize(
    "name, full",
    [
        ("python", "python:latest"),
        ("python:3.11", "python:3.11"),
        ("registry.example:5000/team/x", "registry.example:5000/team/x:latest"),
        ("x@sha256:" + "0" * 64, "x@sha256:" + "0" * 64),
    ],
)
def test_a_name_without_a_tag_means_the_latest(name: str, full: str) -> None:
    assert with_tag(name) == full


@pytest.mark.fast
@pytest.mark.parametrize(
    "status, text, kind, says",
    [
        (500, 'could not select device driver "" with capabilities: [[gpu]]', EngineRefused, "container-toolkit"),
        (500, "OCI runtime create failed: no such file", EngineRefused, "no such file"),
        (400, "invalid mount config", EngineRefused, "invalid mount"),
        (500, "driver failed: device or resource busy", EngineBusy, "busy"),
        (500, "no available IPv4 addresses on this network's address pools", EngineBusy, "IPv4"),
    ],
)
def test_dockers_errors_say_whether_a_later_try_may_succeed(status: int, text: str, kind: type, says: str) -> None:
    error = refusal("start the container", status, text, None)

    assert type(error) is kind
    assert says in error.message


# -- networks ----------------------------------------------------------------------------------------------------------


def nets(*texts: str) -> list[ipaddress.IPv4Network]:
    return [ipaddress.IPv4Network(text) for text in texts]


@pytest.mark.fast
@pytest.mark.parametrize(
    "taken, subnet",
    [
        ([], "10.0.0.0/28"),
        (["10.0.0.0/28"], "10.0.0.16/28"),
        (["10.0.0.16/28"], "10.0.0.0/28"),
        (["10.0.0.0/28", "10.0.0.32/28"], "10.0.0.16/28"),
        (["10.0.0.0/25"], "10.0.0.128/28"),
        (["10.0.0.3/32"], "10.0.0.16/28"),
        (["172.17.0.0/16"], "10.0.0.0/28"),
        (["10.0.0.0/8"], None),
        (["10.0.0.0/25", "10.0.0.128/25"], None),
    ],
)
def test_a_network_gets_the_first_subnet_that_is_free(taken: list[str], subnet: str | None) -> None:
    found = networks.choose_subnet(ipaddress.IPv4Network("10.0.0.0/24"), nets(*taken))

    assert found == (subnet and ipaddress.IPv4Network(subnet))


@pytest.mark.fast
def test_what_this_machine_routes_is_never_hidden() -> None:
    table = (
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "eth0\t0000D50A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
    )

    assert networks.routed_subnets(table) == nets("10.213.0.0/16")


@pytest.mark.fast
def test_the_machines_name_servers_stay_in_reach_but_not_its_loopback() -> None:
    assert networks.nameservers("nameserver 192.168.1.1\n#nameserver 8.8.8.8\nnameserver 127.0.0.53\n") == [
        "192.168.1.1"
    ]


class Outside:
    """A machine outside: a network namespace behind a cable, which answers on port 8000."""

    ADDRESS, OURS = "198.51.100.2", "198.51.100.1"  # TEST-NET-2

    def __init__(self) -> None:
        self._cable = "apl-out0"
        ip("link", "add", self._cable, "type", "veth")
        shown = subprocess.run(["busybox", "ip", "link"], capture_output=True, text=True, check=True).stdout
        far = re.search(rf"(\w+)@{self._cable}", shown) or re.search(rf"{self._cable}@(\w+)", shown)
        assert far
        script = (
            f"read go; busybox ip addr add {self.ADDRESS}/24 dev {far[1]}; busybox ip link set {far[1]} up;"
            " while true; do echo outside | busybox nc -l -p 8000; done"
        )
        self._process = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", script], stdin=subprocess.PIPE, start_new_session=True
        )
        own = Path("/proc/self/ns/net").readlink()
        wait_until(lambda: Path(f"/proc/{self._process.pid}/ns/net").readlink() != own, 5, "it has its own network")
        ip("link", "set", far[1], "netns", str(self._process.pid))
        ip("addr", "add", f"{self.OURS}/24", "dev", self._cable)
        ip("link", "set", self._cable, "up")
        self._process.communicate  # noqa: B018 - stdin stays open until `end`
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()

    def end(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        subprocess.run(["busybox", "ip", "link", "del", self._cable], capture_output=True, check=False)


def ip(*words: str) -> None:
    subprocess.run(["busybox", "ip", *words], check=True, capture_output=True, timeout=10)


@pytest.fixture
def outside() -> Iterator[Outside]:
    it = Outside()
    yield it
    it.end()


@pytest.fixture
def service() -> Iterator[int]:
    """A service of this machine on every address; its port."""
    listener = socket.create_server(("0.0.0.0", 0))

    def answer() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                client.sendall(b"host service\n")

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


@pytest.mark.docker
def test_a_workload_reaches_the_internet_and_its_own_network_and_nothing_else(
    engine: DockerEngine, outside: Outside, service: int
) -> None:
    serve = "while true; do echo neighbour | nc -l -p 8000; done"
    for name, network in (("here", "one"), ("next", "one"), ("other", "two")):
        engine.ensure_network(network)
        engine.create(spec(serve, name, network=network))
        engine.start(name)
    gateway = str(next(ipaddress.IPv4Network(engine.ensure_network("one")).hosts()))

    def reached(address: str | None, port: int) -> str:
        command = ("sh", "-c", f"timeout 5 nc -w 1 {address} {port} </dev/null 2>&1; true")
        return engine.exec("here", command)[1].strip()

    def said(address: str | None, port: int) -> str:
        """What comes back, when something does: on a busy machine nc's one second may be over before it has begun."""
        return wait_until(lambda: reached(address, port), 15, f"an answer about {address}")

    wait_until(lambda: reached(outside.ADDRESS, 8000) == "outside", 10, "the internet is in reach")
    wait_until(lambda: reached(engine.address("next"), 8000) == "neighbour", 10, "the same network is in reach")
    barred = [(engine.address("other"), 8000), (gateway, service), (outside.OURS, service), ("169.254.169.254", 80)]
    for address, port in barred:
        assert "refused" in said(address, port), address

    with socket.create_connection((engine.address("here") or "", 8000), timeout=5) as connection:
        assert connection.recv(100) == b"neighbour\n", "this machine reaches its workloads"

    # Whoever flushes the packet filter, the next look puts the rules back.
    forward, own = networks.chain_names(ipaddress.IPv4Network(POOL))
    assert engine.assert_isolation() is True
    subprocess.run(["iptables", "-w", "-D", "INPUT", "-s", POOL, "-j", own], check=True)
    subprocess.run(["iptables", "-w", "-F", forward], check=True)
    assert said(gateway, service) == "host service"
    assert engine.assert_isolation() is False
    assert "refused" in said(gateway, service)
    assert engine.assert_isolation() is True


# -- an engine of the test's own ---------------------------------------------------------------------------------------


class Engine:
    """A dockerd of our own, with NVIDIA's hook on its PATH; it can be killed.

    It has a network namespace to itself: a second dockerd beside the first would take the bridge docker0 from it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "docker.sock"
        self.asked = folder / "asked"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        (self.folder / "bin").mkdir(parents=True, exist_ok=True)
        nvml_standin.write_hook(self.folder / "bin", self.asked)
        # A killed process may stay a zombie for a while, and then its pid file says that it lives.
        for left in ("docker.pid", "exec/containerd/containerd.pid"):
            (self.folder / left).unlink(missing_ok=True)
        command = [
            "unshare", "--net", "dockerd", f"--host=unix://{self.socket}", f"--data-root={self.folder}/data",
            f"--exec-root={self.folder}/exec", f"--pidfile={self.folder}/docker.pid",
            "--iptables=false", "--live-restore",
        ]  # fmt: skip
        environment = os.environ | {"PATH": f"{self.folder}/bin:{os.environ['PATH']}"}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(30)

    def docker(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        command = ["docker", "-H", f"unix://{self.socket}", *words]
        return subprocess.run(command, capture_output=True, timeout=30, check=False)

    def end(self) -> None:
        """Nothing of it is left: no process, no mount, no file; also after a test run that was cut off."""
        if self._process is not None:
            self.kill()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                if str(self.folder).encode() in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in sorted((it for it in mounts if it.startswith(f"{self.folder}/")), reverse=True):
            subprocess.run(["umount", "-l", mount], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def own() -> Iterator[Engine]:
    # Not pytest's own folder: a socket's path has room for 107 characters.
    folder = Path("/var/tmp/apl-dockerd")
    it = Engine(folder)
    it.end()
    it.start()
    wait_until(lambda: it.docker("info").returncode == 0, 30, "dockerd answers")
    test_image()
    exported = subprocess.run(["docker", "save", IMAGE], capture_output=True, timeout=30, check=True).stdout
    load = ["docker", "-H", f"unix://{it.socket}", "load"]
    subprocess.run(load, input=exported, capture_output=True, timeout=30, check=True)
    yield it
    it.end()


@pytest.mark.docker
def test_cards_reach_the_container_and_a_killed_engine_is_busy_and_nothing_else(own: Engine) -> None:
    engine = DockerEngine(INSTANCE, POOL, own.socket)
    with_cards = replace(spec('echo "$NVIDIA_VISIBLE_DEVICES"'), cards=("GPU-bbbb", "GPU-aaaa"))
    engine.create(with_cards)
    engine.start("ctr1")
    assert output(engine) == "GPU-bbbb,GPU-aaaa"
    assert own.asked.read_text() == "GPU-bbbb,GPU-aaaa\n"

    engine.create(spec('echo "$NVIDIA_VISIBLE_DEVICES"; sleep 600', "ctr2", env={"NVIDIA_VISIBLE_DEVICES": "all"}))
    engine.start("ctr2")
    following, events = engine.logs("ctr2", follow=True), engine.events()
    assert next(following).text == "void"
    assert own.asked.read_text() == "GPU-bbbb,GPU-aaaa\n"

    own.kill()

    with pytest.raises(EngineBusy):
        next(following)
    with pytest.raises((EngineBusy, StopIteration)):
        next(events)
    for call in (
        engine.sightings,
        engine.images,
        engine.networks,
        engine.events,
        lambda: engine.create(spec("true", "ctr3")),
        lambda: engine.start("ctr2"),
        lambda: engine.stop("ctr2", 1),
        lambda: engine.remove("ctr2"),
        lambda: engine.logs("ctr2"),
        lambda: engine.stats("ctr2"),
        lambda: engine.exec("ctr2", ("true",)),
        lambda: engine.address("ctr2"),
        lambda: engine.image_exists(IMAGE),
        lambda: engine.pull("elsewhere"),
    ):
        with pytest.raises(EngineBusy, match="engine"):
            call()
    assert engine.health().ok is False
    assert "systemctl status docker" in (engine.health().problem or "")

    own.start()
    wait_until(lambda: engine.health().ok, 30, f"dockerd answers again (see {own.folder}/log)")
    assert sight(engine, "ctr2").seen is Seen.RUNNING, "live-restore kept it"
    engine.stop("ctr2", 1)
    engine.close()
