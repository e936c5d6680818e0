"""WordPiece tokenizers: how they are trained, loaded and checked."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from tokenizers.trainers import WordPieceTrainer

from perceiver.errors import UserError

PAD_TOKEN, UNK_TOKEN, MASK_TOKEN = "[PAD]", "[UNK]", "[MASK]"
SPECIAL_TOKENS = (PAD_TOKEN, UNK_TOKEN, MASK_TOKEN)
"""The special tokens, whose ids are 0, 1 and 2."""
_NUM_CHARACTERS = sys.maxunicode + 1
_PREFIX = "##"  # of tokens that continue a word


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a WordPiece tokenizer; the same texts in the same order always give the same one.

    Args:
        texts: Texts to train on.
        vocab_size: Tokens at most, with the special ones.
    """
    texts = list(texts)
    symbols = _symbols(texts, vocab_size)
    # The trainer numbers symbols in the order of a hash table, and by number it decides between pairs that are equally
    # frequent. Given as special tokens, they have numbers beforehand, and training is the same every time.
    specials = [*SPECIAL_TOKENS, *symbols]
    characters = [symbol for symbol in symbols if len(symbol) == 1]
    trained = _train(texts, vocab_size, specials, characters)
    model = WordPiece(vocab=trained.get_vocab(with_added_tokens=True), unk_token=UNK_TOKEN)
    tokenizer = _untrained(model)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.decoder = decoders.WordPiece(prefix=_PREFIX)
    return tokenizer


def load_tokenizer(source: str | Path) -> Tokenizer:
    """Load a tokenizer that neither cuts nor pads what it encodes.

    Args:
        source: A tokenizer file (~ stands for the home folder), or the content of one.

    Raises:
        UserError: If there is no such file or it does not hold a tokenizer with the special tokens.
    """
    text, name = str(source), "the tokenizer"
    if not text.lstrip().startswith("{"):
        name = f"tokenizer {source}"
        path = Path(source).expanduser()
        if not path.is_file():
            raise UserError(f"{name} does not exist: name a tokenizer.json file")
        text = path.read_text(encoding="utf-8", errors="replace")
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises plain Exception
        raise UserError(f"{name} cannot be read ({error}): name a tokenizer.json file") from None
    if not has_expected_specials(tokenizer):
        raise UserError(f"{name} does not have [PAD], [UNK] and [MASK] as tokens 0, 1 and 2: use another one")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def has_expected_specials(tokenizer: Tokenizer) -> bool:
    """Tell whether [PAD], [UNK] and [MASK] are the tokens 0, 1 and 2."""
    return [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2]


def vocab_size_of(tokenizer: Tokenizer) -> int:
    """Return how many token embeddings a tokenizer needs: its highest id, plus one."""
    return max(tokenizer.get_vocab().values()) + 1


def _untrained(model: WordPiece) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace("<br />", " "),
            normalizers.NFD(),
            normalizers.Lowercase(),
            normalizers.StripAccents(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def _train(texts: Sequence[str], vocab_size: int, specials: list[str], alphabet: list[str] | None = None) -> Tokenizer:
    tokenizer = _untrained(WordPiece(unk_token=UNK_TOKEN))
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        show_progress=False,
        initial_alphabet=alphabet or [],
        limit_alphabet=_NUM_CHARACTERS if alphabet is None else len(alphabet),
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    return tokenizer


def _symbols(texts: Sequence[str], vocab_size: int) -> list[str]:
    """List the characters of the texts, at the start of words and within (##), as far as the vocabulary has room."""
    # No room for merges, so this vocabulary is the special tokens and all symbols.
    symbols = set(_train(texts, 0, list(SPECIAL_TOKENS)).get_vocab()) - set(SPECIAL_TOKENS)
    room = vocab_size - len(SPECIAL_TOKENS)
    if len(symbols) > room:
        frequent = _frequent_characters(texts, symbols, room // 2)
        symbols = {symbol for symbol in symbols if symbol.removeprefix(_PREFIX) in frequent}
    return sorted(symbols, key=lambda symbol: (symbol.startswith(_PREFIX), symbol))


def _frequent_characters(texts: Sequence[str], symbols: set[str], count: int) -> set[str]:
    normalizer = _untrained(WordPiece(unk_token=UNK_TOKEN)).normalizer
    occurrences: Counter[str] = Counter()
    for text in texts:
        occurrences.update(normalizer.normalize_str(text))
    ranked = sorted(symbols & occurrences.keys(), key=lambda character: (-occurrences[character], character))
    return set(ranked[:count])


def has_half_character(value: object) -> bool:
    """Tell whether something is a text with a lone surrogate, half of a character cut in two, which is no Unicode."""
    if not isinstance(value, str) or value.isascii():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return True
    return False
