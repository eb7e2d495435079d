"""Our own images: what they are made of, when they are made again, and what a machine's settings become inside."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from waiting import wait_until

from appliance.errors import EngineRefused, NotFound
from appliance.runtime import images, inherit
from appliance.runtime.images import Workshop

BOOKWORM = 'ID=debian\nVERSION_CODENAME="bookworm"\n'


def machine(root: Path, **files: str) -> Path:
    """A root folder with these files; `__` stands for a slash."""
    for name, text in {"etc__os-release": BOOKWORM, **files}.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


# -- what is inherited -------------------------------------------------------------------------------------------------


@pytest.mark.fast
def test_apts_sources_are_read_in_both_formats_and_only_the_distributions_own(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        **{
            "etc__apt__sources.list": (
                "# deb http://old.example/debian bookworm main\n"
                "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] "
                "http://mirror.example/debian bookworm main contrib # ours\n"
                "deb-src http://mirror.example/debian bookworm main\n"
                "deb cdrom:[Debian]/ bookworm main\n"
            ),
            "etc__apt__sources.list.d__hashi.list": "deb [signed-by=/x.gpg] https://hashi.example bookworm main\n",
            "etc__apt__sources.list.d__debian.sources": (
                "Types: deb deb-src\nURIs: http://mirror.example/debian\n# a comment\n"
                "Suites: bookworm bookworm-updates\nComponents: main\n\n"
                "Types: deb\nURIs: http://mirror.example/security\nSuites: bookworm-security\nComponents: main\n"
                "Signed-By:\n /usr/share/keyrings/debian-archive-keyring.gpg\n\n"
                "Enabled: no\nTypes: deb\nURIs: http://off.example/debian\nSuites: bookworm\nComponents: main\n\n"
                "Types: deb\nURIs: http://back.example/debian\nSuites: bookworm-backports\nComponents: main\n"
            ),
        },
    )

    assert inherit.apt_sources(root) == [
        "deb http://mirror.example/debian bookworm main contrib",
        "deb http://mirror.example/debian bookworm main",
        "deb http://mirror.example/debian bookworm-updates main",
        "deb http://mirror.example/security bookworm-security main",
    ]


@pytest.mark.fast
def test_a_machine_without_sources_leaves_the_mirror_to_mmdebstrap(tmp_path: Path) -> None:
    root = machine(tmp_path, **{"etc__os-release": "ID=ubuntu\nVERSION_CODENAME=noble\n"})

    assert inherit.release(root) == ("ubuntu", "noble")
    assert inherit.apt_sources(root) == []


@pytest.mark.fast
def test_a_list_of_mirrors_becomes_its_first_address(tmp_path: Path) -> None:
    mirrors = tmp_path / "mirrors"
    mirrors.write_text("https://cloud.example/debian\thost:1\nhttps://deb.example/debian\n")
    root = machine(tmp_path, **{"etc__apt__sources.list": f"deb mirror+file:{mirrors} bookworm main\n"})

    assert inherit.apt_sources(root) == ["deb https://cloud.example/debian bookworm main"]


@pytest.mark.fast
def test_pips_settings_go_along_but_not_what_is_local_to_this_machine(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        **{
            "etc__xdg__pip__pip.conf": "[global]\nconstraint = /etc/xdg/pip/constraints.txt\nretries = 2\n",
            "etc__pip.conf": (
                "[global]\nindex-url = https://mirror.example/simple\n"
                "extra-index-url = file:///opt/pypi/simple https://more.example/simple\n"
                "find-links = /opt/wheels\ntimeout = 60\n"
            ),
        },
    )
    environ = {"HOME": str(tmp_path), "PIP_RETRIES": "9", "PIP_FIND_LINKS": "/opt/wheels", "PIP_CERT": "/nowhere"}

    assert inherit.pip_settings(environ, root) == {
        "PIP_INDEX_URL": "https://mirror.example/simple",
        "PIP_EXTRA_INDEX_URL": "https://more.example/simple",
        "PIP_DEFAULT_TIMEOUT": "60",
        "PIP_RETRIES": "9",
    }


@pytest.mark.fast
def test_proxies_go_along_but_for_one_on_this_machines_loopback(tmp_path: Path) -> None:
    root = machine(tmp_path, etc__environment='HTTP_PROXY="http://proxy.example:3128"\nno_proxy=.example\n')
    environ = {"HOME": str(tmp_path), "https_proxy": "http://127.0.0.1:3128"}

    assert inherit.proxies(environ, root)["HTTPS_PROXY"] == "http://127.0.0.1:3128"
    assert inherit.inherited_env(environ, root) == {
        "HTTP_PROXY": "http://proxy.example:3128",
        "http_proxy": "http://proxy.example:3128",
        "NO_PROXY": ".example",
        "no_proxy": ".example",
    }


@pytest.mark.fast
def test_certificates_go_along_where_the_machine_has_its_own(tmp_path: Path) -> None:
    root = machine(tmp_path, **{"etc__ssl__certs__ca-certificates.crt": "all"})
    environ = {"HOME": str(tmp_path)}
    assert inherit.inherited_mounts(environ, root) == ()
    assert inherit.inherited_env(environ, root) == {}

    machine(root, **{"usr__local__share__ca-certificates__company.crt": "own"})

    (mount,) = inherit.inherited_mounts(environ, root)
    assert (mount.source, mount.read_only) == (str(root / "etc/ssl/certs/ca-certificates.crt"), True)
    env = inherit.inherited_env(environ, root)
    assert {env[name] for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")} == {mount.target}


# -- inputs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    package = tmp_path / "appliance"
    shutil.copytree(images.PACKAGE / "inference", package / "inference", ignore=shutil.ignore_patterns("__pycache__"))
    for path in images.PACKAGE.glob("*.py"):
        shutil.copy(path, package)
    return Workshop(prefix="appliance-test", folder=tmp_path / "scratch", logs=tmp_path / "logs", package=package)


@pytest.mark.fast
def test_only_what_serving_needs_is_copied_into_it(workshop: Workshop) -> None:
    names = {str(path.relative_to(workshop.package)) for path in images.serving_code(workshop.package)}

    assert {
        "__init__.py",
        "errors.py",
        "inference/__init__.py",
        "inference/serve.py",
        "inference/seccomp.json",
    } <= names
    assert not names & {"db.py", "config.py", "records.py", "schema.py", "runtime/docker.py"}


@pytest.mark.fast
def test_changed_code_is_a_new_input_of_serving_alone(workshop: Workshop) -> None:
    before = images.inputs_of(gpu=False, workshop=workshop)
    (workshop.package / "errors.py").write_text("class ApplianceError(Exception): ...\n")

    after = images.inputs_of(gpu=False, workshop=workshop)

    assert {name for name in images.NAMES if before[name] != after[name]} == {"serving"}
    assert images.inputs_of(gpu=True, workshop=workshop)["serving"] != after["serving"]


@pytest.mark.fast
def test_a_change_beneath_is_a_new_input_of_all_above(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    before = images.inputs_of(gpu=False, workshop=workshop)
    monkeypatch.setattr(images, "_PACKAGES", "python3")

    after = images.inputs_of(gpu=False, workshop=workshop)

    assert all(before[name] != after[name] for name in images.NAMES)


@pytest.mark.fast
def test_an_image_that_is_not_ours_is_unknown() -> None:
    with pytest.raises(NotFound, match="base, datascience, serving"):
        images.build_all(print, gpu=False, only="postgres")


# -- building, without a mirror: mmdebstrap is played, Docker is real --------------------------------------------------


@pytest.fixture
def played(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    """A workshop whose mmdebstrap makes a busybox and whose recipes need no index."""
    tools = tmp_path / "tools"
    tools.mkdir()
    rootfs = tmp_path / "rootfs"
    (rootfs / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", rootfs / "bin/sh")
    (tools / "mmdebstrap").write_text(
        '#!/bin/sh\nfor word; do case "$word" in *.tar) archive=$word;; esac; done\n'
        f'echo "played: $*"\n[ -e {tmp_path}/fail ] && {{ echo "E: no mirror"; exit 25; }}\n'
        f'tar -C {rootfs} -cf "$archive" .\n[ -e {tmp_path}/hang ] && sleep 600\nexit 0\n'
    )
    (tools / "mmdebstrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    recipes = tmp_path / "recipes"
    for name in ("datascience", "serving"):
        (recipes / name).mkdir(parents=True)
        (recipes / name / "Dockerfile").write_text(
            "ARG BASE\nFROM ${BASE}\nCOPY requirements.txt /\nLABEL appliance.test=1\n"
        )
        for file in ("requirements.txt", "requirements-cpu.txt", "requirements-gpu.txt"):
            (recipes / name / file).write_text(f"{name} {file}\n")
    monkeypatch.setattr(images, "FOLDER", recipes)
    forget(workshop)
    yield workshop
    forget(workshop)


def forget(workshop: Workshop) -> None:
    names = [workshop.image(name) for name in reversed(images.NAMES)]
    subprocess.run(["docker", "image", "rm", *names], capture_output=True, timeout=60, check=False)


def built(workshop: Workshop, **said: object) -> list[str]:
    """The names of the images that this made."""
    steps: list[str] = []
    images.build_all(steps.append, gpu=False, workshop=workshop, **said)  # type: ignore[arg-type]
    return [step.split("/")[1].split(":")[0] for step in steps if " built in " in step]


@pytest.mark.docker
def test_a_second_build_does_nothing_and_a_changed_input_rebuilds_what_stands_on_it(
    played: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [state.state for state in images.status(False, played)] == ["missing"] * 3
    assert built(played, only="base") == ["base"]
    assert built(played) == ["datascience", "serving"]
    assert built(played) == []

    (images.FOLDER / "serving" / "requirements-cpu.txt").write_text("serving changed\n")
    assert [state.state for state in images.status(False, played)] == ["current", "current", "outdated"]
    assert built(played) == ["serving"]

    monkeypatch.setattr(images, "_PACKAGES", "python3")
    assert built(played) == ["base", "datascience", "serving"]


@pytest.mark.docker
def test_a_build_that_fails_says_what_failed_and_where_the_rest_stands(played: Workshop, tmp_path: Path) -> None:
    (tmp_path / "fail").touch()

    with pytest.raises(
        EngineRefused, match=r"'base' could not be built: mmdebstrap ended with 25.*no mirror"
    ) as refused:
        images.build_all(print, gpu=False, workshop=played)

    assert str(played.logs / "image-base.log") in refused.value.message
    assert "played: --variant=minbase" in (played.logs / "image-base.log").read_text()
    (tmp_path / "fail").unlink()
    assert built(played, only="base") == ["base"]


@pytest.mark.docker
def test_a_build_that_was_cut_off_is_finished_by_the_next(played: Workshop, tmp_path: Path) -> None:
    (tmp_path / "hang").touch()
    script = (
        "import sys; from pathlib import Path; from appliance.runtime import images\n"
        "folder, logs, package = map(Path, sys.argv[1:])\n"
        "images.build_all(print, False, only='base', "
        "workshop=images.Workshop('appliance-test', folder, logs, package))\n"
    )
    command = [sys.executable, "-c", script, str(played.folder), str(played.logs), str(played.package)]
    builder = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    wait_until(lambda: list(played.folder.glob("*/base.tar")), 20, "the archive is being made")
    os.killpg(builder.pid, 9)
    builder.wait()
    (tmp_path / "hang").unlink()

    assert built(played, only="base") == ["base"]

    assert [path.name for path in played.folder.iterdir()] == ["lock"]


@pytest.mark.docker
def test_a_missing_tool_is_named(played: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(shutil.which("docker") or "", tmp_path / "only-docker")
    tools = tmp_path / "few"
    tools.mkdir()
    (tools / "docker").symlink_to(tmp_path / "only-docker")
    (tools / "apt-config").symlink_to("/usr/bin/apt-config")
    monkeypatch.setenv("PATH", str(tools))

    with pytest.raises(EngineRefused, match="mmdebstrap is not installed"):
        images.build_all(print, gpu=False, workshop=played, only="base")


@pytest.mark.docker
def test_a_scratch_folder_of_somebody_else_is_refused(played: Workshop, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 65534, 65534)

    with pytest.raises(EngineRefused, match="somebody else"):
        images.build_all(print, gpu=False, workshop=replace(played, folder=tmp_path / "theirs"))
