"""BVH files: named joints, axes and units, rest poses, and what is wrong with broken ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hmr_prob_ros.body import Body
from hmr_prob_ros.skeleton import JOINT_NAMES
from hmr_prob_ros.training.data.bvh import read_bvh, read_rest_row
from hmr_prob_ros.training.data.limits import knee_bend
from hmr_prob_ros.training.data.mocap import load_mocap
from hmr_prob_ros.training.data.retarget import MocapError, resample, retarget
from hmr_prob_ros.training.data.rotations import axis_angle_to_matrix

pytest.importorskip("torch")
J = {name: k for k, name in enumerate(JOINT_NAMES)}


_BVH = """HIERARCHY
ROOT Hips
{
  OFFSET 0 0 0
  CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation
  JOINT Spine
  {
    OFFSET 0 20 0
    CHANNELS 3 Zrotation Xrotation Yrotation
%s
  }
%s
}
MOTION
Frames: %d
Frame Time: 0.0166667
%s
"""


def _joint(chain: list[tuple[str, str]]) -> str:
    if not chain:
        return "End Site\n{\n OFFSET 0 -5 5\n}"
    (name, offset), *others = chain
    return f"JOINT {name}\n{{\n OFFSET {offset}\n CHANNELS 3 Zrotation Xrotation Yrotation\n{_joint(others)}\n}}"


def _bvh(rows: np.ndarray, prefix: str = "mixamorig:") -> str:
    arms = [
        _joint(
            [
                (f"{prefix}{s}Arm", f"{k * 18} 30 0"),
                (f"{prefix}{s}ForeArm", f"{k * 28} 0 0"),
                (f"{prefix}{s}Hand", f"{k * 25} 0 0"),
            ]
        )
        for s, k in (("Left", 1), ("Right", -1))
    ]
    legs = [
        _joint(
            [(f"{prefix}{s}UpLeg", f"{k * 9} -5 0"), (f"{prefix}{s}Leg", "0 -42 0"), (f"{prefix}{s}Foot", "0 -41 0")]
        )
        for s, k in (("Left", 1), ("Right", -1))
    ]
    text = "\n".join(" ".join(f"{v:.6f}" for v in row) for row in rows)
    return _BVH % ("\n".join(arms), "\n".join(legs), len(rows), text)


def _rows(count: int = 4) -> np.ndarray:
    # Hips 6, Spine 3, two arms of 3 joints, two legs of 3 joints
    rows = np.zeros((count, 6 + 3 + 18 + 18))
    rows[:, 1] = 88.0
    return rows


def test_bvh_of_named_joints(rest: np.ndarray, body: Body):
    rows = _rows()
    rows[1, 27 + 3 + 1] = 60.0  # left knee: Xrotation
    rows[2, 9 + 9 + 2] = 90.0  # right arm: Yrotation
    clip = read_bvh(_bvh(rows), "made")
    assert clip.fps == pytest.approx(60.0, rel=1e-4)
    assert clip.positions[0, J["left_hip"]] == pytest.approx([0.09, 0.83, 0.0])
    motion = retarget(clip, rest)
    matrix = axis_angle_to_matrix(motion.pose)
    assert knee_bend(matrix[1, J["left_knee"]])[0] == pytest.approx(60.0, abs=1.5)
    assert knee_bend(matrix[1, J["right_knee"]])[0] == pytest.approx(0.0, abs=1.5)
    joints = body.joints(matrix, np.zeros(10))
    assert joints[2, J["right_wrist"], 2] - joints[2, J["right_shoulder"], 2] > 0.4  # the right arm points forwards
    assert resample(motion, 30.0).pose == pytest.approx(motion.pose[::2])


def test_bvh_z_up_in_metres_is_turned(rest: np.ndarray):
    straight = read_bvh(_bvh(_rows()), "y up")
    lines = []
    for line in _bvh(_rows()).splitlines():
        words = line.split()
        if words[:1] == ["OFFSET"]:
            x, y, z = (float(v) / 100 for v in words[1:])
            line = f"OFFSET {x} {-z} {y}"
        lines.append(line)
    rows = _rows()
    rows[:, 1], rows[:, 2] = 0.0, 0.88
    text = "\n".join(lines[: lines.index("MOTION") + 3]) + "\n" + "\n".join(" ".join(map(str, r)) for r in rows)
    turned = read_bvh(text, "z up")
    assert np.allclose(np.nan_to_num(turned.positions), np.nan_to_num(straight.positions), atol=1e-6)
    assert np.allclose(retarget(turned, rest).pose, retarget(straight, rest).pose, atol=1e-9)


def test_bvh_without_a_rest_pose_borrows_one(tmp_path: Path, body: Body):
    # A skeleton whose bones all point up at angle 0, as exporters of rigs write it.
    def up(text: str) -> str:
        out = []
        for line in text.splitlines():
            words = line.split()
            if words[:1] == ["OFFSET"] and float(words[2]) < -10:
                line = f"OFFSET {words[1]} {-float(words[2])} {words[3]}"
            out.append(line)
        return "\n".join(out)

    rows = _rows(3)
    for leg in (27, 36):
        rows[:, leg] = 180.0  # the thigh's Zrotation turns the leg down
        rows[1, leg] = 150.0
    tpose = up(_bvh(rows))
    moving = rows.copy()
    moving[0, 9] = -80.0  # an arm hangs: no T-pose
    with pytest.raises(MocapError, match="rest pose"):
        read_bvh(up(_bvh(moving)), "moving")
    clip = read_bvh(up(_bvh(moving)), "moving", rest=read_rest_row(tpose))
    assert clip.positions[0, J["left_ankle"], 1] < 0.2
    (tmp_path / "a.bvh").write_text(tpose)
    (tmp_path / "b.bvh").write_text(up(_bvh(moving)))
    assert len(load_mocap([tmp_path], body, progress=False)) > 0


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("hello", "HIERARCHY"),
        (_bvh(_rows()).replace("ForeArm", "Bone"), "left_elbow"),
        (_bvh(_rows()).replace("0.000000", "x", 1), "MOTION section"),
        ("\n".join(_bvh(_rows()).splitlines()[:-1]) + "\n1 2 3", "do not fill rows"),
    ],
)
def test_bvh_errors_name_the_fault(text: str, match: str):
    with pytest.raises(MocapError, match=match):
        read_bvh(text, "bad.bvh")
