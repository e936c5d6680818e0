"""Which tokens a masked language model has to restore."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

IGNORED_LABEL = -100
"""Label of a position that takes no part in the loss."""

MASKED_SHARE = 0.8
"""Share of the selected tokens that become [MASK]."""
RANDOM_SHARE = 0.1
"""Share of the selected tokens that become another token; the others stay as they are."""


class TextMasking(nn.Module):
    """Selects tokens to be restored and hides most of them: BERT (arXiv:1810.04805), sec. 3.1.

    Args:
        vocab_size: Number of different tokens.
        unk_token_id: Token that is never selected, as nothing can be learned from restoring it.
        mask_token_id: Token that hides another.
        num_special_tokens: Tokens 0, 1, ... that never replace another at random.
        mask_p: Probability with which a token is selected.

    Raises:
        ValueError: If the vocabulary holds special tokens only.
    """

    def __init__(
        self,
        vocab_size: int,
        unk_token_id: int = 1,
        mask_token_id: int = 2,
        num_special_tokens: int = 3,
        mask_p: float = 0.15,
    ) -> None:
        super().__init__()
        if vocab_size <= num_special_tokens:
            raise ValueError(f"vocab_size is {vocab_size}, but must be above num_special_tokens ({num_special_tokens})")
        self.vocab_size = vocab_size
        self.unk_token_id = unk_token_id
        self.mask_token_id = mask_token_id
        self.num_special_tokens = num_special_tokens
        self.mask_p = mask_p

    def forward(self, x: Tensor, pad_mask: Tensor | None = None, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Hide tokens.

        Args:
            x: Tokens (B, M); they are left as they are.
            pad_mask: Bool (B, M), True where a token is padding.
            noise: Float32 in [0, 1), (3, B, M), which decides whether a token is selected, what becomes of it and which
                token replaces it (none: drawn from torch's generator).

        Returns:
            The tokens with some of them hidden (B, M), and the labels (B, M): the token where one was selected,
            IGNORED_LABEL elsewhere.
        """
        if noise is None:
            # Fewer bits than float32 has could round a token up to one that is not in the vocabulary.
            noise = torch.rand(3, *x.shape, dtype=torch.float32, device=x.device)
        selection, fate, replacement = noise

        selected = (selection < self.mask_p) & (x != self.unk_token_id)
        if pad_mask is not None:
            selected &= ~pad_mask
        masked = selected & (fate < MASKED_SHARE)
        replaced = selected & (fate >= MASKED_SHARE) & (fate < MASKED_SHARE + RANDOM_SHARE)

        result = x.masked_fill(masked, self.mask_token_id)
        result = torch.where(replaced, self._ordinary_tokens(replacement).to(x.dtype), result)
        return result, x.masked_fill(~selected, IGNORED_LABEL)

    def _ordinary_tokens(self, noise: Tensor) -> Tensor:
        return self.num_special_tokens + (noise * (self.vocab_size - self.num_special_tokens)).long()


class Selection(NamedTuple):
    """Positions that are selected in each row of a batch, packed to the left.

    Whoever has one can gather what is selected without asking how much there is, for which a GPU would have to stop.
    """

    indices: Tensor
    """(B, K): the row's selected positions in ascending order, then positions that only fill the row."""
    places: Tensor
    """(T,): where the T positions that were selected lie in `indices`, flattened."""

    def take(self, x: Tensor) -> Tensor:
        """Return what of (B, K, ...) belongs to selected positions, row by row: (T, ...)."""
        return x.flatten(0, 1).index_select(0, self.places)


def pack_selection(selected: Tensor) -> Selection:
    """Pack the selected positions of bool (B, M) into (B, K), where K is the largest number in a row, but at least 1.

    At least 1 spares an empty attention, and leaves every parameter a gradient (of zero) where nothing is selected.
    """
    counts = selected.sum(dim=1)
    num_columns = max(1, int(counts.max()))
    # A stable sort of True before False keeps the positions of each row in order.
    indices = selected.long().argsort(dim=1, descending=True, stable=True)[:, :num_columns]
    is_real = torch.arange(num_columns, device=selected.device) < counts[:, None]
    return Selection(indices, is_real.flatten().nonzero().squeeze(1))
