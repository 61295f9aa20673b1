"""`keystep recording info|health|repair|export`, `keystep replay` and `keystep import`.

What they need is imported when they run: every `keystep` command loads this module.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from keystep_capture.errors import ConfigError, DataError
from keystep_capture.exchange_commands import export, import_source, tell_damage

if TYPE_CHECKING:
    from keystep_capture.recording import Recording
    from keystep_capture.recording.health import Health
    from keystep_capture.recording.measures import ClockHealth
    from keystep_capture.wire import SessionKind

DEFAULT_SERVER = "tcp://127.0.0.1:8041"

recording_app = typer.Typer(
    name="recording", help="Look at, check and repair recordings.", no_args_is_help=True
)

_Path = Annotated[Path, typer.Argument(help="A recording: one .mcap file or its folder of parts.")]


@recording_app.command("info")
def info(
    path: _Path,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Say what a recording holds, from its index."""
    from keystep_capture.recording import Recording

    with Recording(path) as recording:
        facts = _facts(recording)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for key, value in facts.items():
        if key not in ("streams", "damage"):
            typer.echo(f"{key.replace('_', ' '):<12} {value}")
    for stream in facts["streams"]:
        encodings = ", ".join(stream["encodings"])
        typer.echo(f"{'stream':<12} {stream['stream']} ({encodings}), epoch {stream['epoch']}")
    for damage in facts["damage"]:
        typer.echo(f"{'damage':<12} {damage}")


def _facts(recording: Recording) -> dict[str, Any]:
    span = recording.device_span_ns
    seconds = None if span is None else (span[1] - span[0]) / 1e9
    return {
        "path": str(recording.path),
        **recording.info.to_metadata(),
        "parts": len(recording.parts),
        "size_bytes": recording.size_bytes,
        "finished": recording.finished,
        "duration_s": seconds if len(recording.epochs) == 1 else None,
        "streams": [
            {"stream": lane.stream, "epoch": lane.epoch, "encodings": list(lane.encodings)}
            for lane in recording.lanes
        ],
        "damage": [str(damage) for damage in recording.damage],
    }


@recording_app.command("health")
def health(
    path: _Path,
    picture: Annotated[Path | None, typer.Option(help="Draw it into this PNG file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> int:
    """Judge a recording: rates, gaps, clocks, key frames, cues, checksums; exit code 1 if poor."""
    from keystep_capture.recording.health import check
    from keystep_capture.recording.health_picture import write_health_picture

    found = check(path)
    if picture is not None:
        write_health_picture(picture, found)
    if as_json:
        typer.echo(json.dumps(_plain(asdict(found)), indent=2))
    else:
        _print_health(found)
    return int(found.verdict == "poor")


def _plain(value: Any) -> Any:
    """Without the arrays of times, which only the picture needs."""
    import numpy as np

    if isinstance(value, dict):
        kept = {key: one for key, one in value.items() if not isinstance(one, np.ndarray)}
        return {key: _plain(one) for key, one in kept.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _print_health(found: Health) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=120)
    table = Table(box=None, header_style="bold")
    columns = ("stream", "epoch", "packets", "Hz", "nominal", "lost", "gap s", "stalls")
    for column in (*columns, "jitter ms", "reordered", "keys", "spacing s"):
        table.add_column(column, justify="left" if column == "stream" else "right", no_wrap=True)
    for lane in found.lanes:
        is_video = lane.starts_with_keyframe is not None
        table.add_row(
            lane.stream,
            str(lane.epoch),
            str(lane.packet_count),
            _number(lane.rate_hz, 1),
            f"{lane.nominal_hz:g}",
            str(lane.lost_count),
            _number(lane.longest_gap_s, 2),
            str(lane.stall_count),
            _number(lane.jitter_ms, 1),
            str(lane.reordered_count),
            str(lane.keyframe_count) if is_video else "",
            _number(lane.keyframe_spacing_s, 2) if is_video else "",
        )
    console.print(table)
    for clock in found.clocks:
        typer.echo(_clock_line(clock))
    for ticks in found.ticks:
        cues = ", ".join(f"{name} {share:.0%}" for name, share in ticks.cue_shares.items())
        typer.echo(
            f"ticks, epoch {ticks.epoch}: {ticks.complete_share:.1%} of {ticks.tick_count} have "
            f"every cue ({cues})"
        )
    typer.echo(
        f"checksums: {found.chunk_count} chunks, {len(found.damage)} damages, "
        f"{found.unchecked_chunk_count} without a checksum"
    )
    typer.echo(f"verdict: {found.verdict}")
    for reason in found.reasons:
        typer.echo(f"- {reason}")


def _clock_line(clock: ClockHealth) -> str:
    drift = "unknown" if clock.drift_ppm is None else f"{clock.drift_ppm:+.1f} ppm"
    uncertainty_ns = clock.uncertainty_ns
    bound = "" if uncertainty_ns is None else f" within {uncertainty_ns / 1e6:.2f} ms"
    offset = f"{clock.offset_ns / 1e9:.6f} s{bound}"
    return f"clock, epoch {clock.epoch}: offset {offset}, drift {drift} (from {clock.source})"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


@recording_app.command("repair")
def repair(
    path: _Path,
    out: Annotated[
        Path | None, typer.Option(help="The new file or folder; else NAME-repaired beside it.")
    ] = None,
) -> None:
    """Copy what is readable into a new, closed recording; the original stays as it is."""
    from keystep_capture.recording.repair import default_target
    from keystep_capture.recording.repair import repair as repair_recording

    target = out or default_target(path)
    done = repair_recording(path, target)
    for one in done:
        for damage in one.damage:
            typer.echo(f"left out: {damage}")
        typer.echo(f"{one.source} -> {one.target}: {one.message_count} messages")
    if not any(one.message_count for one in done) and any(one.damage for one in done):
        raise DataError(f"{path}: no message in it can be read; {target} holds none")


def replay(
    path: _Path,
    server: Annotated[
        str | None, typer.Option(help="The server's endpoint; the key's, or that of this machine.")
    ] = None,
    speed: Annotated[
        str, typer.Option(help="Recorded seconds a second (0.5, 1, 4, ...), or max.")
    ] = "1",
    device: Annotated[
        str | None, typer.Option(help="Play as; else the device's id-replay.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="expert or guided; else as recorded.")] = None,
    task: Annotated[str | None, typer.Option(help="Else as recorded.")] = None,
    procedure: Annotated[str | None, typer.Option(help="Else as recorded.")] = None,
    method: Annotated[str | None, typer.Option(help="Else the server's choice.")] = None,
    streams: Annotated[str | None, typer.Option(help="Comma-separated; else all.")] = None,
    key: Annotated[
        Path | None, typer.Option(help="Key file from `keystep device add`; needed off loopback.")
    ] = None,
    keep_open: Annotated[
        bool, typer.Option("--keep-open", help="Leave the session open at the end.")
    ] = False,
) -> None:
    """Play a recording to a server through the wire: same packets, same events at any speed."""
    from keystep_capture.key_files import load_device_key
    from keystep_capture.recording import Recording
    from keystep_capture.recording.replay import ReplayOptions
    from keystep_capture.recording.replay import replay as play

    device_key = None if key is None else load_device_key(key)
    options = ReplayOptions(
        server=server or (device_key and device_key.server) or DEFAULT_SERVER,
        speed=_parse_speed(speed),
        device=device,
        kind=_parse_kind(kind),
        task=task,
        procedure=procedure,
        method=method,
        streams=None if streams is None else tuple(streams.split(",")),
        key=device_key,
        close=not keep_open,
    )
    with Recording(path) as recording:
        tell_damage(recording)
        report = asyncio.run(play(recording, options))
    sent = ", ".join(f"{name} {count}" for name, count in report.sent.items())
    typer.echo(
        f"session {report.session}: sent {sent}; {report.guidance_count} times guidance came"
    )


def _parse_speed(text: str) -> float | None:
    if text == "max":
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--speed is {text!r}, expected a number or max") from None


def _parse_kind(text: str | None) -> SessionKind | None:
    if text in ("expert", "guided", None):
        return cast("SessionKind | None", text)
    raise ConfigError(f"--kind is {text!r}, expected expert or guided")


def register(app: typer.Typer) -> None:
    """Add the commands that handle recordings to the `keystep` command."""
    recording_app.command("export")(export)
    app.add_typer(recording_app)
    app.command("replay")(replay)
    app.command("import")(import_source)
