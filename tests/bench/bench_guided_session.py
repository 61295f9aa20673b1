"""What one more guided session costs in CPU, beside the same session unguided and the bare parts.

    OMP_NUM_THREADS=1 python tests/bench/bench_guided_session.py [--seconds 30] [--out FILE]

One session of 640x360 video at 30 Hz with head, gaze and hands at 30 Hz goes through the server's
pipeline in this process: decoded, its ticks described, looked at, stored, its video recorded.
Simulated pictures and sensors; the encoders have random weights (their cost does not depend on
them). CPU seconds of this process (`time.process_time`) per second of the session; the runs
alternate, the least of `--repeats` is given.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import av
import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "server"), str(ROOT / "tests" / "server" / "harness")]

import conftest as server_tools  # noqa: E402
import guided_session as cart  # noqa: E402
from keystep_capture.peers import Lane  # noqa: E402
from keystep_capture.samples import find_sample  # noqa: E402
from keystep_capture.streams import STREAMS  # noqa: E402
from keystep_capture.video import PacketDecoder  # noqa: E402
from keystep_capture.wire import PacketHeader  # noqa: E402
from keystep_models.bundles.bundle import Bundle  # noqa: E402
from keystep_models.bundles.making import ExpertPart, make_bundle  # noqa: E402
from keystep_models.cues.appearance_cue import (  # noqa: E402
    AppearancePreprocessing,
    appearance_manifest_path,
)
from keystep_models.cues.gaze_crop import ViewMaker, cut_around  # noqa: E402
from keystep_models.cues.motion_cue import MotionCue, MotionPreprocessing  # noqa: E402
from keystep_models.guidance.bundle_recogniser import BundleRecogniser  # noqa: E402
from keystep_models.guidance.emissions import PartRows  # noqa: E402
from keystep_models.guidance.step_timing import ExpertSegment  # noqa: E402
from keystep_models.incremental.encoders import IncrementalEncoders  # noqa: E402
from keystep_models.incremental.session_slot import SessionSlot  # noqa: E402
from keystep_models.onnx_model import OnnxModel  # noqa: E402
from keystep_models.psr.procedure_document import to_procedure  # noqa: E402
from keystep_models.steps.feature_folder import VideoFeatures  # noqa: E402
from keystep_server.batches import Item, Outcome  # noqa: E402
from keystep_server.inference import LocalEngine, model_key  # noqa: E402
from keystep_server.pipeline import SessionPipeline  # noqa: E402
from keystep_server.recorder import SessionRecorder  # noqa: E402
from keystep_server.storage import Session, SessionKind, SessionState  # noqa: E402

CUES = ("appearance", "motion", "gaze", "left_hand", "right_hand")
AT_GAZE = ("gaze_appearance",)
CAMERA: dict[str, Any] = {
    "intrinsics": (505.0, 505.0, 319.5, 179.5),
    "pose": np.diag([1.0, -1.0, -1.0, 1.0]).ravel().tolist(),
}
CONTEXT, WIDTH, STEPS = 1024, 128, 13
BATCH = 64


def packets(seconds: int) -> list[Item]:
    """A session's packets in order of time; each picture of the 10 Hz sample is shown thrice."""
    sample = find_sample("simulated-expert")
    assert sample.video_path is not None
    shown = server_tools.pictures(sample.video_path, (640, 360))
    thrice = itertools.chain.from_iterable((each, each, each) for each in shown)
    video = server_tools.encode_h264(itertools.islice(thrice, 30 * seconds), gop=15)
    found: list[tuple[int, str, dict[str, Any]]] = []
    found += [(packet["device_time_ns"], "rgb", {**packet, **CAMERA}) for packet in video]
    rng = np.random.default_rng(0)
    pose = np.eye(4, dtype="<f4").tobytes()
    for number in range(30 * seconds):
        at_ns = number * 10**9 // 30
        hands = rng.normal(0, 0.1, (2, 26, 9)).astype("<f4").tobytes()
        ray = struct.pack("<6f", 0, 0, 0, *rng.normal(0, 0.1, 2), -1)
        for stream, payload, encoding in (
            ("head", pose, "pose_f32"), ("gaze", ray, "ray_f32"), ("hands", hands, "joints_f32"),
        ):  # fmt: skip
            fields = {"device_time_ns": at_ns, "payload": payload, "encoding": encoding}
            found.append((at_ns, stream, fields))
    found.sort(key=lambda entry: (entry[0], cart.STREAMS.index(entry[1])))
    lanes = {name: Lane(STREAMS[name], 1) for name in cart.STREAMS}
    counters = {name: itertools.count() for name in cart.STREAMS}
    items = []
    for _, stream, packet in found:
        fields = {**packet}
        payload = fields.pop("payload")
        header = PacketHeader(
            protocol="1.1", session="ses_0", epoch=1, stream=stream,
            sequence=next(counters[stream]), send_time_ns=0, **fields,
        )  # fmt: skip
        items.append(Item(lanes[stream], header, payload, 0))
    return items


def session() -> Session:
    return Session(
        id="ses_" + "0" * 26, device_id="bench", kind=SessionKind.GUIDED, state=SessionState.OPEN,
        task=None, procedure=None, method=None, replay=True, time_scale=1.0,
        created_at=datetime.now(UTC),
    )  # fmt: skip


def run(items: list[Item], engine: LocalEngine, key: str, logic: Any) -> tuple[float, int, Path]:
    """CPU seconds of a whole session, its step events, and its folder."""
    folder = Path(tempfile.mkdtemp(prefix="guided-"))
    recorder = SessionRecorder(folder, session(), everything=True, clock=time.monotonic_ns)
    began_s = time.process_time()
    pipeline = SessionPipeline(
        session_id="one", folder=folder, engine=engine, appearance_model=key, lossless=True,
        rate_hz=10.0, logic=logic, recorder=recorder,
    )  # fmt: skip
    outcome = Outcome()
    for start in range(0, len(items), BATCH):
        outcome.changes += pipeline.process(items[start : start + BATCH]).changes
    pipeline.finish(outcome)
    pipeline.close()
    return time.process_time() - began_s, len(outcome.changes), folder


def make_bundle_of(
    features: VideoFeatures, folder: Path, *, cues: tuple[str, ...] = CUES, encoded: bool = False
) -> Bundle:
    """Thirteen steps of equal length; parts of these cues, raw or encoded."""
    count = len(features.times_ns)
    cuts = np.linspace(0, count, STEPS + 1).astype(int).tolist()
    segments = [
        ExpertSegment(step_id=number, start_tick=start, end_tick=end - 2)
        for number, (start, end) in enumerate(itertools.pairwise(cuts), start=1)
    ]
    there = {name: features.cues[name] for name in cues if name in features.cues}
    if not encoded:
        parts = {
            name: ExpertPart(
                cue=name, is_encoded=False, source=cue.source,
                rows=PartRows(rows=np.array(cue.features), valid=np.array(cue.valid)),
            )
            for name, cue in there.items()
        }  # fmt: skip
        return make_bundle(folder, parts, segments)
    encoders = folder.with_name("encoders")
    sizes = {name: cue.features.shape[1] for name, cue in there.items()}
    cart.export_encoders(encoders, CONTEXT, sizes, width=WIDTH)
    parts = {
        name: ExpertPart(cue=name, is_encoded=True, rows=rows, source=there[name].source)
        for name, rows in cart.encoded_rows(features, encoders).items()
    }
    return make_bundle(folder, parts, segments, encoders=encoders)


def recogniser_of(bundle: Bundle) -> BundleRecogniser:
    cart_titles = {number: f"Step {number}" for number in bundle.timing.step_ids}
    from keystep_models.bundles.procedure_of_bundle import ReviewedStep, procedure_of_bundle

    reviewed = {number: ReviewedStep(title=title) for number, title in cart_titles.items()}
    procedure = to_procedure(procedure_of_bundle(bundle, reviewed, name="bench", task="bench"))
    if bundle.encoder_manifest is None:
        return BundleRecogniser(procedure, bundle, None)
    encoders = IncrementalEncoders.load(bundle.encoder_manifest, slot_count=16)
    return BundleRecogniser(procedure, bundle, SessionSlot(encoders))


def bare_parts(
    items: list[Item], model: OnnxModel, features: VideoFeatures, bundles: dict[str, Bundle]
) -> dict[str, float]:
    """CPU milliseconds of one run of each part by itself."""
    decoder = PacketDecoder("h264")
    video = [item.payload for item in items if item.header.stream == "rgb"]
    frames: list[av.VideoFrame] = []
    began_s = time.process_time()
    frames += [decoder.decode(payload) for payload in video]
    found = {"decode_a_frame": (time.process_time() - began_s) / len(video) * 1e3}
    appearance, small, motion = AppearancePreprocessing(), MotionPreprocessing(), MotionCue()
    row = np.empty((1, 224, 224, 3), np.uint8)
    ticks = itertools.cycle(frames[::3])
    pictures = itertools.cycle([small.from_video_frame(frame) for frame in frames[:90:3]])
    found["scale_for_appearance"] = cost(lambda: appearance.from_video_frame(next(ticks), row[0]))
    found["appearance_network"] = cost(lambda: model.run(row))
    found["scale_for_motion"] = cost(lambda: small.from_video_frame(next(ticks)))
    views, point = ViewMaker(), np.array([0.05, 0.02, -0.6])
    view = views.view(frames[0], CAMERA["intrinsics"], CAMERA["pose"])
    assert view is not None
    found["picture_for_gaze"] = cost(
        lambda: views.view(next(ticks), CAMERA["intrinsics"], CAMERA["pose"])
    )
    found["cut_at_gaze"] = cost(lambda: cut_around(view, point))
    found["flow"] = cost(lambda: motion.see(next(pictures)))
    for name, bundle in bundles.items():
        recogniser = recogniser_of(bundle)
        ticks_of = cue_ticks(features)
        found[f"{name}_recogniser"] = cost(lambda r=recogniser, t=ticks_of: r.step_tick(next(t)))
    return {name: round(value, 3) for name, value in found.items()}


def cue_ticks(features: VideoFeatures) -> Iterator[Any]:
    from keystep_models.psr.recogniser import CueTick

    for index in itertools.count():
        place = index % len(features.times_ns)
        yield CueTick(
            index=index,
            rows={
                name: cue.features[place] if cue.valid[place] else None
                for name, cue in features.cues.items()
            },
        )


def cost(call: Callable[[], object], count: int = 200) -> float:
    """CPU milliseconds of a call, the least of three rounds."""
    call()
    rounds = []
    for _ in range(3):
        began_s = time.process_time()
        for _ in range(count):
            call()
        rounds.append((time.process_time() - began_s) / count * 1e3)
    return min(rounds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model = OnnxModel.load(appearance_manifest_path(), providers=["CPUExecutionProvider"])
    key, items = model_key(model), packets(options.seconds)
    with tempfile.TemporaryDirectory() as name, LocalEngine({key: model}, max_batch=1) as engine:
        folder = Path(name)
        _, _, recorded = run(items, engine, key, None)
        extracted = (*cart.CUES, *AT_GAZE)
        features = cart.features_of(recorded / "recording", folder / "features", extracted)
        bundles = {
            "at_gaze": make_bundle_of(features, folder / "at_gaze", cues=AT_GAZE),
            "raw": make_bundle_of(features, folder / "raw"),
            "encoded": make_bundle_of(features, folder / "encoded", encoded=True),
        }
        spent: dict[str, list[float]] = {kind: [] for kind in ("unguided", *bundles)}
        for _ in range(options.repeats):
            for kind, taken in spent.items():
                logic = recogniser_of(bundles[kind]) if kind in bundles else None
                taken.append(run(items, engine, key, logic)[0] / options.seconds)
        parts = bare_parts(items, model, features, bundles)
    least = {kind: min(taken) for kind, taken in spent.items()}
    report = {
        "machine": platform.processor() or platform.machine(),
        "seconds": options.seconds,
        "cues": list(CUES),
        "context": CONTEXT,
        "cpu_s_per_session_s": {kind: round(value, 4) for kind, value in least.items()},
        "guided_over_unguided": {
            kind: round(least[kind] - least["unguided"], 4) for kind in bundles
        },
        "bare_parts_cpu_ms": parts,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
