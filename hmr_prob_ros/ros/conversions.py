"""Hypotheses to ROS messages and back.

Numbers stay in flat ``float32`` fields: a numpy array of the right size is assigned in one step, while nested
messages cost one Python object per element. The node itself writes no objects at all, see :mod:`.cdr`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from builtin_interfaces.msg import Time
from rclpy.serialization import deserialize_message
from rclpy.type_support import check_for_type_support
from rclpy.utilities import get_rmw_implementation_identifier
from std_msgs.msg import Header

from hmr_prob_ros.msg import (
    BodyHypothesis,
    HumanHypotheses,
    HumanHypothesesArray,
    HumanUncertainty,
    HumanUncertaintyArray,
    JointUncertainty,
    PoseKeypoints,
    PoseKeypointsArray,
)

from ..hypotheses import HypothesisError, HypothesisSet, Person2D
from ..skeleton import JOINT_NAMES, NUM_JOINTS, NUM_KEYPOINTS
from .cdr import serialize_people

__all__ = [
    "hypotheses_from_msg",
    "hypotheses_to_msg",
    "load_type_support",
    "people_from_msg",
    "people_to_msg",
    "people_to_msgs",
    "plain_cdr_trouble",
    "stamp_to_nanoseconds",
    "uncertainty_to_msg",
]

_NAMES = list(JOINT_NAMES)
_MOST_PEOPLE = 256
_PLAIN_CDR = ("rmw_fastrtps_cpp", "rmw_fastrtps_dynamic_cpp", "rmw_cyclonedds_cpp")


def load_type_support(message: type) -> None:
    """Load the compiled part of a message type. Raises what rclpy raises where it is missing or does not fit."""
    check_for_type_support(message)


def stamp_to_nanoseconds(stamp: object) -> int:
    """``builtin_interfaces/Time`` -> nanoseconds."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)  # type: ignore[attr-defined]


def plain_cdr_trouble() -> str:
    """Why messages cannot be written and read with :mod:`.cdr` here, "" where they can: proved on a small message."""
    name = get_rmw_implementation_identifier()
    if name not in _PLAIN_CDR:
        return f"{name} is not known to send plain CDR"
    rng = np.random.default_rng(0)
    shapes = {
        "box": (4,), "keypoints": (23, 3), "log_density": (1,), "rotations": (1, 24, 3, 3), "betas": (1, 10),
        "translation": (1, 3), "joints": (1, 24, 3), "keypoints3d": (1, 23, 3), "mean": (24, 3),
        "covariance": (24, 3, 3), "visibility": (24,),
    }  # fmt: skip
    arrays = {name: rng.uniform(size=shape) for name, shape in shapes.items()}
    people = [HypothesisSet(id=7, score=0.5, weights=np.ones(1), **arrays)]
    header = Header(stamp=Time(sec=1, nanosec=2), frame_id="odd")
    written = serialize_people(people, header, bundle="bundle", body_hash="hash")
    wanted = people_to_msgs(people, header, bundle="bundle", body_hash="hash")
    try:
        same = all(deserialize_message(data, type(msg)) == msg for data, msg in zip(written, wanted, strict=True))
    except Exception as error:  # rclpy raises what its middleware raises
        return f"{name} cannot read it ({error})"
    return "" if same else f"{name} reads it otherwise; the messages may have been built from other .msg files"


def _flat(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.float32).reshape(-1)


def _joint_uncertainty(person: HypothesisSet) -> JointUncertainty:
    msg = JointUncertainty()
    msg.names = _NAMES
    msg.mean = _flat(person.mean)
    msg.covariance = _flat(person.covariance)
    msg.spread = _flat(person.spread)
    msg.visibility = _flat(person.visibility)
    return msg


def _body_hypothesis(person: HypothesisSet, mode: int) -> BodyHypothesis:
    msg = BodyHypothesis()
    msg.weight = float(person.weights[mode])
    msg.log_density = float(person.log_density[mode])
    msg.joints = _flat(person.joints[mode])
    msg.keypoints3d = _flat(person.keypoints3d[mode])
    msg.rotations = _flat(person.rotations[mode])
    msg.betas = _flat(person.betas[mode])
    msg.translation = _flat(person.translation[mode])
    return msg


def hypotheses_to_msg(
    people: Sequence[HypothesisSet],
    header: Header,
    *,
    camera_known: bool = True,
    bundle: str = "",
    body_hash: str = "",
) -> HumanHypothesesArray:
    """Everybody in one image -> ``HumanHypothesesArray`` with the image's header; modes heaviest first."""
    array = HumanHypothesesArray(header=header, camera_known=camera_known, bundle=bundle, body_hash=body_hash)
    for person in people:
        msg = HumanHypotheses(id=int(person.id), score=float(person.score))
        msg.box = _flat(person.box)
        msg.keypoints = _flat(person.keypoints)
        order = np.argsort(-person.weights, kind="stable")
        msg.hypotheses = [_body_hypothesis(person, int(mode)) for mode in order]
        msg.uncertainty = _joint_uncertainty(person)
        array.people.append(msg)
    return array


def uncertainty_to_msg(
    people: Sequence[HypothesisSet], header: Header, *, camera_known: bool = True
) -> HumanUncertaintyArray:
    """Everybody in one image -> ``HumanUncertaintyArray`` with the image's header."""
    array = HumanUncertaintyArray(header=header, camera_known=camera_known)
    for person in people:
        array.people.append(
            HumanUncertainty(id=int(person.id), score=float(person.score), joints=_joint_uncertainty(person))
        )
    return array


def people_to_msgs(
    people: Sequence[HypothesisSet],
    header: Header,
    *,
    camera_known: bool = True,
    bundle: str = "",
    body_hash: str = "",
) -> tuple[HumanHypothesesArray, HumanUncertaintyArray]:
    """Both messages of one image, as ``cdr.serialize_people`` writes them without objects."""
    return (
        hypotheses_to_msg(people, header, camera_known=camera_known, bundle=bundle, body_hash=body_hash),
        uncertainty_to_msg(people, header, camera_known=camera_known),
    )


def hypotheses_from_msg(array: HumanHypothesesArray) -> list[HypothesisSet]:
    """``HumanHypothesesArray`` -> one :class:`HypothesisSet` a person.

    Raises:
        HypothesisError: a person has no hypotheses, or numbers that are not finite.
    """
    return [_hypothesis_set(msg) for msg in array.people]


def _hypothesis_set(msg: HumanHypotheses) -> HypothesisSet:
    def stack(name: str, *shape: int) -> np.ndarray:
        rows = [np.asarray(getattr(h, name), np.float32) for h in msg.hypotheses]
        return np.stack(rows).reshape(len(rows), *shape) if rows else np.zeros((0, *shape), np.float32)

    uncertainty = msg.uncertainty
    return HypothesisSet(
        id=int(msg.id),
        box=np.array(msg.box, np.float32),
        score=float(msg.score),
        keypoints=np.array(msg.keypoints, np.float32).reshape(NUM_KEYPOINTS, 3),
        weights=stack("weight"),
        log_density=stack("log_density"),
        rotations=stack("rotations", NUM_JOINTS, 3, 3),
        betas=stack("betas", 10),
        translation=stack("translation", 3),
        joints=stack("joints", NUM_JOINTS, 3),
        keypoints3d=stack("keypoints3d", NUM_KEYPOINTS, 3),
        mean=np.array(uncertainty.mean, np.float32).reshape(NUM_JOINTS, 3),
        covariance=np.array(uncertainty.covariance, np.float32).reshape(NUM_JOINTS, 3, 3),
        visibility=np.array(uncertainty.visibility, np.float32),
    )


def people_to_msg(people: Sequence[Person2D], header: Header) -> PoseKeypointsArray:
    """2D poses of one image -> ``PoseKeypointsArray``, for a detector that runs in a node of its own."""
    array = PoseKeypointsArray(header=header)
    for person in people:
        msg = PoseKeypoints(id=int(person.id), score=float(person.score))
        msg.box = _flat(person.box)
        msg.keypoints = _flat(person.keypoints)
        array.people.append(msg)
    return array


def people_from_msg(array: PoseKeypointsArray) -> list[Person2D]:
    """``PoseKeypointsArray`` -> 2D poses; a box that is all zero is taken from the keypoints with a confidence.

    Raises:
        HypothesisError: a number is not finite, or there are more people than a picture can show.
    """
    if len(array.people) > _MOST_PEOPLE:
        raise HypothesisError(f"keypoints of {len(array.people)} people: send at most {_MOST_PEOPLE} in a message")
    people = []
    for msg in array.people:
        keypoints = np.array(msg.keypoints, np.float32).reshape(NUM_KEYPOINTS, 3)
        keypoints[:, 2] = np.clip(keypoints[:, 2], 0.0, 1.0)
        box = np.array(msg.box, np.float32)
        seen = keypoints[keypoints[:, 2] > 0, :2]
        if not box.any() and len(seen):
            box = np.concatenate([seen.min(axis=0), seen.max(axis=0)])
        people.append(Person2D(box, float(msg.score), keypoints, int(msg.id)))
    return people
