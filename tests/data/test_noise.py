"""Noise images: five kinds, in [0, 1], the same whenever they are made."""

from __future__ import annotations

import pytest
import torch

from adaneg_openood.data.noise import noise_features, noise_images


def test_five_kinds_of_three_images() -> None:
    state = torch.get_rng_state()
    images = noise_images(64, 48)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(images, noise_images(64, 48))
    assert not torch.equal(images, noise_images(64, 48, seed=1))
    assert images.shape == (15, 3, 64, 48) and images.dtype == torch.float32
    assert images.min() == 0.0 and images.max() == 1.0
    normal, flat, poisson, gamma, coins = images.split(3)
    for kind in (normal, poisson, gamma):
        assert kind.min() == 0.0 and kind.max() == 1.0
    assert normal.mean() == pytest.approx(0.5, abs=0.05) and normal.std() < 0.15
    assert flat.mean() == pytest.approx(0.5, abs=0.02)
    assert flat.std() == pytest.approx(12**-0.5, abs=0.01)
    # whole numbers of a Poisson variable of rate 5: mean over standard deviation is sqrt(5)
    counts = poisson / poisson.unique()[1]
    torch.testing.assert_close(counts, counts.round())
    assert counts.mean() == pytest.approx(5.0, abs=0.1) and counts.var() == pytest.approx(5.0, abs=0.3)
    assert gamma.mean() / gamma.std() == pytest.approx(2**0.5, abs=0.05)
    assert set(coins.unique().tolist()) == {0.0, 1.0} and coins.mean() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(coins[:, 0], coins[:, 2]), "pixels are black or white"


def test_pixels_go_to_the_image_tower_as_they_are() -> None:
    class Model:
        def preprocess(self, image: object) -> torch.Tensor:
            return torch.full((3, 24, 20), -9.0)  # normalised, as noise must not be

        def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
            self.pixels = pixels
            return pixels.mean(dim=(2, 3))

    model = Model()
    assert noise_features(model, seed=3).shape == (15, 3)
    assert torch.equal(model.pixels, noise_images(24, 20, seed=3))
