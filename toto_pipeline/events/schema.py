"""What a training process records. One JSON object a line; every tool that watches a run reads these and nothing else.

Every event has the envelope

    schema     1
    type       one of the types below; readers skip types they do not know
    attempt    1 for the first start of the run, one more at each restart
    time       Unix time in seconds; monotonic: the machine's monotonic clock in seconds
    step       optimizer steps done; epoch: epochs done (fields of the envelope, absent before training starts)

and the fields of its type:

    run_started       run, config, config_hash, data_fingerprint, code_version, host, pid, process (that writes the log,
                      told apart from a later one with its number), supervisor (the process that would start it again,
                      or null), device, processes, parameters, trained_parameters, epochs, steps_per_epoch, total_steps,
                      resumed_from (step, or null)
    step              loss, learning_rate, gradient_norm, seconds, data_seconds (wait for the batch, part of seconds);
                      a loss or gradient_norm that is not finite means that the step was skipped; in some steps
                      update_to_weight and update_to_weight/<block>, as `training.observation` says
    epoch             train_loss, validation_loss, metrics (name -> value), learning_rate, gradient_norm, seconds,
                      windows_per_second, skipped_steps, statistics (name -> moving mean, slope, best, ...),
                      checkpoint (path relative to the run folder, or null), is_best
    system            host, process (name -> value) and gpus (a list of such), as `system_monitor` names them
    model             modules (a list of name, kind, parameters, trained), in the order in which they are registered
    histogram         name, counts, edges (one more than counts, rising), minimum, maximum, mean, deviation
    figure            name, figure: what to draw, as data (`figures` names the kinds)
    text              name, text
    checkpoint_saved  checkpoint, bytes, seconds (until it was on the disk), blocked_seconds (that training waited)
    checkpoint_failed checkpoint, reason, error
    checkpoint_quarantined  checkpoint, moved_to, reason
    checkpoint_backed_up    checkpoint, folder
    warning           name, message
    run_ended         outcome, reason, best (epoch, step, validation_loss, ..., checkpoint; or null)

A loop of another kind than the pipeline's own may leave out what it does not have, and add to `step` and `epoch`
numbers of its own. `measurements` gives the numbers of any event under the names that all tools show.

NaN and the infinities are written as the strings "nan", "inf" and "-inf"; `number()` reads them back.
"""

from __future__ import annotations

import math
from typing import Any, Literal

SCHEMA = 1

ENVELOPE = frozenset({"schema", "type", "attempt", "time", "monotonic", "step", "epoch"})

Event = dict[str, Any]
Outcome = Literal["completed", "stopped", "canceled", "failed"]
"""completed: all epochs; stopped: a policy ended it early; canceled: asked from outside; failed: an error."""

_SPELLED = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def number(value: Any) -> float:
    """A number of an event as a float, spelled-out non-finite values included; NaN for null."""
    if value is None:
        return math.nan
    return _SPELLED[value] if isinstance(value, str) else float(value)


def spell_out(value: Any) -> Any:
    """`value` with every non-finite float replaced by its name, through dicts, lists and tuples."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, dict):
        return {key: spell_out(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [spell_out(item) for item in value]
    return value
