import math
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from perceiver.adapter import ClassificationOutputAdapter, ImageInputAdapter
from perceiver.attention import recompute_activations
from perceiver.build import build_model
from perceiver.config import (
    DecoderConfig,
    EncoderConfig,
    ImageClassifierConfig,
    MaskedLanguageModelConfig,
    MaskingConfig,
    TextClassifierConfig,
)
from perceiver.model import PerceiverDecoder, PerceiverEncoder, PerceiverIO

ENCODER = EncoderConfig(
    num_latents=6,
    num_latent_channels=16,
    num_self_attention_layers_per_block=2,
    num_cross_attention_heads=4,
    num_self_attention_heads=2,
)
MLM = MaskedLanguageModelConfig(encoder=ENCODER, vocab_size=50, max_seq_len=12)
CLASSIFIER = TextClassifierConfig(encoder=ENCODER, vocab_size=50, max_seq_len=12, class_names=("a", "b", "c"))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def encoder_with(**options):
    return replace(MLM, encoder=replace(ENCODER, **options))


def decoder_with(**options):
    return replace(MLM, decoder=DecoderConfig(**options))


def text_batch(lengths=(12, 7, 1), vocab_size=50):
    """Random ordinary tokens and their padding."""
    tokens = torch.randint(3, vocab_size, (len(lengths), max(lengths)))
    pad_mask = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
    return tokens.masked_fill(pad_mask, 0), pad_mask


def count_parameters(module):
    return sum(p.numel() for p in module.parameters())


def assert_all_parameters_have_gradients(model):
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def count_calls(monkeypatch, module, name):
    calls = []
    method = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args: calls.append(args) or method(*args))
    return calls


def test_image_classifier_of_the_public_api():
    latent_shape = (32, 128)
    input_adapter = ImageInputAdapter(image_shape=(28, 28, 1), num_frequency_bands=32)
    output_adapter = ClassificationOutputAdapter(num_classes=10, num_output_channels=128)
    encoder = PerceiverEncoder(
        input_adapter=input_adapter,
        latent_shape=latent_shape,
        num_layers=3,
        num_cross_attention_heads=4,
        num_self_attention_heads=4,
        num_self_attention_layers_per_block=3,
        dropout=0.0,
    )
    decoder = PerceiverDecoder(
        output_adapter=output_adapter, latent_shape=latent_shape, num_cross_attention_heads=1, dropout=0.0
    )
    mnist_classifier = PerceiverIO(encoder, decoder)
    images = torch.rand(2, 28, 28, 1)
    assert mnist_classifier(images).shape == (2, 10)
    assert mnist_classifier.encoder(images).shape == (2, *latent_shape)


def test_default_masked_language_model_has_its_number_of_parameters():
    assert count_parameters(build_model(MaskedLanguageModelConfig())) == 1_738_643


def test_first_loss_is_that_of_guessing():
    model = build_model(MaskedLanguageModelConfig())
    tokens, pad_mask = text_batch(lengths=(64, 40), vocab_size=10_003)
    x, labels = model.masking(tokens, pad_mask)
    with torch.no_grad():
        loss = F.cross_entropy(*model.masked_logits(x, labels, pad_mask)).item()
    assert loss == pytest.approx(math.log(10_003), rel=0.05)


def test_initial_latents_and_queries():
    model = build_model(MaskedLanguageModelConfig())
    for array in (model.encoder.latents, model.decoder.queries):
        assert array.std().item() == pytest.approx(0.02, rel=0.05)
        assert array.mean().item() == pytest.approx(0.0, abs=0.002)


def test_layers_after_the_first_share_weights():
    counts = [count_parameters(build_model(encoder_with(num_layers=n))) for n in (1, 2, 5)]
    assert counts[0] < counts[1] == counts[2]


def test_more_layers_compute_something_else():
    tokens, _ = text_batch()
    two, three = (build_model(encoder_with(num_layers=n)).encoder for n in (2, 3))
    three.load_state_dict(two.state_dict())
    assert (two(tokens) - three(tokens)).abs().max() > 1e-3


def test_shared_layer_projects_inputs_once(monkeypatch):
    encoder = build_model(encoder_with(num_layers=5)).encoder
    projections = [
        count_calls(monkeypatch, layer, "project") for layer in (encoder.cross_attention_1, encoder.cross_attention_n)
    ]
    attentions = count_calls(monkeypatch, encoder.cross_attention_n, "forward")
    encoder(text_batch()[0])
    assert [len(calls) for calls in projections] == [1, 1]
    assert len(attentions) == 4


def test_projecting_once_equals_projecting_in_every_layer():
    encoder = build_model(encoder_with(num_layers=4)).encoder
    tokens, pad_mask = text_batch()
    inputs = encoder.input_adapter(tokens)
    latents = encoder.latents.expand(len(tokens), -1, -1)
    first, shared = encoder.cross_attention_1, encoder.cross_attention_n
    latents = encoder.self_attention_1(first(latents, first.project(inputs), pad_mask))
    for _ in range(3):
        latents = encoder.self_attention_n(shared(latents, shared.project(inputs), pad_mask))
    torch.testing.assert_close(encoder(tokens, pad_mask), latents)


def test_padded_rows_get_the_logits_they_have_alone():
    tokens, pad_mask = text_batch(lengths=(12, 7, 1))
    mlm, classifier = build_model(MLM), build_model(CLASSIFIER)
    logits, labels = mlm(tokens, pad_mask, masking=False)
    classes = classifier(tokens, pad_mask)
    assert labels is None
    for row, length in enumerate((12, 7, 1)):
        alone = tokens[row : row + 1, :length]
        torch.testing.assert_close(logits[row, :length], mlm(alone, masking=False)[0][0], atol=1e-5, rtol=0)
        torch.testing.assert_close(classes[row], classifier(alone)[0], atol=1e-5, rtol=0)


def test_text_of_padding_only_gives_finite_logits_and_gradients():
    model = build_model(CLASSIFIER)
    tokens, pad_mask = text_batch(lengths=(5, 0))
    logits = model(tokens, pad_mask)
    assert logits.isfinite().all()
    logits.sum().backward()
    assert_all_parameters_have_gradients(model)


def test_decoding_selected_queries_equals_selecting_from_all():
    decoder = build_model(MLM).decoder
    latents = torch.randn(2, 6, 16)
    indices = torch.tensor([[3, 0, 11], [5, 5, 1]])
    rows = torch.arange(2)[:, None]
    torch.testing.assert_close(decoder.decode(latents, indices), decoder.decode(latents)[rows, indices])
    torch.testing.assert_close(decoder(latents, indices), decoder(latents)[rows, indices])
    assert decoder.decode(latents).shape == (2, 12, 16)


@pytest.mark.parametrize("shape", [(2, 6, 8), (2, 5, 16)])
def test_latents_of_another_shape_are_an_error(shape):
    decoder = build_model(MLM).decoder
    with pytest.raises(ValueError, match=r"latents have the shape .*, but must have \(6, 16\)"):
        decoder(torch.randn(shape))


def test_loss_of_masked_positions_equals_loss_of_all_positions():
    model = build_model(MLM).double()
    tokens, pad_mask = text_batch()
    noise = torch.rand(3, *tokens.shape)
    noise[0, 0] /= 4  # rows with unequal numbers of masked tokens
    x, labels = model.masking(tokens, pad_mask, noise)
    assert len((labels != -100).sum(dim=1).unique()) > 1

    all_logits, _ = model(x, pad_mask, masking=False)
    expected_loss = F.cross_entropy(all_logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    parameters = list(model.parameters())
    expected_gradients = torch.autograd.grad(expected_loss, parameters)
    loss = F.cross_entropy(*model.masked_logits(x, labels, pad_mask))
    gradients = torch.autograd.grad(loss, parameters)

    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-12)


def test_masked_logits_without_any_label():
    model = build_model(MLM)
    tokens, pad_mask = text_batch()
    logits, labels = model.masked_logits(tokens, torch.full_like(tokens, -100), pad_mask)
    assert logits.shape == (0, 50)
    assert labels.shape == (0,)
    logits.sum().backward()
    assert_all_parameters_have_gradients(model)


def test_calling_with_masking_returns_logits_of_all_positions_and_labels():
    model = build_model(replace(MLM, masking=MaskingConfig(mask_p=1.0)))
    tokens, pad_mask = text_batch(lengths=(9, 4))
    logits, labels = model(tokens, pad_mask)
    assert logits.shape == (2, 9, 50)
    assert torch.equal(labels, tokens.masked_fill(pad_mask, -100))
    assert not torch.equal(logits, model(tokens, pad_mask, masking=False)[0])


def test_overfits_a_few_texts():
    model = build_model(encoder_with(num_layers=2, num_self_attention_layers_per_block=1))
    tokens, pad_mask = text_batch(lengths=(12, 11, 10, 9, 8, 7, 6, 5))
    x, labels = model.masking(tokens, pad_mask)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        loss = F.cross_entropy(*model.masked_logits(x, labels, pad_mask))
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_dropout_is_active_in_training_only():
    model = build_model(replace(CLASSIFIER, dropout=0.3))
    tokens, pad_mask = text_batch()
    latents = model.encoder(tokens, pad_mask)
    assert not torch.equal(latents, model.encoder(tokens, pad_mask))
    assert not torch.equal(model.decoder(latents), model.decoder(latents))
    model.eval()
    without = build_model(CLASSIFIER)
    without.load_state_dict(model.state_dict())
    assert torch.equal(model(tokens, pad_mask), without(tokens, pad_mask))


MLP_PARAMETERS = 16 * 16 + 16 + 16 * 16 + 16
NORMS = 3 * 2 * 16
"""Layer norms of a cross-attention layer."""
PROJECTION = 16 * 16 + 16


@pytest.mark.parametrize(
    ("config", "extra_parameters"),
    [
        (encoder_with(num_block_repeats=3), 0),
        (encoder_with(cross_attention_first_only=True), -(MLP_PARAMETERS + NORMS + 4 * PROJECTION)),
        (encoder_with(cross_attention_widening_factor=2), 2 * (2 * 16 * 16 + 16)),
        (encoder_with(self_attention_widening_factor=3), 4 * 2 * (2 * 16 * 16 + 16)),
        (encoder_with(num_cross_attention_qk_channels=8, num_cross_attention_v_channels=16), -2 * 2 * 8 * 17),
        (encoder_with(num_cross_attention_v_channels=8), -2 * (8 * 17 + 16 * 8)),
        (encoder_with(num_self_attention_qk_channels=32, num_self_attention_v_channels=16), 4 * 2 * 16 * 17),
        (encoder_with(num_self_attention_v_channels=8), -4 * (8 * 17 + 16 * 8)),
        (decoder_with(num_output_channels=8), None),
        (decoder_with(num_cross_attention_qk_channels=8, num_cross_attention_v_channels=16), -2 * 8 * 17),
        (decoder_with(num_cross_attention_v_channels=4), -(12 * 17 + 16 * 12)),
        (decoder_with(widening_factor=2), 2 * 16 * 16 + 16),
        (decoder_with(query_residual=False), 0),
        (replace(MLM, tie_output_embedding=True), -50 * 16),
    ],
)
def test_options_change_parameters_as_they_should_and_train(config, extra_parameters):
    model, tokens = build_model(config), text_batch()[0]
    if extra_parameters is not None:
        assert count_parameters(model) - count_parameters(build_model(MLM)) == extra_parameters
    logits, _ = model(tokens, masking=False)
    assert logits.shape == (3, 12, 50)
    F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    assert_all_parameters_have_gradients(model)


@pytest.mark.parametrize(
    "config", [encoder_with(num_block_repeats=3), decoder_with(query_residual=False)], ids=["repeats", "no residual"]
)
def test_options_without_parameters_change_the_result(config):
    base, model = build_model(MLM), build_model(config)
    model.load_state_dict(base.state_dict())
    tokens, _ = text_batch()
    assert (model(tokens, masking=False)[0] - base(tokens, masking=False)[0]).abs().max() > 1e-3


def test_repeated_blocks_run_the_block_that_often(monkeypatch):
    encoder = build_model(encoder_with(num_block_repeats=3, num_layers=2)).encoder
    calls = [
        count_calls(monkeypatch, block.layers[1], "forward")
        for block in (encoder.self_attention_1, encoder.self_attention_n)
    ]
    encoder(text_batch()[0])
    assert [len(of_block) for of_block in calls] == [3, 3]


def test_cross_attention_first_only_has_no_second_cross_attention():
    encoder = build_model(encoder_with(cross_attention_first_only=True)).encoder
    assert not [name for name, _ in encoder.named_parameters() if "cross_attention_n" in name]
    assert [name for name, _ in encoder.named_parameters() if "self_attention_n" in name]


def test_tied_embedding_shares_its_storage():
    model = build_model(replace(MLM, tie_output_embedding=True))
    assert model.decoder.output_adapter.linear.weight is model.encoder.input_adapter.embedding.weight
    assert model.decoder.output_adapter.linear.bias.shape == (50,)


def test_decoder_has_output_channels_of_its_own():
    model = build_model(decoder_with(num_output_channels=8))
    assert model.decoder.queries.shape == (12, 8)
    assert model.decoder.output_adapter.linear.weight.shape == (50, 8)


def test_build_an_image_classifier():
    config = ImageClassifierConfig(
        encoder=ENCODER, image_shape=(5, 4, 3), num_frequency_bands=3, class_names=("a", "b", "c")
    )
    assert build_model(config)(torch.rand(2, 5, 4, 3)).shape == (2, 3)


@pytest.mark.parametrize("options", [{"num_block_repeats": 0}, {"num_self_attention_qk_channels": 10}])
def test_wrong_options_are_errors(options):
    adapter = ImageInputAdapter(image_shape=(4, 4, 1), num_frequency_bands=2)
    with pytest.raises(ValueError, match=next(iter(options))):
        PerceiverEncoder(adapter, (4, 16), num_layers=1, **options)


@pytest.mark.slow  # a compiler starts
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_compute_the_same():
    plain, compiled = build_model(MLM), build_model(MLM)
    compiled.load_state_dict(plain.state_dict())
    compiled.encoder.compile_blocks()
    tokens, pad_mask = text_batch()
    results = []
    for model in (plain, compiled):
        logits, _ = model(tokens, pad_mask, masking=False)
        logits.square().sum().backward()
        results.append([logits.detach(), *(p.grad for p in model.parameters())])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
    assert compiled.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("config", [MLM, CLASSIFIER])
def test_recomputed_activations_give_the_same_gradients_and_are_not_kept(config):
    plain, recomputing = (build_model(replace(config, dropout=0.3)) for _ in range(2))
    recomputing.load_state_dict(plain.state_dict())
    recompute_activations(recomputing)
    tokens, pad_mask = text_batch()
    kept, gradients = [], []
    for model in (plain, recomputing):
        torch.manual_seed(1)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            latents = model.encoder(tokens, pad_mask)
        model.decoder(latents).square().mean().backward()
        kept.append(sum(sizes))
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert kept[1] < 0.3 * kept[0]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)


def test_activations_are_recomputed_in_training_only(monkeypatch):
    model = build_model(MLM)
    recompute_activations(model)
    monkeypatch.setattr("perceiver.attention.checkpoint", lambda *args, **options: pytest.fail("recomputes"))
    tokens, pad_mask = text_batch()
    model.eval()(tokens, pad_mask, masking=False)
