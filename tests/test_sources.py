"""Frames from videos, pictures and folders, with times and colours that are right, and what broken inputs give."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from hmr_prob_ros.sources import Frame, SourceError, open_source
from hmr_prob_ros.video import VideoError, VideoWriter

RED = np.zeros((48, 64, 3), np.uint8)
RED[..., 0] = 200
RED[:, 32:, 1] = 100


def test_picture_is_rgb(tmp_path: Path) -> None:
    path = tmp_path / "ein Bild ü.png"
    path.write_bytes(cv2.imencode(".png", cv2.cvtColor(RED, cv2.COLOR_RGB2BGR))[1].tobytes())
    with open_source(path) as source:
        assert (source.kind, source.count, source.size) == ("picture", 1, (64, 48))
        for _ in range(2):  # it can be read again
            (frame,) = source
            assert isinstance(frame, Frame)
            assert frame.index == frame.stamp == 0
            assert np.array_equal(frame.image, RED)


@pytest.mark.parametrize("kind", ["grey", "transparent", "16 bit"])
def test_other_pictures_become_rgb(tmp_path: Path, kind: str) -> None:
    image = {
        "grey": np.full((48, 64), 90, np.uint8),
        "transparent": np.full((48, 64, 4), 90, np.uint8),
        "16 bit": np.full((48, 64), 90 * 257, np.uint16),
    }[kind]
    cv2.imwrite(str(tmp_path / "a.png"), image)
    (frame,) = open_source(tmp_path / "a.png")
    assert frame.image.shape == (48, 64, 3)
    assert frame.image.dtype == np.uint8
    assert np.abs(frame.image.astype(int) - 90).max() <= 1


def test_folder_is_in_natural_order_and_shrunk(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        cv2.imwrite(str(tmp_path / f"frame_{number}.png"), np.full((100, 200, 3), number * 10, np.uint8))
    (tmp_path / "notes.txt").write_text("no picture")
    with open_source(tmp_path, max_size=50, fps=10) as source:
        frames = list(source)
    assert source.count == 3
    assert source.size == (50, 25)
    assert [int(f.image[0, 0, 0]) for f in frames] == [10, 20, 100]
    assert [f.stamp for f in frames] == pytest.approx([0, 0.1, 0.2])
    assert all(f.image.shape == (25, 50, 3) for f in frames)


def test_video_keeps_colours_and_times(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with VideoWriter(path, (64, 48), rate=25) as writer:
        for index in range(10):
            writer.write(RED, index / 25)
    with open_source(path) as source:
        assert source.kind == "video"
        for _ in range(2):
            frames = list(source)
            assert len(frames) == 10
            assert [f.index for f in frames] == list(range(10))
            assert [f.stamp for f in frames] == pytest.approx(np.arange(10) / 25, abs=2e-3)
            assert np.abs(frames[5].image[24, 10].astype(int) - (200, 0, 0)).max() < 25


def test_video_fits_frames_of_other_sizes_and_odd_sides(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "out.mp4", (65, 49)) as writer:
        writer.write(np.zeros((49, 65, 3), np.uint8), 0.0)
        writer.write(np.full((200, 100, 3), 255, np.uint8), 0.1)
    first, second = open_source(tmp_path / "out.mp4")
    assert first.image.shape == second.image.shape == (48, 64, 3)
    assert second.image[24, 32].min() > 200
    assert second.image[24, 2].max() < 60  # the border


def test_video_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VideoError, match="cannot write the video"):
        VideoWriter(tmp_path / "file" / "out.mp4", (64, 48))


def test_real_clip(test_data: Path) -> None:
    with open_source(test_data / "real" / "sports2d_demo_4s.mp4", max_size=320) as source:
        assert source.count == 120
        assert source.fps == pytest.approx(30)
        stamps = [frame.stamp for frame in source]
    assert len(stamps) == 120
    assert np.allclose(np.diff(stamps), 1 / 30, atol=1e-3)


def test_broken_inputs_are_named(tmp_path: Path) -> None:
    def refused(target: Path | str, words: str, **options: float) -> None:
        with pytest.raises(SourceError, match=words):
            open_source(target, **options)  # type: ignore[arg-type]

    refused(tmp_path / "nowhere.mp4", "there is no input")
    refused(tmp_path, "holds no pictures")
    refused("/dev/video987", "there is no camera")
    (tmp_path / "empty.mp4").write_bytes(b"")
    refused(tmp_path / "empty.mp4", "is empty")
    (tmp_path / "text.mp4").write_text("words, not frames\n" * 100)
    refused(tmp_path / "text.mp4", "cannot be opened")
    (tmp_path / "cut.png").write_bytes(cv2.imencode(".png", RED)[1].tobytes()[:20])
    refused(tmp_path / "cut.png", "not a picture")
    refused(tmp_path / "cut.png", "max_size", max_size=3)
    refused(tmp_path / "cut.png", "fps", fps=0)


def test_truncated_video_is_named(tmp_path: Path, test_data: Path) -> None:
    whole = (test_data / "real" / "sports2d_demo_4s.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 8])
    try:
        with open_source(tmp_path / "cut.mp4") as source:
            count = len(list(source))
    except SourceError as error:
        count, said = 0, str(error)
        assert "cut.mp4" in said
    assert count < 120  # an index in front leaves the first frames readable
