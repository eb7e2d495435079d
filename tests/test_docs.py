"""README.md and CONTRIBUTING.md say what is there: commands that parse, files that exist, workflows that are read.

Why: documentation that nobody runs goes wrong within a month, and nobody notices but the newcomer.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from appliance import cli, workflows
from appliance.config import Config
from appliance.daemon import main as applianced

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
MADE_BY_READERS = {"photos", "copy", "model", ".gradient/workflows/train.yaml"}
"""What a page's reader makes or changes; no part of the repository's root."""

THE_USERS = {
    "gradient-model-metadata.json",
    "/etc/appliance/appliance.toml",
    "/etc/docker/daemon.json",
    "appliance.toml",
}
OF_DOCKER = {f"appliance/{image}" for image in ("base", "datascience", "serving")}

ENDINGS = (".py", ".md", ".toml", ".yaml", ".json", ".sh", ".service", ".c", ".html", ".png", ".txt")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.S | re.M)


def spans(page: str) -> list[str]:
    """What stands between backticks outside of blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text_of(page), flags=re.S | re.M))


def without_here_documents(script: str) -> str:
    return re.sub(r"<<'END'\n.*?^END$", "", script, flags=re.S | re.M)


def commands(page: str) -> list[list[str]]:
    """Every `appliance …` and `applianced …` that a page tells to run, in words, without what it is piped into."""
    lines = [line for block in blocks(page, "sh") for line in without_here_documents(block).splitlines()]
    found = []
    for line in [*lines, *spans(page)]:
        words = shlex.split(line.split("|")[0], comments=True) if "appliance" in line else []
        words = words[1:] if words[:1] == ["sudo"] else words
        if words[:1] in (["appliance"], ["applianced"]) and len(words) > 1 and words[1] != "COMMAND":
            found.append([word for word in words if word != "…"])
    return found


def exit_code_of(words: list[str]) -> tuple[int, str]:
    """Of the command, asked for its help behind its nouns and verbs."""
    run = {"appliance": cli.main, "applianced": applianced}[words[0]]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = run([*words[1:], "--help"])
        except SystemExit as ended:
            code = int(ended.code or 0)
    return code, said.getvalue()


ALL_COMMANDS = sorted({shlex.join(words) for page in PAGES for words in commands(page)})


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_a_command_that_is_written_down_exists_with_its_options(command: str) -> None:
    words = shlex.split(command)

    code, said = exit_code_of(words)

    assert code == 0, said
    # argparse stops at --help before it minds an unknown option, so each one is looked up in the help itself.
    for option in [word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)]:
        assert re.search(rf"(^|[\s\[|,]){re.escape(option)}\b", said), f"{option}\n{said}"


def test_the_pages_name_enough_commands_for_this_to_mean_something() -> None:
    assert len(ALL_COMMANDS) > 30


@pytest.mark.parametrize(("script", "page"), [("install.sh", "README.md"), ("tests/run", "CONTRIBUTING.md")])
def test_the_scripts_know_the_options_that_the_pages_name(script: str, page: str) -> None:
    known = (ROOT / script).read_text(encoding="utf-8")

    for each in {*re.findall(rf"{re.escape(script)}((?: --[a-z-]+)+)", text_of(page))}:
        for option in each.split():
            assert f"{option}" in known


@pytest.mark.parametrize("page", PAGES)
def test_no_link_leads_to_a_missing_file_or_heading(page: str) -> None:
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in text_of(page).splitlines()
        if line.startswith("#")
    }

    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif "://" not in target:
            assert (ROOT / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_folder_of_ours_that_is_named_exists(page: str) -> None:
    prose = {word for span in spans(page) for word in span.split() if word.endswith(ENDINGS)}
    everywhere = {word for word in re.split(r"[\s`]", text_of(page)) if word.startswith(("appliance/", "tests/", "./"))}
    named = {
        word.removeprefix("./") for word in prose | everywhere if re.fullmatch(r"[./A-Za-z0-9_-]*[A-Za-z0-9_]/?", word)
    }

    for name in named - MADE_BY_READERS - THE_USERS - OF_DOCKER:
        places = [ROOT / name, *(ROOT / "appliance").rglob(name), *(ROOT / "tests").rglob(name)]
        assert any(place.exists() for place in places), name


@pytest.mark.parametrize("page", PAGES)
def test_the_workflows_that_are_shown_are_read_without_a_complaint(page: str) -> None:
    shown = blocks(page, "yaml")
    shown += [text for block in blocks(page, "sh") for text in re.findall(r"<<'END'\n(.*?)^END$", block, re.S | re.M)]

    for text in shown:
        assert workflows.parse(text, f"{page}.yaml").jobs
    assert shown or page != "README.md"


def test_the_table_of_workflows_names_every_action() -> None:
    from appliance.workflows.actions import ACTIONS

    table = text_of("README.md")

    assert set(re.findall(r"^\| `([a-z0-9-]+@v\d)`", table, re.M)) == set(ACTIONS)


def test_the_table_of_workflows_names_every_key() -> None:
    from appliance.workflows import check

    section = text_of("README.md").split("## Workflows")[1].split("\n## ")[0]

    for key in {*check._TOP, *check._JOB, *check._RESOURCES} - {"context"}:
        assert re.search(rf"`[^`]*\b{key}\b[^`]*`", section), key


def test_the_ports_and_folders_of_the_readme_are_the_defaults() -> None:
    config = Config()
    readme = text_of("README.md")

    for value in (config.https_port, config.http_port, *config.deployment_ports, config.network_pool):
        assert str(value) in readme
    for path in (config.data_dir, config.log_dir, config.prefix):
        assert f"`{path}`" in readme
    assert f"{config.log_retention_days} days" in readme


def test_the_map_of_the_readme_names_every_module() -> None:
    section = text_of("README.md").split("## The map of the code")[1].split("\n## ")[0]
    modules = {path.stem for path in (ROOT / "appliance").glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in (ROOT / "appliance").glob("*/__init__.py")}

    for module in modules | packages:
        assert f"`{module}`" in section, module


def test_the_licence_is_the_one_that_the_package_claims() -> None:
    licence = text_of("LICENSE")

    assert "Apache License" in licence
    assert "Version 2.0, January 2004" in licence
    assert 'license = { text = "Apache-2.0" }' in text_of("pyproject.toml")


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_are_plain_text_without_pictograms(page: str) -> None:
    assert [letter for letter in text_of(page) if ord(letter) >= 0x2600] == []
