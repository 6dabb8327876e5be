"""What is installed and what can be set: `doctor` and `settings`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toto_pipeline.commands.shared import Json, console, examples, home_of, print_json, table
from toto_pipeline.home import HOME_VARIABLE

if TYPE_CHECKING:
    from pydantic import BaseModel


def register(app: typer.Typer) -> None:
    app.command(
        epilog=examples("toto-pipeline doctor", "toto-pipeline doctor --json | jq '.checks[] | select(.ok | not)'")
    )(doctor)
    app.command(
        epilog=examples(
            "toto-pipeline settings", "toto-pipeline settings --json", "toto-pipeline retrain --set training.epochs=3"
        )
    )(settings)
    app.command(epilog=examples("toto-pipeline dev", "toto-pipeline dev --port 3001"))(dev)


def doctor(context: typer.Context, json: Json = False) -> None:
    """Check this machine: Python, packages, devices, disk, storage, registry. Exit code 1 if something is wrong."""
    from toto_pipeline.doctor import examine

    checks = examine(home_of(context))
    wrong = [check for check in checks if not check.ok]
    if json:
        print_json({"ok": not wrong, "checks": [vars(check) for check in checks]})
    else:
        out = console()
        view = table("", "Check", "Found")
        for check in checks:
            view.add_row("[green]ok[/]" if check.ok else "[red]wrong[/]", check.name, check.found)
        out.print(view)
        for check in wrong:
            out.print(f"{check.name}: {check.remedy}", markup=False, soft_wrap=True)
        out.print("Everything is in order." if not wrong else f"{len(wrong)} to mend.", style="bold")
    raise typer.Exit(1 if wrong else 0)


def dev(
    context: typer.Context,
    port: Annotated[int, typer.Option(help="Port of the UI.")] = 3000,
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback let others in.")] = "127.0.0.1",
) -> None:
    """Open the Dagster UI with the history of this home: launch, watch, switch the nightly schedule on."""
    from toto_pipeline.automation.instance import prepare_instance

    home = home_of(context)
    folder = prepare_instance(home)
    dagster = Path(sys.executable).with_name("dagster")
    console().print(f"http://{host}:{port}", markup=False)
    os.execve(  # noqa: S606 - the UI takes this process over, signals and all
        dagster,
        [str(dagster), "dev", "-m", "toto_pipeline.definitions", "-h", host, "-p", str(port)],
        {**os.environ, HOME_VARIABLE: str(home.root), "DAGSTER_HOME": str(folder)},
    )


def settings(json: Json = False) -> None:
    """List every setting with its type, default and meaning, and the presets."""
    from rich.markup import escape
    from rich.padding import Padding

    from toto_pipeline.config import PRESET_DESCRIPTIONS, PRESETS, RetrainSettings

    rows = describe_settings(RetrainSettings)
    if json:
        presets = {
            name: {"description": PRESET_DESCRIPTIONS[name], "training": changes} for name, changes in PRESETS.items()
        }
        print_json({"settings": rows, "presets": presets})
        return
    out = console()
    group = ""
    for row in rows:
        above, _, _ = row["name"].rpartition(".")
        if above != group:
            group = above
            out.print(f"\n[bold]{group}[/]")
        default = "unset" if row["default"] is None else row["default"]
        out.print(f"  [cyan]{row['name']}[/] = {escape(str(default))}  [dim]({escape(row['type'])})[/]", soft_wrap=True)
        out.print(Padding(escape(row["description"]), (0, 0, 0, 6)))
    out.print("\n[bold]presets[/]")
    for name in PRESETS:
        out.print(f"  [cyan]{name}[/]")
        out.print(Padding(PRESET_DESCRIPTIONS[name], (0, 0, 0, 6)))


def describe_settings(cls: type[BaseModel], prefix: str = "") -> list[dict[str, Any]]:
    """Name, type, default and description of every setting, in the order they are declared."""
    from toto_pipeline.settings.base import Settings

    rows: list[dict[str, Any]] = []
    for name, field in cls.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Settings):
            rows += describe_settings(kind, f"{prefix}{name}.")
            continue
        default = field.get_default(call_default_factory=True)
        rows.append(
            {
                "name": f"{prefix}{name}",
                "type": _type_in_words(kind),
                "default": default,
                "description": field.description or "",
            }
        )
    return rows


def _type_in_words(kind: Any) -> str:
    """`int`, `str or unset`, `error | sort`."""
    import types
    from typing import Literal, Union, get_args, get_origin

    if kind is type(None):
        return "unset"
    if get_origin(kind) is Literal:
        return " | ".join(str(choice) for choice in get_args(kind))
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_type_in_words(part) for part in get_args(kind))
    if get_origin(kind) is list:
        return f"list of {_type_in_words(get_args(kind)[0])}"
    return str(getattr(kind, "__name__", kind))
