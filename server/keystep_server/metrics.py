"""What the server counts, in Prometheus' terms; one registry per server, none of it global."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters, gauges and histograms of one server; label values come from fixed sets only."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._packets = self._counter("packets", "Packets taken", "stream")
        self._bytes = self._counter("payload_bytes", "Payload bytes taken", "stream")
        self._drops = self._counter("dropped_packets", "Packets dropped", "stream", "reason")
        self._recorded = self._counter("recorded_packets", "Packets written into recordings")
        self._not_recorded = self._counter(
            "recording_dropped_packets", "Packets the disk was too slow or too full for", "stream"
        )
        self._recording_backlog = Gauge(
            "keystep_recording_waiting_bytes",
            "What waits to be written into recordings",
            registry=self.registry,
        )
        self._connections = self._counter(
            "connections", "Connections by what became of them", "socket", "outcome"
        )
        self._connections_before: dict[tuple[str, str], int] = {}
        self._step_events = self._counter("step_events", "Step events stored", "branch", "kind")
        self._rest_requests = self._counter(
            "rest_requests", "REST requests answered", "method", "route", "status"
        )
        self._sessions_open = Gauge(
            "keystep_sessions_open", "Sessions that are not closed", registry=self.registry
        )
        self._extraction = self._histogram(
            "feature_extraction_seconds", "From a frame's arrival to its features", "cue"
        )
        self._event_latency = self._histogram(
            "step_event_latency_seconds", "From a frame's arrival to its step event stored"
        )
        self._display_latency = self._histogram(
            "capture_to_display_seconds",
            "From the capture of what a step was seen in to its guidance on the headset",
        )
        self._batch_size = Histogram(
            "keystep_inference_batch_size",
            "Requests in one model call",
            ["model"],
            buckets=_BATCH,
            registry=self.registry,
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"keystep_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(
            f"keystep_{name}", text, labels, buckets=_LATENCY_S, registry=self.registry
        )

    def packets_taken(self, stream: str, packet_count: int, payload_bytes: int) -> None:
        """Count packets that passed all checks."""
        self._packets.labels(stream).inc(packet_count)
        self._bytes.labels(stream).inc(payload_bytes)

    def packets_dropped(self, stream: str, reason: str, count: int = 1) -> None:
        """Count packets that were not used, by the word that says why."""
        self._drops.labels(stream, reason).inc(count)

    def packets_recorded(self, count: int) -> None:
        """Count packets that were written into a recording."""
        self._recorded.inc(count)

    def recording_dropped(self, stream: str, count: int) -> None:
        """Count packets left out of a recording; `notes` is a stream here."""
        self._not_recorded.labels(stream).inc(count)

    def set_recording_backlog(self, waiting_bytes: int) -> None:
        """State how much waits to be written into recordings."""
        self._recording_backlog.set(waiting_bytes)

    def set_connections(self, socket: str, counts: Mapping[str, int]) -> None:
        """Bring a socket's connections by outcome (docs/security.md) up to date."""
        for outcome, count in counts.items():
            before = self._connections_before.get((socket, outcome), 0)
            self._connections.labels(socket, outcome).inc(count - before)
            self._connections_before[socket, outcome] = count

    def step_event_stored(self, branch: str, kind: str) -> None:
        """Count a new step event."""
        self._step_events.labels(branch, kind).inc()

    def features_extracted(self, cue: str, seconds: float) -> None:
        """Note how long a frame took from its arrival to its features."""
        self._extraction.labels(cue).observe(seconds)

    def event_latency(self, seconds: float) -> None:
        """Note how long a step event took from its frame's arrival to being stored."""
        self._event_latency.observe(seconds)

    def display_latency(self, seconds: float) -> None:
        """Note how long a wearer waited from the capture of the evidence to the guidance."""
        self._display_latency.observe(seconds)

    def batch_run(self, model: str, size: int) -> None:
        """Note how many requests shared one model call."""
        self._batch_size.labels(model).observe(size)

    def rest_answered(self, method: str, route: str, status: int) -> None:
        """Count a REST request by its route's template, never by its path."""
        self._rest_requests.labels(method, route, str(status)).inc()

    def set_sessions_open(self, count: int) -> None:
        """State how many sessions are not closed."""
        self._sessions_open.set(count)

    def render(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
