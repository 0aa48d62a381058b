"""Contact sheets: many bodies side by side in one picture, each from the front and from the side.

    python -m hmr_prob_ros.training.contact_sheet --mocap path/to/mocap --output sheet.png
    python -m hmr_prob_ros.training.contact_sheet --pool pool.npz --kind sitting --output sitting.png
    python -m hmr_prob_ros.training.contact_sheet --set biggs.npz --output samples.png

The last draws samples of a bundle's posterior beside the true bodies of a set.

Left limbs are drawn blue, right limbs orange, the trunk grey, so that a swap of sides is seen at a glance.
"""

from __future__ import annotations

__all__ = ["contact_sheet", "draw_mesh", "draw_skeleton", "main", "posterior_sheet"]

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from hmr_prob_ros.body import Body
from hmr_prob_ros.bundle import Bundle
from hmr_prob_ros.camera import condition
from hmr_prob_ros.engines import make_engine
from hmr_prob_ros.setfile import PoseSet
from hmr_prob_ros.skeleton import BONES, JOINT_NAMES

from .data.rotations import axis_angle_to_matrix

# RGB
_LEFT, _RIGHT, _MIDDLE = (80, 140, 235), (240, 150, 60), (190, 190, 190)
_PAPER = 250
_SPAN = 2.1  # metres that a tile shows; more where the body does not fit


def _colour(joint: int) -> tuple[int, int, int]:
    name = JOINT_NAMES[joint]
    return _LEFT if name.startswith("left") else _RIGHT if name.startswith("right") else _MIDDLE


def _view(points: np.ndarray, joints: np.ndarray, turn: float) -> np.ndarray:
    """Points (P, 3), y up, seen from where the body faces, turned by `turn` radians: x right, y down, z away, metres.

    The camera looks down by 12 degrees, so that what is nearer appears lower.
    """
    left = joints[1] - joints[2] + joints[16] - joints[17]
    facing = np.arctan2(-left[2], left[0]) + turn
    spin = axis_angle_to_matrix(np.array([0.0, -facing, 0.0]))
    tilt = axis_angle_to_matrix(np.array([np.radians(12.0), 0.0, 0.0]))
    seen = (points - joints.mean(axis=0)) @ (tilt @ spin).T
    # The camera stands at +z and looks along -z, so the body's left (+x) appears on the right, as in a photograph.
    return np.stack([seen[:, 0], -seen[:, 1], -seen[:, 2]], axis=-1)


def _span(joints: np.ndarray) -> float:
    """Metres that a tile has to show for a body (24, 3): three quarters of the tile's width are kept in the sheet."""
    return max(_SPAN, 2.9 * float(np.linalg.norm(joints - joints.mean(axis=0), axis=-1).max()))


def _floor(tile: np.ndarray, points: np.ndarray, joints: np.ndarray) -> None:
    """A grey line at the height of the lowest point below the body's middle."""
    size = len(tile)
    low = float(joints.mean(axis=0)[1] - points[:, 1].min()) * np.cos(np.radians(12.0))
    row = int(size / 2 + low * size / _span(joints))
    cv2.line(tile, (int(0.15 * size), row), (int(0.85 * size), row), (215, 215, 215), 1, cv2.LINE_AA)


def draw_mesh(vertices: np.ndarray, joints: np.ndarray, body: Body, turn: float, size: int) -> np.ndarray:
    """One shaded body as an RGB tile (size, size, 3): points on its surface (V, 3), y up, splatted far to near."""
    faces = body.faces
    corners = vertices[faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-12)
    weights = np.array([[4, 1, 1], [1, 4, 1], [1, 1, 4], [2, 2, 2]], dtype=np.float64) / 6.0
    points = np.einsum("pk,fkc->fpc", weights, corners).reshape(-1, 3)
    owner = np.argmax(body.weights, axis=1)[faces[:, 0]]
    colours = np.array([_colour(j) for j in range(24)], dtype=np.float64)[owner]
    towards = _view(normal + joints.mean(axis=0), joints, turn)
    light = np.clip(towards @ np.array([0.35, -0.5, -0.79]), 0.0, 1.0)
    colours = colours * (0.35 + 0.65 * light[:, None])
    front = towards[:, 2] < 0.1
    colours, points = colours[front], points[np.repeat(front, 4)]
    seen = _view(points, joints, turn)
    scale = 2 * size / _span(joints)  # drawn at twice the size, then shrunk
    column = np.round(seen[:, 0] * scale + size).astype(int)
    row = np.round(seen[:, 1] * scale + size).astype(int)
    big = np.full((2 * size, 2 * size, 3), _PAPER, dtype=np.uint8)
    line = np.full((size, size, 3), _PAPER, dtype=np.uint8)
    _floor(line, vertices, joints)
    big[:] = cv2.resize(line, (2 * size, 2 * size), interpolation=cv2.INTER_NEAREST)
    # Far to near, each point as a patch wide enough to close the surface: the last to write a pixel is the nearest.
    order = np.argsort(-seen[:, 2])
    side = max(2, int(np.ceil(size / 75)))
    dy, dx = (a.ravel() for a in np.mgrid[:side, :side])
    r = (row[order][:, None] + dy).ravel()
    c = (column[order][:, None] + dx).ravel()
    paint = np.repeat(np.repeat(colours, 4, axis=0)[order].astype(np.uint8), side * side, axis=0)
    inside = (r >= 0) & (r < 2 * size) & (c >= 0) & (c < 2 * size)
    big[r[inside], c[inside]] = paint[inside]
    return cv2.resize(big, (size, size), interpolation=cv2.INTER_AREA)


def draw_skeleton(joints: np.ndarray, turn: float, size: int) -> np.ndarray:
    """One skeleton (24, 3), y up, as an RGB tile (size, size, 3), the far bones first."""
    tile = np.full((size, size, 3), _PAPER, dtype=np.uint8)
    _floor(tile, joints, joints)
    seen = _view(joints, joints, turn)
    pixels = np.round(seen[:, :2] * size / _span(joints) + size / 2).astype(int)
    for parent, child in sorted(BONES, key=lambda b: -(seen[b[0], 2] + seen[b[1], 2])):
        ends = [tuple(int(v) for v in pixels[k]) for k in (parent, child)]
        cv2.line(tile, ends[0], ends[1], _colour(child), max(size // 45, 2), cv2.LINE_AA)
    cv2.circle(tile, tuple(int(v) for v in pixels[15]), max(size // 20, 3), _MIDDLE, -1, cv2.LINE_AA)
    return tile


def contact_sheet(
    bodies: np.ndarray,
    path: str | Path,
    titles: Sequence[str] | None = None,
    kind: str = "pose",
    body: Body | None = None,
    columns: int = 8,
    size: int = 170,
    up: str = "y",
    betas: np.ndarray | None = None,
) -> np.ndarray:
    """Draw bodies from the front and the side and write the sheet; returns it as (H, W, 3) RGB.

    :param bodies: (K, 24, 3) axis-angle for `kind` "pose", (K, 24, 3) metres for "joints" (drawn as skeletons), or
        local rotation matrices (K, 24, 3, 3).
    :param titles: a word for each.
    :param up: "y" for poses of the training data; "-y" for those of a camera's optical frame.
    :param betas: (K, 10) shapes; the mean body where None.
    :raises ValueError: shapes, `kind` or `up` do not fit.
    """
    values = np.asarray(bodies, dtype=np.float64)
    if kind not in ("pose", "joints") or up not in ("y", "-y") or values.shape[1:] not in ((24, 3), (24, 3, 3)):
        raise ValueError(f"contact_sheet: kind {kind!r}, up {up!r} and an array of shape {values.shape} do not fit")
    if kind == "pose":
        body = body or Body.load()
        rotations = values if values.ndim == 4 else axis_angle_to_matrix(values)
        shapes = np.zeros((len(values), body.num_betas)) if betas is None else np.asarray(betas, dtype=np.float64)
    flip = np.array([1.0, -1.0, -1.0]) if up == "-y" else np.ones(3)
    tiles = []
    for k in range(len(values)):
        if kind == "joints":
            joints = values[k] * flip
            pair = [draw_skeleton(joints, turn, size) for turn in (0.0, np.pi / 2)]
        else:
            assert body is not None
            joints = body.joints(rotations[k], shapes[k]) * flip
            mesh = body.vertices(rotations[k], shapes[k]) * flip
            pair = [draw_mesh(mesh, joints, body, turn, size) for turn in (0.0, np.pi / 2)]
        tile = np.concatenate([p[:, size // 8 : size - size // 8] for p in pair], axis=1)
        if titles is not None:
            cv2.putText(tile, titles[k], (4, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (20, 20, 20), 1, cv2.LINE_AA)
        tile[-1], tile[:, -1] = 225, 225
        tiles.append(tile)
    columns = min(columns, max(len(tiles), 1))
    while len(tiles) % columns:
        tiles.append(np.full_like(tiles[0], _PAPER))
    rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    sheet = np.concatenate(rows, axis=0)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), sheet[..., ::-1]):
        raise OSError(f"cannot write the picture {path}")
    return sheet


def posterior_sheet(
    data: PoseSet,
    path: str | Path,
    bundle: str | Path | None = None,
    count: int = 6,
    modes: int = 5,
    samples: int = 2,
    seed: int = 0,
) -> np.ndarray:
    """One row for each of ``count`` examples of a set: the true body (where known), the heaviest of the bundle's modes
    and random samples of its posterior, as the camera sees them and from their side. Writes and returns the sheet,
    (H, W, 3) RGB."""
    loaded = Bundle.load(bundle)
    engine = make_engine("onnxruntime", loaded.model_path)
    rng = np.random.default_rng(seed)
    bodies, betas, titles = [], [], []
    for i in np.sort(rng.choice(len(data), size=min(count, len(data)), replace=False)):
        seen = condition(data.keypoints[i], data.camera(i))
        if seen is None:
            continue
        latents = rng.standard_normal((1, loaded.samples, loaded.latent_size), dtype=np.float32)
        latents[:, 0] = 0
        out = engine.run({"keypoints": seen[0][None], "box": seen[1][None], "latents": latents})
        points = int((data.keypoints[i, :, 2] >= 0.3).sum())
        if data.rotations is not None and data.betas is not None:
            bodies.append(data.rotations[i])
            betas.append(data.betas[i])
            titles.append(f"{i} truth, {points} points seen")
        heaviest = np.argsort(-out["mode_weight"][0], kind="stable")[:modes]
        drawn = np.arange(1, samples + 1)
        for kind, which in (("mode", heaviest), ("sample", drawn)):
            bodies += list(out[f"{kind}_rotations"][0, which])
            betas += list(out[f"{kind}_betas"][0, which])
        titles += [f"{i} mode, {out['mode_weight'][0, k]:.0%}" for k in heaviest] + [f"{i} draw"] * samples
    columns = len(titles) // max(len({t.split()[0] for t in titles}), 1)
    return contact_sheet(np.stack(bodies), path, titles, columns=columns, up="-y", betas=np.stack(betas))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="contact_sheet", description="Draw training poses, or samples of a posterior."
    )
    parser.add_argument("--mocap", nargs="*", default=[], help="motion capture: folders, archives, files")
    parser.add_argument("--cache", help="npz cache of the motion capture (made if absent)")
    parser.add_argument("--split", default="train", choices=("train", "validation", "test"))
    parser.add_argument("--pool", help="npz pool of widened poses to draw instead")
    parser.add_argument("--set", help="npz set of `hmr-prob make-set`: draw the posterior of its examples instead")
    parser.add_argument("--bundle", help="model bundle for --set (default: the shipped one)")
    parser.add_argument("--kind", help="only poses of this source or kind")
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--body", help="body file (default: the one of this package)")
    parser.add_argument("--output", required=True)
    options = parser.parse_args(arguments)
    if options.set:
        posterior_sheet(PoseSet.load(options.set), options.output, options.bundle, options.count, seed=options.seed)
        print(options.output)
        return 0
    from .data.mocap import Mocap, load_mocap

    body = Body.load(options.body)
    if options.pool:
        from .data.widen import KINDS, load_pool

        pose, code = load_pool(options.pool)
        names = np.asarray(KINDS)[code]
    else:
        if not options.mocap and not options.cache:
            parser.error("name --mocap, --cache, --pool or --set")
        mocap = load_mocap(options.mocap, body, options.cache) if options.mocap else Mocap.load(options.cache)[0]
        part = mocap.select(options.split)
        pose = part.pose
        names = np.asarray([part.clips[c] for c in part.clip])
        if options.kind:
            keep = np.asarray([part.sources[s] for s in part.source]) == options.kind
            pose, names = pose[keep], names[keep]
    if options.pool and options.kind:
        keep = names == options.kind
        pose, names = pose[keep], names[keep]
    if not len(pose):
        parser.error(f"no poses of kind {options.kind!r}")
    rng = np.random.default_rng(options.seed)
    pick = np.sort(rng.choice(len(pose), size=min(options.count, len(pose)), replace=False))
    contact_sheet(pose[pick], options.output, [str(n) for n in names[pick]], body=body)
    print(f"{options.output}: {len(pick)} of {len(pose)} poses")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
