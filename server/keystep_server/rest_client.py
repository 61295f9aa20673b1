"""A server's REST side as our own commands use it; every failure is one of our errors."""

from __future__ import annotations

import re
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import httpx

from keystep_capture.errors import (
    ConfigError,
    KeystepError,
    NoAnswerError,
    NotFoundError,
    StateError,
)

API_PREFIX: Final = "/api/v1"
TIMEOUT_S: Final = 15.0
_SESSION_ID: Final = re.compile(r"ses_[0-9a-z]{26}")


class RestClient:
    """Asks one server; a context manager."""

    def __init__(self, server: str, token: str | None) -> None:
        """Take the server's address; nothing is asked yet.

        Args:
            server: `http://HOST:PORT` or `https://...`.
            token: A token of its REST side; None: it asks for none.

        Raises:
            ConfigError: The address is none.
        """
        parts = urlsplit(server)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"--server is {server!r}, expected http://HOST:8040")
        self.address = server.rstrip("/")
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        try:
            self._client = httpx.Client(
                base_url=self.address + API_PREFIX, headers=headers, timeout=TIMEOUT_S
            )
        except (httpx.InvalidURL, UnicodeEncodeError, ValueError) as error:
            raise ConfigError(f"--server or --token cannot be used: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def url(self, path: str) -> str:
        """The whole URL of a path below the API."""
        return f"{self.address}{API_PREFIX}{path}"

    def get(self, path: str, *, timeout_s: float = TIMEOUT_S, **query: str | int) -> dict[str, Any]:
        """What a GET answers; raises as `send`."""
        return self.send("GET", path, timeout_s=timeout_s, query=query)

    def send(
        self,
        method: str,
        path: str,
        *,
        body: dict[str, Any] | None = None,
        query: dict[str, str | int] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> dict[str, Any]:
        """Ask for something and read the JSON object that is answered.

        Raises:
            NoAnswerError: No answer, or the server cannot at this moment.
            NotFoundError: There is no such session or recording.
            StateError: It cannot be done now, or what answers is no Keystep server.
            ConfigError: The request is not as documented, or the token is not right.
        """
        try:
            answer = self._client.request(method, path, json=body, params=query, timeout=timeout_s)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise NoAnswerError(
                f"the server at {self.address} does not answer ({reason}): is it running there?"
            ) from None
        if answer.is_success:
            return self._object(answer)
        raise self._refusal(answer)

    def _object(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise StateError(f"what answers at {self.address} is no Keystep server")
        return found

    def _refusal(self, answer: httpx.Response) -> KeystepError:
        detail = f"{answer.status_code} {answer.reason_phrase}"
        if answer.headers.get("content-type", "").startswith("application/problem+json"):
            detail = str(self._object(answer).get("detail", detail))[:500]
        if answer.status_code in (401, 403):
            return ConfigError(f"the server refuses: {detail} (--token or KEYSTEP_TOKEN)")
        if answer.status_code == 404:
            return NotFoundError(detail)
        if answer.status_code in (400, 413, 415, 422):
            return ConfigError(f"the server refuses: {detail}")
        if answer.status_code >= 500:
            return NoAnswerError(f"the server at {self.address} cannot answer now: {detail}")
        return StateError(detail)


def checked_session(session: str) -> str:
    """A session's id, if it has the form of one: it becomes a part of a path.

    Raises:
        ConfigError: It has not.
    """
    if not _SESSION_ID.fullmatch(session):
        raise ConfigError(f"{session[:60]!r} is no session: expected ses_ and 26 letters or digits")
    return session
