"""The process that follows a run: `python -m toto_pipeline.monitoring RUN_FOLDER`.

Exit codes: 0 all sinks have everything, or another process follows the run; 1 a sink is behind; 2-9 a mistake that the
message explains; 143 told to stop.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from toto_pipeline.errors import ConfigError, PipelineError

NICENESS = 5
"""Training goes first."""


def main(arguments: list[str]) -> int:
    os.nice(NICENESS)
    os.environ["OMP_NUM_THREADS"] = "1"
    from toto_pipeline.events.segments import Cursor
    from toto_pipeline.monitoring.follower import follow_run

    parsed = _parse(arguments)
    heard: list[int] = []
    try:
        return follow_run(
            parsed.run_folder.absolute(),
            sinks=_sinks(parsed.sinks),
            only=parsed.only or [],
            restart=parsed.restart or [],
            wait=not parsed.no_wait,
            drain_seconds=parsed.drain,
            is_patient=parsed.patient,
            after=Cursor(*parsed.after),
            starter=parsed.starter,
            holding_lock=lambda: _listen_for_signals(heard),  # until then a signal simply ends the process
            told_to_stop=lambda: bool(heard),
        )
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m toto_pipeline.monitoring", description="Feed the sinks of a run from its event log."
    )
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--for", dest="starter", metavar="PROCESS", help="wait for the run as long as this one lives")
    parser.add_argument("--sinks", metavar="JSON", help="settings by name of sink; default: those kept with the run")
    parser.add_argument("--only", action="append", metavar="SINK", help="feed only this one; may be given often")
    parser.add_argument("--restart", action="append", metavar="SINK", help="feed this one from the start")
    parser.add_argument("--no-wait", action="store_true", help="end at once where another process follows the run")
    parser.add_argument("--drain", type=float, default=30.0, metavar="SECONDS", help="bound of the end")
    parser.add_argument("--patient", action="store_true", help="the bound of the end begins anew with each progress")
    parser.add_argument(
        "--after", type=int, nargs=2, default=(1, 0), metavar=("SEGMENT", "OFFSET"), help="wait for an attempt behind"
    )
    return parser.parse_args(arguments)


def _sinks(text: str | None) -> dict[str, dict[str, Any]] | None:
    if text is None:
        return None
    try:
        return {str(name): dict(settings) for name, settings in json.loads(text).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(
            f'--sinks: is not what it should be ({error}). Expected: JSON such as {{"tensorboard": {{}}}}.'
        ) from None


def _listen_for_signals(heard: list[int]) -> None:
    def stop(number: int, _frame: FrameType | None) -> None:
        heard.append(number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a sink that hangs, or a thread of its library, holds up nothing
