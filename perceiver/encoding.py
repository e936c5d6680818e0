"""From texts to the tokens that a model reads, without tokenizing what it doesn't."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tokenizers import Encoding, Tokenizer

_logger = logging.getLogger(__name__)

_LIKELY_CHARACTERS = 16  # per token: nearly all texts have fewer
_MOST_CHARACTERS = 256  # per token; only texts that hardly consist of words have more
_OPEN_WORDS = 2  # at the end of a piece, which might have been others with the rest: half a word, half a "<br />"


def first_token_ids(tokenizer: Tokenizer, texts: Sequence[str], max_seq_len: int) -> list[list[int]]:
    """Tokenize the beginnings of texts.

    The result is that of tokenizing whole texts and cutting them, except that no more than 256 characters per token
    are looked at.

    Args:
        tokenizer: Tokenizer that neither pads nor cuts.
        texts: The texts.
        max_seq_len: Tokens per text at most.

    Returns:
        For each text 0 to max_seq_len token ids.
    """
    length, most = _LIKELY_CHARACTERS * max_seq_len, _MOST_CHARACTERS * max_seq_len
    encodings = tokenizer.encode_batch([text[:length] for text in texts])
    for place, text in enumerate(texts):
        if len(text) > length and not _is_settled(encodings[place], max_seq_len):
            encodings[place] = tokenizer.encode(text[:most])
    if any(
        len(encoding.ids) > max_seq_len or len(text) > most for encoding, text in zip(encodings, texts, strict=True)
    ):
        _logger.info("texts of more than %d tokens are cut to what the model reads", max_seq_len)
    return [encoding.ids[:max_seq_len] for encoding in encodings]


def _is_settled(encoding: Encoding, max_seq_len: int) -> bool:
    """Tell whether the first tokens of a piece of a text are those of the whole text."""
    words = encoding.word_ids
    if len(words) <= max_seq_len:
        return False
    last_read, last = words[max_seq_len - 1], words[-1]
    return last_read is not None and last is not None and last_read <= last - _OPEN_WORDS
