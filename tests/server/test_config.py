import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from keystep_capture.errors import ConfigError
from keystep_server.config import ServerConfig, load_config

LONG = "x" * 32


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ServerConfig.model_fields:
        monkeypatch.delenv(f"KEYSTEP_{name.upper()}", raising=False)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "server.toml"
    path.write_text(text)
    return path


def test_flags_beat_variables_which_beat_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, 'rest_port = 1\nfeature_rate_hz = 5.0\nlog_level = "debug"\n')
    monkeypatch.setenv("KEYSTEP_REST_PORT", "2")
    monkeypatch.setenv("KEYSTEP_FEATURE_RATE_HZ", "6")
    config = load_config(path, {"rest_port": 3, "log_level": None})
    assert (config.rest_port, config.feature_rate_hz, config.log_level) == (3, 6.0, "debug")


def test_defaults_are_loopback_and_sqlite_in_the_data_directory() -> None:
    config = load_config()
    assert config.wire_bind == "tcp://127.0.0.1:8041"
    assert config.publish_bind == "tcp://127.0.0.1:8042"
    assert (config.rest_host, config.rest_port) == ("127.0.0.1", 8040)
    assert config.resolved_database_url.endswith("keystep-data/keystep.db")


def test_unknown_key_in_the_file_is_refused_and_the_known_ones_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rest_prot: unknown key; known: .*rest_port"):
        load_config(write(tmp_path, "rest_prot = 1\n"))


def test_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYSTEP_REST_PROT", "1")
    with pytest.raises(ConfigError, match="KEYSTEP_REST_PROT"):
        load_config()


def test_broken_or_missing_files_are_configuration_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not TOML"):
        load_config(write(tmp_path, "= 1"))
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "none.toml")


@pytest.mark.parametrize(
    "setting",
    [
        {"rest_host": "0.0.0.0"},
        {"rest_host": "::"},
        {"rest_host": "bench.example"},
        {"wire_bind": "tcp://*:8041"},
        {"wire_bind": "tcp://eth0:8041"},
        {"wire_bind": "tcp://[::]:8041"},
        {"publish_bind": "tcp://192.168.0.2:8042"},
    ],
)
def test_what_other_machines_can_reach_is_named(setting: dict[str, str]) -> None:
    assert load_config(flags=setting).exposed == set(setting)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "::1"])
def test_loopback_is_not_exposed(host: str) -> None:
    assert not load_config(flags={"rest_host": host}).exposed


def test_a_token_of_the_settings_must_be_long() -> None:
    with pytest.raises(ConfigError, match=r"token: .* at least 32 characters, got 31"):
        load_config(flags={"token": LONG[1:]})
    assert load_config(flags={"token": LONG}).token is not None


@pytest.mark.parametrize(
    "flags",
    [
        {"rest_port": 70000},
        {"wire_bind": "127.0.0.1:8041"},
        {"wire_bind": "tcp://127.0.0.1"},
        {"database_url": "nonsense"},
        {"feature_rate_hz": float("nan")},
        {"default_method": "b9"},
        {"default_method": "storm"},
        {"default_method": ""},
        {"token": ""},
        {"memory_limit_mb": 100},
        {"memory_limit_mb": -1},
    ],
)
def test_values_out_of_range_are_configuration_errors(flags: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(flags))):
        load_config(flags=flags)


def test_secrets_are_masked_in_errors_repr_and_dump(tmp_path: Path) -> None:
    secret = "s3cret" * 8
    url = "postgresql://me:hunter2@db/keystep"
    config = load_config(flags={"data_dir": tmp_path / "d", "token": secret, "database_url": url})
    written = config.write_resolved().read_text()
    assert json.loads(written)["database_url"] == "postgresql://me:***@db/keystep"
    assert secret not in written + repr(config)
    assert "hunter2" not in written + repr(config)
    with pytest.raises(ConfigError) as caught:
        load_config(flags={"token": secret, "rest_port": -1})
    assert secret not in str(caught.value)


def test_configuration_is_frozen_and_ignores_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KEYSTEP_REST_PORT", "2")
    config = ServerConfig()
    assert config.rest_port == 8040
    with pytest.raises(ValidationError):
        config.rest_port = 1
