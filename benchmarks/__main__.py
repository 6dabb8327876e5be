"""Every performance promise, measured: `make bench`, or `python -m benchmarks [--json] [--quick] [NAME ...]`.

A benchmark is a module of this folder with `run(quick) -> list of results`; a result has name, value, unit, limit and
ok. The exit code is 1 where a limit is broken.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from typing import Any

BENCHMARKS = {
    "code_location": "what Dagster pays for loading the code location",
    "retrain": "the whole pipeline on the bundled sample, and the quality it reaches",
    "training_loop": "what the loop costs beyond a bare one, and the wait for data",
    "checkpoints": "how long a save stops the training, and what a restore takes",
    "observability": "what logging costs a training, beside other loggers, and what a SIGKILL leaves of it",
    "gpu": "speed, utilisation and exact resume on a GPU, where there is one",
    "optimizers": "Muon for the hidden matrices against AdamW alone: validation loss and cost of a step",
    "upstream": "windows/s and wait for data beside Toto 1.0's own fine-tuning loop, where toto-ts is installed",
    "evaluation": "windows/s of the back-test beside calling Toto 2.0 and fev directly",
    "gate": "the promotion gate: a million paired windows, and how often it errs on simulated evaluations",
    "registry": "finding, registering and promoting a champion among 10 000 versions",
    "data_preparation": "reading and preparing 10 000 series of 10 000 points",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    listed = "; ".join(f"{name}: {text}" for name, text in BENCHMARKS.items())
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which to run; all without a name. {listed}")
    parser.add_argument("--json", action="store_true", help="print JSON on stdout, the table on stderr")
    parser.add_argument("--quick", action="store_true", help="smaller sizes: a look, not a measurement")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    results: list[dict[str, Any]] = []
    for name in arguments.names or BENCHMARKS:
        print(f"{name}: {BENCHMARKS[name]} ...", file=sys.stderr, flush=True)
        results += importlib.import_module(f"benchmarks.{name}").run(arguments.quick)
    _print_table(results, sys.stderr if arguments.json else sys.stdout)
    if arguments.json:
        json.dump(results, sys.stdout, indent=2)
        print()
    return 0 if all(result["ok"] is not False for result in results) else 1


def _print_table(results: list[dict[str, Any]], stream: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("measurement", "value", "unit", "limit", "")
    for result in results:
        verdict = {True: "ok", False: "BROKEN", None: ""}[result["ok"]]
        table.add_row(result["name"], f"{result['value']:.4g}", result["unit"], str(result["limit"] or ""), verdict)
    Console(file=stream, width=120).print(table)


if __name__ == "__main__":
    sys.exit(main())
