"""The committed appearance weights and their preprocessing, on real frames."""

import hashlib
import json
from pathlib import Path

import av
import cv2
import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import keystep_capture
from keystep_capture.errors import ShapeError
from keystep_models.cues.appearance_cue import AppearancePreprocessing, appearance_manifest_path

SAMPLE = Path(keystep_capture.__file__).parent / "samples" / "data" / "pour_coffee.mp4"
GOLDEN = Path(__file__).parents[1] / "golden" / "appearance" / "embedding.npy"
Image = NDArray[np.uint8]


def embed(frames: Image) -> NDArray[np.float32]:
    manifest = json.loads(appearance_manifest_path().read_text())
    session = onnxruntime.InferenceSession(
        str(appearance_manifest_path().with_name(manifest["file"])),
        providers=["CPUExecutionProvider"],
    )
    return np.asarray(session.run(["embedding"], {"frames": frames})[0])


def cosine(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))


def preprocess(frame: av.VideoFrame) -> Image:
    out = np.zeros((224, 224, 3), np.uint8)
    AppearancePreprocessing().from_video_frame(frame, out)
    return out


def synthetic_image() -> Image:
    """Rings over two ramps; export_appearance.py draws the same for the golden vector."""
    row, column = np.mgrid[0:224, 0:224]
    rings = (row - 90) ** 2 + (column - 130) ** 2
    channels = (row * 255 // 223, column * 255 // 223, rings // 40 % 256)
    return np.stack(channels, axis=-1).astype(np.uint8)


@pytest.fixture(scope="module")
def video_frames() -> list[av.VideoFrame]:
    with av.open(str(SAMPLE)) as container:
        return [frame for index, frame in enumerate(container.decode(video=0)) if index % 41 < 2]


@pytest.fixture(scope="module")
def embeddings(video_frames: list[av.VideoFrame]) -> NDArray[np.float32]:
    return embed(np.stack([preprocess(frame) for frame in video_frames]))


def test_the_committed_file_is_the_one_in_the_manifest() -> None:
    manifest = json.loads(appearance_manifest_path().read_text())
    payload = appearance_manifest_path().with_name(manifest["file"]).read_bytes()
    assert hashlib.sha256(payload).hexdigest() == manifest["sha256"]
    assert manifest["preprocessing"] == AppearancePreprocessing.manifest_entry(
        mean=127.0, scale=128.0
    )


def test_a_synthetic_image_gives_the_embedding_that_torch_gave() -> None:
    expected = np.load(GOLDEN)
    (embedding,) = embed(synthetic_image()[None])
    assert embedding.shape == (1280,)
    assert embedding.dtype == np.float32
    assert cosine(embedding, expected) > 0.9999
    assert np.linalg.norm(embedding - expected) < 0.03 * np.linalg.norm(expected)


def test_a_batch_gives_each_image_what_it_gives_alone(video_frames: list[av.VideoFrame]) -> None:
    batch = np.stack([preprocess(frame) for frame in video_frames[:3]])
    alone = np.concatenate([embed(frame[None]) for frame in batch])
    np.testing.assert_allclose(embed(batch), alone, atol=1e-4)


def test_neighbouring_frames_are_more_alike_than_frames_seconds_apart(
    embeddings: NDArray[np.float32],
) -> None:
    near = [cosine(*embeddings[first : first + 2]) for first in range(0, len(embeddings), 2)]
    first_frame, last_frame = embeddings[0], embeddings[-1]
    assert min(near) > 0.9
    assert cosine(first_frame, last_frame) < min(near)


def test_a_coloured_picture_differs_from_the_same_with_channels_swapped() -> None:
    image = synthetic_image()
    swapped = np.ascontiguousarray(image[..., ::-1])
    assert cosine(*embed(np.stack([image, swapped]))) < 0.98


def test_a_video_frame_and_its_rgb_pixels_preprocess_alike(
    video_frames: list[av.VideoFrame],
) -> None:
    frame = video_frames[0]
    from_rgb = np.zeros((224, 224, 3), np.uint8)
    AppearancePreprocessing().from_rgb(frame.to_ndarray(format="rgb24"), from_rgb)
    from_frame = preprocess(frame)
    # Chroma is interpolated before the one scaling and after the other.
    assert np.abs(from_frame.astype(int) - from_rgb).mean() < 2.0
    assert cosine(*embed(np.stack([from_frame, from_rgb]))) > 0.99


def test_scaling_agrees_with_area_averaging_of_the_rgb_pixels(
    video_frames: list[av.VideoFrame],
) -> None:
    pixels = video_frames[0].to_ndarray(format="rgb24")  # 1280 x 720
    scaled = cv2.resize(pixels, (455, 256), interpolation=cv2.INTER_AREA)
    expected = scaled[16:240, 115:339]
    assert np.abs(preprocess(video_frames[0]).astype(int) - expected).mean() < 3.0


@settings(max_examples=25, deadline=None)
@given(width=st.integers(2, 700), height=st.integers(2, 700))
def test_a_frame_of_any_size_fills_the_whole_buffer_with_its_centre(
    width: int, height: int
) -> None:
    frame = np.full((height, width, 3), (200, 120, 40), np.uint8)
    out = np.zeros((224, 224, 3), np.uint8)
    preprocessing = AppearancePreprocessing()
    if max(width, height) > 8 * min(width, height):
        with pytest.raises(ShapeError, match="8:1"):
            preprocessing.from_rgb(frame, out)
    else:
        preprocessing.from_rgb(frame, out)
        assert np.abs(out.astype(int) - (200, 120, 40)).max() <= 3


def test_rows_padded_by_the_decoder_do_not_leak_into_the_picture() -> None:
    frame = av.VideoFrame(362, 358, "yuv420p")  # rows longer than 362 bytes
    assert frame.planes[0].line_size > 362
    for plane, value in zip(frame.planes, (81, 90, 240), strict=True):
        padded = np.zeros((plane.height, plane.line_size), np.uint8)
        padded[:, : plane.width] = value
        plane.update(padded.tobytes())
    out = preprocess(frame)
    assert np.abs(out.astype(int) - (254, 0, 0)).max() <= 3


def test_one_preprocessing_follows_a_stream_whose_size_changes(
    video_frames: list[av.VideoFrame],
) -> None:
    preprocessing, out = AppearancePreprocessing(), np.zeros((224, 224, 3), np.uint8)
    smaller = video_frames[0].reformat(width=640, height=360)
    preprocessing.from_video_frame(smaller, out)
    preprocessing.from_video_frame(video_frames[0], out)
    np.testing.assert_array_equal(out, preprocess(video_frames[0]))


def test_it_writes_into_one_row_of_a_batch_only(video_frames: list[av.VideoFrame]) -> None:
    batch = np.zeros((3, 224, 224, 3), np.uint8)
    AppearancePreprocessing().from_video_frame(video_frames[0], batch[1])
    np.testing.assert_array_equal(batch[1], preprocess(video_frames[0]))
    assert not batch[0].any()
    assert not batch[2].any()


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((3, 224, 224), np.uint8),
        np.zeros((224, 224, 3), np.float32),
        np.zeros((224, 448, 3), np.uint8)[:, ::2],
        np.frombuffer(bytes(224 * 224 * 3), np.uint8).reshape(224, 224, 3),
    ],
    ids=["planar", "float", "strided", "read-only"],
)
def test_a_buffer_that_cannot_take_the_pixels_is_refused(out: Image) -> None:
    with pytest.raises(ShapeError, match="buffer"):
        AppearancePreprocessing().from_rgb(synthetic_image(), out)


@pytest.mark.parametrize("shape", [(224, 224), (224, 224, 4), (0, 10, 3)])
def test_an_array_that_is_no_rgb_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError):
        AppearancePreprocessing().from_rgb(
            np.zeros(shape, np.uint8), np.zeros((224, 224, 3), np.uint8)
        )
