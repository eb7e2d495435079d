"""A server's certificate: is it trusted already, and if not, by which authority's certificate could it be.

What this keeps true: nothing secret is sent here; what comes over a connection that is not verified is handed back as
what it is, a claim, whose fingerprint a person compares with the one that the server printed at its installation; it is
only used after the server has shown a certificate that it vouches for.

Why: a server on a LAN signs its own certificate, and "accept everything" would hand the first key to whoever asks.
"""

from __future__ import annotations

import hashlib
import http.client
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from appliance.client.transport import Unreachable

_TIMEOUT_S = 10.0
_LARGEST = 64 * 1024


@dataclass(frozen=True)
class Claim:
    """A certificate (PEM) that a server offers to be trusted by; `fingerprint` as SHA-256 in upper-case pairs."""

    pem: str
    fingerprint: str


def is_trusted(url: str, ca_pem: str | None = None) -> bool:
    """Whether the server's certificate is good for its name, by `ca_pem` or else by the system's authorities.

    Raises Unreachable when nobody answers there.
    """
    context = ssl.create_default_context(cadata=ca_pem)
    host, port = _address(url)
    try:
        with _connected(url) as raw, context.wrap_socket(raw, server_hostname=host):
            return True
    except ssl.SSLCertVerificationError:
        return False
    except (OSError, ValueError) as error:
        raise Unreachable(f"{host} port {port} does not speak TLS ({error}): check the address.") from error


def claim(url: str) -> Claim:
    """The authority's certificate that the server offers at /ca.crt, else the server's own. Raises Unreachable."""
    host, port = _address(url)
    unverified = ssl._create_unverified_context()  # noqa: S323 - a claim, compared by a person before it is used
    try:
        pem = _offered(host, port, unverified) or ssl.get_server_certificate((host, port), timeout=_TIMEOUT_S)
        return Claim(pem, fingerprint(pem))
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Unreachable(f"The certificate of {url} cannot be read ({error}).") from error


def fingerprint(pem: str) -> str:
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest().upper()
    return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2))


def is_same(one: str, other: str) -> bool:
    """Whether two fingerprints are the same, however they are written."""
    plain = [text.upper().removeprefix("SHA256:").replace(":", "").replace(" ", "") for text in (one, other)]
    return plain[0] == plain[1] and len(plain[0]) == 64


def _offered(host: str, port: int, context: ssl.SSLContext) -> str | None:
    connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=context)
    try:
        connection.request("GET", "/ca.crt")
        answer = connection.getresponse()
        text = answer.read(_LARGEST).decode("ascii", "replace")
        if answer.status != 200 or "-----BEGIN CERTIFICATE-----" not in text:
            return None
        return ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(text.strip()))
    finally:
        connection.close()


def _connected(url: str) -> socket.socket:
    host, port = _address(url)
    try:
        return socket.create_connection((host, port), timeout=_TIMEOUT_S)
    except OSError as error:
        raise Unreachable(
            f"{host} port {port} does not answer ({error}): check the address, and that it runs."
        ) from error


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 443
