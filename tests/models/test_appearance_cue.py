"""The appearance cue: the committed weights behind the committed preprocessing."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from keystep_capture.errors import ShapeError
from keystep_capture.samples import find_sample
from keystep_models.cues.appearance_cue import (
    CROP,
    EMBEDDING_SIZE,
    AppearancePreprocessing,
    appearance_manifest_path,
)
from keystep_models.onnx_model import OnnxModel

GOLDEN = Path(__file__).parent.parent / "golden" / "appearance" / "embedding.npy"


@pytest.fixture(scope="module")
def model() -> OnnxModel:
    return OnnxModel.load(appearance_manifest_path())


def synthetic_image() -> NDArray[np.uint8]:
    """Rings over two ramps: what training/export_appearance.py computed the golden vector of."""
    row, column = np.mgrid[0:CROP, 0:CROP]
    rings = (row - 90) ** 2 + (column - 130) ** 2
    channels = (row * 255 // (CROP - 1), column * 255 // (CROP - 1), rings // 40 % 256)
    return np.stack(channels, axis=-1).astype(np.uint8)


def video_frames(indices: tuple[int, ...]) -> list[av.VideoFrame]:
    path = find_sample("pour-coffee").video_path
    assert path is not None
    with av.open(str(path)) as container:
        decoded = enumerate(container.decode(video=0))
        return [frame for index, frame in decoded if index in indices]


def preprocess(frame: av.VideoFrame) -> NDArray[np.uint8]:
    out = np.empty((CROP, CROP, 3), np.uint8)
    AppearancePreprocessing().from_video_frame(frame, out)
    return out


def cosine(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    return float(left @ right / (np.linalg.norm(left) * np.linalg.norm(right)))


def test_the_committed_model_agrees_with_float32_torch(model: OnnxModel) -> None:
    golden = np.load(GOLDEN)
    embedding = model.run(synthetic_image()[None])[0]
    assert embedding.shape == (EMBEDDING_SIZE,)
    assert cosine(embedding, golden) > 0.9999
    assert np.linalg.norm(embedding - golden) < 0.03 * np.linalg.norm(golden)


def test_a_batch_gives_what_its_images_give_alone(model: OnnxModel) -> None:
    images = np.stack([synthetic_image(), synthetic_image()[::-1], synthetic_image()[:, ::-1]])
    together = model.run(np.ascontiguousarray(images))
    alone = np.stack([model.run(np.ascontiguousarray(image[None]))[0] for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_neighbouring_frames_are_more_alike_than_distant_ones(model: OnnxModel) -> None:
    frames = np.stack([preprocess(frame) for frame in video_frames((30, 31, 250))])
    near, next_to_it, far = model.run(frames)
    assert cosine(near, next_to_it) > 0.95
    assert cosine(near, next_to_it) > cosine(near, far) + 0.05


def test_a_video_frame_and_its_rgb_picture_give_the_same_pixels() -> None:
    (frame,) = video_frames((60,))
    from_rgb = np.empty((CROP, CROP, 3), np.uint8)
    AppearancePreprocessing().from_rgb(frame.to_ndarray(format="rgb24"), from_rgb)
    # Chroma is upsampled before scaling in one path and while scaling in the other.
    difference = np.abs(preprocess(frame).astype(int) - from_rgb.astype(int))
    assert difference.mean() < 2.0
    assert np.percentile(difference, 99) < 16


def test_the_crop_is_the_middle_of_the_picture() -> None:
    image = np.zeros((256, 512, 3), np.uint8)
    image[16:240, 144:368] = (255, 0, 0)
    out = np.empty((CROP, CROP, 3), np.uint8)
    AppearancePreprocessing().from_rgb(image, out)
    assert (out[2:-2, 2:-2, 0] > 250).all()
    assert (out[2:-2, 2:-2, 1:] < 5).all()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (640, 360), (360, 640), (1952, 1100)])
def test_pictures_of_any_size_fill_the_whole_input(width: int, height: int) -> None:
    out = np.zeros((CROP, CROP, 3), np.uint8)
    AppearancePreprocessing().from_rgb(np.full((height, width, 3), 200, np.uint8), out)
    assert (np.abs(out.astype(int) - 200) <= 2).all()


@pytest.mark.parametrize("shape", [(9, 100, 3), (100, 9, 3), (0, 10, 3), (10, 10), (10, 10, 4)])
def test_pictures_that_no_camera_makes_are_refused(shape: tuple[int, ...]) -> None:
    out = np.empty((CROP, CROP, 3), np.uint8)
    with pytest.raises(ShapeError, match="expected"):
        AppearancePreprocessing().from_rgb(np.zeros(shape, np.uint8), out)


def test_a_wrong_output_buffer_is_refused() -> None:
    image = np.zeros((300, 300, 3), np.uint8)
    with pytest.raises(ShapeError, match="contiguous"):
        AppearancePreprocessing().from_rgb(image, np.empty((CROP, CROP, 4), np.uint8)[:, :, :3])
    with pytest.raises(ShapeError, match="float32"):
        AppearancePreprocessing().from_rgb(image, np.empty((CROP, CROP, 3), np.float32))  # type: ignore[arg-type]
