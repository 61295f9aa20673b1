"""The server's settings: a TOML file, then KEYSTEP_* variables, then flags; read once, then frozen.

`load_config` is the only place where the environment is read; everything else is handed a
`ServerConfig`. The resolved settings are written beside the data, secrets masked.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from keystep_capture.errors import ConfigError
from keystep_models.psr.methods import AUTO, check_live_method

ENV_PREFIX = "KEYSTEP_"
TOKEN_MIN_CHARS = 32
MEMORY_MIN_MB = 1024
# Variables of the other programs may stand in the same environment; they are not ours to judge.
_FOREIGN_PREFIXES = ("KEYSTEP_HOLOLENS_", "KEYSTEP_BRIDGE_", "KEYSTEP_TEST_")
_ENDPOINT = re.compile(r"(?:tcp://(?P<host>\[[^\]]+\]|[^:/\s]+):(?:\d{1,5}|\*)|ipc://\S+)")

Port = Annotated[int, Field(ge=0, le=65535)]


class ServerConfig(BaseSettings):
    """All settings of one server process: `load_config` at the edge, made directly in code."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=True,
    )

    data_dir: Path = Field(Path("keystep-data"), description="everything the server stores")
    rest_host: str = Field("127.0.0.1", min_length=1, description="address REST listens on")
    rest_port: Port = Field(8040, description="port of REST; 0 takes a free one")
    wire_bind: str = Field("tcp://127.0.0.1:8041", description="ROUTER the headsets dial")
    publish_bind: str = Field("tcp://127.0.0.1:8042", description="PUB socket others follow")
    database_url: str | None = Field(
        None, repr=False, description="SQLAlchemy URL; by default SQLite in data_dir"
    )
    token: SecretStr | None = Field(
        None, description="a REST token beside those of `keystep token add`"
    )
    tls_certificate: Path | None = Field(None, description="PEM certificate (chain) of REST")
    tls_key: Path | None = Field(None, description="PEM private key of REST")
    memory_limit_mb: int | None = Field(
        None,
        ge=0,
        description="hard limit of memory, MiB; by default half the machine's; 0: none",
    )
    bundle_dir: Path | None = Field(None, description="the models to load at start")
    procedures_dir: Path | None = Field(
        None, description="folder of procedures; by default data_dir/procedures"
    )
    default_method: str = Field(
        AUTO,
        description="step recognition of sessions that ask for none: auto, b1, b2, b3 or tracker",
    )
    feature_rate_hz: float = Field(10.0, gt=0, le=60, description="frames a second for the models")
    inference_max_batch: int | None = Field(
        None, ge=1, le=256, description="requests in one model call; by default 1 on CPU, else 16"
    )
    inference_calls: int | None = Field(
        None,
        ge=1,
        le=256,
        description="model calls at a time; by default one a core on CPU, else 1",
    )
    inference_max_wait_ms: float = Field(
        5.0, ge=0, le=1000, description="longest wait of a request for others to share its call"
    )
    inference_threads: int = Field(1, ge=1, le=256, description="threads of one model call")
    pipeline_workers: int | None = Field(
        None, ge=1, le=256, description="threads that decode; by default one a core, at least two"
    )
    extraction_jobs: int = Field(1, ge=1, le=64, description="extraction jobs at a time")
    extraction_hours: float = Field(
        12.0, gt=0, le=1000, description="longest time that one extraction job may run"
    )
    encoder_slots: int = Field(
        16, ge=1, le=1024, description="sessions at most that one bundle guides at a time"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take arguments only: the environment is `load_config`'s business."""
        return (init_settings,)

    @field_validator("wire_bind", "publish_bind")
    @classmethod
    def _is_endpoint(cls, value: str) -> str:
        if not _ENDPOINT.fullmatch(value):
            raise ValueError(f"expected tcp://HOST:PORT or ipc://PATH, got {value!r}")
        return value

    @field_validator("default_method")
    @classmethod
    def _can_run_live(cls, value: str) -> str:
        if value != AUTO:
            check_live_method(value)
        return value

    @field_validator("database_url")
    @classmethod
    def _is_database_url(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                make_url(value)
            except ArgumentError:
                raise ValueError(
                    "expected an SQLAlchemy URL such as sqlite:///keystep.db"
                ) from None
        return value

    @field_validator("token")
    @classmethod
    def _is_long(cls, value: SecretStr | None) -> SecretStr | None:
        length = len(value.get_secret_value()) if value is not None else TOKEN_MIN_CHARS
        if length < TOKEN_MIN_CHARS:
            raise ValueError(
                f"expected a token of at least {TOKEN_MIN_CHARS} characters, got {length} "
                "(`openssl rand -hex 32` makes one)"
            )
        return value

    @field_validator("memory_limit_mb")
    @classmethod
    def _leaves_room(cls, value: int | None) -> int | None:
        if value is not None and 0 < value < MEMORY_MIN_MB:
            raise ValueError(f"expected 0 (no limit) or at least {MEMORY_MIN_MB}, got {value}")
        return value

    @property
    def exposed(self) -> frozenset[str]:
        """The settings whose sockets other machines can reach: rest_host, wire_bind, ..."""
        return frozenset(name for name, host in self._hosts().items() if not is_loopback(host))

    def _hosts(self) -> dict[str, str]:
        hosts = {"rest_host": self.rest_host}
        for name in ("wire_bind", "publish_bind"):
            match = _ENDPOINT.fullmatch(getattr(self, name))
            # ipc:// has no host: a socket file is guarded by the file system.
            hosts[name] = (match["host"] if match else None) or "localhost"
        return hosts

    @property
    def resolved_database_url(self) -> str:
        """The database's SQLAlchemy URL, the default filled in."""
        return self.database_url or f"sqlite:///{self.data_dir.resolve() / 'keystep.db'}"

    @property
    def resolved_procedures_dir(self) -> Path:
        """The folder of procedures, the default filled in."""
        return self.procedures_dir or self.data_dir / "procedures"

    def masked(self) -> dict[str, Any]:
        """The resolved settings as JSON values, token and database password masked."""
        url = make_url(self.resolved_database_url).render_as_string(hide_password=True)
        return {
            **self.model_dump(mode="json"),
            "database_url": url,
            "procedures_dir": str(self.resolved_procedures_dir),
        }

    def write_resolved(self) -> Path:
        """Write the masked settings to `data_dir/config.json`, making the folder; the path."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        path = self.data_dir / "config.json"
        path.write_text(json.dumps(self.masked(), indent=2) + "\n", encoding="utf-8")
        return path


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`; unknown names count as not."""
    name = host.removeprefix("[").removesuffix("]").lower()
    if name == "localhost":
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def load_config(
    toml_path: Path | None = None, flags: Mapping[str, Any] | None = None
) -> ServerConfig:
    """Read the settings: the file, then KEYSTEP_* variables, then `flags` (None: flag not given).

    Raises:
        ConfigError: The file is missing or not TOML, a key is unknown, or a value is out of range.
    """
    values: dict[str, Any] = {}
    if toml_path is not None:
        values |= _read_toml(toml_path)
    _refuse_unknown_variables()
    values |= EnvSettingsSource(ServerConfig)()
    values |= {name: value for name, value in (flags or {}).items() if value is not None}
    try:
        return ServerConfig(**values)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def _read_toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"configuration file {path} does not exist")
    try:
        return dict(TomlConfigSettingsSource(ServerConfig, path)())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def _refuse_unknown_variables() -> None:
    known = {f"{ENV_PREFIX}{name}".upper() for name in ServerConfig.model_fields}
    unknown = sorted(
        name
        for name in os.environ
        if name.upper().startswith(ENV_PREFIX)
        and name.upper() not in known
        and not name.upper().startswith(_FOREIGN_PREFIXES)
    )
    if unknown:
        raise ConfigError(
            f"unknown variables {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )


def _explain(error: ValidationError) -> str:
    parts = []
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        where = ".".join(str(part) for part in item["loc"])
        text = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            text = f"unknown key; known: {', '.join(sorted(ServerConfig.model_fields))}"
        parts.append(f"{where}: {text}" if where else text)
    return "; ".join(parts)
