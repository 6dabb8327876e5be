"""A person's decisions about the champion: `promote`, `rollback`; and `versions`, what there is to decide between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from toto_pipeline.commands.history import RunName
from toto_pipeline.commands.shared import Json, console, examples, figure, home_of, print_json, table, when
from toto_pipeline.home import Home

if TYPE_CHECKING:
    from toto_pipeline.promotion.changes import Change
    from toto_pipeline.promotion.registry import ModelVersion

Model = Annotated[str, typer.Option(help="Name of the registered model.")]


def register(app: typer.Typer) -> None:
    app.command(epilog=examples("toto-pipeline versions", "toto-pipeline versions --json | jq '.[0].tags'"))(versions)
    app.command(
        epilog=examples(
            "toto-pipeline promote latest", "toto-pipeline promote 3f2a --force --reason 'the sensor was replaced'"
        )
    )(promote)
    app.command(
        epilog=examples(
            "toto-pipeline rollback --reason 'forecasts too low since Monday'",
            "toto-pipeline rollback --to 4 --yes",
        )
    )(rollback)


def versions(
    context: typer.Context,
    model: Model = "toto",
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many versions.")] = 20,
    json: Json = False,
) -> None:
    """List the registered versions, newest first, with their aliases and what became of them."""
    from toto_pipeline.promotion.registry import Registry

    found = Registry(home_of(context), model).versions(limit)
    if json:
        print_json([describe_version(version) for version in found])
        return
    out = console()
    if not found:
        out.print(f"No versions of {model!r} in {home_of(context).root}. Register one with: toto-pipeline retrain")
        return
    view = table("Version", "When", "Run", "SQL", "Decision", "Alias", right=("Version", "SQL"))
    for version in found:
        view.add_row(
            version.version,
            when(version.created)[5:],
            version.run[:8],
            figure(version.metrics.get("SQL")),
            _became(version),
            ", ".join(version.aliases),
        )
    out.print(view)


def promote(
    context: typer.Context,
    run: RunName,
    force: Annotated[bool, typer.Option("--force", help="Promote it although the gate refused it.")] = False,
    reason: Annotated[str, typer.Option(help="Why; asked for with --force, and kept.")] = "",
    json: Json = False,
) -> None:
    """Make a run's model the champion: one that the gate accepted, or with --force any that was evaluated.

    Its files are verified first, and it must be the very model that was evaluated.
    """
    from toto_pipeline.promotion import release
    from toto_pipeline.promotion.registry import CHAMPION, Registry

    home = home_of(context)
    folder = home.find_run(run)
    policy = _policy(folder)
    name = policy.model_name
    if force:
        champion = Registry(home, name).with_alias(CHAMPION)
        done = release.force(home, folder, name, reason=reason, expected_champion=champion)
    else:
        done = release.promote(home, folder, name, {}, allow_rolled_back=policy.allow_rolled_back)
    _track(home, folder.name)
    _record(home, name)
    _tell(name, done.version, done.change, json=json)


def rollback(
    context: typer.Context,
    to: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Version to go back to. Default: the champion before.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; kept with the version that is replaced.")] = "",
    model: Model = "toto",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Go back to an earlier champion. Its files are verified first; where they are damaged the champion stays.

    The version that is replaced is not promoted again by the nights that follow.
    """
    from toto_pipeline.promotion.rollback import plan, roll_back

    home = home_of(context)
    planned = plan(home, model, to)
    question = f"Replace version {planned.champion} of {model} by version {planned.target}?"
    if not yes and not typer.confirm(question, err=True):
        raise typer.Exit(1)
    done = roll_back(home, model, planned, reason=reason)
    _record(home, model)
    _tell(model, done.version, done.change, json=json)


def describe_version(version: ModelVersion) -> dict[str, Any]:
    """A version as plain values."""
    return {
        "version": version.version,
        "run": version.run,
        "created": version.created,
        "aliases": list(version.aliases),
        "metrics": dict(version.metrics),
        "tags": dict(version.tags),
        "path": str(version.path),
        "mlflow_run": version.mlflow_run,
    }


def _became(version: ModelVersion) -> str:
    from toto_pipeline.promotion.changes import ROLLED_BACK

    return "rolled back" if ROLLED_BACK in version.tags else version.tags.get("decision", "")


def _policy(folder: Any) -> Any:
    """The settings of promotion that a run was started with."""
    from toto_pipeline.config import build
    from toto_pipeline.runs import CONFIG_FILE, read_json
    from toto_pipeline.settings.promotion import PromotionSettings

    config = read_json(folder / CONFIG_FILE)[0] or {}
    return build(PromotionSettings, config.get("promotion") or {}, section="promotion")


def _track(home: Home, run: str) -> None:
    from toto_pipeline.promotion.tracking import track

    track(home, home.run(run))


def _record(home: Home, model: str) -> None:
    """Let the page of promoted_checkpoint in Dagster show it."""
    from toto_pipeline.assets.promoted import record_by_command

    record_by_command(home, model)


def _tell(model: str, version: ModelVersion, change: Change, *, json: bool) -> None:
    if json:
        print_json({"model": model, **describe_version(version), "change": vars(change)})
        return
    replaced = f", in place of version {change.replaced}" if change.replaced else ""
    console().print(f"Version {version.version} of {model} is the champion{replaced}.", markup=False, soft_wrap=True)
