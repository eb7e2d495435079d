"""git and this program: `appliance login` makes git trust and know one server; `git-credential` answers git's question.

What this keeps true: git's configuration names this program as the helper for that one address and holds no key; the key
stays in the SDK's own file, and other helpers are not asked for that address, so none of them stores it.

Why: a key in `~/.git-credentials` or in a remote's URL outlives the day it is revoked, and gets pushed by mistake.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from appliance.cli.shell import Shell


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("operation", choices=("get", "store", "erase"))
    parser.set_defaults(work=_answer)


def _answer(shell: Shell) -> None:
    """git's credential protocol (gitcredentials(7)): key=value lines in, the answer's lines out; silence is "I do not know"."""
    if shell.args.operation != "get":
        return
    from appliance.client import settings

    asked = dict(line.rstrip("\n").partition("=")[::2] for line in sys.stdin if "=" in line)
    wanted = (asked.get("protocol"), asked.get("host"))
    for url, entry in settings.servers()[0].items():
        parts = urlsplit(url)
        if (parts.scheme, parts.netloc) == wanted and entry.key:
            print(f"username={asked.get('username') or 'appliance'}\npassword={entry.key}")
            return


def settings_for(url: str, ca: Path | None) -> list[tuple[str, str]]:
    """What `tell` sets in git's global configuration; the empty helper keeps other helpers out for this address."""
    found = [(f"credential.{url}.helper", ""), (f"credential.{url}.helper", f"!{_program()} git-credential")]
    return [*found, (f"http.{url}.sslCAInfo", str(ca))] if ca else found


def tell(url: str, ca: Path | None) -> bool:
    """Set `settings_for` globally; False where there is no git. May be called again."""
    if shutil.which("git") is None:
        return False
    forget(url)
    for name, value in settings_for(url, ca):
        _git("config", "--global", "--add", name, value)
    return True


def forget(url: str) -> None:
    """Remove what `tell` set."""
    if shutil.which("git") is None:
        return
    for name in (f"credential.{url}.helper", f"http.{url}.sslCAInfo"):
        _git("config", "--global", "--unset-all", name)


def is_told(url: str) -> bool:
    """Whether git would ask this program for the password of `url`."""
    return shutil.which("git") is not None and "git-credential" in _git(
        "config", "--global", "--get-all", f"credential.{url}.helper"
    )


def overriding_variable() -> str | None:
    """The variable of the environment that makes git ignore `http.URL.sslCAInfo`; None where there is none."""
    return next((name for name in ("GIT_SSL_CAINFO", "GIT_SSL_CAPATH") if os.environ.get(name)), None)


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, check=False, timeout=20).stdout


def _program() -> str:
    """How git's shell starts this program: its own path where it has one, so that PATH does not matter."""
    found = Path(sys.argv[0])
    if found.name == "appliance" and found.exists():
        return shlex.quote(str(found.resolve()))
    return f"{shlex.quote(sys.executable)} -m appliance.cli"
