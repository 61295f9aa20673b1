"""The TLS certificate of REST: looked at before the server starts, so that faults are one line."""

from __future__ import annotations

import contextlib
import ssl
from dataclasses import dataclass
from pathlib import Path

import structlog

from keystep_capture.errors import ConfigError

_NOT_VALID_NOW = (9, 10)  # OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and _HAS_EXPIRED

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """A certificate (chain) and its private key, PEM files."""

    certificate: Path
    key: Path


def check_tls(certificate: Path | None, key: Path | None) -> TlsFiles | None:
    """The pair of files, if it can be served; None if none was given.

    Raises:
        ConfigError: Only one was given, a file cannot be read or is not PEM, the two do not belong
            together, the key has a password, or the certificate is not valid now.
    """
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ConfigError("TLS needs both --tls-certificate and --tls-key")
    for path in (certificate, key):
        _refuse_unreadable(path)
    _refuse_expired(certificate, _server_context(certificate, key))
    return TlsFiles(certificate=certificate, key=key)


def _refuse_unreadable(path: Path) -> None:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise ConfigError(f"TLS file {path} cannot be read: {error.strerror}") from None


def _server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    def refuse_password() -> str:
        raise ConfigError(f"TLS key {key} has a password; give one without")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=refuse_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            message = f"TLS key {key} does not belong to the certificate {certificate}"
        else:
            reason = error.reason or "unknown"
            message = f"{certificate} and {key} are not a PEM certificate and key ({reason})"
        raise ConfigError(message) from None
    return context


def _refuse_expired(certificate: Path, context: ssl.SSLContext) -> None:
    """Shake hands with ourselves: the one public way the standard library tells of validity."""
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client_context.load_verify_locations(certificate)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    try:
        for side in (client, server, client):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in _NOT_VALID_NOW:
            raise ConfigError(
                f"TLS certificate {certificate}: {error.verify_message}; renew it"
            ) from None
        log.warning("TLS certificate", file=str(certificate), problem=error.verify_message)
