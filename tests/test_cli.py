"""The ``hmr-prob`` command on real input: what it writes, and one line and exit code 2 for whatever cannot be done.

``HMR_PROB_TEST_BUNDLE`` names another bundle than the shipped one to test.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from hmr_prob_ros.body import Body
from hmr_prob_ros.bundle import Bundle
from hmr_prob_ros.cli import main
from hmr_prob_ros.commands import doctor
from hmr_prob_ros.setfile import PoseSet
from hmr_prob_ros.skeleton import JOINT_NAMES

BUNDLE = Bundle.load(os.environ.get("HMR_PROB_TEST_BUNDLE")).path
WITH_BUNDLE = ["--bundle", str(BUNDLE)]
needs_detector = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("ai_edge_litert") is None, reason="ai-edge-litert is not installed"
)


@pytest.fixture(scope="module")
def photograph(test_data: Path) -> str:
    return str(test_data / "real" / "astronaut.png")


@pytest.fixture(scope="module")
def small_set(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 examples of the smallest archive, made by the command."""
    pytest.importorskip("torch")
    path = tmp_path_factory.mktemp("set") / "set.npz"
    archive = str(test_data / "mocap" / "makehuman.tar.xz")
    arguments = ["--mocap", archive, "--split", "all", "--count", "24", "--seed", "3", "--occlusion", "biggs"]
    assert main(["make-set", *arguments, "--out", str(path), "--quiet"]) == 0
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command says before it gives up with exit code 2."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("hmr-prob: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in out + err
    return lines[0]


@needs_detector
def test_estimate_as_a_process(photograph: str, tmp_path: Path) -> None:
    lines, overlay = tmp_path / "deep" / "out.jsonl", tmp_path / "overlay.png"
    command = [sys.executable, "-m", "hmr_prob_ros.cli", "estimate", photograph, "--json", str(lines)]
    command += ["--overlay", str(overlay), "--samples", "40", "--modes", "5", "--all-samples", *WITH_BUNDLE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (line,) = lines.read_text().splitlines()
    record = json.loads(line)
    assert set(record) == {"frame", "stamp", "people"}
    (person,) = record["people"]
    shapes = {
        "box": (4,),
        "keypoints": (23, 3),
        "weights": (5,),
        "log_density": (5,),
        "joints": (5, 24, 3),
        "keypoints3d": (5, 23, 3),
        "mean": (24, 3),
        "covariance": (24, 3, 3),
        "samples": (40, 24, 3),
        "samples_keypoints3d": (40, 23, 3),
    }
    for name, shape in shapes.items():
        assert np.shape(person[name]) == shape, name
    assert person["joint_names"] == list(JOINT_NAMES)
    assert person["id"] == 0
    assert sum(person["weights"]) == pytest.approx(1, abs=1e-4)
    samples = np.array(person["samples"])
    assert np.allclose(person["mean"], samples.mean(axis=0), atol=1e-4)
    picture = cv2.imread(str(overlay))
    assert picture.shape[0] >= 512
    assert picture.shape[1] > 512
    assert "focal length guessed" in done.stderr


@needs_detector
def test_estimate_a_clip_with_a_camera(test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "camera.yaml").write_text(
        "image_width: 1280\nimage_height: 720\ndistortion_model: plumb_bob\n"
        "camera_matrix: {rows: 3, cols: 3, data: [900, 0, 640, 0, 900, 360, 0, 0, 1]}\n"
        "distortion_coefficients: {rows: 1, cols: 5, data: [0, 0, 0, 0, 0]}\n"
    )
    clip = str(test_data / "real" / "sports2d_demo_4s.mp4")
    video = tmp_path / "out.mp4"
    common = ["--camera", str(tmp_path / "camera.yaml"), "--max-size", "480", *WITH_BUNDLE]
    assert main(["estimate", clip, *common, "--max-frames", "6", "--overlay", str(video), "--json", "-"]) == 0
    out, err = capsys.readouterr()
    records = [json.loads(line) for line in out.splitlines()]
    assert [r["frame"] for r in records] == list(range(6))
    assert records[3]["stamp"] == pytest.approx(0.1, abs=1e-3)
    assert "guessed" not in err
    capture = cv2.VideoCapture(str(video))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 6
    portrait = str(test_data / "real" / "pose2sim_single_cam01.mp4")
    assert "another shape" in refused(capsys, "estimate", portrait, *common, "--json", "-")


@needs_detector
def test_estimate_a_folder_with_nobody_in_it(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for index, size in enumerate([(120, 160), (160, 120)]):
        cv2.imwrite(str(tmp_path / "in" / f"{index}.png"), np.full((*size, 3), 127, np.uint8))
    lines = tmp_path / "out.jsonl"
    arguments = ["--json", str(lines), "--overlay", str(tmp_path / "drawn"), "--still", "--quiet", *WITH_BUNDLE]
    assert main(["estimate", str(tmp_path / "in"), *arguments]) == 0
    assert [json.loads(line)["people"] for line in lines.read_text().splitlines()] == [[], []]
    assert len(list((tmp_path / "drawn").iterdir())) == 2


def test_bad_input_gets_one_line(tmp_path: Path, photograph: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.mp4").write_text("no video\n" * 50)
    (tmp_path / "file").write_text("")
    assert "nowhere.mp4" in refused(capsys, "estimate", "nowhere.mp4")
    assert "cannot be opened" in refused(capsys, "estimate", str(tmp_path / "broken.mp4"))
    assert "raise --samples to 20" in refused(capsys, "estimate", photograph, "--modes", "20", "--samples", "10")
    assert "cannot read the camera file" in refused(capsys, "estimate", photograph, "--camera", "no.yaml")
    assert "unknown detector" in refused(capsys, "estimate", photograph, "--detector", "magic", *WITH_BUNDLE)
    unwritable = str(tmp_path / "file" / "out.jsonl")
    assert "cannot write" in refused(capsys, "estimate", photograph, "--json", unwritable, *WITH_BUNDLE)
    assert "cannot write" in refused(capsys, "estimate", photograph, "--overlay", unwritable + ".mp4", *WITH_BUNDLE)
    assert "not NAME=VALUE" in refused(capsys, "estimate", photograph, "--detector-option", "x", *WITH_BUNDLE)
    assert "is not YAML" in refused(capsys, "estimate", photograph, "--detector-option", "x=[1", *WITH_BUNDLE)
    option = ["--detector-option", "min_detection=abc"]
    assert "min_detection='abc'" in refused(capsys, "estimate", photograph, *option, *WITH_BUNDLE)
    assert "640x480" in refused(capsys, "bench", "--size", "large")


@pytest.mark.parametrize(
    "arguments",
    [
        ["estimate", "x.png", "--seed", "-1"],
        ["make-set", "--mocap", "x", "--out", "s.npz", "--count", "2", "--seed", "-1"],
        ["evaluate", "--set", "s.npz", "--seed", "-1"],
        ["demo", "--seconds", "-3"],
    ],
)
def test_numbers_out_of_range_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert repr(arguments[-1]) in capsys.readouterr().err


def test_a_bundle_of_another_shape_is_named(
    tmp_path: Path, photograph: str, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "foreign"
    shutil.copytree(BUNDLE, foreign)
    card = yaml.safe_load((foreign / "model.yaml").read_text())
    (foreign / "model.yaml").write_text(yaml.safe_dump({**card, "latent_size": 12}))
    text = refused(capsys, "estimate", photograph, "--bundle", str(foreign))
    assert "foreign does not fit this package" in text
    assert "hmr-prob export" in text


def test_missing_and_truncated_bundles_are_named(
    tmp_path: Path, photograph: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no bundle at" in refused(capsys, "estimate", photograph, "--bundle", str(tmp_path / "nowhere"))
    broken = tmp_path / "broken"
    shutil.copytree(BUNDLE, broken)
    model = broken / "model.onnx"
    model.write_bytes(model.read_bytes()[: model.stat().st_size // 2])
    assert "model.onnx" in refused(capsys, "estimate", photograph, "--bundle", str(broken))
    model.unlink()
    assert "lacks model.onnx" in refused(capsys, "estimate", photograph, "--bundle", str(broken))


def test_a_wrong_body_file_is_named(tmp_path: Path, test_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    np.savez(tmp_path / "body.npz", weights=np.zeros((3, 24)))
    archive = str(test_data / "mocap" / "makehuman.tar.xz")
    given = ["make-set", "--mocap", archive, "--count", "2", "--out", str(tmp_path / "s.npz")]
    assert "body.npz" in refused(capsys, *given, "--body", str(tmp_path / "body.npz"))
    (tmp_path / "file").write_text("")
    assert "cannot use" in refused(capsys, "train", "--mocap", "x", "--out", str(tmp_path / "file" / "run"))
    out = str(tmp_path / "run")
    assert "unknown method 'magic': use one of cvae" in refused(capsys, "train", "magic", "--mocap", "x", "--out", out)
    assert "did you mean 'mmd'" in refused(capsys, "train", "--mocap", "x", "--out", out, "--set", "losses.mdd=1")
    assert "nothing to train on: give --mocap" in refused(capsys, "train", "flow", "--out", out)
    assert "no shard" in refused(capsys, "train", "flow", "--data", str(tmp_path / "none"), "--out", out)
    assert "no noise table" in refused(capsys, *given, "--noise", "magic")
    assert "there is no motion capture" in refused(
        capsys, "make-set", "--mocap", "no", "--count", "2", "--out", "s.npz"
    )
    (tmp_path / "folder").mkdir()
    given[2] = str(tmp_path / "folder")
    assert "no motions" in refused(capsys, *given)


def test_make_set_is_true_to_the_body_and_repeats(small_set: Path, test_data: Path, tmp_path: Path) -> None:
    data = PoseSet.load(small_set)
    body = Body.load()
    assert len(data) == 24
    assert data.body == body.hash
    assert data.rotations is not None
    assert data.betas is not None
    assert data.translation is not None
    assert np.allclose(body.joints(data.rotations, data.betas, data.translation), data.joints, atol=1e-4)
    assert np.allclose(body.keypoints(data.rotations, data.betas, data.translation), data.keypoints3d, atol=1e-3)
    assert (data.joints[..., 2] > 0.2).all()
    assert 0.2 < data.visible.mean() < 0.95
    # What is reported with confidence lies near the truth.
    pixels = np.stack([data.camera(i).project(data.keypoints3d[i]) for i in range(24)])
    sure = data.keypoints[..., 2] > 0.8
    size = 1.7 * data.intrinsics[:, :1] / data.joints[:, 0, 2:]
    error = np.linalg.norm(pixels - data.keypoints[..., :2], axis=-1) / size
    assert np.median(error[sure]) < 0.05
    archive = str(test_data / "mocap" / "makehuman.tar.xz")
    arguments = ["--mocap", archive, "--split", "all", "--count", "24", "--seed", "3", "--occlusion", "biggs"]
    assert main(["make-set", *arguments, "--out", str(tmp_path / "again.npz"), "--quiet"]) == 0
    assert np.array_equal(PoseSet.load(tmp_path / "again.npz").keypoints, data.keypoints)


def test_evaluate(small_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    arguments = ["--set", str(small_set), "--limit", "10", "--json", str(out), "--per-joint", *WITH_BUNDLE]
    assert main(["evaluate", *arguments]) == 0
    table = capsys.readouterr().out
    assert "best of 25 samples" in table
    assert "left_knee" in table
    result = json.loads(out.read_text())
    assert result["count"] + result["skipped"] == 10
    assert set(result["min_of"]) == set(result["quantised"]) == {"5", "10", "25", "100"}
    errors = [result["mode"], *result["min_of"].values()]
    for metric in ("mpjpe", "pa_mpjpe"):
        values = [pair[metric] for pair in errors]
        assert all(math.isfinite(v) and v > 0 for v in values)
        assert values == sorted(values, reverse=True)  # more samples never make the best one worse
    assert result["mode"]["pa_mpjpe"] < result["mode"]["mpjpe"]
    assert math.isfinite(result["nll"])
    # The batch size changes nothing.
    assert main(["evaluate", *arguments[:-2], *WITH_BUNDLE, "--batch", "3", "--quiet"]) == 0
    again = json.loads(out.read_text())
    assert again["min_of"]["25"]["mpjpe"] == pytest.approx(result["min_of"]["25"]["mpjpe"], abs=0.1)
    assert again["nll"] == pytest.approx(result["nll"], rel=1e-3)


def test_evaluate_without_rotations_has_no_likelihood(
    small_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = PoseSet.load(small_set)[:4]
    joints = data.joints.copy()
    joints[:, 22:] = np.nan
    PoseSet(data.keypoints, data.intrinsics, data.image_size, joints, data.keypoints3d, data.visible, data.take).save(
        tmp_path / "own.npz"
    )
    assert main(["evaluate", "--set", str(tmp_path / "own.npz"), "--json", "-", "--quiet", *WITH_BUNDLE]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["nll"] is None
    assert math.isfinite(result["mode"]["mpjpe"])
    assert "there is no set" in refused(capsys, "evaluate", "--set", "no.npz")


def test_the_likelihood_leaves_out_examples_without_rotations(
    small_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = PoseSet.load(small_set)[:4]
    rotations = data.rotations.copy()
    rotations[1:] = np.nan
    replace(data, rotations=rotations).save(tmp_path / "part.npz")
    assert main(["evaluate", "--set", str(tmp_path / "part.npz"), "--json", "-", "--quiet", *WITH_BUNDLE]) == 0
    part = json.loads(capsys.readouterr().out)
    assert (part["count"], math.isfinite(part["nll"])) == (4, True)


def test_doctor_names_everything(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code = main(["doctor", "--json", "-"])
    result = json.loads(capsys.readouterr().out)
    checks = {check["name"]: check for check in result["checks"]}
    assert {"numpy", "onnxruntime", "body", "bundle", "posterior", "detector blazepose", "rclpy", "messages"} <= set(
        checks
    )
    assert code == (0 if result["ok"] else 1)
    assert checks["body"]["ok"], checks["body"]
    for check in checks.values():
        assert check["ok"] or check["mend"] or ":" in check["detail"], check
    monkeypatch.setitem(sys.modules, "yaml", None)  # as if it were not installed
    broken = {check.name: check for check in doctor.examine()}["yaml"]
    assert not broken.ok
    assert broken.mend == "pip install pyyaml"


def test_help_and_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (["--version"], ["--help"], ["estimate", "--help"], ["make-set", "--help"], ["export", "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
    text = capsys.readouterr().out
    commands = ("estimate", "make-set", "evaluate", "train", "export", "bench", "doctor", "demo")
    for command in (*commands, "make-shards", "evaluate-model"):
        assert command in text
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in ("train", "export", "make_shards", "evaluate_command"):
        monkeypatch.delitem(sys.modules, f"hmr_prob_ros.training.{name}", raising=False)
    for command in ("train", "make-shards", "evaluate-model"):
        assert main([command, "--help"]) == 0
        assert "[train]" in capsys.readouterr().out
        assert "pip install 'hmr_prob_ros[train]'" in refused(capsys, command, "--out", "x")
    assert "pip install 'hmr_prob_ros[train]'" in refused(capsys, "export", __file__, "--out", "x")
    assert "there is no checkpoint" in refused(capsys, "export", "no.pt", "--out", "x")
