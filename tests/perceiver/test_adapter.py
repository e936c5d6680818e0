import math

import pytest
import torch
from torch import nn

from perceiver.adapter import (
    ClassificationOutputAdapter,
    ImageInputAdapter,
    TextInputAdapter,
    TextOutputAdapter,
)
from perceiver.position import fourier_features, grid_coordinates


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_image_input_is_pixels_then_positions():
    adapter = ImageInputAdapter(image_shape=(4, 5, 3), num_frequency_bands=2)
    images = torch.rand(2, 4, 5, 3)
    inputs = adapter(images)
    assert inputs.shape == (2, 20, adapter.num_input_channels) == (2, 20, 3 + 2 + 2 * 2 * 2)
    assert torch.equal(inputs[1, 7, :3], images[1, 1, 2])
    positions = fourier_features(grid_coordinates((4, 5)), (4, 5), num_bands=2)
    assert torch.equal(inputs[0, :, 3:], positions)


def test_positions_of_pixels_stay_out_of_checkpoints():
    assert not ImageInputAdapter(image_shape=(4, 5, 3), num_frequency_bands=2).state_dict()


def test_other_image_shape_is_an_error():
    adapter = ImageInputAdapter(image_shape=(4, 5, 3), num_frequency_bands=2)
    with pytest.raises(ValueError, match=r"images have the shape \(5, 4, 3\), but must have \(4, 5, 3\)"):
        adapter(torch.rand(2, 5, 4, 3))


@pytest.mark.parametrize("seq_len", [1, 4, 6])
def test_text_input_is_scaled_embedding_plus_position(seq_len):
    adapter = TextInputAdapter(vocab_size=11, max_seq_len=6, num_input_channels=8)
    tokens = torch.randint(11, (2, seq_len))
    expected = adapter.embedding.weight[tokens] * math.sqrt(8) + adapter.positions[:seq_len]
    torch.testing.assert_close(adapter(tokens), expected)


def test_text_longer_than_max_seq_len_is_an_error():
    adapter = TextInputAdapter(vocab_size=11, max_seq_len=6, num_input_channels=8)
    with pytest.raises(ValueError, match=r"texts have 7 tokens, but must have 6"):
        adapter(torch.zeros(2, 7, dtype=torch.long))


def test_initial_embeddings_and_positions():
    adapter = TextInputAdapter(vocab_size=1000, max_seq_len=500, num_input_channels=8)
    for array, bound in ((adapter.embedding.weight, 0.1), (adapter.positions, 0.5)):
        assert -bound <= array.min() < -0.99 * bound
        assert 0.99 * bound < array.max() <= bound
        assert array.mean().item() == pytest.approx(0.0, abs=0.03 * bound)


def test_single_classification_has_no_output_axis():
    adapter = ClassificationOutputAdapter(num_classes=3, num_output_channels=8)
    x = torch.randn(1, 1, 8)
    assert adapter.output_shape == (1, 8)
    assert adapter(x).shape == (1, 3)
    assert torch.equal(adapter(x), adapter.linear(x[:, 0]))


def test_many_classifications_keep_their_axis():
    adapter = ClassificationOutputAdapter(num_classes=3, num_outputs=4)
    assert adapter.output_shape == (4, 3)
    assert adapter(torch.randn(2, 4, 3)).shape == (2, 4, 3)


@pytest.mark.parametrize(
    "adapter",
    [
        ClassificationOutputAdapter(3, num_outputs=4, num_output_channels=8),
        ClassificationOutputAdapter(3, num_output_channels=8),
        TextOutputAdapter(3, max_seq_len=4, num_output_channels=8),
    ],
    ids=["classifications", "classification", "text"],
)
@pytest.mark.parametrize("num_selected", [0, 1, 5])
def test_selected_outputs_without_batch_axis(adapter, num_selected):
    assert adapter(torch.randn(num_selected, 8)).shape == (num_selected, 3)


def test_text_output_has_weights_of_its_own():
    adapter = TextOutputAdapter(vocab_size=11, max_seq_len=6, num_output_channels=8)
    assert adapter.output_shape == (6, 8)
    assert adapter(torch.randn(2, 6, 8)).shape == (2, 6, 11)
    assert sum(p.numel() for p in adapter.parameters()) == 8 * 11 + 11


def test_tied_text_output_shares_the_embedding_but_not_the_bias():
    embedding = nn.Embedding(11, 8)
    adapter = TextOutputAdapter(vocab_size=11, max_seq_len=6, num_output_channels=8, embedding=embedding)
    x = torch.randn(2, 6, 8)
    logits = adapter(x)
    torch.testing.assert_close(logits, x @ embedding.weight.T + adapter.linear.bias)
    logits.sum().backward()
    assert embedding.weight.grad.any()


def test_tied_embedding_of_another_shape_is_an_error():
    with pytest.raises(ValueError, match=r"embedding has the shape \(11, 4\), but must have \(11, 8\)"):
        TextOutputAdapter(vocab_size=11, max_seq_len=6, num_output_channels=8, embedding=nn.Embedding(11, 4))
