import math

import torch

from perceiver.position import fourier_features, grid_coordinates


def test_coordinates_of_a_grid():
    expected = [[-1, -1], [-1, 0], [-1, 1], [1, -1], [1, 0], [1, 1]]
    assert grid_coordinates((2, 3)).tolist() == expected


def test_features_of_one_position_computed_by_hand():
    x, y = 0.25, -0.5
    # Size 4 has the Nyquist frequency 2, size 6 has 3: bands (1, 2) and (1, 3).
    phases = [math.pi * x, 2 * math.pi * x, math.pi * y, 3 * math.pi * y]
    expected = [x, y, *map(math.sin, phases), *map(math.cos, phases)]
    features = fourier_features(torch.tensor([[x, y]]), (4, 6), num_bands=2)
    torch.testing.assert_close(features, torch.tensor([expected]))


def test_bands_are_evenly_spaced():
    features = fourier_features(torch.tensor([[0.1]]), (8,), num_bands=4)
    phases = [0.1 * math.pi * frequency for frequency in (1, 2, 3, 4)]
    torch.testing.assert_close(features[0, 1:5], torch.tensor([math.sin(phase) for phase in phases]))


def test_every_pixel_has_features_of_its_own():
    shape = (28, 28)
    features = fourier_features(grid_coordinates(shape), shape, num_bands=32)
    assert features.shape == (28 * 28, 2 + 2 * 2 * 32)
    assert len(features.unique(dim=0)) == 28 * 28
