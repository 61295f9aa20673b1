"""REST over TLS, and what is said about certificates that cannot be used."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest

from keystep_capture.errors import ConfigError
from keystep_server.tls import check_tls

GOLDEN = Path(__file__).parents[1] / "golden" / "tls"
CERTIFICATE, KEY = GOLDEN / "certificate.pem", GOLDEN / "key.pem"


async def test_rest_is_served_over_tls(tools: Any, tmp_path: Path) -> None:
    files = {"tls_certificate": CERTIFICATE, "tls_key": KEY}
    trusting = ssl.create_default_context(cafile=str(CERTIFICATE))
    async with tools.live_server(tmp_path, **files) as live:
        url = live.server.rest_url
        assert url.startswith("https://127.0.0.1:")
        async with httpx.AsyncClient(verify=trusting) as client:
            assert (await client.get(f"{url}/healthz")).json() == {"status": "alive"}
        async with httpx.AsyncClient() as stranger:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await stranger.get(f"{url}/healthz")
        async with httpx.AsyncClient() as plain:
            with pytest.raises(httpx.TransportError):
                await plain.get(f"{url.replace('https', 'http')}/healthz")


@pytest.mark.parametrize(
    ("certificate", "key", "said"),
    [
        ("certificate.pem", None, "needs both"),
        (None, "key.pem", "needs both"),
        ("none.pem", "key.pem", "none.pem cannot be read: No such file"),
        ("certificate.pem", "none.pem", "none.pem cannot be read: No such file"),
        (".", "key.pem", "cannot be read: Is a directory"),
        ("certificate.pem", "other_key.pem", "does not belong to the certificate"),
        ("README.md", "key.pem", "not a PEM certificate and key"),
        ("key.pem", "certificate.pem", "not a PEM certificate and key"),
        ("certificate.pem", "locked_key.pem", "has a password"),
        ("expired.pem", "key.pem", "certificate has expired; renew it"),
    ],
)
def test_unusable_files_are_named(certificate: str | None, key: str | None, said: str) -> None:
    paths = [GOLDEN / name if name else None for name in (certificate, key)]
    with pytest.raises(ConfigError, match=said):
        check_tls(*paths)


def test_a_chain_is_taken_and_nothing_is_none(tmp_path: Path) -> None:
    chain = tmp_path / "chain.pem"
    chain.write_text(CERTIFICATE.read_text() + (GOLDEN / "expired.pem").read_text())
    assert check_tls(chain, KEY) is not None
    assert check_tls(None, None) is None
