"""The tensors of one process on the disk: one safetensors file for each group of them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from toto_pipeline.checkpoints.manifest import Manifest
from toto_pipeline.checkpoints.state import Tensors

_SUFFIX = ".safetensors"


def write(folder: Path, tensors: Mapping[str, Tensors]) -> None:
    """Write each group; the files are not synced.

    Raises:
        OSError: what the operating system says about the disk.
    """
    for group, members in tensors.items():
        _save_file(members, folder / f"{group}{_SUFFIX}")


def read(folder: Path, manifest: Manifest) -> dict[str, Tensors]:
    """The groups that the manifest names, on the CPU.

    Raises:
        SafetensorError: a file is not a safetensors file.
    """
    return {name.removesuffix(_SUFFIX): load_file(folder / name) for name in manifest.files if name.endswith(_SUFFIX)}


def _save_file(tensors: Tensors, file: Path) -> None:
    try:
        save_file(tensors, file)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)|code: (\d+)", str(error))  # the library tells it in words only
        if number is None:
            raise
        code = int(number[1] or number[2])
        raise OSError(code, os.strerror(code), str(file)) from error
