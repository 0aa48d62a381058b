"""The pose prior by itself: its density against autograd, and what it refuses. Real poses: `test_multi_head.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("nflows")

from hmr_prob_ros.training.models.pose_prior import PosePrior, PriorConfig, PriorError, train_prior  # noqa: E402


def test_log_determinant_against_autograd() -> None:
    torch.manual_seed(0)
    prior = PosePrior(PriorConfig(hidden=12, couplings=5)).double().eval()
    with torch.no_grad():
        for value in prior.parameters():
            value.normal_(0, 0.3)
        prior.standardise.mean.normal_()
        prior.standardise.std.uniform_(0.1, 2)
    points = torch.randn(3, 72, dtype=torch.float64)

    def latents(x: torch.Tensor) -> torch.Tensor:
        return prior.transform(prior.standardise(x)[0])[0]

    for x in points:
        volume = torch.linalg.slogdet(torch.autograd.functional.jacobian(latents, x))[1]
        base = torch.distributions.MultivariateNormal(torch.zeros(72).double(), torch.eye(72).double())
        assert prior.points_log_prob(x).item() == pytest.approx((base.log_prob(latents(x)) + volume).item(), abs=1e-8)
    torch.testing.assert_close(prior.sample(latents(points)).flatten(1), points, atol=1e-8, rtol=0)
    assert prior.log_prob(torch.randn(2, 5, 24, 3, dtype=torch.float64)).shape == (2, 5)


def test_prior_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(PriorError, match="no pose prior at"):
        PosePrior.load(tmp_path / "none.pt")
    torch.save({"state": {}}, tmp_path / "other.pt")
    with pytest.raises(PriorError, match="train it again"):
        PosePrior.load(tmp_path / "other.pt")
    for joints in (torch.zeros(0, 24, 3), torch.zeros(4, 23, 3), torch.full((4, 24, 3), torch.nan)):
        with pytest.raises(ValueError, match="finite joints"):
            train_prior(PosePrior(PriorConfig(hidden=8, couplings=2)), joints, progress=False)
    with pytest.raises(ValueError, match="at least one"):
        PriorConfig(couplings=0)
    joints = 1e30 * torch.randn(8, 24, 3)
    joints[:, 0] = 0
    with pytest.raises(PriorError, match="lower the rate"):
        train_prior(PosePrior(PriorConfig(hidden=8, couplings=2)), joints, steps=3, noise=1e30, progress=False)
