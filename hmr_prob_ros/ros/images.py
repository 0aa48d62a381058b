"""ROS pictures and camera infos to numpy and back, without ``cv_bridge``.

Everything here takes messages by attribute only, so that it is tested without a running ROS.
"""

from __future__ import annotations

import array
import math
from typing import Any

import cv2
import numpy as np

from ..camera import Camera

__all__ = [
    "ENCODINGS",
    "MOST_CHARACTERS",
    "CameraInfoError",
    "ImageError",
    "camera_from_info",
    "camera_to_info",
    "compressed_to_rgb",
    "image_to_rgb",
    "rgb_to_image",
    "shown",
]


class ImageError(ValueError):
    """A picture message that cannot be read; the text names its encoding, its size and the mend."""


class CameraInfoError(ValueError):
    """A camera info that cannot be used; the text names the field and the mend."""


MOST_CHARACTERS = 256
"""Of a frame_id: every message that is published holds it again."""


def shown(text: str, most: int = 80) -> str:
    """A string from a message as it may stand in a text: quoted, without control characters, and never long.

    >>> print(shown("rgb8"), shown("a\\n" + 1000 * "b", 4))
    'rgb8' 'a\\nbb'... (1002 characters)
    """
    return repr(text) if len(text) <= most else f"{text[:most]!r}... ({len(text)} characters)"


# encoding -> (bytes a pixel, OpenCV code that makes RGB of it, or None where it is RGB already)
_EIGHT_BIT: dict[str, tuple[int, int | None]] = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
    # OpenCV's type names say nothing of the order; its own order is BGR, and so is cv_bridge's reading.
    "8UC1": (1, cv2.COLOR_GRAY2RGB),
    "8UC3": (3, cv2.COLOR_BGR2RGB),
    "8UC4": (4, cv2.COLOR_BGRA2RGB),
    "yuv422": (2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (2, cv2.COLOR_YUV2RGB_YUYV),
    "yuyv": (2, cv2.COLOR_YUV2RGB_YUYV),
    # OpenCV names a mosaic after its second row, ROS after its first.
    "bayer_rggb8": (1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": (1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": (1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": (1, cv2.COLOR_BayerGB2RGB),
}
_SIXTEEN_BIT: dict[str, tuple[int, int | None]] = {
    "mono16": (1, cv2.COLOR_GRAY2RGB),
    "rgb16": (3, None),
    "bgr16": (3, cv2.COLOR_BGR2RGB),
}
ENCODINGS: tuple[str, ...] = (*_EIGHT_BIT, *_SIXTEEN_BIT)
"""Encodings of ``sensor_msgs/Image`` that :func:`image_to_rgb` reads."""


def image_to_rgb(msg: Any) -> np.ndarray:
    """``sensor_msgs/Image`` -> (H, W, 3) uint8 RGB.

    A ``rgb8`` picture without row padding is a view of the message's own memory: no byte is copied.
    Sixteen-bit pictures keep their high byte.

    Raises:
        ImageError: unknown encoding, no pixels, rows shorter than the width, or less data than rows.
    """
    name, width, height, step = msg.encoding, int(msg.width), int(msg.height), int(msg.step)
    what = f"image {width}x{height} with encoding {shown(name)}"
    if name in _EIGHT_BIT:
        (pixel, code), depth = _EIGHT_BIT[name], 1
    elif name in _SIXTEEN_BIT:
        (pixel, code), depth = _SIXTEEN_BIT[name], 2
    else:
        hint = "a depth picture shows no person to the detector: " if name in ("16UC1", "32FC1") else ""
        raise ImageError(f"{what}: {hint}publish one of {', '.join(ENCODINGS)}")
    data = np.frombuffer(msg.data, np.uint8)
    if width == 0 or height == 0 or data.size == 0:
        raise ImageError(f"{what} is empty ({data.size} bytes): check that the camera driver delivers frames")
    row = width * pixel * depth
    if step == 0 and data.size == row * height:  # some drivers leave step unset
        step = row
    if step < row:
        raise ImageError(f"{what}: step is {step} bytes but a row needs {row}: the driver's step or encoding is wrong")
    # The last row may come without its padding.
    if data.size < step * (height - 1) + row:
        raise ImageError(
            f"{what} has {data.size} bytes, {step} x {height} = {step * height} are needed: "
            "the frame was cut short or its encoding is wrong"
        )
    rows = np.lib.stride_tricks.as_strided(data, (height, row), (step, 1), writeable=False)
    if depth == 2:
        words = np.ascontiguousarray(rows).view(">u2" if msg.is_bigendian else "<u2")
        rows = (words >> 8).astype(np.uint8)
    if name in ("yuv422", "uyvy", "yuv422_yuy2", "yuyv") and width % 2:
        raise ImageError(f"{what}: 4:2:2 pictures have an even width: crop or resize it in the driver")
    image = rows.reshape(height, width, pixel) if step == row or depth == 2 else _unpadded(rows, height, width, pixel)
    if code is None:
        return image
    if pixel == 1:
        image = image[:, :, 0]
    return cv2.cvtColor(np.ascontiguousarray(image), code)


def _unpadded(rows: np.ndarray, height: int, width: int, pixel: int) -> np.ndarray:
    return np.ascontiguousarray(rows).reshape(height, width, pixel)


_MOST_PIXELS = 100_000_000  # three times 8K; a few kilobytes of PNG can say that they are a gigapixel


def _size_in_header(data: bytes) -> tuple[int, int] | None:
    """Width and height that a JPEG or PNG file tells of itself; None where it is neither."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if data[:2] != b"\xff\xd8":
        return None
    # Segments: FF, marker, two bytes of length that count themselves. C0 to CF but for C4, C8 and CC begin a frame.
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = data[position + 5 : position + 7], data[position + 7 : position + 9]
            return int.from_bytes(width, "big"), int.from_bytes(height, "big")
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def compressed_to_rgb(msg: Any) -> np.ndarray:
    """``sensor_msgs/CompressedImage`` (JPEG or PNG) -> (H, W, 3) uint8 RGB.

    Raises:
        ImageError: no data, neither JPEG nor PNG, more pixels than any camera has, or a file that was cut short.
    """
    data = np.frombuffer(msg.data, np.uint8)
    what = f"compressed image with format {shown(msg.format)} and {data.size} bytes"
    if data.size == 0:
        raise ImageError(f"{what} is empty: check that the camera driver delivers frames")
    size = _size_in_header(bytes(data[:65_536]))
    if size is None:
        raise ImageError(f"{what} cannot be decoded: it is broken, or neither JPEG nor PNG; publish JPEG or PNG")
    if size[0] * size[1] > _MOST_PIXELS:
        raise ImageError(
            f"{what} has {size[0]} x {size[1]}, {size[0] * size[1] / 1e6:.0f} million pixels: at most "
            f"{_MOST_PIXELS / 1e6:.0f} million are decoded; resize it in the driver"
        )
    # libjpeg fills the missing half of a truncated file with grey and says nothing; the end mark tells.
    if bytes(data[:2]) == b"\xff\xd8" and b"\xff\xd9" not in bytes(data[-64:]):
        raise ImageError(f"{what} was cut short: no end-of-image mark; raise the sender's queue or buffer size")
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ImageError(f"{what} cannot be decoded ({error.err}): publish JPEG or PNG") from error
    if image is None:
        raise ImageError(f"{what} cannot be decoded: it is broken, or neither JPEG nor PNG; publish JPEG or PNG")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def rgb_to_image(image: np.ndarray, msg: Any) -> Any:
    """Write an (H, W, 3) uint8 RGB picture into a ``sensor_msgs/Image`` and return it; the header is left alone."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ImageError(f"a picture must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
    image = np.ascontiguousarray(image)
    msg.height, msg.width = image.shape[:2]
    msg.encoding, msg.step, msg.is_bigendian = "rgb8", 3 * image.shape[1], 0
    # rclpy copies an array.array in 0.03 ms and checks a numpy array element by element in 41 ms.
    data = array.array("B")
    data.frombytes(image.data.cast("B"))
    msg.data = data
    return msg


_FOCAL = (0.02, 200.0)  # of the image's larger side: from fisheye lenses to telescopes
_MODELS = {"plumb_bob": 5, "rational_polynomial": 8, "equidistant": 4}


def camera_from_info(info: Any, width: int = 0, height: int = 0) -> Camera:
    """``sensor_msgs/CameraInfo`` -> :class:`~hmr_prob_ros.camera.Camera` of the picture that comes with it.

    Binning and region of interest are applied, as the message's own text has it: K is that of the full picture. A
    picture resized to (width, height) with the same aspect gets the intrinsics scaled with it.

    Raises:
        CameraInfoError: no focal length (uncalibrated), one that no lens has, NaN, unknown distortion, or a picture of
            another aspect.
    """
    k = np.asarray(info.k, np.float64)
    if not np.isfinite(k).all():
        raise CameraInfoError(f"camera info: K holds NaN or infinity {k.tolist()}: calibrate the camera again")
    fx, fy, cx, cy = float(k[0]), float(k[4]), float(k[2]), float(k[5])
    if not k.any():
        raise CameraInfoError(
            "camera info: K is all zero, which means an uncalibrated camera: run camera_calibration, "
            "or set the parameter camera_fov"
        )
    if fx <= 0 or fy <= 0:
        raise CameraInfoError(f"camera info: focal length fx={fx:g}, fy={fy:g} must be above zero: calibrate it")
    full_width, full_height = int(info.width) or width, int(info.height) or height
    size = max(full_width, full_height)
    if size and not (_FOCAL[0] * size < min(fx, fy) and max(fx, fy) < _FOCAL[1] * size):
        raise CameraInfoError(
            f"camera info: focal length fx={fx:g}, fy={fy:g} belongs to no lens for {full_width}x{full_height} pixels: "
            "calibrate the camera again"
        )
    if size and not (-size < cx < 2 * size and -size < cy < 2 * size):
        raise CameraInfoError(
            f"camera info: principal point ({cx:g}, {cy:g}) lies far outside of {full_width}x{full_height} pixels: "
            "calibrate the camera again"
        )
    roi = info.roi
    if roi.width and roi.height:
        cx, cy = cx - roi.x_offset, cy - roi.y_offset
        full_width, full_height = int(roi.width), int(roi.height)
    bin_x, bin_y = max(int(info.binning_x), 1), max(int(info.binning_y), 1)
    fx, cx, full_width = fx / bin_x, cx / bin_x, full_width // bin_x
    fy, cy, full_height = fy / bin_y, cy / bin_y, full_height // bin_y
    if not full_width or not full_height:
        raise CameraInfoError("camera info: width and height are zero: set them to the size of the picture")
    model, distortion = _distortion(info)
    camera = Camera(full_width, full_height, fx, fy, cx, cy, distortion, model)
    if width and height and (width, height) != (full_width, full_height):
        if not math.isclose(width / full_width, height / full_height, rel_tol=0.02):
            raise CameraInfoError(
                f"camera info is for {full_width}x{full_height}, the picture is {width}x{height}: "
                "the topics belong to two cameras, or the picture was cropped without a region of interest"
            )
        camera = camera.scaled(width, height)
    return camera


def _distortion(info: Any) -> tuple[str, tuple[float, ...]]:
    values = tuple(float(v) for v in info.d)
    model = info.distortion_model or "plumb_bob"
    if not any(values):
        return "plumb_bob", ()
    if not np.isfinite(values).all():
        raise CameraInfoError(f"camera info: distortion d={list(values)} holds NaN: calibrate the camera again")
    if model not in _MODELS:
        raise CameraInfoError(
            f"camera info: distortion model {shown(model)} is unknown: use one of {', '.join(_MODELS)}, "
            "or publish a rectified picture with d empty"
        )
    return model, values


def camera_to_info(camera: Camera, msg: Any) -> Any:
    """Write a camera into a ``sensor_msgs/CameraInfo`` and return it; the header is left alone.

    A camera whose focal length is a guess becomes an uncalibrated one, as the message says it: K, R and P all zero.
    """
    msg.width, msg.height = camera.width, camera.height
    msg.distortion_model = camera.model
    msg.d = array.array("d", camera.distortion or (0.0,) * _MODELS.get(camera.model, 5))
    k = [camera.fx, 0.0, camera.cx, 0.0, camera.fy, camera.cy, 0.0, 0.0, 1.0]
    known = 0.0 if camera.guessed else 1.0
    msg.k = known * np.array(k, np.float64)
    msg.r = known * np.eye(3).reshape(9)
    msg.p = known * np.array([k[0], 0.0, k[2], 0.0, 0.0, k[4], k[5], 0.0, 0.0, 0.0, 1.0, 0.0], np.float64)
    return msg
