import pytest
import torch

from perceiver.masking import pack_selection
from perceiver.model import TextMasking

PAD, UNK, MASK = 0, 1, 2


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def large_batch():
    """Tokens of which a tenth is unknown, and padding at the end of each text."""
    tokens = torch.randint(3, 100, (200, 1000))
    tokens[torch.rand(tokens.shape) < 0.1] = UNK
    pad_mask = torch.arange(1000).expand(200, -1) >= torch.randint(500, 1000, (200, 1))
    return tokens.masked_fill(pad_mask, PAD), pad_mask


def test_shares_of_selected_masked_and_replaced_tokens():
    tokens, pad_mask = large_batch()
    x, labels = TextMasking(vocab_size=100)(tokens, pad_mask)
    selected = labels != -100
    ordinary = ~pad_mask & (tokens != UNK)
    share = selected.sum() / ordinary.sum()
    assert share.item() == pytest.approx(0.15, abs=0.005)
    assert (x[selected] == MASK).float().mean().item() == pytest.approx(0.8, abs=0.01)
    # One in 97 of the tokens drawn at random is the one that was there.
    replaced = (x[selected] != MASK) & (x[selected] != tokens[selected])
    assert replaced.float().mean().item() == pytest.approx(0.1 * 96 / 97, abs=0.01)
    kept = x[selected] == tokens[selected]
    assert kept.float().mean().item() == pytest.approx(0.1 + 0.1 / 97, abs=0.01)


def test_only_ordinary_tokens_are_selected_and_the_others_stay():
    tokens, pad_mask = large_batch()
    before = tokens.clone()
    x, labels = TextMasking(vocab_size=100, mask_p=1.0)(tokens, pad_mask)
    assert torch.equal(tokens, before)
    ordinary = ~pad_mask & (tokens != UNK)
    assert torch.equal(labels, torch.where(ordinary, tokens, -100))
    assert torch.equal(x[~ordinary], tokens[~ordinary])


def test_tokens_drawn_at_random_are_all_ordinary_ones():
    tokens = torch.full((100, 1000), 3)
    x, _ = TextMasking(vocab_size=10)(tokens)
    assert set(x.unique().tolist()) == {MASK, *range(3, 10)}


def test_noise_decides():
    tokens = torch.tensor([[5, 6, 7, 8, 9]])
    selection = torch.tensor([[0.149, 0.0, 0.1, 0.14, 0.151]])
    fate = torch.tensor([[0.799, 0.801, 0.899, 0.901, 0.0]])
    largest = torch.tensor(1.0).nextafter(torch.tensor(0.0)).item()
    replacement = torch.tensor([[0.5, 0.0, largest, 0.5, 0.5]])
    x, labels = TextMasking(vocab_size=10_003)(tokens, noise=torch.stack([selection, fate, replacement]))
    assert x.tolist() == [[MASK, 3, 10_002, 8, 9]]
    assert labels.tolist() == [[5, 6, 7, 8, -100]]


def test_without_noise_torchs_generator_decides():
    masking, tokens = TextMasking(vocab_size=100), torch.randint(3, 100, (4, 50))
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(masking(tokens)[0])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_token_ids_are_the_callers():
    tokens = torch.tensor([[7] * 500 + [4] * 500])
    masking = TextMasking(vocab_size=9, unk_token_id=4, mask_token_id=5, num_special_tokens=6, mask_p=1.0)
    x, labels = masking(tokens)
    assert set(x[0, :500].tolist()) == {5, 6, 7, 8}
    assert (labels[0, :500] == 7).all()
    assert (x[0, 500:] == 4).all()
    assert (labels[0, 500:] == -100).all()


def test_vocabulary_of_special_tokens_only_is_an_error():
    with pytest.raises(ValueError, match=r"vocab_size is 3, but must be above num_special_tokens \(3\)"):
        TextMasking(vocab_size=3)


def test_packed_selection_keeps_order():
    selected = torch.tensor([[False, True, False, True, True], [False] * 5, [True, False, False, False, True]])
    selection = pack_selection(selected)
    assert selection.indices.shape == (3, 3)
    assert selection.places.tolist() == [0, 1, 2, 6, 7]
    assert selection.take(selection.indices).tolist() == [1, 3, 4, 0, 4]
    assert ((selection.indices >= 0) & (selection.indices < 5)).all()


def test_packed_selection_of_long_rows_keeps_order():
    selected = torch.rand(8, 500) < 0.3
    selection = pack_selection(selected)
    assert selection.indices.shape[1] == selected.sum(dim=1).max()
    assert torch.equal(selection.take(selection.indices), selected.nonzero()[:, 1])


def test_packed_selection_takes_rows_of_any_shape():
    selected, x = torch.rand(3, 5) < 0.5, torch.randn(3, 5, 2)
    selection = pack_selection(selected)
    gathered = x.gather(1, selection.indices[..., None].expand(-1, -1, 2))
    assert torch.equal(selection.take(gathered), x[selected])


def test_packed_selection_has_a_column_where_nothing_is_selected():
    indices, places = pack_selection(torch.zeros(2, 5, dtype=torch.bool))
    assert indices.shape == (2, 1)
    assert places.numel() == 0
