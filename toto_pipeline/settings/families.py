"""Which model families there are, and which settings each of them heeds. Nothing of a family is imported here.

A package offers a family as an entry point of the group `toto_pipeline.models`; `models/families.py` says what stands
behind it. Of this package's own the traits are below. A family from outside has its settings in `model.options`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from toto_pipeline.settings.plugins import not_installed

FAMILY_GROUP = "toto_pipeline.models"
"""The group of entry points by which a package offers model families: name = "module" or "module:object"."""
SIZES = ("patch_size", "d_model", "num_heads", "num_layers", "d_ff", "layer_group_size")
"""Settings of `model` that describe a model from scratch."""
LARGEST_PLAIN_RATE = 0.03
"""No transformer without unit scaling trains at a higher rate."""


@dataclass(frozen=True, kw_only=True)
class FamilyTraits:
    """What the settings must know of a family.

    Attributes:
        sizes: those of `SIZES` that it heeds.
        unit_scaled: its learning rates are u-muP's, and LoRA adapters and Muon fit its layers.
        learning_rate, fine_tuning_rate: the default from scratch, and with `model.weights`.
        sharded: it can be trained with FSDP2. Toto 1.0 forecasts row by row, and the processes of a validation have
            different numbers of rows, so that they would wait for each other.
    """

    sizes: frozenset[str]
    unit_scaled: bool
    learning_rate: float
    fine_tuning_rate: float
    sharded: bool = True


OWN_FAMILIES = {
    "toto2": FamilyTraits(sizes=frozenset(SIZES), unit_scaled=True, learning_rate=0.1, fine_tuning_rate=0.1),
    "toto1": FamilyTraits(
        sizes=frozenset(SIZES), unit_scaled=False, learning_rate=1e-3, fine_tuning_rate=1e-4, sharded=False
    ),
    "chronos": FamilyTraits(
        sizes=frozenset(SIZES) - {"layer_group_size"}, unit_scaled=False, learning_rate=1e-3, fine_tuning_rate=1e-5
    ),
}
_FROM_OUTSIDE = FamilyTraits(sizes=frozenset(), unit_scaled=False, learning_rate=1e-3, fine_tuning_rate=1e-4)


def traits(family: str) -> FamilyTraits:
    return OWN_FAMILIES.get(family, _FROM_OUTSIDE)


def unknown_family(name: str) -> str | None:
    """What is wrong with the name of a family; None where it is installed.

    That a family is offered does not say that it can be imported: those of this package need their makers' libraries.
    """
    return not_installed("model family", name, FAMILY_GROUP)


def unheeded(family: str, values: dict[str, Any], defaults: dict[str, Any]) -> str | None:
    """What the family would pass over in silence of `SIZES` and `options`; None where there is nothing."""
    heeded = traits(family).sizes
    changed = [name for name in SIZES if name not in heeded and values[name] != defaults[name]]
    if changed:
        way = f"set {_those(heeded)} instead" if heeded else "its own settings go into training.model.options"
        return f"family {family} has no setting {', '.join(changed)}. What to do: leave it out; {way}"
    if values["options"] and family in OWN_FAMILIES:
        return f"family {family} takes no options (found {', '.join(map(repr, values['options']))})"
    return None


def _those(names: frozenset[str]) -> str:
    return ", ".join(name for name in SIZES if name in names)
