"""Certificates: ours, and the administrator's."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from appliance import clock, tls
from appliance.config import Config
from appliance.errors import PreconditionFailed

pytestmark = pytest.mark.fast


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(data_dir=tmp_path, host_name="box", names=("gpu.example.org", "10.9.8.7"))


def later(days: int, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = clock.now() + timedelta(days=days)
    monkeypatch.setattr(clock, "now", lambda: moment)


def shake_hands(certificates: tls.Certificates, name: str) -> str | None:
    """The protocol that a client that trusts our authority speaks with a server that is called `name`."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificates.certificate, certificates.key)
    client = ssl.create_default_context(cafile=str(certificates.ca))
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # what Python 3.13 does by itself
    here, there = socket.socketpair()
    thread = threading.Thread(target=lambda: server.wrap_socket(there, server_side=True).close())
    thread.start()
    try:
        with client.wrap_socket(here, server_hostname=name) as secure:
            return secure.version()
    finally:
        here.close()
        thread.join()


@pytest.mark.parametrize("name", ["box", "box.local", "localhost", "gpu.example.org", "10.9.8.7", "127.0.0.1", "::1"])
def test_a_client_that_trusts_the_authority_accepts_every_name(config: Config, name: str) -> None:
    assert shake_hands(tls.ensure(config), name) == "TLSv1.3"


def test_the_fingerprint_is_what_openssl_shows(config: Config) -> None:
    certificates = tls.ensure(config)

    command = ["openssl", "x509", "-in", str(certificates.ca), "-noout", "-fingerprint", "-sha256"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert shown.strip().partition("=")[2] == certificates.fingerprint


def test_keys_are_readable_by_root_alone(config: Config) -> None:
    tls.ensure(config)

    assert {path.name: oct(path.stat().st_mode & 0o777) for path in config.tls_dir.glob("[!.]*")} == dict.fromkeys(
        ("ca.crt", "ca.key", "server.crt", "server.key"), "0o600"
    )


def test_asking_again_changes_nothing(config: Config) -> None:
    first = tls.ensure(config)
    before = [path.read_bytes() for path in sorted(config.tls_dir.iterdir())]

    assert tls.ensure(config) == first
    assert [path.read_bytes() for path in sorted(config.tls_dir.iterdir())] == before


def test_two_who_ask_at_once_for_the_first_time_get_the_same(config: Config) -> None:
    found: list[tls.Certificates] = []
    threads = [threading.Thread(target=lambda: found.append(tls.ensure(config))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 8
    assert len(set(found)) == 1
    assert shake_hands(found[0], "box") == "TLSv1.3"


def test_new_names_renew_the_certificate_and_keep_the_authority(config: Config) -> None:
    first = tls.ensure(config)
    leaf = first.certificate.read_bytes()

    second = tls.ensure(replace(config, names=("other.example.org",)))

    assert second.fingerprint == first.fingerprint
    assert second.certificate.read_bytes() != leaf


@pytest.mark.parametrize(("days", "renewed"), [(260, False), (268, True), (1000, True)])
def test_it_is_renewed_when_two_thirds_of_its_life_are_over(
    config: Config, days: int, renewed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tls.ensure(config)

    later(days, monkeypatch)
    second = tls.ensure(config)

    assert (second.expires_at != first.expires_at) is renewed
    assert second.fingerprint == first.fingerprint


def test_a_pair_that_a_crash_left_unmatched_is_replaced(config: Config, tmp_path: Path) -> None:
    certificates = tls.ensure(config)
    other = tls.ensure(replace(config, data_dir=tmp_path / "other"))
    certificates.key.write_bytes(other.key.read_bytes())

    again = tls.ensure(config)

    assert shake_hands(again, "box") == "TLSv1.3"


def test_an_authority_without_its_key_is_one_sentence_and_never_a_new_authority(config: Config) -> None:
    certificates = tls.ensure(config)
    (config.tls_dir / "ca.key").unlink()

    with pytest.raises(PreconditionFailed, match=r"The private key .*ca\.key cannot be read"):
        tls.ensure(config)

    assert certificates.ca is not None
    assert certificates.ca.exists()


def own(config: Config, tmp_path: Path) -> Config:
    """A configuration whose administrator brings a certificate (one that we make for the purpose)."""
    theirs = tls.ensure(replace(config, data_dir=tmp_path / "theirs"))
    return replace(config, data_dir=tmp_path / "ours", tls_certificate=theirs.certificate, tls_key=theirs.key)


def test_the_administrators_certificate_is_used_as_it_is(config: Config, tmp_path: Path) -> None:
    chosen = own(config, tmp_path)

    certificates = tls.ensure(chosen)

    assert (certificates.certificate, certificates.key) == (chosen.tls_certificate, chosen.tls_key)
    assert certificates.ca is None
    assert not chosen.tls_dir.exists()


def test_each_fault_of_the_administrators_certificate_is_one_sentence(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = own(config, tmp_path)
    stranger = tls.ensure(replace(config, data_dir=tmp_path / "stranger"))
    text = tmp_path / "text"
    text.write_text("no PEM")

    with pytest.raises(PreconditionFailed, match="does not belong to the certificate"):
        tls.ensure(replace(chosen, tls_key=stranger.key))
    with pytest.raises(PreconditionFailed, match="holds no certificate"):
        tls.ensure(replace(chosen, tls_certificate=text))
    with pytest.raises(PreconditionFailed, match="holds no private key"):
        tls.ensure(replace(chosen, tls_key=text))
    with pytest.raises(PreconditionFailed, match="cannot be read: No such file"):
        tls.ensure(replace(chosen, tls_certificate=tmp_path / "absent"))
    later(400, monkeypatch)
    with pytest.raises(PreconditionFailed, match="expired on"):
        tls.ensure(chosen)
    later(-900, monkeypatch)
    with pytest.raises(PreconditionFailed, match="check this machine's clock"):
        tls.ensure(chosen)
