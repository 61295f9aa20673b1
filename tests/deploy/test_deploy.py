"""The images' recipe, compose file and systemd unit: linted, and in step with the server.

Nothing is built here: that needs a container runtime. Linters that are not installed are skipped.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from keystep_server.config import ServerConfig, load_config

DEPLOY = Path(__file__).parents[2] / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
UNIT = (DEPLOY / "keystep.service").read_text()
SERVED = ("cpu", "cuda")


def stages() -> dict[str, str]:
    """Each stage's instructions by its name."""
    parts = re.split(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)[1:]
    return {name: body for _, name, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True)}


def lint(tool: str, *arguments: str) -> None:
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"{tool} is not installed here")
    done = subprocess.run([found, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dockerfile_passes_hadolint() -> None:
    lint("hadolint", str(DEPLOY / "Dockerfile"))


def test_the_compose_file_fits_the_compose_specification() -> None:
    compose = str(DEPLOY / "compose.yaml")
    lint("check-jsonschema", "--builtin-schema", "vendor.compose-spec", compose)


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    unit = tmp_path / "keystep.service"
    python = shutil.which("python3") or "/bin/true"
    unit.write_text(UNIT.replace("/opt/keystep/bin/keystep", python))
    lint("systemd-analyze", "verify", "--man=no", str(unit))


def test_every_base_image_is_pinned_to_a_version() -> None:
    pinned = dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE, re.MULTILINE))
    for image in re.findall(r"^FROM (\S+) AS", DOCKERFILE, re.MULTILINE):
        name = pinned.get(image.strip("${}"), image)
        assert name in stages() or re.search(r":\d+\.\d+\.\d+", name), image


@pytest.mark.parametrize("name", SERVED)
def test_served_images_run_as_nobody_in_particular_and_tell_how_they_are(name: str) -> None:
    stage = stages()[name]
    (user,) = re.findall(r"^USER (\d+):(\d+)$", stage, re.MULTILINE)
    assert "0" not in user
    assert "HEALTHCHECK" in stage
    assert "/healthz" in stage
    assert "VOLUME /var/lib/keystep" in stage
    assert "pip" not in stage  # what builds is left behind


def test_what_is_copied_is_there_and_reaches_the_builder() -> None:
    ignored = (DEPLOY.parent / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (DEPLOY.parent / source).exists(), source
            assert f"!{source}" in ignored


@pytest.mark.parametrize("name", SERVED)
def test_an_images_variables_are_settings_of_the_server(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    variables = dict(re.findall(r"(KEYSTEP_\w+)=(\S+)", stages()[name]))
    assert len(variables) == 4
    for key, value in {**variables, "KEYSTEP_TOKEN": "t" * 40}.items():
        monkeypatch.setenv(key, value)
    config = load_config()
    assert (config.rest_host, config.data_dir) == ("0.0.0.0", Path("/var/lib/keystep"))
    assert {config.rest_port, *_ports(config)} == exposed(stages()[name])


def _ports(config: ServerConfig) -> set[int]:
    return {int(bind.rpartition(":")[2]) for bind in (config.wire_bind, config.publish_bind)}


def exposed(stage: str) -> set[int]:
    (line,) = re.findall(r"^EXPOSE (.+)$", stage, re.MULTILINE)
    return {int(port) for port in line.split()}


def test_compose_asks_for_a_token_and_bounds_every_service() -> None:
    compose: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        assert service["environment"]["KEYSTEP_TOKEN"].startswith("${KEYSTEP_TOKEN:?"), name
        assert (service["mem_limit"], service["read_only"], service["cap_drop"]) == (
            "4g",
            True,
            ["ALL"],
        )
        assert service["build"]["target"] in stages()
        ports = {int(port.partition(":")[2]) for port in service["ports"]}
        assert ports == exposed(stages()[service["build"]["target"]])


def test_the_units_settings_are_settings_of_the_server() -> None:
    config = load_config(DEPLOY / "server.toml")
    assert config.wire_bind == ServerConfig().wire_bind
    for line in ("DynamicUser=yes", "ProtectSystem=strict", "MemoryMax=4G", "KillSignal=SIGINT"):
        assert line in UNIT.splitlines()
