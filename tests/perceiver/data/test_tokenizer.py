import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordPiece

from perceiver.data.tokenizer import has_expected_specials, load_tokenizer, train_tokenizer, vocab_size_of
from perceiver.data.toy_reviews import toy_reviews
from perceiver.errors import UserError

TEXTS = [
    "I have watched this film and it was awesome.",
    "The Café<br />was WATCHED by films!",
    "an awesome film, awfully well filmed",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, vocab_size=200)


def test_special_tokens_come_first(tokenizer: Tokenizer) -> None:
    assert [tokenizer.id_to_token(index) for index in range(3)] == ["[PAD]", "[UNK]", "[MASK]"]
    assert has_expected_specials(tokenizer)
    assert sorted(tokenizer.get_vocab().values()) == list(range(tokenizer.get_vocab_size()))
    assert vocab_size_of(tokenizer) == tokenizer.get_vocab_size()


def test_text_is_normalized(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("Watched<br />the CAFÉ").ids == tokenizer.encode("watched the cafe").ids
    assert tokenizer.decode(tokenizer.encode("Filmed at the café!").ids) == "filmed at the cafe!"


def test_mask_is_one_special_token_within_a_sentence(tokenizer: Tokenizer) -> None:
    encoding = tokenizer.encode("i have watched this [MASK] and it was awesome")
    assert encoding.ids.count(2) == 1
    assert encoding.tokens[4] == "[MASK]"
    assert tokenizer.decode(encoding.ids, skip_special_tokens=False) == "i have watched this [MASK] and it was awesome"


def test_unknown_characters_become_unk(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("字").ids == [1]


def test_the_special_tokens_alone_are_special(tokenizer: Tokenizer) -> None:
    assert "##a" in tokenizer.get_vocab()
    assert tokenizer.get_added_tokens_decoder().keys() == {0, 1, 2}


@pytest.mark.parametrize("vocab_size", [4, 9, 30, 45, 300])
def test_vocabulary_is_no_larger_than_asked(vocab_size: int) -> None:
    texts = toy_reviews(num_train=200, num_test=2, num_unsupervised=2)["train"]["text"]
    trained = train_tokenizer(texts, vocab_size)
    assert vocab_size_of(trained) <= vocab_size
    assert vocab_size_of(trained) >= vocab_size - 1  # the room for symbols is even
    assert has_expected_specials(trained)


def test_a_small_vocabulary_keeps_the_most_frequent_characters() -> None:
    tokens = set(train_tokenizer(["ba ca ca da"], 7).get_vocab())
    assert tokens == {"[PAD]", "[UNK]", "[MASK]", "a", "c", "##a", "ca"}


def test_training_is_the_same_in_another_process() -> None:
    # Hash tables have another order in each process, so a second training in this one would prove less.
    script = (
        "from perceiver.data.tokenizer import train_tokenizer\n"
        "from perceiver.data.toy_reviews import toy_reviews\n"
        "texts = toy_reviews(num_train=400, num_test=2, num_unsupervised=2)['train']['text']\n"
        "print(train_tokenizer(texts, 600).to_str())\n"
    )
    command = [sys.executable, "-c", script]
    root = str(Path(__file__).parents[3])
    results = {
        subprocess.run(command, check=True, capture_output=True, cwd=root, env=os.environ).stdout for _ in range(2)
    }
    assert len(results) == 1
    assert vocab_size_of(Tokenizer.from_str(results.pop().decode())) == 600


def test_loads_a_file_and_its_content(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    assert load_tokenizer(path).to_str() == tokenizer.to_str()
    assert load_tokenizer(str(path)).to_str() == tokenizer.to_str()
    assert load_tokenizer(tokenizer.to_str()).to_str() == tokenizer.to_str()


def test_loaded_tokenizer_neither_cuts_nor_pads(tokenizer: Tokenizer) -> None:
    changed = Tokenizer.from_str(tokenizer.to_str())
    changed.enable_truncation(2)
    changed.enable_padding(length=9)
    assert load_tokenizer(changed.to_str()).to_str() == tokenizer.to_str()


def test_what_is_not_a_tokenizer_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"version": ')
    with pytest.raises(UserError, match=r"broken\.json cannot be read"):
        load_tokenizer(broken)
    with pytest.raises(UserError, match=r"missing\.json does not exist"):
        load_tokenizer(tmp_path / "missing.json")


def test_other_special_tokens_are_refused() -> None:
    other = Tokenizer(WordPiece({"[UNK]": 0, "[PAD]": 1, "[MASK]": 2}, unk_token="[UNK]"))
    assert not has_expected_specials(other)
    with pytest.raises(UserError, match=r"\[PAD\], \[UNK\] and \[MASK\]"):
        load_tokenizer(other.to_str())
