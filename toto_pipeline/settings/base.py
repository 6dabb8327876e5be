"""What every group of settings is: typed, frozen, and refused where a name is unknown."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the canonical JSON of these settings."""
        return fingerprint(self.model_dump(mode="json"))


def fingerprint(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
