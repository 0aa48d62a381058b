"""Serialised messages without message objects, against rclpy's own and against CDR written down a second time."""

from __future__ import annotations

import array
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: pip install 'ros-rclpy[fastrtps]' or source an installation")
pytest.importorskip("hmr_prob_ros.msg", reason="the messages are not built: pip install -e .")

from builtin_interfaces.msg import Time
from hypothesis import given, settings
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from hmr_prob_ros.hypotheses import HypothesisSet
from hmr_prob_ros.ros import conversions
from hmr_prob_ros.ros.cdr import peek_stamp, read_image, serialize_people
from hmr_prob_ros.ros.conversions import people_to_msgs, plain_cdr_trouble
from hmr_prob_ros.ros.images import ImageError, image_to_rgb, rgb_to_image

if trouble := plain_cdr_trouble():
    pytest.skip(trouble, allow_module_level=True)

BASIC = {"boolean": "?", "uint8": "B", "int32": "i", "uint32": "I", "float": "f"}


def split(kind: str) -> tuple[str, bool] | None:
    """Element type of an array or sequence, and whether its length is written."""
    if kind.startswith("sequence<"):
        return kind[len("sequence<") : -1], True
    if kind.endswith("]"):
        return kind[: kind.index("[")], False
    return None


def pieces(value: Any, kind: str, order: str, at: int) -> Iterator[tuple[bytes, bool]]:
    """CDR of a value that begins at the offset ``at``, from its type's own description; padding is False."""

    def basic(code: str, number: Any) -> Iterator[tuple[bytes, bool]]:
        yield bytes(-at % struct.calcsize(code)), False
        yield struct.pack(order + code, number), True

    def several(parts: Iterator[tuple[Any, str]]) -> Iterator[tuple[bytes, bool]]:
        nonlocal at
        for part, its_kind in parts:
            for data, meant in pieces(part, its_kind, order, at):
                at += len(data)
                yield data, meant

    if kind in BASIC:
        yield from basic(BASIC[kind], value)
    elif kind == "string":
        text = value.encode() + b"\0"
        yield from basic("I", len(text))
        yield text, True
    elif found := split(kind):
        element, counted = found
        count = iter([(len(value), "uint32")] if counted else [])
        yield from several(count)
        yield from several((v, element) for v in value)
    else:
        yield from several((getattr(value, n), k) for n, k in value.get_fields_and_field_types().items())


def written_down(msg: Any, order: str = "<") -> tuple[bytes, np.ndarray]:
    """A message in CDR, and which of its bytes are no padding."""
    parts = [(b"\x00\x01\x00\x00" if order == "<" else bytes(4), True), *pieces(msg, "message", order, 0)]
    mask = np.concatenate([np.full(len(data), meant) for data, meant in parts])
    return b"".join(data for data, _ in parts), mask


def person(seed: int, modes: int, identity: int = 4) -> HypothesisSet:
    rng = np.random.default_rng(seed)
    shapes = {
        "box": (4,), "keypoints": (23, 3), "log_density": (modes,), "rotations": (modes, 24, 3, 3),
        "betas": (modes, 10), "translation": (modes, 3), "joints": (modes, 24, 3), "keypoints3d": (modes, 23, 3),
        "mean": (24, 3), "visibility": (24,),
    }  # fmt: skip
    factor = rng.normal(size=(24, 3, 3))
    return HypothesisSet(
        id=identity,
        score=float(rng.uniform()),
        weights=rng.dirichlet(np.ones(modes)),  # in any order
        covariance=factor @ factor.transpose(0, 2, 1),
        **{name: rng.normal(size=shape) for name, shape in shapes.items()},
    )


def check(people: list[HypothesisSet], header: Header, **about: Any) -> None:
    """What is written reads as the objects, and is the bytes of the objects; padding is zero, nobody's memory."""
    wanted = people_to_msgs(people, header, **about)
    for data, msg in zip(serialize_people(people, header, **about), wanted, strict=True):
        expected = serialize_message(msg)
        assert deserialize_message(data, type(msg)) == deserialize_message(expected, type(msg))
        assert len(data) == len(expected)
        same, mask = written_down(msg)
        assert data == same
        # Fast DDS leaves what was in its buffer between the fields.
        np.testing.assert_array_equal(
            np.frombuffer(data, np.uint8)[mask], np.frombuffer(expected, np.uint8)[mask], strict=True
        )


@pytest.mark.parametrize("count", [0, 1, 4])
@pytest.mark.parametrize("modes", [1, 5, 10, 25])
def test_people(count: int, modes: int) -> None:
    header = Header(stamp=Time(sec=-12, nanosec=999_999_999), frame_id="left_optical")
    people = [person(seed, modes, identity=seed - 1) for seed in range(count)]
    check(people, header, camera_known=False, bundle="joint", body_hash="a" * 64)


def test_people_with_different_numbers_of_modes() -> None:
    check([person(0, 3), person(1, 1), person(2, 10)], Header(frame_id="camera"), bundle="b")


texts = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=9)


@given(texts, texts, texts, st.booleans(), st.integers(-(2**31), 2**31 - 1), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_any_text_and_stamp(frame: str, bundle: str, body: str, known: bool, sec: int, nanosec: int) -> None:
    header = Header(stamp=Time(sec=sec, nanosec=nanosec), frame_id=frame)
    people = [person(0, 1, identity=-(2**31))] if known else []
    check(people, header, camera_known=known, bundle=bundle, body_hash=body)


@pytest.mark.parametrize("length", range(10))
def test_every_alignment_of_the_frame(length: int) -> None:
    check([person(1, 2)], Header(frame_id="x" * length), bundle="y" * (length % 3))


def test_text_ends_at_its_first_nul() -> None:
    header = Header(frame_id="left\0right")
    for data, msg in zip(serialize_people([], header), people_to_msgs([], header), strict=True):
        back = deserialize_message(data, type(msg))
        assert back == deserialize_message(serialize_message(msg), type(msg))
        assert back.header.frame_id == "left"


def test_modes_are_written_heaviest_first() -> None:
    written = serialize_people([person(3, 10)], Header())
    back = deserialize_message(written.hypotheses, conversions.HumanHypothesesArray)
    weights = [h.weight for h in back.people[0].hypotheses]
    assert weights == sorted(weights, reverse=True)


def test_what_a_message_cannot_hold_is_refused() -> None:
    with pytest.raises((struct.error, OverflowError)):
        serialize_people([person(0, 1, identity=2**31)], Header())


def test_other_middleware_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversions, "get_rmw_implementation_identifier", lambda: "rmw_strange_cpp")
    assert "rmw_strange_cpp" in plain_cdr_trouble()


def test_messages_of_another_package_version_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = conversions.serialize_people

    def older(*args: Any, **about: Any) -> tuple[bytes, bytes]:
        written = real(*args, **about)
        return written.hypotheses[:-8], written.uncertainty

    monkeypatch.setattr(conversions, "serialize_people", older)
    assert plain_cdr_trouble()


def image(encoding: str = "rgb8", height: int = 5, width: int = 7, frame: str = "camera", big: int = 0) -> Image:
    rng = np.random.default_rng(len(frame))
    step = 3 * width + 2
    msg = Image(height=height, width=width, encoding=encoding, step=step, is_bigendian=big)
    msg.header = Header(stamp=Time(sec=17, nanosec=42), frame_id=frame)
    msg.data = array.array("B", rng.integers(0, 256, step * height, dtype=np.uint8).tobytes())
    return msg


def check_image(data: bytes, msg: Image) -> None:
    raw = read_image(data)
    assert (raw.header.stamp, raw.header.frame_id) == (
        (msg.header.stamp.sec, msg.header.stamp.nanosec),
        msg.header.frame_id,
    )
    assert peek_stamp(data) == raw.header.stamp
    for name in ("height", "width", "encoding", "is_bigendian", "step"):
        assert getattr(raw, name) == getattr(msg, name), name
    np.testing.assert_array_equal(raw.data, np.frombuffer(msg.data, np.uint8), strict=True)


@given(texts, texts, st.integers(-(2**31), 2**31 - 1), st.integers(0, 255), st.binary(max_size=20))
@settings(max_examples=60, deadline=None)
def test_image_is_what_rclpy_reads(frame: str, encoding: str, sec: int, big: int, pixels: bytes) -> None:
    msg = Image(height=2**32 - 1, width=3, encoding=encoding, is_bigendian=big, step=9, data=pixels)
    msg.header = Header(stamp=Time(sec=sec, nanosec=5), frame_id=frame)
    data = serialize_message(msg)
    check_image(data, deserialize_message(data, Image))
    check_image(written_down(msg, ">")[0], msg)  # what a big-endian machine sends


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "mono8", "8UC3", "yuyv", "bayer_rggb8"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_picture_is_the_same_either_way(encoding: str, order: str) -> None:
    msg = image(encoding, height=6, width=8)
    data = serialize_message(msg) if order == "<" else written_down(msg, ">")[0]
    np.testing.assert_array_equal(image_to_rgb(read_image(data)), image_to_rgb(msg))


def test_pixels_are_a_view() -> None:
    msg = rgb_to_image(np.arange(60, dtype=np.uint8).reshape(4, 5, 3), Image())
    data = serialize_message(msg)
    picture = image_to_rgb(read_image(data))
    assert np.shares_memory(picture, np.frombuffer(data, np.uint8))
    assert not picture.flags.writeable


def test_cut_short_anywhere_is_told() -> None:
    data = serialize_message(image())
    for length in range(len(data)):
        with pytest.raises(ImageError, match=r"cut short|not plain CDR"):
            read_image(data[:length])
    read_image(data + b"more")


@pytest.mark.parametrize("kind", [b"\x00\x02", b"\x00\x03", b"\x00\x07", b"\xff\xff"])
def test_other_encapsulations_are_told(kind: bytes) -> None:
    with pytest.raises(ImageError, match=f"{kind.hex()}, not plain CDR"):
        read_image(kind + serialize_message(image())[2:])


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_absurd_bytes_are_a_clear_error_or_a_picture(data: Any) -> None:
    """Whatever lengths and sizes say: no other exception, and no memory is asked for that the message has not got."""
    whole = bytearray(serialize_message(image("mono8", frame=data.draw(texts))))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(4, 60))
        whole[at : at + 4] = struct.pack("<I", data.draw(st.one_of(st.integers(0, 40), st.integers(0, 2**32 - 1))))
    try:
        picture = image_to_rgb(read_image(bytes(whole)))
    except ImageError:
        return
    assert picture.size <= 3 * len(whole)
