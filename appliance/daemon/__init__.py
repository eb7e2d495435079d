"""`applianced`: the daemon, and what root does on the server itself.

    works    everything, built once        serve    from the first line to the last       loops    a loop
    admin    root's requests               lock     one daemon a data directory           notify   systemd's protocol

Why the commands that are not `run` import late: `applianced doctor` works where the daemon would not even start.
"""

from __future__ import annotations

import argparse
import getpass
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from appliance import __version__
from appliance.config import DEFAULT_PATH, Config, load
from appliance.errors import ApplianceError, BadRequest, PreconditionFailed

_SETTLE_S = 1.5  # whoever cannot have its lock or its port has ended by then
_MARKS = {"ok": "ok      ", "warning": "warning ", "problem": "PROBLEM "}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, do, say in one sentence what went wrong; the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        config = load(options.config)
        code = int(options.run(config, options))
        sys.stdout.flush()
        return code
    except ApplianceError as error:
        print(f"applianced: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read (`| head`) has gone; nothing more is written, not even at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except PermissionError as error:
        print(f"applianced: {error.filename or error} may be used by root alone; run it as root.", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="applianced", description="The appliance's daemon, and what root does with it."
    )
    parser.add_argument("--config", type=Path, help=f"the configuration (default: {DEFAULT_PATH})")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, text: str, run: object) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    add("run", "Run the daemon until it is asked to end.", _run)
    add("holder", "Run the holder of the deployments' listening sockets.", _holder)
    add("gateway", "Become nginx, with the appliance's own configuration.", _gateway)
    add("setup", "Make the folders, the database and root's local key. May be run again.", _setup)
    add("reconfigure", "Check appliance.toml and restart what it concerns.", _reconfigure)
    doctor = add("doctor", "Look at everything that the appliance needs, and say what to do.", _doctor)
    doctor.add_argument("--json", action="store_true", help="print one JSON list")
    add("fingerprint", "Print the SHA-256 fingerprint that `appliance login` shows.", _fingerprint)
    admin = add("admin", "Admins, without an account.", None)
    verbs = admin.add_subparsers(metavar="VERB", required=True)
    link = verbs.add_parser("setup-link", help="Print the one-time link with which the first admin signs in.")
    link.set_defaults(run=_setup_link)
    create = verbs.add_parser("create", help="Make an admin; the password is asked for, or read from standard input.")
    create.add_argument("email")
    create.set_defaults(run=_create_admin)
    add("version", "Print the version.", _version)
    return parser


def _version(_: Config, __: argparse.Namespace) -> int:
    print(__version__)
    return 0


def _run(config: Config, _: argparse.Namespace) -> int:
    # sqlite-utils 4.2 takes numpy along wherever it is installed: 20 MiB that the daemon has no use for. An entry of None
    # makes that import fail, which sqlite-utils takes for "not installed" (test_neither_onnxruntime_nor_numpy_is_in_it).
    sys.modules.setdefault("numpy", None)  # type: ignore[arg-type]
    from appliance.daemon.serve import run

    return run(config)


def _holder(config: Config, _: argparse.Namespace) -> int:
    config.run_dir.mkdir(parents=True, exist_ok=True)
    # A fresh interpreter that has nothing of the daemon in memory: the holder lives for months.
    os.execv(  # noqa: S606 - a list of arguments, no shell
        sys.executable,
        [sys.executable, "-m", "appliance.inference.holder", "--socket", str(config.holder_socket)],
    )


def _gateway(config: Config, _: argparse.Namespace) -> int:
    from appliance.gateway import Gateway

    for folder in (config.run_dir, config.log_dir, config.data_dir):
        folder.mkdir(parents=True, exist_ok=True)
    Gateway(config).run()


def _setup(config: Config, _: argparse.Namespace) -> int:
    from appliance.daemon.admin import ask

    made = ask(config, {"do": "local_key"})["made"]
    print(f"Data in {config.data_dir}; root's key in {config.local_admin_key} is {'new' if made else 'in place'}.")
    return 0


def _setup_link(config: Config, _: argparse.Namespace) -> int:
    from appliance.daemon.admin import ask

    print(ask(config, {"do": "setup_link"})["url"])
    return 0


def _create_admin(config: Config, options: argparse.Namespace) -> int:
    from appliance.daemon.admin import ask

    if sys.stdin.isatty():
        password = getpass.getpass("Password: ")
        if getpass.getpass("Again: ") != password:
            raise BadRequest("The two passwords differ; nothing was made.")
    else:
        password = sys.stdin.readline().rstrip("\n")
    made = ask(config, {"do": "create_admin", "email": options.email, "password": password})
    print(f"{made['email']} is an admin and can sign in at {config.dashboard_urls()[0]}.")
    return 0


def _doctor(config: Config, options: argparse.Namespace) -> int:
    import json
    from dataclasses import asdict

    from appliance.doctor import examine

    findings = examine(config)
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            print(f"{_MARKS[finding.state]}{finding.check}: {finding.text}")
            if finding.remedy:
                print(f"        → {finding.remedy}")
    return 1 if any(finding.state == "problem" for finding in findings) else 0


def _fingerprint(config: Config, _: argparse.Namespace) -> int:
    from appliance import tls

    print(tls.ensure(config).fingerprint)
    return 0


def _reconfigure(config: Config, _: argparse.Namespace) -> int:
    """The configuration was read and found good; whoever uses it starts again. Containers and clients go on."""
    from appliance.gateway import Gateway

    if Path("/run/systemd/system").is_dir():
        Gateway(config)
        subprocess.run(["systemctl", "restart", "appliance.service", "appliance-gateway.service"], check=True)
        print("The daemon and the gateway run with the new configuration.")
        return 0
    program = str(Path(sys.argv[0]).resolve())
    for name in ("gateway", "run"):
        _restart(config, program, name)
    print("The daemon and the gateway run with the new configuration.")
    return 0


def _restart(config: Config, program: str, name: str) -> None:
    """End the background process `name` that install.sh (or this) started, and start it again."""
    import time

    from appliance import ports

    path = config.run_dir / f"{name}.pid"
    try:
        pid = int(path.read_text())
    except (OSError, ValueError):
        pid = 0
    if pid and (command := ports.command_of(pid)) and ("applianced" in command or "nginx" in command):
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 40
        while ports.command_of(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
    config.log_dir.mkdir(parents=True, exist_ok=True)
    with (config.log_dir / f"{name}.log").open("ab") as log:
        started = subprocess.Popen(
            [program, name], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    path.write_text(f"{started.pid}\n")
    deadline = time.monotonic() + _SETTLE_S
    while time.monotonic() < deadline:
        if started.poll() is not None:
            lines = (config.log_dir / f"{name}.log").read_text(errors="replace").splitlines()
            raise PreconditionFailed(f"`applianced {name}` does not run: {lines[-1] if lines else 'it says nothing'}")
        time.sleep(0.05)
