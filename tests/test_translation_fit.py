"""Where a body stands: the closed-form fit and the camera head's guess, against a solver and their own likelihoods."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("nflows")

from hmr_prob_ros.training.models.encoder import CameraGuess, TranslationFit  # noqa: E402


def test_translation_fit_against_a_solver() -> None:
    """The closed form is the minimum of the weighted squares that its docstring writes."""
    random = np.random.default_rng(0)
    fit = TranslationFit().double()
    pelvis = np.array([0.4, -0.1, 3.0])
    box = np.array([0.12, -0.02, 0.7])
    relative = random.normal(0, 0.3, (23, 3))
    points = relative + pelvis + random.normal(0, 0.03, (23, 3))
    rays = points[:, :2] / points[:, 2:]
    confidence = random.uniform(0, 1, 23)
    keypoints = np.concatenate([(rays - box[:2]) / (box[2] / 2), confidence[:, None]], axis=1)
    guess = CameraGuess(
        torch.tensor([[0.1, -0.05]]).double(), torch.tensor([0.8]).double(), torch.tensor([[-2.0, -1.5]]).double()
    )
    with torch.no_grad():
        result = fit(
            torch.from_numpy(relative)[None, None],
            torch.from_numpy(keypoints)[None],
            torch.from_numpy(box)[None],
            guess,
        )[0, 0].numpy()
        start = guess.pelvis(torch.from_numpy(box)[None])[0].numpy()

    log_weight, log_sigma = fit.log_weight.detach().numpy(), float(fit.log_sigma.detach())
    rows, values = [], []
    for i in range(23):
        root = confidence[i] * np.exp(0.5 * log_weight[i] - log_sigma)
        for axis in range(2):
            row = np.zeros(3)
            row[axis], row[2] = 1, -rays[i, axis]
            rows.append(root * row)
            values.append(root * (rays[i, axis] * relative[i, 2] - relative[i, axis]))
    for axis in range(2):
        row = np.zeros(3)
        row[axis], row[2] = 1, -start[axis] / start[2]
        rows.append(np.exp(2.0) * row)
        values.append(0.0)
    stiff = box[2] / 2 * np.exp(1.5)
    rows.append(np.array([0, 0, stiff]))
    values.append(stiff * start[2])
    expected = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0]
    np.testing.assert_allclose(result, expected, atol=1e-9)

    # What latents draw has the covariance of a least-squares estimate, (A^T A)^-1, at the scale of the residuals, and
    # `nll` is that Gaussian's.
    with torch.no_grad():
        arguments = (torch.from_numpy(keypoints)[None], torch.from_numpy(box)[None], guess)
        same = torch.from_numpy(relative).expand(1, 3, 23, 3)
        jacobian = (fit(same, *arguments, torch.eye(3).double()[None])[0].numpy() - result).T
        nll = float(fit.nll(torch.from_numpy(relative)[None], *arguments, torch.from_numpy(pelvis)[None]))
    design = np.array(rows) / (box[2] / 2 * start[2])
    covariance = np.linalg.inv(design.T @ design)
    np.testing.assert_allclose(jacobian @ jacobian.T, covariance, atol=1e-12)
    gaussian = torch.distributions.MultivariateNormal(torch.from_numpy(expected), torch.from_numpy(covariance))
    wanted = -float(gaussian.log_prob(torch.from_numpy(pelvis))) - 1.5 * np.log(2 * np.pi)
    assert nll == pytest.approx(wanted, abs=1e-9)
    assert np.linalg.norm(result - pelvis) < np.linalg.norm(start - pelvis)


def test_camera_guess_undoes_its_own_nll() -> None:
    box = torch.tensor([[0.3, -0.1, 0.5]], dtype=torch.float64)
    guess = CameraGuess(torch.tensor([[0.2, -0.4]]).double(), torch.tensor([0.3]).double(), torch.zeros(1, 2).double())
    pelvis = guess.pelvis(box).requires_grad_()
    value = guess.nll(box, pelvis)
    assert float(value.detach()) == pytest.approx(0, abs=1e-12)  # the pelvis it gives is its most likely one
    value.backward()
    np.testing.assert_allclose(pelvis.grad, 0, atol=1e-9)
