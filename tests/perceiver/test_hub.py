"""What the hub's methods save is a model folder, and what they load is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub.hub_mixin
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from perceiver import hub
from perceiver.errors import UserError
from perceiver.hub import PerceiverModel
from perceiver.inference import load
from perceiver.saving import save_model
from tests.perceiver.test_inference import IMAGE_CLASSIFIER, MLM, TEXT_CLASSIFIER, TOKENIZER, built

TEXTS = ["what a good film", "what a bad film it was"]
FILES = {"model.safetensors", "config.json", "tokenizer.json", "manifest.json", "README.md"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", built(TEXT_CLASSIFIER), TEXT_CLASSIFIER, TOKENIZER)
    return tmp_path / "model"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_model_folder_loads_and_classifies_as_ever(folder: Path) -> None:
    assert PerceiverModel.from_pretrained(folder).classify(TEXTS) == load(folder).classify(TEXTS)


def test_what_is_saved_is_a_model_folder_with_a_card(folder: Path, tmp_path: Path) -> None:
    PerceiverModel.from_pretrained(folder).save_pretrained(tmp_path / "copy")
    assert names(tmp_path / "copy") == FILES
    assert "perceiver-io" in (tmp_path / "copy" / "README.md").read_text()
    for name in FILES - {"README.md", "manifest.json"}:
        assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes()
    assert load(tmp_path / "copy").classify(TEXTS) == load(folder).classify(TEXTS)


def test_the_card_of_a_model_goes_with_it(folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").write_text("how it was trained\n")
    for name, source in {"copy": folder, "copy of a stage's": folder.parent}.items():
        PerceiverModel.from_pretrained(str(source)).save_pretrained(tmp_path / name)
        assert (tmp_path / name / "README.md").read_text() == "how it was trained\n"


def test_it_can_be_called_like_the_plain_model(folder: Path) -> None:
    model = PerceiverModel.from_pretrained(folder)
    assert not model.training
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids), load(folder).model(ids))


def test_a_masked_language_model_fills_and_an_image_model_classifies(tmp_path: Path) -> None:
    PerceiverModel(built(MLM), MLM, TOKENIZER).save_pretrained(tmp_path / "mlm")
    texts = ["what a [MASK] film"]
    assert PerceiverModel.from_pretrained(tmp_path / "mlm").fill(texts) == load(tmp_path / "mlm").fill(texts)
    PerceiverModel(built(IMAGE_CLASSIFIER), IMAGE_CLASSIFIER).save_pretrained(tmp_path / "images")
    assert names(tmp_path / "images") == FILES - {"tokenizer.json"}
    images = torch.rand(2, *IMAGE_CLASSIFIER.image_shape).numpy()
    assert len(PerceiverModel.from_pretrained(tmp_path / "images").classify(images)) == 2


def test_altered_weights_are_refused(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="was altered"):
        PerceiverModel.from_pretrained(folder)


def test_a_pickle_is_not_taken_for_the_weights(folder: Path) -> None:
    model = load(folder).model
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        PerceiverModel.from_pretrained(folder)


def test_a_folder_that_holds_something_is_left_alone(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match="is not empty"):
        PerceiverModel.from_pretrained(folder).save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


class _Repository(NamedTuple):
    repo_id: str


class _FakeApi:
    """Notes what would be uploaded."""

    uploads: dict[str, set[str]]

    def __init__(self, **kwargs: Any) -> None: ...

    def create_repo(self, repo_id: str, **kwargs: Any) -> _Repository:
        return _Repository(repo_id)

    def upload_folder(self, repo_id: str, folder_path: Path, **kwargs: Any) -> str:
        self.uploads[repo_id] = names(folder_path)
        return f"https://huggingface.co/{repo_id}"


def test_what_is_pushed_is_the_model_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _FakeApi.uploads = {}
    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", _FakeApi)
    assert PerceiverModel.from_pretrained(folder).push_to_hub("user/name") == "https://huggingface.co/user/name"
    assert _FakeApi.uploads == {"user/name": FILES}


def test_a_model_of_the_hub_is_fetched_without_pickles(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def fetch(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    model = PerceiverModel.from_pretrained("user/name", revision="v1")
    assert model.classify(TEXTS) == load(folder).classify(TEXTS)
    assert (asked["name"], asked["revision"]) == ("user/name", "v1")
    assert asked["allow_patterns"] == ["*.safetensors", "*.json", "README.md"]


@pytest.mark.parametrize(("name", "expected"), [("a/b/c", "neither a folder nor"), ("user/name", "can't be reached")])
def test_what_is_not_there_is_one_line(name: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "user/name":
        error = LocalEntryNotFoundError("offline")
        monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(UserError, match=expected):
        PerceiverModel.from_pretrained(name)
