"""Pushing the showcase with the real git client.

What this keeps true: the key is neither in an argument, which every user of the machine can read, nor in a file; the user's
own git configuration is not read and nothing is asked. The history goes on from what was pushed before.

Why not a library: people push with git, and what git does over HTTP is what has to work.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

import appliance
from appliance.client import Client
from appliance.client.transport import is_loopback
from appliance.errors import ApplianceError, PreconditionFailed

SHOWCASE = Path(appliance.__file__).parent / "showcase" / "digits"
_TIMEOUT_S = 120


class PushFailed(ApplianceError):
    """git said no; the issues are its own words."""

    code = "PUSH_FAILED"


def push_showcase(client: Client, project: str, folder: Path, message: str) -> str:
    """Put the showcase on top of the project's `main` as a new commit, and push it; the commit's id.

    The working copy stays in `folder`, which is made. Raises PushFailed.
    """
    url = f"{client.url}/git/{quote(project, safe='')}.git"
    env = _environment(client, folder)
    folder.mkdir(parents=True, exist_ok=True)
    _git(folder, env, "init", "--quiet", "--initial-branch=main")
    if not _git(folder, env, "remote").strip():
        _git(folder, env, "remote", "add", "origin", url)
    if _git(folder, env, "ls-remote", "origin", "refs/heads/main").strip():
        _git(folder, env, "fetch", "--quiet", "origin", "main")
        _git(folder, env, "reset", "--quiet", "--hard", "FETCH_HEAD")
    shutil.copytree(SHOWCASE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    _git(folder, env, "add", "--all")
    # Without a change too: a tour that is taken again makes new versions.
    _git(folder, env, "commit", "--quiet", "--allow-empty", "--message", message)
    _git(folder, env, "push", "--quiet", "origin", "HEAD:refs/heads/main")
    return _git(folder, env, "rev-parse", "HEAD").strip()


def _environment(client: Client, folder: Path) -> dict[str, str]:
    """git's settings by GIT_CONFIG_COUNT (git 2.31), which only the process's own user can read."""
    at = client.transport
    settings = {"credential.helper": "", "core.hooksPath": os.devnull, "commit.gpgSign": "false"}
    if at.key:
        credentials = base64.b64encode(f"appliance:{at.key}".encode()).decode()
        settings[f"http.{client.url}/.extraHeader"] = f"Authorization: Basic {credentials}"
    if at.ca:
        settings[f"http.{client.url}/.sslCAInfo"] = str(at.ca)
    if is_loopback(client.url):
        settings["http.proxy"] = ""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    env |= {"GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "LC_ALL": "C"}
    env |= {"HOME": str(folder)}
    for who in ("AUTHOR", "COMMITTER"):
        env |= {f"GIT_{who}_NAME": "Appliance tour", f"GIT_{who}_EMAIL": "tour@localhost"}
    env["GIT_CONFIG_COUNT"] = str(len(settings))
    for at_index, (name, value) in enumerate(settings.items()):
        env |= {f"GIT_CONFIG_KEY_{at_index}": name, f"GIT_CONFIG_VALUE_{at_index}": value}
    return env


def _git(folder: Path, env: dict[str, str], *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", *words],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise PreconditionFailed("There is no git on this machine: install it (apt-get install git).") from error
    except subprocess.TimeoutExpired as error:
        raise PushFailed(f"git {words[0]} took longer than {_TIMEOUT_S} s.") from error
    if done.returncode:
        said = tuple(line for line in done.stderr.splitlines() if line.strip())
        raise PushFailed(f"git {words[0]} failed: {said[-1] if said else done.returncode}", issues=said[:-1])
    return done.stdout
