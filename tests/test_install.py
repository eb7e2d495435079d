"""install.sh in a prefix of its own: the real script, with a small program in the place of ours and Docker left alone.

What a step needs the network for (packages, pip, images) is there before, as on a second run; the whole from nothing is
what `./install.sh` on a fresh machine shows.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from waiting import wait_until

from appliance import config, ports

CHECKOUT = Path(__file__).parent.parent
SCRIPT = CHECKOUT / "install.sh"

PROGRAM = """#!{python}
'''In the place of `applianced`: a daemon that only says that it is well, the real gateway, a holder that waits.'''
import socketserver, sys, time
from http.server import BaseHTTPRequestHandler
from appliance import config
from appliance.gateway import Gateway
class Health(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def address_string(self):
        return "unix"
match sys.argv[1:]:
    case ["run"]:
        config.load().daemon_socket.unlink(missing_ok=True)
        socketserver.UnixStreamServer(str(config.load().daemon_socket), Health).serve_forever()
    case ["gateway"]:
        Gateway(config.load()).run()
    case ["holder"]:
        time.sleep(600)
    case ["fingerprint"]:
        print(":".join(["AB"] * 32))
    case ["admin", "setup-link"]:
        print("https://box:8443/setup/once")
"""

PYTHON = """#!/bin/sh
# In the place of the virtual environment's Python: images are built elsewhere.
[ "$2" != pip ] || {{ echo "the checkout changed while the test ran" >&2; exit 1; }}
[ "$2" != appliance.runtime.images ] || {{ echo "appliance/$5:latest: is current"; exit 0; }}
exec {python} "$@"
"""

TOUR = """#!/bin/sh
echo tour >>"$0.taken"
echo "the answer is 7"
[ ! -e "$0.fails" ]
"""


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Machine:
    """A place where install.sh thinks it is alone."""

    root: Path
    https_port: int = field(default_factory=free_port)
    http_port: int = field(default_factory=free_port)

    @property
    def environment(self) -> dict[str, str]:
        own = {
            "PATH": f"{self.root}/stub:{os.environ['PATH']}",
            "APPLIANCE_PREFIX": str(self.root / "opt"),
            "APPLIANCE_CONFIG": str(self.root / "etc/appliance.toml"),
            "APPLIANCE_BIN_DIR": str(self.root / "bin"),
            "APPLIANCE_NO_SYSTEMD": "1",  # the machine's own units are not under test
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith("APPLIANCE_")}
        return {**kept, **own}

    @property
    def first(self) -> dict[str, str]:
        """What the first run chooses by variables."""
        return {
            "APPLIANCE_DATA_DIR": str(self.root / "data"),
            "APPLIANCE_RUN_DIR": str(self.root / "run"),
            "APPLIANCE_LOG_DIR": str(self.root / "log"),
            "APPLIANCE_SERVICE_USER": "root",
            "APPLIANCE_HTTPS_ADDRESS": "127.0.0.1",
            "APPLIANCE_HTTPS_PORT": str(self.https_port),
            "APPLIANCE_HTTP_PORT": str(self.http_port),
        }

    def install(self, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(SCRIPT), *options],
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def told(self, done: subprocess.CompletedProcess[str]) -> str:
        """What a failure shows: the screen, and every log."""
        logs = [f"== {path.name}\n{path.read_text()[-4000:]}" for path in sorted((self.root / "log").glob("*.log"))]
        return "\n".join([done.stdout, done.stderr, *logs])

    def pids(self) -> dict[str, str]:
        return {path.stem: path.read_text().strip() for path in (self.root / "run").glob("*.pid")}

    def tours(self) -> int:
        taken = self.root / "opt/venv/bin/appliance.taken"
        return len(taken.read_text().splitlines()) if taken.exists() else 0


def bash(script: str, **options) -> subprocess.CompletedProcess[str]:
    """A piece of the script alone."""
    command = ["bash", "-c", f". {SCRIPT}\n{script}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=CHECKOUT, **options)


@pytest.fixture
def machine() -> Iterator[Machine]:
    root = Path(tempfile.mkdtemp(prefix="install-"))
    machine = Machine(root)
    venv = root / "opt/venv/bin"
    executable(root / "stub/docker", "#!/bin/sh\nexit 0\n")  # an engine that answers and has nothing
    executable(root / "opt/venv/bin/python", PYTHON.format(python=sys.executable))
    executable(venv / "applianced", PROGRAM.format(python=sys.executable))
    executable(venv / "appliance", TOUR)
    executable(root / "opt/venv/lib/python3/site-packages/appliance/inference/holder.py", "")
    (root / "bin").mkdir()
    (root / "opt/build").mkdir()
    assets = bash(f"mkdir -p {root}/vendor; build_assets {CHECKOUT}/appliance/web/static/vendor {CHECKOUT}/build")
    assert assets.returncode == 0, assets.stderr
    shutil.copytree(CHECKOUT / "appliance/web/static/vendor", root / "opt/build/vendor")
    stamp = bash('echo "$(content_hash) $("$(find_python)" --version)"').stdout
    (root / "opt/installed").write_text(stamp)
    yield machine
    machine.install("--stop")
    shutil.rmtree(root)


# -- the whole ---------------------------------------------------------------------------------------------------------


def test_a_run_starts_everything_and_says_where_it_is_and_a_second_run_changes_nothing(machine: Machine) -> None:
    first = machine.install(**machine.first)
    before = machine.pids()
    written = (machine.root / "etc/appliance.toml").read_text()

    second = machine.install()

    assert first.returncode == 0, machine.told(first)
    for shown in (
        f":{machine.https_port}",
        "https://box:8443/setup/once",
        str(machine.root / "data"),
        str(machine.root / "log"),
        "--stop",
    ):
        assert shown in first.stdout
    assert "the answer is 7" in first.stdout
    assert before["gateway"] == before["nginx"]
    assert set(before) == {"gateway", "nginx", "holder", "run"}
    assert second.returncode == 0, machine.told(second)
    assert machine.pids() == before
    assert (machine.root / "etc/appliance.toml").read_text() == written
    assert "all run already" in second.stdout
    assert machine.tours() == 1
    assert (machine.root / "bin/appliance").readlink() == machine.root / "opt/venv/bin/appliance"


def test_the_tour_is_taken_until_it_succeeds_then_on_request_alone(machine: Machine) -> None:
    fails = machine.root / "opt/venv/bin/appliance.fails"
    fails.touch()

    assert machine.install(**machine.first).returncode == 1
    fails.unlink()
    assert machine.install().returncode == 0
    assert machine.tours() == 2
    assert machine.install("--no-tour").returncode == 0
    assert machine.tours() == 2
    assert machine.install("--tour").returncode == 0
    assert machine.tours() == 3


def test_stop_and_start_after_each_other(machine: Machine) -> None:
    machine.install("--no-tour", **machine.first)

    stopped = machine.install("--stop")
    assert stopped.returncode == 0, machine.told(stopped)
    assert ports.find_listener(machine.https_port) is None
    started = machine.install("--start")

    assert started.returncode == 0, machine.told(started)
    assert ports.find_listener(machine.https_port) is not None


def test_processes_that_were_killed_are_started_again_and_the_others_left(machine: Machine) -> None:
    """nginx's workers outlive a killed master and keep its ports; they are ours to end."""
    machine.install("--no-tour", **machine.first)
    before = machine.pids()
    for name in ("run", "gateway"):
        subprocess.run(["kill", "-9", before[name]], check=True)
    wait_until(lambda: ports.command_of(int(before["run"])) in (None, ""), 5, "the daemon's end")

    again = machine.install("--no-tour")

    assert again.returncode == 0, machine.told(again)
    after = machine.pids()
    assert after["holder"] == before["holder"]
    assert after["run"] != before["run"]
    assert after["gateway"] == after["nginx"] != before["gateway"]


def test_a_port_chosen_later_is_set_in_the_file_and_a_persons_lines_stay(machine: Machine) -> None:
    machine.install("--no-tour", **machine.first)
    file = machine.root / "etc/appliance.toml"
    file.write_text(file.read_text() + "\n# my own words\n")
    before = file.read_text()
    port = free_port()

    done = machine.install("--no-tour", "--http-port", str(port))

    assert done.returncode == 0, machine.told(done)
    changed = set(file.read_text().splitlines()) ^ set(before.splitlines())
    assert changed == {f"http_port = {machine.http_port}", f"http_port = {port}"}
    assert ports.find_listener(port) is not None
    assert ports.find_listener(machine.http_port) is None


def test_uninstall_keeps_data_logs_and_configuration(machine: Machine) -> None:
    machine.install("--no-tour", **machine.first)

    done = machine.install("--uninstall")

    assert done.returncode == 0, machine.told(done)
    assert not (machine.root / "opt").exists()
    assert not (machine.root / "bin/appliance").is_symlink()
    assert (machine.root / "data").is_dir()
    assert (machine.root / "etc/appliance.toml").exists()
    assert ports.find_listener(machine.https_port) is None


def test_purge_removes_data_as_well_but_no_folder_that_is_not_ours(machine: Machine) -> None:
    machine.install("--no-tour", **machine.first)
    (machine.root / "data/somebody-elses").touch()

    refused = machine.install("--uninstall", "--purge")
    (machine.root / "data/appliance.db").touch()
    done = machine.install("--uninstall", "--purge")

    assert refused.returncode == 1
    assert "holds no database of Appliance; it is left alone." in refused.stdout
    assert done.returncode == 0, machine.told(done)
    assert not any((machine.root / name).exists() for name in ("data", "log", "etc", "opt", "run"))


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_a_busy_port_ends_the_run_with_the_holders_name(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", machine.https_port)):
        done = machine.install("--no-tour", **machine.first)

    assert done.returncode == 1
    assert f"Port {machine.https_port} (https_port) is held by process {os.getpid()}" in done.stdout
    assert "it goes on where it stopped" in done.stdout


def test_a_mistake_in_the_configuration_is_said_as_it_is_and_the_file_stays(machine: Machine) -> None:
    file = machine.root / "etc/appliance.toml"
    file.parent.mkdir()
    file.write_text("https_prot = 1\n")

    done = machine.install(APPLIANCE_LOG_DIR=str(machine.root / "log"))

    assert done.returncode == 1
    assert f"{file}, key 'https_prot': there is no such key (did you mean 'https_port'?)." in done.stdout
    assert file.read_text() == "https_prot = 1\n"


def test_a_run_that_is_interrupted_says_so_and_the_next_one_finishes_it(machine: Machine) -> None:
    program = machine.root / "opt/venv/bin/applianced"
    text = program.read_text()
    executable(program, '#!/bin/sh\n[ "$1" != setup ] || touch "$0.reached"; exec sleep 30\n')
    under_way = subprocess.Popen(
        ["bash", str(SCRIPT), "--no-tour"],
        env={**machine.environment, **machine.first},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until((program.parent / "applianced.reached").exists, 20, "the step")
    second = machine.install("--no-tour")
    os.killpg(under_way.pid, 2)
    said, _ = under_way.communicate(timeout=20)
    executable(program, text)

    finished = machine.install("--no-tour")

    assert "Another run of install.sh is under way." in second.stdout
    assert under_way.returncode == 130
    assert "Interrupted." in said
    assert finished.returncode == 0, machine.told(finished)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--bogus"], "There is no option --bogus."),
        (["--https-port"], "--https-port needs a value."),
        (["--purge"], "--purge goes with --uninstall alone."),
    ],
)
def test_a_mistaken_option_is_one_sentence(options: list[str], sentence: str) -> None:
    done = subprocess.run(["bash", str(SCRIPT), *options], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert sentence in done.stdout
    assert done.stderr == ""


def test_another_system_is_refused_with_its_name(tmp_path: Path) -> None:
    """The check reads /etc/os-release; here it is replaced in a copy of the function alone."""
    (tmp_path / "os-release").write_text('ID=fedora\nPRETTY_NAME="Fedora Linux 40"\n')
    done = bash(
        f"watch_for_failures; eval \"$(declare -f check_machine | sed 's|/etc/os-release|{tmp_path}/os-release|g')\"; check_machine"
    )

    assert done.returncode == 1
    assert "This is Fedora Linux 40; Appliance installs on Debian 12" in done.stdout


# -- the pieces --------------------------------------------------------------------------------------------------------


def test_the_scripts_are_valid_bash_and_the_help_names_every_option() -> None:
    for script in (SCRIPT, CHECKOUT / "tests/run", CHECKOUT / ".ci/run"):
        subprocess.run(["bash", "-n", str(script)], check=True)

    shown = subprocess.run(["bash", str(SCRIPT), "--help"], capture_output=True, text=True, check=True).stdout

    main = SCRIPT.read_text().partition("\nmain() {")[2].partition("\n}\n")[0]
    options = {
        word
        for line in main.splitlines()
        if line.rstrip().endswith((";;", ")"))
        for word in line.split()
        if word.startswith("--")
    }
    assert {"--tour", "--purge", "--https-port"} <= {word.strip(')"') for word in options}
    assert all(word.strip(')"') in shown for word in options)


def test_missing_packages_are_those_whose_command_or_file_is_not_there() -> None:
    found = bash(
        "missing_packages bash=bash nothing-of-that-name=package /etc/passwd=passwd /nowhere=nowhere venv=python3-venv"
    )

    assert found.stdout.split() == ["package", "nowhere"]


def test_the_hash_of_the_checkout_follows_the_package_and_nothing_that_is_built(tmp_path: Path) -> None:
    for name in ("appliance/a.py", "pyproject.toml", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")

    def value() -> str:
        return bash(f"CHECKOUT={tmp_path}; content_hash").stdout

    first = value()
    for built in ("appliance/__pycache__/a.pyc", "appliance/web/static/vendor/x.js", "build/y", "tests/z.py"):
        (tmp_path / built).parent.mkdir(parents=True)
        (tmp_path / built).write_text("built")
    unchanged = value()
    (tmp_path / "appliance/a.py").write_text("2")

    assert first == unchanged != value()


def test_assets_are_built_once_with_their_licences(tmp_path: Path) -> None:
    target = tmp_path / "vendor"

    first = bash(f"build_assets {target} {tmp_path}/scratch")
    times = {path.name: path.stat().st_mtime_ns for path in target.iterdir()}
    second = bash(f"build_assets {target} {tmp_path}/scratch")

    assert first.returncode == second.returncode == 0, first.stderr
    assert {"htmx.min.js", "uplot.min.js", "uplot.min.css", "xterm.js", "xterm.css", "LICENSES.txt"} <= times.keys()
    assert times == {path.name: path.stat().st_mtime_ns for path in target.iterdir()}
    assert not (tmp_path / "scratch/assets").exists()


def test_a_docker_configuration_is_written_only_where_there_is_none() -> None:
    text = SCRIPT.read_text()

    assert text.count("/etc/docker/daemon.json\n") == 1
    assert "[[ ! -e /etc/docker/daemon.json ]] || return 0" in text


def test_the_defaults_of_the_help_are_those_of_the_configuration() -> None:
    default, shown = (
        config.Config(),
        subprocess.run(["bash", str(SCRIPT), "--help"], capture_output=True, text=True).stdout,
    )

    for value in (default.https_port, default.http_port, default.https_address, default.data_dir, default.prefix):
        assert f"({value})" in shown
