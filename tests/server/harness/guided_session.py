"""Simulated sessions of the toy cart as packets, and a bundle made from the first one's recording.

The encoders have random weights: what is tested is the way from packets to step events, not
whether it sees well.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keystep_capture.recording import RecordingInfo, RecordingWriter
from keystep_capture.samples import find_sample
from keystep_capture.wire import PROTOCOL, PacketHeader
from keystep_models.bundles.bundle import Bundle
from keystep_models.bundles.making import ExpertPart, make_bundle
from keystep_models.bundles.procedure_of_bundle import ReviewedStep, procedure_of_bundle
from keystep_models.cues.tick_cues import CUE_SIZES
from keystep_models.guidance.emissions import PartRows
from keystep_models.guidance.step_timing import ExpertSegment
from keystep_models.incremental.encoders import KIND, IncrementalEncoders
from keystep_models.incremental.session_slot import SessionSlot
from keystep_models.psr.procedure_document import ProcedureDocument, write_document
from keystep_models.steps.cue_extraction import CueChoice, extract_features
from keystep_models.steps.feature_folder import VideoFeatures
from keystep_models.steps.recording_source import open_recording
from keystep_models.training.step_graph import (
    CueWeights,
    GraphOptions,
    LayerWeights,
    build_step_graph,
    tensor_entries,
)

STREAMS = ("rgb", "head", "gaze", "hands")
CUES = ("appearance", "motion", "gaze", "head", "left_hand", "right_hand")
ENCODED = {"appearance": 1280, "motion": CUE_SIZES["motion"]}
LAST_FRAME = 360  # of the sample: five steps are done by then
SEGMENTS = [  # as the sample's labels have it: each step ends at its completion
    ExpertSegment(step_id=step_id, start_tick=start, end_tick=end)
    for step_id, start, end in ((1, 8, 47), (2, 50, 84), (3, 90, 128), (4, 200, 275), (5, 282, 317))
]
TITLES = ("chassis", "front axle", "rear axle", "front left wheel", "front right wheel")

NAME = "cart-by-expert"
Packet = tuple[int, str, dict[str, Any]]
Array = NDArray[np.float32]


def cart_packets(
    encode_h264: Callable[..., list[dict[str, Any]]],
    pictures: Callable[..., Iterable[Any]],
    *,
    frames: int = LAST_FRAME,
) -> list[Packet]:
    """The simulated expert's first frames at 10 Hz, with simulated head, gaze and hands at 30."""
    sample = find_sample("simulated-expert")
    assert sample.video_path is not None
    shown = itertools.islice(pictures(sample.video_path, (320, 180)), frames)
    found: list[Packet] = []
    for packet in encode_h264(shown, rate_hz=10.0, gop=10):
        found.append((packet["device_time_ns"], "rgb", packet))
    rng = np.random.default_rng(3)
    for number in range(3 * frames):
        at_ns = number * 10**8 // 3
        yaw = 0.3 * math.sin(number / 40)
        pose = np.eye(4, dtype="<f4")
        pose[0, [0, 2]] = math.cos(yaw), math.sin(yaw)
        pose[2, [0, 2]] = -math.sin(yaw), math.cos(yaw)
        hands = rng.normal(0, 0.1, (2, 26, 9)).astype("<f4")
        values = {
            "head": (pose.tobytes(), "pose_f32"),
            "gaze": (struct.pack("<6f", 0, 0, 0, 0.1 * yaw, 0, -1), "ray_f32"),
            "hands": (hands.tobytes(), "joints_f32"),
        }
        for stream, (payload, encoding) in values.items():
            fields = {"device_time_ns": at_ns, "payload": payload, "encoding": encoding}
            found.append((at_ns, stream, fields))
    return sorted(found, key=lambda entry: (entry[0], STREAMS.index(entry[1])))


GAZE_FRAMES = 130  # three steps
_INTRINSICS = (252.6, 252.6, 159.5, 89.5)


def gazing_packets(
    packets: Iterable[Packet], *, holes: bool, frames: int = GAZE_FRAMES
) -> list[Packet]:
    """The first packets with the camera at the head, and gaze that wanders about the picture.

    With `holes` gaze is lost for a second, pictures lack their pose for half a one, and for half a
    one gaze is on what the picture does not show.
    """
    found: list[Packet] = []
    pose = np.eye(4)
    for time_ns, stream, packet in packets:
        if time_ns >= frames * 10**8:
            continue
        if stream == "head":
            pose = np.frombuffer(packet["payload"], "<f4").reshape(4, 4).astype(float)
        elif stream == "rgb":
            if not (holes and 6 * 10**9 <= time_ns < 65 * 10**8):
                camera = (pose @ np.diag([1.0, -1.0, -1.0, 1.0])).ravel().tolist()
                packet = {**packet, "intrinsics": _INTRINSICS, "pose": camera}
        elif stream == "gaze":
            packet = _wandering(time_ns, packet, pose, holes=holes)
        found.append((time_ns, stream, packet))
    return found


def _wandering(
    time_ns: int, packet: dict[str, Any], pose: NDArray[np.float64], *, holes: bool
) -> dict[str, Any]:
    time_s = time_ns / 1e9
    if holes and 3 <= time_s < 4:
        return {**packet, "valid": 0, "payload": b""}
    aside = 2.0 if holes and 9 <= time_s < 9.5 else 0.3 * math.sin(1.3 * time_s)
    direction = pose[:3, :3] @ np.array([aside, 0.15 * math.sin(2.1 * time_s), -1.0])
    return {**packet, "payload": struct.pack("<6f", *pose[:3, 3], *direction)}


def with_headers(packets: Iterable[Packet]) -> Iterator[tuple[PacketHeader, bytes]]:
    """Packets as a server takes them."""
    sequences = {stream: itertools.count() for stream in STREAMS}
    for time_ns, stream, packet in packets:
        fields = {**packet}
        payload = fields.pop("payload")
        header = PacketHeader(
            protocol=PROTOCOL, session="ses_1", epoch=1, stream=stream,
            sequence=next(sequences[stream]), send_time_ns=time_ns, **fields,
        )  # fmt: skip
        yield header, payload


def recorded_features(
    packets: Iterable[Packet], folder: Path, cues: tuple[str, ...]
) -> VideoFeatures:
    """What an extraction makes of a recording of the packets."""
    writer = RecordingWriter(folder / "recording", RecordingInfo(session="ses_1", device="hl2"))
    for header, payload in with_headers(packets):
        writer.write_packet(header, payload, receive_time_ns=header.device_time_ns)
    writer.close()
    return features_of(folder / "recording", folder / "features", cues)


def make_gaze_bundle(packets: Iterable[Packet], folder: Path) -> Bundle:
    """A bundle of what is around the gaze point alone, from a recording of the packets."""
    features = recorded_features(packets, folder, ("gaze_appearance",))
    return make_bundle(folder / "bundle", raw_parts(features, features.cues), SEGMENTS[:3])


@dataclass(frozen=True, slots=True)
class Learned:
    """What an expert's session left: its packets, and a bundle in a folder."""

    packets: list[Packet]
    bundle: Bundle

    def publish(self, data_dir: Path) -> None:
        """Put bundle and procedure where a server looks for them."""
        target = data_dir / "bundles" / self.bundle.id
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.bundle.folder, target)
        procedures = data_dir / "procedures"
        procedures.mkdir(exist_ok=True)
        write_document(cart_procedure(self.bundle), procedures / f"{NAME}.json")


def features_of(recording: Path, folder: Path, cues: tuple[str, ...] = CUES) -> VideoFeatures:
    """What `keystep extract` makes of a recording."""
    return extract_features(open_recording(recording), CueChoice(cues=cues, threads=1), folder)


def raw_parts(features: VideoFeatures, cues: Iterable[str]) -> dict[str, ExpertPart]:
    """Cues as a bundle's parts, as they are."""
    return {
        name: ExpertPart(
            cue=name,
            is_encoded=False,
            rows=PartRows(
                rows=np.array(features.cues[name].features),
                valid=np.array(features.cues[name].valid),
            ),
            source=features.cues[name].source,
        )
        for name in cues
    }


def make_cart_bundle(features: VideoFeatures, folder: Path, *, context: int = 64) -> Bundle:
    """A bundle of raw appearance and hands, and of encoded appearance and motion."""
    encoders = folder.with_name(f"{folder.name}-encoders")
    export_encoders(encoders, context)
    own = [name for name in features.cues if name in ("appearance", "right_hand")]
    parts = raw_parts(features, own)
    for name, rows in encoded_rows(features, encoders).items():
        source = features.cues[name].source
        parts[f"{name}-encoded"] = ExpertPart(cue=name, is_encoded=True, rows=rows, source=source)
    return make_bundle(folder, parts, SEGMENTS, encoders=encoders)


def encoded_rows(features: VideoFeatures, encoders: Path) -> dict[str, PartRows]:
    """The encoders' rows of a whole session, tick by tick."""
    loaded = IncrementalEncoders.load(encoders / "manifest.json", slot_count=1)
    slot = SessionSlot(loaded)
    count, width = len(features.times_ns), loaded.spec.width
    cues = slot.cues
    rows = {cue: np.zeros((count, width), np.float32) for cue in cues}
    valid = {cue: np.zeros(count, np.bool_) for cue in cues}
    for tick in range(count):
        raw = {c: features.cues[c].features[tick] for c in cues if features.cues[c].valid[tick]}
        for cue, row in slot.step(tick, raw).items():
            rows[cue][tick], valid[cue][tick] = row, True
    slot.close()
    return {cue: PartRows(rows=rows[cue], valid=valid[cue]) for cue in cues}


def cart_procedure(bundle: Bundle, name: str = NAME) -> ProcedureDocument:
    """The bundle's procedure; the first step must come first."""
    reviewed = {
        number: ReviewedStep(title=f"Install {title}")
        for number, title in enumerate(TITLES, start=1)
        if number in bundle.timing.step_ids
    }
    return procedure_of_bundle(bundle, reviewed, name=name, task="cart")


WIDTH = 16


def export_encoders(
    folder: Path, context: int, sizes: Mapping[str, int] = ENCODED, *, width: int = WIDTH
) -> None:
    """Two causal layers with random weights, as `keystep train export` writes trained ones."""
    rng = np.random.default_rng(1)

    def linear(out: int, into: int) -> tuple[Array, Array]:
        matrix = rng.normal(size=(out, into)) / math.sqrt(into)
        return matrix.astype("f4"), (0.1 * rng.normal(size=out)).astype("f4")

    def layer() -> LayerWeights:
        ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
        return LayerWeights(
            queries_keys_values=linear(3 * width, width), out=linear(width, width),
            norm_attention=(ones, zeros), wide=linear(2 * width, width),
            narrow=linear(width, 2 * width), norm_feed=(ones, zeros),
        )  # fmt: skip

    encoders = {
        cue: CueWeights(inward=linear(width, size), raw_scale=4.0, layers=(layer(), layer()))
        for cue, size in sizes.items()
    }
    options = GraphOptions(context=context, heads=2, slopes=(0.25, 0.0), frame_rates={})
    graph = build_step_graph(encoders, options)
    payload = graph.SerializeToString(deterministic=True)
    folder.mkdir(parents=True)
    (folder / "encoders.onnx").write_bytes(payload)
    document = {
        "name": "encoders", "version": "1", "file": "encoders.onnx", "rate_hz": 10.0,
        "sha256": hashlib.sha256(payload).hexdigest(), "licence": "CC0-1.0", "source": "random",
        "inputs": tensor_entries(graph.graph.input),
        "outputs": tensor_entries(graph.graph.output),
        "preprocessing": {
            "kind": KIND, "cues": dict(sizes), "layers": ["layer_0", "layer_1"], "width": width,
            "context": context, "position": "none",
        },
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(document))
