"""The certificates that clients see: a certificate authority of our own, or the administrator's certificate.

What this keeps true: the authority (`ca.crt`, `ca.key`) is made once and never replaced, since every client that trusts
it would have to be told; the server's certificate carries all names and addresses by which the server is reached now,
is valid for 397 days (the longest that browsers accept) and is renewed when two thirds of that are over or when the
names change; private keys are 0600 in a folder that is 0700. A crash between the two files of a pair leaves a pair that
does not match, which the next `ensure` replaces.

Why: a server on a LAN has no name that a public authority could vouch for, and plain HTTP would send passwords and keys
in the clear. One fingerprint, shown at install, is all that a client has to compare.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance import clock
from appliance.config import Config, machine_addresses
from appliance.errors import PreconditionFailed

_CA_LIFE = timedelta(days=3650)
_LEAF_LIFE = timedelta(days=397)
_RENEW_AFTER = _LEAF_LIFE * 2 / 3
_SKEW = timedelta(hours=1)  # a client's clock may be behind ours


@dataclass(frozen=True)
class Certificates:
    """What nginx needs (`certificate` with its chain, `key`) and what clients compare.

    `ca` is our authority's certificate, None where the administrator's own certificate is used; `fingerprint` is the
    SHA-256 of the authority's certificate (else of the administrator's), as upper-case hex pairs parted by colons.
    """

    ca: Path | None
    certificate: Path
    key: Path
    fingerprint: str
    expires_at: datetime


def ensure(config: Config) -> Certificates:
    """Certificates that are valid now for the names of now; makes or renews what is missing. May be called at any time.

    Raises PreconditionFailed when the administrator's certificate, or our authority, cannot be used.
    """
    if config.tls_certificate is not None and config.tls_key is not None:
        return _examined(config.tls_certificate, config.tls_key)
    config.tls_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (config.tls_dir / ".lock").open("w") as lock:  # daemon and gateway may both be starting for the first time
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _ensured(config)


def _ensured(config: Config) -> Certificates:
    ca_path, ca_key_path = config.tls_dir / "ca.crt", config.tls_dir / "ca.key"
    path, key_path = config.tls_dir / "server.crt", config.tls_dir / "server.key"
    if not ca_path.exists():
        _make_authority(config.host_name, ca_path, ca_key_path)
    authority = _load_certificate(ca_path)
    authority_key = _load_key(ca_key_path)
    if not _belong(authority, authority_key):
        raise PreconditionFailed(
            f"The certificate authority {ca_path} and its key {ca_key_path} do not belong together; restore both from "
            "a backup, or remove both for a new authority that every client has to trust anew."
        )
    names = wanted_names(config)
    if not _is_fit(path, key_path, authority, names, clock.now()):
        _make_leaf(names, authority, authority_key, path, key_path)
    leaf = _load_certificate(path)
    return Certificates(ca_path, path, key_path, fingerprint(authority), leaf.not_valid_after_utc)


def find(config: Config) -> Certificates | None:
    """What `ensure` made last, or the administrator's; None before the first. Makes and checks nothing."""
    own = config.tls_certificate is not None and config.tls_key is not None
    path = config.tls_certificate or config.tls_dir / "server.crt"
    ca_path = config.tls_dir / "ca.crt"
    if not path.exists() or not (own or ca_path.exists()):
        return None
    leaf = _load_certificate(path)
    shown = leaf if own else _load_certificate(ca_path)
    key = config.tls_key or config.tls_dir / "server.key"
    return Certificates(None if own else ca_path, path, key, fingerprint(shown), leaf.not_valid_after_utc)


def wanted_names(config: Config) -> tuple[str, ...]:
    """Every name and address that the certificate carries, sorted: the configured ones and the machine's addresses."""
    return tuple(sorted({*config.host_names(), *machine_addresses(bridges=False)}))


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 as upper-case hex pairs parted by colons, as browsers and openssl show it."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


# -- the administrator's own -------------------------------------------------------------------------------------------


def _examined(path: Path, key_path: Path) -> Certificates:
    certificate, key = _load_certificate(path), _load_key(key_path)
    if not _belong(certificate, key):
        raise PreconditionFailed(f"The key {key_path} does not belong to the certificate {path}; check tls_key.")
    now = clock.now()
    if now > certificate.not_valid_after_utc:
        raise PreconditionFailed(
            f"The certificate {path} expired on {certificate.not_valid_after_utc:%Y-%m-%d}; renew it or remove "
            "tls_certificate and tls_key from the configuration."
        )
    if now < certificate.not_valid_before_utc:
        raise PreconditionFailed(
            f"The certificate {path} is valid only from {certificate.not_valid_before_utc:%Y-%m-%d} on; "
            "check this machine's clock."
        )
    return Certificates(None, path, key_path, fingerprint(certificate), certificate.not_valid_after_utc)


# -- ours --------------------------------------------------------------------------------------------------------------


def _make_authority(host_name: str, path: Path, key_path: Path) -> None:
    """The key before the certificate: the certificate's presence says that the authority is complete."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = clock.now()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Appliance CA of {host_name}"[:64])])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(key_path, _pem_key(key))
    _write(path, certificate.public_bytes(serialization.Encoding.PEM))


def _make_leaf(
    names: Sequence[str], authority: x509.Certificate, authority_key: PrivateKeyTypes, path: Path, key_path: Path
) -> None:
    if not isinstance(authority_key, ec.EllipticCurvePrivateKey):
        raise PreconditionFailed(f"The key beside {path} is not one that we made; remove ca.crt and ca.key there.")
    key = ec.generate_private_key(ec.SECP256R1())
    now = clock.now()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Appliance")]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(min(now + _LEAF_LIFE, authority.not_valid_after_utc))
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    _write(key_path, _pem_key(key))
    _write(path, certificate.public_bytes(serialization.Encoding.PEM))


def _is_fit(path: Path, key_path: Path, authority: x509.Certificate, names: Sequence[str], now: datetime) -> bool:
    try:
        leaf, key = _load_certificate(path), _load_key(key_path)
        leaf.verify_directly_issued_by(authority)
        carried = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (PreconditionFailed, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    if not _belong(leaf, key) or sorted(str(name.value) for name in carried) != sorted(names):
        return False
    return leaf.not_valid_before_utc <= now < leaf.not_valid_before_utc + _SKEW + _RENEW_AFTER


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


# -- files -------------------------------------------------------------------------------------------------------------


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())[0]
    except OSError as error:
        raise PreconditionFailed(f"The certificate {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise PreconditionFailed(f"The file {path} holds no certificate in PEM form.") from error


def _load_key(path: Path) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise PreconditionFailed(f"The private key {path} cannot be read: {error.strerror}.") from error
    except TypeError as error:
        raise PreconditionFailed(f"The private key {path} is locked by a password; store it without one.") from error
    except ValueError as error:
        raise PreconditionFailed(f"The file {path} holds no private key in PEM form.") from error


def _belong(certificate: x509.Certificate, key: PrivateKeyTypes) -> bool:
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return certificate.public_key().public_bytes(*form) == key.public_key().public_bytes(*form)


def _pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes) -> None:
    """The whole file or the one that was there before, 0600, on the disk when this returns."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp makes it 0600
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    Path(temporary).replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
