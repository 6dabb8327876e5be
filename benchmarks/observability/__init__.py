"""What being watched costs a training, beside other ways to watch one; and what is kept of a run that is killed.

The workload (`worker.py`): steps of about 25 ms of a two-layer transformer on one thread, five scalars logged at every
step, histograms of all weights and a figure after every epoch. Each way to log runs in a process of its own; the
processes take turns, an epoch at a time, in an order drawn anew in each round, so that what else the machine does
meets all alike. A ratio is that of an epoch to the bare ones of the same round; one bare process against the other is
measured in the same way, beside it. The call is timed as a loop meets it, after a step that has filled the caches with
other things, which makes it several times as long as in a loop that does nothing else.
"""

from __future__ import annotations

from typing import Any


def run(quick: bool) -> list[dict[str, Any]]:
    from benchmarks.observability import overhead

    return overhead.run(quick)
