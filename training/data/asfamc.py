"""Reader for Acclaim motion capture: a skeleton (.asf) and its motion (.amc), as the CMU database distributes them."""

from __future__ import annotations

__all__ = ["AsfBone", "AsfSkeleton", "parse_asf", "read_amc"]

from dataclasses import dataclass, field

import numpy as np

from .retarget import Clip, MocapError, canonical
from .rotations import euler_to_matrix

_INCH = 0.0254


@dataclass
class AsfBone:
    """One bone: `direction` (3,) unit vector and `length` in file units, `axis` (3, 3) frame, `dof` such as "rx"."""

    name: str
    direction: np.ndarray
    length: float
    axis: np.ndarray
    dof: tuple[str, ...] = ()
    parent: str = "root"


@dataclass
class AsfSkeleton:
    """Bones in an order in which a parent stands before its children; `scale` turns file units to metres."""

    bones: list[AsfBone] = field(default_factory=list)
    scale: float = 1.0
    degrees: bool = True
    root_order: tuple[str, ...] = ("TX", "TY", "TZ", "RX", "RY", "RZ")


# Where the joints of SMPL lie: at the END of these bones. Collars and the third spine joint share the thorax' end.
_PLACES = {
    "pelvis": "root", "left_hip": "lhipjoint", "right_hip": "rhipjoint", "spine1": "lowerback",
    "left_knee": "lfemur", "right_knee": "rfemur", "spine2": "upperback", "left_ankle": "ltibia",
    "right_ankle": "rtibia", "spine3": "thorax", "left_foot": "lfoot", "right_foot": "rfoot",
    "neck": "lowerneck", "left_collar": "thorax", "right_collar": "thorax", "head": "upperneck",
    "left_shoulder": "lclavicle", "right_shoulder": "rclavicle", "left_elbow": "lhumerus",
    "right_elbow": "rhumerus", "left_wrist": "lradius", "right_wrist": "rradius",
}  # fmt: skip
# Whose rotation a joint of SMPL follows: that of the bone that begins there.
_DRIVERS = {
    "pelvis": "root", "left_hip": "lfemur", "right_hip": "rfemur", "spine1": "lowerback",
    "left_knee": "ltibia", "right_knee": "rtibia", "spine2": "upperback", "left_ankle": "lfoot",
    "right_ankle": "rfoot", "spine3": "thorax", "left_foot": "ltoes", "right_foot": "rtoes",
    "neck": "lowerneck", "left_collar": "lclavicle", "right_collar": "rclavicle", "head": "head",
    "left_shoulder": "lhumerus", "right_shoulder": "rhumerus", "left_elbow": "lradius",
    "right_elbow": "rradius", "left_wrist": "lhand", "right_wrist": "rhand",
}  # fmt: skip


def _sections(text: str) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    current: list[str] = []
    for raw in text.splitlines():
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith(":"):
            key, _, rest = line[1:].partition(" ")
            current = out.setdefault(key.lower(), [])
            if rest.strip():
                current.append(rest.strip())
        else:
            current.append(line)
    return out


def parse_asf(text: str, name: str = "asf") -> AsfSkeleton:
    """Read an Acclaim skeleton. A length unit of 0.45 means 1/0.45 inch. Raises `MocapError` on a malformed file."""
    parts = _sections(text)
    for needed in ("bonedata", "hierarchy"):
        if needed not in parts:
            raise MocapError(f"{name}: no ':{needed}' section, so this is not an Acclaim skeleton (.asf)")
    skeleton = AsfSkeleton()
    for line in parts.get("units", []):
        words = line.split()
        if words[0] == "length":
            skeleton.scale = _INCH / float(words[1])
        elif words[0] == "angle":
            skeleton.degrees = words[1].startswith("deg")
    for line in parts.get("root", []):
        if line.startswith("order"):
            skeleton.root_order = tuple(word.upper() for word in line.split()[1:])
    bones: dict[str, AsfBone] = {}
    bone: AsfBone | None = None
    for line in parts["bonedata"]:
        words = line.split()
        if words[0] == "begin":
            bone = AsfBone("", np.zeros(3), 0.0, np.eye(3))
        elif words[0] == "end" and bone is not None:
            bones[bone.name] = bone
            bone = None
        elif bone is None:
            continue
        elif words[0] == "name":
            bone.name = words[1]
        elif words[0] == "direction":
            bone.direction = np.array([float(v) for v in words[1:4]])
        elif words[0] == "length":
            bone.length = float(words[1])
        elif words[0] == "axis":
            angles = np.array([float(v) for v in words[1:4]])
            angles = np.radians(angles) if skeleton.degrees else angles
            order = words[4].upper() if len(words) > 4 else "XYZ"
            # "XYZ" means: turn about x first, then y, then z, all about fixed axes, hence the reversed product.
            bone.axis = euler_to_matrix(angles[::-1].copy(), order[::-1])
        elif words[0] == "dof":
            bone.dof = tuple(word.lower() for word in words[1:])
    for line in parts["hierarchy"]:
        words = line.split()
        if words[0] in ("begin", "end"):
            continue
        for child in words[1:]:
            if child not in bones:
                raise MocapError(f"{name}: the hierarchy names the bone {child!r}, which :bonedata lacks")
            bones[child].parent = words[0]
            skeleton.bones.append(bones[child])
    return skeleton


def _parse_amc(text: str, skeleton: AsfSkeleton, name: str) -> dict[str, np.ndarray]:
    columns: dict[str, list[list[float]]] = {}
    frames = 0
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line[0] in "#:":
            continue
        words = line.split()
        if len(words) == 1 and words[0].isdigit():
            frames += 1
            continue
        try:
            columns.setdefault(words[0], []).append([float(v) for v in words[1:]])
        except ValueError as error:
            raise MocapError(f"{name}: line {number} is not a bone and its numbers: {line[:60]!r}") from error
    if not frames or "root" not in columns:
        raise MocapError(f"{name}: no frames with a root found, so this is not an Acclaim motion (.amc)")
    out = {}
    widths = {bone.name: len(bone.dof) for bone in skeleton.bones} | {"root": len(skeleton.root_order)}
    for key, rows in columns.items():
        if key not in widths:
            raise MocapError(f"{name}: bone {key!r} is not in the skeleton; is this the right .asf?")
        if len(rows) != frames or any(len(row) != widths[key] for row in rows):
            raise MocapError(f"{name}: bone {key!r} needs {widths[key]} numbers in each of {frames} frames")
        out[key] = np.array(rows)
    return out


def _rotations(values: np.ndarray, names: tuple[str, ...], degrees: bool) -> np.ndarray:
    """`names` such as ("rx", "rz") in file order, turned about fixed axes in that order: (T, 3, 3)."""
    keep = [k for k, n in enumerate(names) if n.lower() in ("rx", "ry", "rz")]
    angles = np.radians(values[:, keep]) if degrees else values[:, keep]
    order = "".join(names[k][1].upper() for k in keep)
    return euler_to_matrix(angles[:, ::-1].copy(), order[::-1])


def read_amc(amc: str, asf: str, fps: float, name: str = "amc") -> Clip:
    """Read a motion with its skeleton into a `Clip` (metres, y up).

    Kinematics: with C the bone's `axis` frame and E the rotation of its channels, ``R = R_parent C E C^T``, and the
    bone's end lies at the parent's end plus ``R (direction * length)``. The file states no rate: `fps` is the caller's
    (120 for the CMU originals).
    """
    skeleton = parse_asf(asf, name)
    data = _parse_amc(amc, skeleton, name)
    root = data["root"]
    frames = len(root)
    where = [k for k, n in enumerate(skeleton.root_order) if n.startswith("T")]
    position = np.zeros((frames, 3))
    for k in where:
        position[:, "XYZ".index(skeleton.root_order[k][1])] = root[:, k] * skeleton.scale
    rotations = {"root": _rotations(root, skeleton.root_order, skeleton.degrees)}
    positions = {"root": position}
    rest = {"root": np.zeros(3)}
    for bone in skeleton.bones:
        local = np.broadcast_to(np.eye(3), (frames, 3, 3))
        if bone.dof and bone.name in data:
            local = bone.axis @ _rotations(data[bone.name], bone.dof, skeleton.degrees) @ bone.axis.T
        rotations[bone.name] = rotations[bone.parent] @ local
        offset = bone.direction * bone.length * skeleton.scale
        positions[bone.name] = positions[bone.parent] + rotations[bone.name] @ offset
        rest[bone.name] = rest[bone.parent] + offset
    still = {key: np.eye(3) for key in rotations}
    return canonical(name, fps, rotations, positions, still, rest, _DRIVERS, _PLACES)
