from pathlib import Path

import datasets
import pytest

from perceiver.data.fingerprint import fingerprint_dataset, fingerprint_files, fingerprint_of


def test_parts_do_not_run_together() -> None:
    prints = [fingerprint_of(*parts) for parts in (("ab", "c"), ("a", "bc"), ("abc",), ("c", "ab"), ("abc", ""), ())]
    assert len(set(prints)) == len(prints)
    assert fingerprint_of("ab", "c") == prints[0]
    assert len(prints[0]) == 64


def write(folder: Path, **contents: str) -> list[Path]:
    for name, content in contents.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return [folder]


def test_files_count_by_name_and_content(tmp_path: Path) -> None:
    first = fingerprint_files(write(tmp_path / "one", a="x", sub__b="y"))
    assert fingerprint_files(write(tmp_path / "two", a="x", sub__b="y")) == first
    assert fingerprint_files([tmp_path / "one" / "sub" / "b", tmp_path / "one" / "a"]) == first
    for number, contents in enumerate(({"a": "x", "sub__b": "z"}, {"a": "x", "sub__c": "y"}, {"a": "x"})):
        assert fingerprint_files(write(tmp_path / str(number), **contents)) != first


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        fingerprint_files([tmp_path / "absent"])


def test_rows_count_and_not_how_they_are_stored() -> None:
    texts, labels = [f"text é {number}" for number in range(5000)], list(range(5000))
    whole = datasets.Dataset.from_dict({"text": texts, "label": labels})
    parts = datasets.concatenate_datasets([whole.select(range(7)), whole.select(range(7, 5000))])
    shuffled = datasets.Dataset.from_dict({"label": labels[::-1], "text": texts[::-1]})
    expected = fingerprint_dataset(whole)
    assert fingerprint_dataset(parts) == expected
    assert fingerprint_dataset(shuffled.select(range(4999, -1, -1))) == expected
    assert fingerprint_dataset(shuffled) != expected


@pytest.mark.parametrize(
    "changed", [{"text": ["ab", ""]}, {"text": ["a", "c"]}, {"text": ["a"]}, {"other": ["a", "b"]}]
)
def test_any_change_counts(changed: dict[str, list[str]]) -> None:
    first = datasets.Dataset.from_dict({"text": ["a", "b"]})
    assert fingerprint_dataset(datasets.Dataset.from_dict(changed)) != fingerprint_dataset(first)
