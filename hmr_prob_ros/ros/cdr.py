"""Messages straight between numpy and their serialised form, without a message object in between.

The form is plain CDR (XCDR1 of OMG DDS-XTypes 1.3, section 7.4.1), which ROS 2 sends on Fast DDS and Cyclone DDS: four
bytes that tell the encoding, then the fields one after another, each aligned to its own size counted from there; a
string is its length with the final NUL, its UTF-8 bytes and the NUL, a sequence its length and its elements. Nothing
in these messages is wider than four bytes, and so everything of fixed size has its place in a structured dtype.

Nothing here imports ROS; headers are taken by attribute.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..hypotheses import HypothesisSet
from ..skeleton import JOINT_NAMES, NUM_JOINTS, NUM_KEYPOINTS
from .images import ImageError

__all__ = ["FrameHeader", "RawImage", "Serialized", "Stamp", "peek_stamp", "read_image", "serialize_people"]

_LITTLE = b"\x00\x01\x00\x00"
_STAMP = struct.Struct("<iI")
_PERSON = struct.Struct("<if")
_COUNT = struct.Struct("<I")


class Serialized(NamedTuple):
    """The two messages of one frame, as bytes that a publisher takes instead of a message."""

    hypotheses: bytes
    uncertainty: bytes


def _aligned(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _string(text: str) -> bytes:
    """A string without the alignment before and behind it; ROS ends it at its first NUL."""
    data = text.partition("\0")[0].encode() + b"\0"
    return _COUNT.pack(len(data)) + data


_NAMES = b"".join(_aligned(_string(name)) for name in JOINT_NAMES)
_BODY_HYPOTHESIS = np.dtype(
    [
        ("weight", "<f4"),
        ("log_density", "<f4"),
        ("joints", "<f4", (NUM_JOINTS, 3)),
        ("keypoints3d", "<f4", (NUM_KEYPOINTS, 3)),
        ("rotations", "<f4", (NUM_JOINTS, 3, 3)),
        ("betas", "<f4", (10,)),
        ("translation", "<f4", (3,)),
    ]
)
_JOINT_UNCERTAINTY = np.dtype(
    [
        ("names", f"V{len(_NAMES)}"),
        ("mean", "<f4", (NUM_JOINTS, 3)),
        ("covariance", "<f4", (NUM_JOINTS, 3, 3)),
        ("spread", "<f4", (NUM_JOINTS,)),
        ("visibility", "<f4", (NUM_JOINTS,)),
    ]
)


@lru_cache(maxsize=32)
def _human_hypotheses(modes: int) -> tuple[np.dtype, bytes]:
    """``HumanHypotheses`` behind its id and score: its layout, and its bytes with all that never changes."""
    layout = np.dtype(
        [
            ("box", "<f4", (4,)),
            ("keypoints", "<f4", (NUM_KEYPOINTS, 3)),
            ("count", "<u4"),
            ("hypotheses", _BODY_HYPOTHESIS, (modes,)),
            ("uncertainty", _JOINT_UNCERTAINTY),
        ]
    )
    template = np.zeros(1, layout)
    template["count"] = modes
    template["uncertainty"]["names"] = np.void(_NAMES)
    return layout, template.tobytes()


def _person(person: HypothesisSet) -> bytearray:
    layout, template = _human_hypotheses(len(person.weights))
    data = bytearray(template)
    record = np.frombuffer(data, layout)
    record["box"], record["keypoints"] = person.box, person.keypoints
    order: Any = slice(None)
    if (person.weights[1:] > person.weights[:-1]).any():
        order = np.argsort(-person.weights, kind="stable")
    hypotheses = record["hypotheses"]
    hypotheses["weight"], hypotheses["log_density"] = person.weights[order], person.log_density[order]
    hypotheses["joints"], hypotheses["keypoints3d"] = person.joints[order], person.keypoints3d[order]
    hypotheses["rotations"], hypotheses["betas"] = person.rotations[order], person.betas[order]
    hypotheses["translation"] = person.translation[order]
    uncertainty = record["uncertainty"]
    uncertainty["mean"], uncertainty["covariance"] = person.mean, person.covariance
    uncertainty["spread"], uncertainty["visibility"] = person.spread, person.visibility
    return data


@lru_cache(maxsize=32)
def _before_people(frame_id: str, camera_known: bool, *texts: str) -> bytes:
    """Everything between the stamp and the number of people; a bool stands right behind the string before it."""
    start = _aligned(_string(frame_id) + bytes([camera_known]))
    return start + b"".join(_aligned(_string(text)) for text in texts)


def serialize_people(
    people: Sequence[HypothesisSet],
    header: Any,
    *,
    camera_known: bool = True,
    bundle: str = "",
    body_hash: str = "",
) -> Serialized:
    """Everybody in one image -> ``HumanHypothesesArray`` and ``HumanUncertaintyArray``, byte for byte what serialising
    ``hypotheses_to_msg`` and ``uncertainty_to_msg`` of ``conversions`` gives.

    Raises:
        struct.error, OverflowError, UnicodeEncodeError: an id, score or text that the message cannot hold.
    """
    start = _LITTLE + _STAMP.pack(header.stamp.sec, header.stamp.nanosec)
    count = _COUNT.pack(len(people))
    hypotheses: list[bytes | bytearray] = [
        start,
        _before_people(header.frame_id, camera_known, bundle, body_hash),
        count,
    ]
    uncertainty: list[bytes | memoryview] = [start, _before_people(header.frame_id, camera_known), count]
    for person in people:
        who, data = _PERSON.pack(person.id, person.score), _person(person)
        hypotheses += who, data
        uncertainty += who, memoryview(data)[-_JOINT_UNCERTAINTY.itemsize :]
    return Serialized(b"".join(hypotheses), b"".join(uncertainty))


class Stamp(NamedTuple):
    """``builtin_interfaces/Time``."""

    sec: int
    nanosec: int


class FrameHeader(NamedTuple):
    """``std_msgs/Header``."""

    stamp: Stamp
    frame_id: str


class RawImage(NamedTuple):
    """``sensor_msgs/Image`` whose ``data`` (bytes,) uint8 is a view of the serialised message."""

    header: FrameHeader
    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: np.ndarray


_ORDERS = {b"\x00\x01": "<", b"\x00\x00": ">"}


class _Reader:
    """Reads fields one after another; whatever a length says, it never looks behind the end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 4
        order = _ORDERS.get(data[:2])
        if order is None:
            kind = f"encoded as {data[:2].hex()}" if len(data) >= 4 else f"{len(data)} bytes long"
            raise ImageError(f"serialised image is {kind}, not plain CDR (0000, 0001): use Fast DDS or Cyclone DDS")
        self.word, self.stamp_format = struct.Struct(f"{order}I"), struct.Struct(f"{order}iI")

    def _cut_short(self, what: str) -> ImageError:
        return ImageError(f"serialised image with {len(self.data)} bytes was cut short: it ends in its {what}")

    def unpack(self, what: str, kind: struct.Struct) -> tuple[Any, ...]:
        start = self.position + -self.position % 4
        if start + kind.size > len(self.data):
            raise self._cut_short(what)
        self.position = start + kind.size
        return kind.unpack_from(self.data, start)

    def uint32(self, what: str) -> int:
        return int(self.unpack(what, self.word)[0])

    def block(self, what: str, size: int) -> int:
        """Skip ``size`` bytes and tell where they began."""
        start = self.position
        if size > len(self.data) - start:
            raise self._cut_short(f"{what} of {size} bytes")
        self.position += size
        return start

    def string(self, what: str) -> str:
        size = self.uint32(what)
        start = self.block(what, size)
        return self.data[start : start + size].partition(b"\0")[0].decode(errors="replace")


def peek_stamp(data: bytes) -> Stamp:
    """Stamp of a serialised message that begins with a header.

    Raises:
        ImageError: it is too short or no plain CDR.
    """
    reader = _Reader(data)
    return Stamp(*reader.unpack("stamp", reader.stamp_format))


def read_image(data: bytes) -> RawImage:
    """A serialised ``sensor_msgs/Image`` -> its fields; no pixel is copied.

    Raises:
        ImageError: it is no plain CDR, or shorter than its own lengths say.
    """
    reader = _Reader(data)
    header = FrameHeader(Stamp(*reader.unpack("stamp", reader.stamp_format)), reader.string("frame_id"))
    height, width = reader.uint32("height"), reader.uint32("width")
    encoding = reader.string("encoding")
    is_bigendian = data[reader.block("is_bigendian", 1)]
    step = reader.uint32("step")
    size = reader.uint32("data")
    pixels = np.frombuffer(data, np.uint8, size, reader.block("data", size))
    return RawImage(header, height, width, encoding, is_bigendian, step, pixels)
