"""The bare parts of a tick's work, without a server: what its CPU is compared with."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Final

import av
import numpy as np
import onnxruntime

from keystep_models.cues.appearance_cue import (
    CROP,
    AppearancePreprocessing,
    appearance_manifest_path,
)
from keystep_models.onnx_model import ModelManifest
from keystep_server.load.packets import RATE_HZ, StoredPacket

EXTRACT_EVERY: Final = 3
"""Frames per tick: 30 Hz of video, 10 Hz of features."""
PARTS: Final = ("decode", "preprocess", "inference")


class BareParts:
    """Decoding, preprocessing and inference by themselves, one thread, in this process."""

    def __init__(self, video: Sequence[StoredPacket]) -> None:
        """Load the model; `video` is what one headset sends, in order."""
        self._packets = [av.Packet(packet.payload) for packet in video]
        manifest_path = appearance_manifest_path()
        manifest = ModelManifest.read(manifest_path)
        self._input = manifest.inputs[0].name
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            str(manifest_path.parent / manifest.file), options, ["CPUExecutionProvider"]
        )
        self._session.run(None, {self._input: np.zeros((1, CROP, CROP, 3), np.uint8)})

    def measure(self, *, speed: float = 1.0) -> dict[str, float]:
        """CPU ms of each part per extracted frame, frames coming at their rate times `speed`.

        At life speed caches go cold between frames, which makes the same work dearer.
        """
        decoder = av.CodecContext.create("h264", "r")
        assert isinstance(decoder, av.VideoCodecContext)
        decoder.thread_count = 1
        decoder.flags |= av.codec.context.Flags.low_delay
        preprocessing, cpu_s = AppearancePreprocessing(), dict.fromkeys(PARTS, 0.0)
        start_s, extracted_count = time.monotonic(), 0
        for number, packet in enumerate(self._packets):
            wait_s = start_s + number / RATE_HZ / speed - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            times_s = [time.thread_time()]
            (frame,) = decoder.decode(packet)
            times_s.append(time.thread_time())
            if number % EXTRACT_EVERY == 0:
                row = np.empty((1, CROP, CROP, 3), np.uint8)
                preprocessing.from_video_frame(frame, row[0])
                times_s.append(time.thread_time())
                self._session.run(None, {self._input: row})
                times_s.append(time.thread_time())
                extracted_count += 1
            for name, (begin_s, end_s) in zip(PARTS, itertools.pairwise(times_s), strict=False):
                cpu_s[name] += end_s - begin_s
        return {name: 1e3 * part_s / extracted_count for name, part_s in cpu_s.items()}
