"""Reader for BVH motion files of several skeletons: DAZ, Character Creator, MakeHuman, CMU's, Mixamo-like names."""

from __future__ import annotations

__all__ = ["BvhNode", "RestPose", "parse_bvh", "read_bvh", "read_rest_row"]

from dataclasses import dataclass, field

import numpy as np

from .retarget import Clip, MocapError, canonical
from .rotations import euler_to_matrix

# For each joint of SMPL the names it may have, most specific first, compared in lower case without prefixes such as
# "mixamorig:" and without "_" and " ". {S} is "left"/"right", {s} "l"/"r".
_ALIASES: dict[str, tuple[str, ...]] = {
    "pelvis": ("ccbasepelvis", "hips", "hip", "pelvis", "root"),
    "spine1": ("abdomen", "ccbasewaist", "spine", "spine1", "lowerback"),
    "spine2": ("ccbasespine01", "spine1", "spine2", "chest"),
    "spine3": ("ccbasespine02", "spine2", "spine3", "chest2", "upperchest", "chest"),
    "neck": ("ccbasenecktwist01", "neck", "neck1"),
    "head": ("ccbasehead", "head"),
}
_SIDE_ALIASES: dict[str, tuple[str, ...]] = {
    "hip": ("{s}thigh", "ccbase{s}thigh", "upleg{s}", "{S}upleg", "{S}thigh", "{S}hip", "{S}upperleg"),
    "knee": ("{s}shin", "ccbase{s}calf", "loleg{s}", "{S}leg", "{S}shin", "{S}knee", "{S}lowerleg"),
    "ankle": ("{s}foot", "ccbase{s}foot", "foot{s}", "{S}foot", "{S}ankle"),
    "foot": ("ccbase{s}toebase", "toe{s}", "{S}toebase", "{S}toe", "{S}toes"),
    "collar": ("{s}collar", "ccbase{s}clavicle", "clavicle{s}", "{S}collar", "{S}clavicle", "{S}shoulder"),
    "shoulder": ("{s}shldr", "ccbase{s}upperarm", "uparm{s}", "{S}arm", "{S}upperarm", "{S}uparm", "{S}shoulder"),
    "elbow": ("{s}forearm", "ccbase{s}forearm", "loarm{s}", "{S}forearm", "{S}elbow", "{S}lowerarm"),
    "wrist": ("{s}hand", "ccbase{s}hand", "hand{s}", "{S}hand", "{S}wrist"),
}
_NEEDED = tuple(f"{s}_{k}" for s in ("left", "right") for k in ("hip", "knee", "ankle", "shoulder", "elbow", "wrist"))
_UNITS = (1.0, 0.1, 0.01, 0.0254, 0.0254 / 0.45)
RestPose = dict[str, tuple[np.ndarray, np.ndarray]]
"""Global rotation (3, 3) and position (3,) in file units of each node in a standing rest pose."""
_LEG = 0.85  # metres of thigh and shin: what an adult of 1.70 m has, to tell a file's unit


@dataclass
class BvhNode:
    """A joint or end site: `offset` (3,) in file units, names of its `channels`, the `column` of the first of them and
    the index of its `parent`, -1 for a root."""

    name: str
    parent: int
    offset: np.ndarray = field(default_factory=lambda: np.zeros(3))
    channels: tuple[str, ...] = ()
    column: int = 0
    end: bool = False


def parse_bvh(text: str, name: str = "bvh") -> tuple[list[BvhNode], np.ndarray, float]:
    """Nodes (parents first), motion rows (T, channels) as written, and seconds per frame.

    Raises `MocapError` naming what is malformed.
    """
    head, mark, tail = text.partition("MOTION")
    if not mark or "HIERARCHY" not in head:
        raise MocapError(f"{name}: no HIERARCHY and MOTION sections, so this is not a BVH file")
    nodes: list[BvhNode] = []
    stack: list[int] = []
    column = 0
    for raw in head.splitlines():
        words = raw.split()
        if not words or words[0] in ("HIERARCHY", "{"):
            continue
        if words[0] in ("ROOT", "JOINT"):
            nodes.append(BvhNode(" ".join(words[1:]), stack[-1] if stack else -1))
            stack.append(len(nodes) - 1)
        elif words[0] == "End":
            nodes.append(BvhNode(f"{nodes[stack[-1]].name} end", stack[-1], end=True))
            stack.append(len(nodes) - 1)
        elif words[0] == "}":
            stack.pop()
        elif words[0] == "OFFSET":
            nodes[stack[-1]].offset = np.array([float(v) for v in words[1:4]])
        elif words[0] == "CHANNELS":
            node = nodes[stack[-1]]
            node.channels, node.column = tuple(words[2:]), column
            if len(node.channels) != int(words[1]):
                raise MocapError(f"{name}: joint {node.name!r} announces {words[1]} channels and lists {words[2:]}")
            column += len(node.channels)
    lines = tail.strip().splitlines()
    try:
        count = int(lines[0].split(":")[1])
        seconds = float(lines[1].split(":")[1])
        rows = np.array(" ".join(lines[2:]).split(), dtype=np.float64)
    except (IndexError, ValueError) as error:
        raise MocapError(f"{name}: the MOTION section is malformed ({error})") from error
    if not column or rows.size % column or rows.size // column < 1:
        raise MocapError(f"{name}: {rows.size} numbers do not fill rows of {column} channels: is it truncated?")
    rows = rows.reshape(-1, column)
    return nodes, rows[: max(count, 1)], seconds


def _forward(nodes: list[BvhNode], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Global rotations (T, S, 3, 3) and positions (T, S, 3) in file units and axes.

    Position channels are added to the OFFSET; `_floating` tells the files whose channels contain it already.
    """
    frames = len(rows)
    rotations = np.empty((frames, len(nodes), 3, 3))
    positions = np.empty((frames, len(nodes), 3))
    for j, node in enumerate(nodes):
        turn = [k for k, c in enumerate(node.channels) if c.endswith("rotation")]
        move = [k for k, c in enumerate(node.channels) if c.endswith("position")]
        local = np.broadcast_to(np.eye(3), (frames, 3, 3))
        if turn:
            order = "".join(node.channels[k][0] for k in turn)
            local = euler_to_matrix(np.radians(rows[:, [node.column + k for k in turn]]), order)
        offset = np.broadcast_to(node.offset, (frames, 3)).copy()
        for k in move:
            offset[:, "XYZ".index(node.channels[k][0])] += rows[:, node.column + k]
        if node.parent < 0:
            rotations[:, j], positions[:, j] = local, offset
        else:
            above = rotations[:, node.parent]
            rotations[:, j] = above @ local
            positions[:, j] = positions[:, node.parent] + (above @ offset[..., None])[..., 0]
    return rotations, positions


def _floating(positions: np.ndarray, feet: list[int], root: np.ndarray, up: int) -> bool:
    """Whether the root's OFFSET is contained in its channels: without it the feet come closer to height 0.

    Exporters disagree on that, and nothing in the file says which it is.
    """
    low = float(np.percentile(positions[:, feet, up].min(axis=1), 2))
    return abs(low - root[up]) < abs(low)


def _plain(name: str) -> str:
    return name.split(":")[-1].lower().replace("_", "").replace(" ", "").replace("-", "")


def _recognise(nodes: list[BvhNode], name: str) -> dict[str, int]:
    """Joint of SMPL -> index of the node with its name. Raises `MocapError` where limbs are missing."""
    # MakeHuman puts a helper joint "__UpLeg_L" before "UpLeg_L"; of several alike the first counts.
    joints = [(j, node.name) for j, node in enumerate(nodes) if not node.end and not node.name.startswith("__")]
    have = {_plain(label): j for j, label in reversed(joints)}
    out: dict[str, int] = {}
    for joint, names in _ALIASES.items():
        # A node serves one joint only, so that a lone "Chest" is not counted twice.
        hit = next((have[n] for n in names if n in have and have[n] not in out.values()), None)
        if hit is not None:
            out[joint] = hit
    for side in ("left", "right"):
        for joint, names in _SIDE_ALIASES.items():
            found = [n.format(s=side[0], S=side) for n in names]
            hit = next((have[n] for n in found if n in have and have[n] not in out.values()), None)
            if hit is not None:
                out[f"{side}_{joint}"] = hit
    for side in ("left", "right"):  # the collar is what lies between the spine and the shoulder
        if f"{side}_shoulder" not in out and f"{side}_collar" in out:
            out[f"{side}_shoulder"] = out.pop(f"{side}_collar")
    missing = [joint for joint in ("pelvis", *_NEEDED) if joint not in out]
    if missing:
        raise MocapError(
            f"{name}: no joint of this BVH is named like {', '.join(missing)}; rename its joints in the manner of "
            "Hips, LeftUpLeg, LeftLeg, LeftFoot, LeftArm, LeftForeArm, LeftHand"
        )
    return out


def _stands(places: dict[str, np.ndarray], spread: float = -0.2) -> bool:
    """Whether positions show a person standing upright with straight limbs: a usable rest pose, whatever the axes.

    `spread`: least cosine between the upper arm and the line across the hips; 0.8 asks for a T-pose.
    """

    def unit(a: str, b: str) -> np.ndarray:
        v = places[b] - places[a]
        return v / max(float(np.linalg.norm(v)), 1e-9)

    for side in ("left", "right"):
        if unit(f"{side}_hip", f"{side}_knee") @ unit(f"{side}_knee", f"{side}_ankle") < 0.9:
            return False
        if unit(f"{side}_shoulder", f"{side}_elbow") @ unit(f"{side}_elbow", f"{side}_wrist") < 0.8:
            return False
    up = unit("left_ankle", "left_hip")
    across = unit("right_hip", "left_hip")
    trunk = (places["left_shoulder"] + places["right_shoulder"] - places["left_hip"] - places["right_hip"]) @ up
    arms = unit("left_shoulder", "left_elbow") @ across
    return bool(trunk > 0 and arms > spread and unit("right_ankle", "right_hip") @ up > 0.8)


def read_rest_row(text: str, name: str = "bvh") -> RestPose:
    """The pose of row 0 by node name, to serve as `rest` of files of the same skeleton that have none."""
    nodes, rows, _ = parse_bvh(text, name)
    rotations, positions = _forward(nodes, rows[:1])
    return {node.name: (rotations[0, j], positions[0, j]) for j, node in enumerate(nodes)}


def read_bvh(
    text: str,
    name: str = "bvh",
    rest_row: bool | None = None,
    rest: RestPose | None = None,
    unit: float | None = None,
    fps: float | None = None,
) -> Clip:
    """Read a BVH file into a `Clip` (metres, y up).

    `rest_row`: row 0 is the rest pose and no motion; None takes no row away. `rest` gives the rest pose of another
    file of the same skeleton (`read_rest_row`); else it is row 0 where `rest_row`, else the pose with all
    channels 0. `unit` is metres per file unit; None tells it by the length of the legs. `fps` overrides the file's.
    The up axis is told from the rest pose. Raises `MocapError` where names or the rest pose are not recognised.
    """
    nodes, rows, seconds = parse_bvh(text, name)
    found = _recognise(nodes, name)
    rotations, positions = _forward(nodes, rows)
    zero = np.zeros((1, rows.shape[1]))
    still, places = (a[0] for a in _forward(nodes, rows[:1] if rest_row else zero))
    least = -0.2
    if rest is None and not _stands({k: places[v] for k, v in found.items()}):
        # A motion's first frame may stand as well, with its arms down: only a T-pose is taken for a rest pose.
        still, places, least = rotations[0].copy(), positions[0].copy(), 0.8
    if rest is not None:
        still, places = still.copy(), places.copy()
        for j, node in enumerate(nodes):
            still[j], places[j] = rest.get(node.name, (still[j], places[j]))
    named = {k: places[v] for k, v in found.items()}
    if not _stands(named, least):
        raise MocapError(
            f"{name}: neither the pose with all angles 0 nor row 0 is a standing rest pose (T-pose); put a T-pose into "
            "row 0, or read a file of the same skeleton that has one beside it"
        )
    if rest_row:
        rotations, positions = rotations[1:], positions[1:]
    leg = np.linalg.norm(named["left_hip"] - named["left_knee"]) + np.linalg.norm(
        named["left_knee"] - named["left_ankle"]
    )
    if unit is None:
        unit = min(_UNITS, key=lambda u: abs(np.log(max(float(leg), 1e-9) * u / _LEG)))
    up = int(np.argmax(np.abs(named["left_hip"] - named["left_ankle"])))
    if _floating(positions, [found["left_ankle"], found["right_ankle"]], nodes[0].offset, up):
        positions = positions - nodes[0].offset
    turn = np.eye(3)
    if up == 2:  # z up -> y up: (x, y, z) becomes (x, z, -y)
        turn = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
    rotations, still = turn @ rotations, turn @ still
    positions, places = positions @ turn.T * unit, places @ turn.T * unit
    where = dict(found)
    for side in ("left", "right"):
        if f"{side}_foot" not in where:
            end = [j for j, n in enumerate(nodes) if n.end and n.parent == where[f"{side}_ankle"]]
            where |= {f"{side}_foot": end[0]} if end else {}
    used = set(where.values())
    names = {j: str(j) for j in used}
    return canonical(
        name,
        fps or 1.0 / seconds,
        {names[j]: rotations[:, j] for j in used},
        {names[j]: positions[:, j] for j in used},
        {names[j]: still[j] for j in used},
        {names[j]: places[j] for j in used},
        {k: names[j] for k, j in found.items()},
        {k: names[j] for k, j in where.items()},
    )
