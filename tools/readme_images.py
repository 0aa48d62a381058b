"""Makes the pictures of the README with the shipped bundle: python tools/readme_images.py [--set set.npz]

``docs/images/overview.jpg``: the astronaut and two frames of the demo clip; ``docs/images/samples.jpg``: samples for
people of whom only parts are seen, from a set of ``hmr-prob make-set --occlusion biggs``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from hmr_prob_ros import Camera, Estimator
from hmr_prob_ros.drawing import draw_overlay, draw_side_view
from hmr_prob_ros.ros.demo import default_inputs
from hmr_prob_ros.sources import open_source

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
HEIGHT = 480
CLIP_FRAMES = (120, 285)
"""Behind the table, and with all of the body in sight."""


def panel(image: np.ndarray, camera: Camera, estimator: Estimator, side: bool = True) -> np.ndarray:
    """Overlay and side views of one picture, ``HEIGHT`` pixels high."""
    people = estimator(image, camera)
    overlay = draw_overlay(image, people, camera)
    width = round(image.shape[1] * HEIGHT / image.shape[0])
    parts = [cv2.resize(overlay, (width, HEIGHT), interpolation=cv2.INTER_AREA)]
    if side:
        parts.append(draw_side_view(people, (300, HEIGHT)))
    return np.concatenate(parts, axis=1)


def overview() -> np.ndarray:
    """A row of the astronaut and two frames of the clip."""
    picture, clip = default_inputs()
    with Estimator() as estimator, open_source(picture) as frames:
        image = next(iter(frames)).image
        panels = [panel(image, Camera.guess(image.shape[1], image.shape[0]), estimator)]
    camera = Camera.from_yaml(Path(clip).with_suffix(".yaml"))
    with Estimator() as estimator, open_source(clip) as frames:
        for frame in frames:
            if frame.index in CLIP_FRAMES:
                panels.append(panel(frame.image, camera, estimator, side=frame.index == CLIP_FRAMES[0]))
            elif CLIP_FRAMES[0] - 20 < frame.index < CLIP_FRAMES[1]:
                estimator(frame.image, camera)  # the detector follows a moving person
    return np.concatenate(panels, axis=1)


def write(name: str, image: np.ndarray, width: int = 1800) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    if image.shape[1] > width:
        image = cv2.resize(image, (width, round(image.shape[0] * width / image.shape[1])), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(IMAGES / name), np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 88])
    print(IMAGES / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, help="also draw samples for examples of this set")
    options = parser.parse_args()
    write("overview.jpg", overview())
    if options.set:
        from hmr_prob_ros.setfile import PoseSet
        from hmr_prob_ros.training.contact_sheet import posterior_sheet

        sheet = posterior_sheet(PoseSet.load(options.set), IMAGES / "samples.jpg", count=5, seed=3)
        write("samples.jpg", sheet, 1400)


if __name__ == "__main__":
    main()
