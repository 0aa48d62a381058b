"""Files of bodies: a licensed SMPL pickle, a malicious one, wrong arrays, no body at all."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from hmr_prob_ros.body import Body, BodyError
from hmr_prob_ros.skeleton import KEYPOINT_NAMES, PARENTS


class _Chumpy:
    """Pickles under the name chumpy.ch.Ch, as the arrays of the official files do."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x


def smpl_like(rng: np.random.Generator) -> dict:
    sparse = pytest.importorskip("scipy.sparse")
    regressor = sparse.random(24, 6890, density=2e-3, random_state=0, format="csc")
    weights = rng.random((6890, 24)) ** 8
    tree = np.array([PARENTS, range(24)], dtype=np.int64)
    tree[0, 0] = 2**32 - 1  # as in the official file
    return {
        "v_template": rng.normal(size=(6890, 3)),
        "shapedirs": rng.normal(size=(6890, 3, 12)) * 0.01,
        "posedirs": rng.normal(size=(6890, 3, 207)) * 0.001,
        "J_regressor": regressor,
        "weights": weights / weights.sum(1, keepdims=True),
        "f": rng.integers(0, 6890, (13776, 3)).astype(np.uint32),
        "kintree_table": tree.astype(np.uint32),
        "bs_style": "lbs",
    }


@pytest.mark.parametrize(("protocol", "layout"), [(0, "csc"), (2, "csc"), (2, "csr"), (2, "coo"), (4, "csc")])
def test_licensed_pickle_loads_without_chumpy_and_scipy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int, layout: str
) -> None:
    data = smpl_like(np.random.default_rng(0))
    regressor = data["J_regressor"].toarray()
    data["J_regressor"] = data["J_regressor"].asformat(layout)
    module = types.ModuleType("chumpy.ch")
    ch = type("Ch", (_Chumpy,), {"__module__": "chumpy.ch", "__qualname__": "Ch"})
    module.Ch = ch
    monkeypatch.setitem(sys.modules, "chumpy", types.ModuleType("chumpy"))
    monkeypatch.setitem(sys.modules, "chumpy.ch", module)
    shapes = data["shapedirs"]
    data["shapedirs"] = ch(shapes)
    if protocol != 4:  # once is enough: they are large
        del data["posedirs"]
    file = tmp_path / "SMPL_NEUTRAL.pkl"
    file.write_bytes(pickle.dumps(data, protocol=protocol))
    monkeypatch.delitem(sys.modules, "chumpy")
    monkeypatch.delitem(sys.modules, "chumpy.ch")

    body = Body.load(file)
    np.testing.assert_allclose(body.joint_regressor, regressor, atol=1e-6)
    np.testing.assert_allclose(body.shapedirs, shapes[:, :, :10], atol=1e-6)
    rng = np.random.default_rng(0)
    rotations = pytest.importorskip("scipy.spatial.transform").Rotation.random(24, random_state=0).as_matrix()[None]
    betas, translation = rng.normal(size=(1, 10)), rng.normal(size=(1, 3))
    expected = body.keypoint_regressor @ body.vertices(rotations, betas, translation)
    np.testing.assert_allclose(body.keypoints(rotations, betas, translation), expected, atol=2e-4)
    assert body.keypoint_regressor[KEYPOINT_NAMES.index("nose"), 332] == 1.0
    arrays = {k: v for k, v in data.items() if k not in ("shapedirs", "J_regressor")}
    np.savez(tmp_path / "smpl.npz", shapedirs=shapes, J_regressor=regressor, **arrays)
    assert Body.load(tmp_path / "smpl.npz").hash == body.hash


class _Runs:
    def __init__(self, call, *arguments) -> None:
        self.what = (call, arguments)

    def __reduce__(self):
        return self.what


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("call", [os.system, eval, subprocess.call, __import__, getattr, np.load])
def test_malicious_pickle_is_refused(tmp_path: Path, call, protocol: int) -> None:
    mark = tmp_path / "ran"
    argument = f"touch {mark}" if call is not eval else f"open({str(mark)!r}, 'w')"
    file = tmp_path / "SMPL_EVIL.pkl"
    file.write_bytes(pickle.dumps({"v_template": _Runs(call, argument)}, protocol=protocol))
    with pytest.raises(BodyError, match="refused"):
        Body.load(file)
    assert not mark.exists()


def _without(key: str):
    return lambda arrays: {k: v for k, v in arrays.items() if k != key}


def _with(**changes):
    return lambda arrays: {**arrays, **{k: f(arrays[k]) for k, f in changes.items()}}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_without("weights"), "lacks weights"),
        (_without("keypoint_regressor"), "keypoint_regressor"),
        (_with(weights=lambda w: w[:-1]), "weights is"),
        (_with(weights=lambda w: w * 2), "sum to one"),
        (_with(shapedirs=lambda s: s[..., :5]), "shapedirs is"),
        (_with(J_regressor=lambda j: j[:22]), "joint_regressor is"),
        (_with(kintree_table=lambda k: k[:, :22]), "24 joints"),
        (_with(kintree_table=lambda k: k[:, ::-1]), "tree"),
        (_with(f=lambda f: f.astype(np.int64) + 5000), "do not exist"),
        (_with(v_template=lambda v: np.where(v > 0.7, np.nan, v)), "finite"),
    ],
)
def test_wrong_arrays_say_what_is_wrong(tmp_path: Path, change, text: str) -> None:
    folder = Path(sys.modules["hmr_prob_ros.body"].__file__).parent / "assets"
    file = tmp_path / "wrong.npz"
    np.savez(file, **change(dict(np.load(folder / "body.npz"))))
    with pytest.raises(BodyError, match=text):
        Body.load(file)


def test_files_that_are_not_bodies(tmp_path: Path) -> None:
    with pytest.raises(BodyError, match="no body at"):
        Body.load(tmp_path / "absent.npz")
    for name, content in (("text.npz", b"hello"), ("text.pkl", b"hello"), ("empty.pkl", b""), ("empty.npz", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BodyError, match=name):
            Body.load(tmp_path / name)
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(BodyError, match="not named arrays"):
        Body.load(tmp_path / "list.pkl")
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(BodyError, match="not a body"):
        Body.load(tmp_path / "array.npy")
    np.savez(tmp_path / "object.npz", v_template=np.array([{}], dtype=object))
    with pytest.raises(BodyError, match="not a body"):
        Body.load(tmp_path / "object.npz")
