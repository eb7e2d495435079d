"""The configuration: where values come from, and what each mistake is answered with."""

from __future__ import annotations

import tomllib
from dataclasses import fields, replace
from pathlib import Path

import pytest

from appliance.config import Config, load, machine_addresses, render
from appliance.errors import ParseError

pytestmark = pytest.mark.fast


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "appliance.toml"


def test_the_environment_wins_over_the_file_and_the_file_over_the_defaults(file: Path) -> None:
    file.write_text('https_port = 443\nhttp_port = 80\nnames = ["GPU.Example.org."]\n')

    config = load(None, {"APPLIANCE_CONFIG": str(file), "APPLIANCE_HTTP_PORT": "81", "APPLIANCE_API_KEY": "not ours"})

    assert (config.https_port, config.http_port, config.names) == (443, 81, ("gpu.example.org",))
    assert config.data_dir == Path("/var/lib/appliance")


def test_variables_say_lists_with_commas_and_ports_with_a_dash(file: Path) -> None:
    file.touch()

    config = load(file, {"APPLIANCE_NAMES": "a.b, ::1,", "APPLIANCE_DEPLOYMENT_PORTS": "9000-9010"})

    assert config.names == ("a.b", "::1")
    assert config.deployment_ports == (9000, 9010)


def test_what_is_rendered_is_read_back_as_the_same(file: Path) -> None:
    config = replace(
        Config(),
        data_dir=Path('/srv/a "b"'),
        names=("a.b", "10.0.0.1"),
        https_port=443,
        deployment_ports=(9000, 9001),
        tls_certificate=Path("/c"),
        tls_key=Path("/k"),
    )

    file.write_text(render(config))

    assert load(file, {}) == config


def test_the_rendered_defaults_set_nothing_and_show_everything() -> None:
    text = render(Config())

    assert tomllib.loads(text) == {}
    assert all(f"\n# {field.name} = " in text for field in fields(Config))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("htps_port = 1", "key 'htps_port': there is no such key (did you mean 'https_port'?)."),
        ("zzz = 1", "key 'zzz': there is no such key."),
        ('https_port = "443"', "key 'https_port': '443' is not a whole number."),
        ("https_port = true", "key 'https_port': True is not a whole number."),
        ("https_port = 70000", "key 'https_port': 70000 is not between 1 and 65535."),
        ('data_dir = "var"', "key 'data_dir': 'var' is not an absolute path."),
        ("deployment_ports = [9, 8]", "key 'deployment_ports': [9, 8] must be two ports"),
        ("deployment_ports = 9400", "key 'deployment_ports': 9400 is not a pair of ports such as [9400, 9799]."),
        ('names = "a"', "key 'names': 'a' is not a list of texts."),
        ('names = ["a b"]', "key 'names': 'a b' is neither a host name nor an IP address."),
        ('network_pool = "8.8.0.0/16"', "key 'network_pool': '8.8.0.0/16' cannot be used"),
        ('https_address = "here"', "key 'https_address': 'here' cannot be used"),
        ('service_user = "a b"', "key 'service_user': 'a b' cannot be used"),
        ('base_image = ""', "key 'base_image': '' is not a text."),
        ("https_port = 9500", "https_port 9500 lies within deployment_ports 9400 to 9799; change one of them."),
        ("https_port = 8080", "http_port and https_port are both 8080; change one."),
        ('tls_key = "/k"', "tls_certificate and tls_key go together; one is missing."),
        ("https_port 443", "is not valid TOML"),
    ],
)
def test_each_mistake_is_one_sentence_that_names_the_file(file: Path, text: str, sentence: str) -> None:
    file.write_text(text)

    with pytest.raises(ParseError) as refusal:
        load(file, {})

    assert str(file) in refusal.value.message
    assert sentence in refusal.value.message
    assert refusal.value.message.endswith(".")


def test_a_mistake_in_a_variable_names_the_variable() -> None:
    with pytest.raises(ParseError, match="the variable APPLIANCE_HTTPS_PORT: 'x' is not a whole number"):
        load(None, {"APPLIANCE_HTTPS_PORT": "x"})


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ParseError, match=r"There is no configuration file .*/absent"):
        load(None, {"APPLIANCE_CONFIG": str(tmp_path / "absent")})


def test_every_path_lies_in_the_folder_that_was_chosen() -> None:
    config = Config(data_dir=Path("/d"), run_dir=Path("/r"))

    kept = (config.db_path, config.store_dir, config.repos_dir, config.staging_dir, config.work_dir)
    assert all(path.parent == Path("/d") for path in (*kept, config.volumes_dir, config.logs_dir, config.tls_dir))
    assert all(path.parent == Path("/r") for path in (config.daemon_socket, config.holder_socket, config.replicas_dir))


def test_addresses_for_people_and_for_the_host_check() -> None:
    config = Config(host_name="box", names=("gpu.example.org", "fd00::9"), https_port=443, https_address="127.0.0.1")

    assert config.dashboard_urls() == (
        "https://box",
        "https://gpu.example.org",
        "https://[fd00::9]",
        "http://127.0.0.1:8080",
    )
    assert {
        "box",
        "box.local",
        "localhost",
        "127.0.0.1",
        "::1",
        "gpu.example.org",
        "fd00::9",
    } <= config.accepted_hosts()
    assert set(machine_addresses()) <= config.accepted_hosts()


def test_the_machines_own_addresses_are_offered_where_all_of_them_listen() -> None:
    lan = [address for address in machine_addresses(bridges=False) if ":" not in address and address != "127.0.0.1"]

    urls = Config(host_name="box").dashboard_urls()

    assert [f"https://{address}:8443" for address in lan] == list(urls[1:-1])
