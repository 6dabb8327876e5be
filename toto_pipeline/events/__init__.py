"""The event log of a run: the one thing that a training process writes, and all that is known of the run.

from toto_pipeline.events import TrainingLogger     write one, from any training loop
from toto_pipeline.events import read_run           read one, as a pandas frame
from toto_pipeline.events import read_events        read one, event by event, in constant memory
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toto_pipeline.events.frame import read_run
    from toto_pipeline.events.log import read_events
    from toto_pipeline.events.training_logger import TrainingLogger

__all__ = ["TrainingLogger", "read_events", "read_run"]

_MODULES = {"TrainingLogger": "training_logger", "read_events": "log", "read_run": "frame"}


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: the parts of the log are light, and stay so for who needs one of them."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
