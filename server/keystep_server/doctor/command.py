"""`keystep doctor`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keystep_capture.errors import ConfigError

if TYPE_CHECKING:
    from keystep_capture.findings import Finding
    from keystep_server.config import ServerConfig


def doctor(
    headset: Annotated[
        str | None, typer.Option(help="Address of a HoloLens 2 that runs hl2ss.")
    ] = None,
    base_port: Annotated[
        int | None, typer.Option(min=1, max=65500, help="The headset's first port.")
    ] = None,
    server: Annotated[
        list[str] | None,
        typer.Option(help="A running server: http://HOST:8040 or tcp://HOST:8041; repeatable."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of the server's settings.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the server would store.")] = None,
    bundle_dir: Annotated[Path | None, typer.Option(help="Models of your own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine lacks for `keystep serve`, each with its remedy.

    Looks at Python, packages, models, ports, disk, database and clock; with --headset also at the
    headset's ports, with --server at a running server. Exit code 1 if there is a problem.
    """
    from keystep_capture.logs import set_up_logs

    set_up_logs("error")
    findings = [
        *_machine(config, {"data_dir": data_dir, "bundle_dir": bundle_dir}),
        *_headset(headset, base_port),
        *_servers(server or []),
    ]
    _print(findings, as_json=as_json)
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)


def _machine(config: Path | None, flags: dict[str, Path | None]) -> Iterator[Finding]:
    from keystep_capture.findings import Finding
    from keystep_server.config import load_config
    from keystep_server.doctor.clocks import check_clocks
    from keystep_server.doctor.software import check_packages, check_python

    yield from check_python()
    yield from check_packages()
    yield from check_clocks()
    try:
        settings = load_config(config, flags)
    except ConfigError as error:
        remedy = "correct the settings, then look again: models, ports and disk depend on them"
        yield Finding(
            area="settings", name="server", level="problem", detail=str(error), remedy=remedy
        )
        return
    yield from _settings(settings)


def _settings(settings: ServerConfig) -> Iterator[Finding]:
    from keystep_capture.findings import Finding
    from keystep_server.doctor.disk import check_data_dir
    from keystep_server.doctor.ports import check_ports

    try:
        from keystep_server.doctor.software import check_model, check_runtime
        from keystep_server.serving import model_manifest_path
    except ImportError as error:  # what else is missing, `check_packages` has said
        remedy = "install Keystep with its runtime: pip install 'keystep[cpu]' or 'keystep[gpu]'"
        detail = f"cannot be loaded: {error}"
        yield Finding(
            area="software", name="onnxruntime", level="problem", detail=detail, remedy=remedy
        )
    else:
        yield from check_runtime()
        yield from check_model(model_manifest_path(settings), threads=settings.inference_threads)
    yield from check_ports(settings)
    yield from check_data_dir(settings.data_dir)
    try:
        from keystep_server.doctor.database import check_database
    except ImportError:  # `check_packages` has said what is missing
        return
    yield from check_database(settings.resolved_database_url)


def _headset(host: str | None, base_port: int | None) -> Iterator[Finding]:
    from keystep_capture.findings import HEADSET_CHECKS, Finding

    if host is None:
        if base_port is not None:
            raise ConfigError("--base-port is the headset's: give --headset too")
        return
    checks = entry_points(group=HEADSET_CHECKS)
    if not checks:
        detail = "no installed package knows how to look at a headset"
        remedy = "install Keystep again: pip install --editable '.[cpu]', or make demo"
        yield Finding(area="headset", name=host, level="problem", detail=detail, remedy=remedy)
    for check in checks:
        yield from check.load()(host, base_port)


def _servers(addresses: Sequence[str]) -> Iterator[Finding]:
    from keystep_server.doctor.remote import check_server

    for address in addresses:
        yield from check_server(address)


def _print(findings: Sequence[Finding], *, as_json: bool) -> None:
    counts = Counter(finding.level for finding in findings)
    if as_json:
        report = {
            "problems": counts["problem"],
            "warnings": counts["warning"],
            "findings": [finding.as_dict() for finding in findings],
        }
        typer.echo(json.dumps(report, indent=2))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    colours = {"ok": "green", "warning": "yellow", "problem": "red"}
    table = Table("", "area", "what", "found, and what to do", show_edge=False)
    for finding in findings:
        remedy = f"\n[bold]-> {escape(finding.remedy)}[/bold]" if finding.remedy else ""
        table.add_row(
            f"[{colours[finding.level]}]{finding.level}[/]",
            finding.area,
            escape(finding.name),
            escape(finding.detail) + remedy,
        )
    console = Console()
    console.print(table)
    console.print(f"{counts['problem']} problems, {counts['warning']} warnings")
