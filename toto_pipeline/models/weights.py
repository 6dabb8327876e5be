"""Finding the weights to start from: a local folder, or a Hugging Face id downloaded once into the home's cache."""

from __future__ import annotations

import os
import re
from pathlib import Path

from toto_pipeline.errors import WeightsError

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = ["config.json", "*.safetensors", "*.safetensors.index.json"]


def locate_weights(name: str, cache: Path) -> Path:
    """The local folder with the weights called `name`.

    A folder wins over a Hugging Face id of the same spelling. Only JSON and safetensors files are downloaded.

    Raises:
        WeightsError: neither a folder nor an id that can be reached; says which was tried and the way out.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not _REPOSITORY.fullmatch(name):
        raise WeightsError(
            f"training.model.weights: there is no folder {name!r}. Expected: a folder with config.json and "
            "model.safetensors, or a Hugging Face id such as Datadog/Toto-2.0-4m."
        )
    return _download(name, cache)


def _download(repository: str, cache: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    shared = any(os.environ.get(name) for name in ("HF_HOME", "HF_HUB_CACHE"))
    try:
        return Path(
            snapshot_download(
                repository,
                allow_patterns=_FILES,
                cache_dir=None if shared else cache / "huggingface",
                etag_timeout=10,
            )
        )
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"training.model.weights: {repository!r} could not be downloaded ({type(error).__name__}: {reason}), and "
            "there is no folder of that name. Expected: a Hugging Face id that this machine can reach. What to do: "
            "check the name and the network, log in with `hf auth login` if it is private, or download it "
            f"elsewhere (`hf download {repository}`) and give the folder."
        ) from error
