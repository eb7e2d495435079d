"""The systemd units: systemd itself finds nothing to say, and what they promise stands in them."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

UNITS = Path(__file__).parent.parent / "systemd"
NAMES = ("appliance.service", "appliance-holder.service", "appliance-gateway.service")


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / name)
    return parser


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """With a program that exists in place of ours, which install.sh puts there, and a stand-in for Docker's unit."""
    for name in NAMES:
        text = (UNITS / name).read_text()
        (tmp_path / name).write_text(text.replace("/opt/appliance/venv/bin/applianced", sys.executable))
    (tmp_path / "docker.service").write_text("[Service]\nExecStart=/bin/true\n")

    command = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / name) for name in NAMES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    ours = [line for line in done.stderr.splitlines() if "appliance" in line]
    assert (done.returncode, ours) == (0, [])


def test_stopping_the_daemon_leaves_containers_alone_and_a_silent_daemon_is_restarted() -> None:
    service = unit("appliance.service")["Service"]

    assert service["KillMode"] == "mixed"
    assert service["Type"] == "notify"
    assert service["Restart"] == "on-failure"
    assert int(service["WatchdogSec"]) > 0


@pytest.mark.parametrize("name", NAMES)
def test_every_unit_starts_our_program_with_our_configuration_and_keeps_the_run_directory(name: str) -> None:
    service = unit(name)["Service"]

    assert service["ExecStart"].startswith("/opt/appliance/venv/bin/applianced ")
    assert service["Environment"] == "APPLIANCE_CONFIG=/etc/appliance/appliance.toml"
    assert service["RuntimeDirectoryPreserve"] == "yes"
    assert unit(name)["Install"]["WantedBy"] == "multi-user.target"
