"""Models as users of the Hugging Face hub know them.

from perceiver.hub import PerceiverModel

model = PerceiverModel.from_pretrained("user/name")  # or a model/ folder
model.classify(["what a film"])
model.push_to_hub("user/name")

What is saved is our model folder, and its README.md is the model's card.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from tokenizers import Tokenizer
from torch import nn

from perceiver.config import ModelConfig
from perceiver.errors import UserError
from perceiver.inference import Fills, Prediction, Predictor
from perceiver.model import PerceiverIO, PerceiverMLM
from perceiver.saving import CARD, find_model_folder, load_model, save_model

_FILES = ["*.safetensors", "*.json", CARD]  # no pickles


class PerceiverModel(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="perceiver",
    license="apache-2.0",
    paper_url="https://arxiv.org/abs/2107.14795",
    tags=["perceiver-io"],
):
    """A model with its tokenizer that the hub's methods load, save and publish; called, it is the plain model.

    Args:
        model: The network.
        model_config: What it was built from.
        tokenizer: Tokenizer of its texts; None for images.
        card: Content of its README.md (none: one is made when it is saved).
    """

    def __init__(
        self,
        model: PerceiverIO | PerceiverMLM,
        model_config: ModelConfig,
        tokenizer: Tokenizer | None = None,
        card: str | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.model_config = model_config
        self.tokenizer = tokenizer
        self.card = card

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model; see PerceiverIO.forward and PerceiverMLM.forward."""
        return self.model(*args, **kwargs)

    def classify(self, inputs: Sequence[str] | np.ndarray) -> list[Prediction]:
        """Return the class of each text or image; see Predictor.classify."""
        return self._predictor().classify(inputs)

    def fill(self, texts: Sequence[str], k: int = 5) -> list[Fills]:
        """Return the k most probable tokens for each [MASK] of each text; see Predictor.fill."""
        return self._predictor().fill(texts, k)

    def _predictor(self) -> Predictor:
        return Predictor(self.model, self.model_config, self.tokenizer)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, map_location: str = "cpu", **options: Any
    ) -> PerceiverModel:
        """Load a model folder, or a model of the hub, after checking it against its checksums. Nothing is unpickled.

        Args:
            pretrained_model_name_or_path: A model/ folder, the folder of a stage or of a run, or "user/name".
            map_location: Device to load it to.
            options: revision, token, cache_dir, force_download and local_files_only, for a model of the hub.

        Raises:
            UserError: If there is no such model, or its files are damaged.
        """
        folder = Path(pretrained_model_name_or_path).expanduser()
        if not folder.is_dir():
            folder = _download(str(pretrained_model_name_or_path), **options)
        folder = find_model_folder(folder)
        saved = load_model(folder)
        card = folder / CARD
        text = card.read_text(encoding="utf-8") if card.is_file() else None
        model = cls(saved.model, saved.config, saved.tokenizer, text)
        return model.to(map_location).eval()

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write a model folder, which perceiver.inference.load reads too, and with push_to_hub=True publish it.

        Args:
            save_directory: Folder to create, or an empty one.
            options: repo_id, push_to_hub, model_card_kwargs and those of push_to_hub.

        Raises:
            UserError: If the folder holds anything.
        """
        folder = Path(save_directory)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} is not empty: name another folder for the model")
        return super().save_pretrained(save_directory, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        texts = {} if self.card is None else {CARD: self.card}
        save_model(save_directory, self.model, self.model_config, self.tokenizer, texts)


def _download(name: str, **options: Any) -> Path:
    """Fetch the files of a model from the hub, and no others."""
    try:
        return Path(snapshot_download(name, allow_patterns=_FILES, **options))
    except HFValidationError:
        raise UserError(f"model {name} is neither a folder nor a name of the hub: name a folder or user/name") from None
    except LocalEntryNotFoundError:
        raise UserError(f"model {name} is no folder, and the hub can't be reached: check name and network") from None
    except HfHubHTTPError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model {name} is not on the hub ({reason}): check the name and your token") from None
