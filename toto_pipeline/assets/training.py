"""trained_model, and training_epoch: one materialization an epoch, while the training runs."""

from typing import Any

import dagster as dg

from toto_pipeline.assets.common import (
    OWNERS,
    materializations,
    run_family,
    run_id_of,
    upstream_fact,
    user_errors,
)
from toto_pipeline.assets.launchpad import preset_of, to_monitoring, to_training, training_config_class
from toto_pipeline.config import RetrainSettings
from toto_pipeline.events.log import finite_or_none, latest_attempt, read_events
from toto_pipeline.events.schema import Event
from toto_pipeline.resources import HomeResource, MlflowResource

EPOCH_ASSET = "training_epoch"


def training_assets(settings: RetrainSettings) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    config_cls = training_config_class(settings.preset, settings.training, settings.monitoring)

    @dg.asset(
        group_name="training",
        kinds={"pytorch"},
        owners=OWNERS,
        pool="gpu",
        deps=["training_data"],
        description="The Toto model trained by this run: the weights with the lowest validation loss, in a folder that "
        "Toto2Model.from_pretrained opens. A retry goes on from the last good checkpoint.",
    )
    def trained_model(
        context: dg.AssetExecutionContext,
        config: config_cls,
        home: HomeResource,
        mlflow: MlflowResource,
    ) -> dg.MaterializeResult[None]:
        from toto_pipeline.checkpoints.manifest import describe_files
        from toto_pipeline.errors import TrainingError
        from toto_pipeline.monitoring.start import start_follower
        from toto_pipeline.training.launcher import Training
        from toto_pipeline.training.run_files import TrainingOrder, record_settings

        fingerprint = upstream_fact(context, "training_data", "fingerprint")
        with user_errors():
            opened = home.open()
            training, monitoring = to_training(config), to_monitoring(config)
            run_folder = opened.run(run_id_of(context))
            record_settings(
                run_folder,
                preset=preset_of(config),
                training=training.model_dump(mode="json"),
                monitoring=monitoring.model_dump(mode="json"),
            )
            training_data = f"{opened.training_data.name}/{fingerprint}"
            order = TrainingOrder(
                training, training_data, fingerprint, monitoring.system_seconds, monitoring.observations
            )
            recorded = _recorded_epochs(context)
            _record_epochs(context, list(read_events(run_folder)), recorded)
            with start_follower(
                run_folder, monitoring.sinks, drain_seconds=monitoring.drain_seconds
            ) as follower:  # first, so that what the sinks import is ready when the training is
                with Training(run_folder, order) as process:
                    for event in process.events():
                        if event["type"] == "epoch":
                            _record_epochs(context, [event], recorded)
                        elif event["type"] in ("warning", "checkpoint_quarantined", "checkpoint_failed"):
                            context.log.warning(str(event.get("message") or event.get("reason")))
                    ending = process.ending()
                for problem in follower.settle(monitoring.drain_seconds):
                    context.log.warning(problem)
            model = run_folder / "model"
            if ending["outcome"] == "canceled" or not model.is_dir():
                raise TrainingError(f"{run_folder}: training ended without a model: {ending['reason']}")
        files = describe_files(model)
        weights = files["model.safetensors"]
        best = ending["best"] or {}
        return dg.MaterializeResult(
            data_version=dg.DataVersion(weights.sha256),
            metadata={
                "run": run_folder.name,
                "model_sha256": weights.sha256,
                "training_data": fingerprint,
                "outcome": ending["outcome"],
                "reason": ending["reason"],
                "epochs": ending["epoch"],
                "steps": ending["step"],
                "best_epoch": best.get("epoch"),
                "best_validation_loss": finite_or_none(best.get("validation_loss")),
                "settings": dg.MetadataValue.json(training.model_dump(mode="json")),
                "settings_hash": training.fingerprint(),
                "model_bytes": weights.bytes,
                "folder": dg.MetadataValue.path(str(model)),
                "events": dg.MetadataValue.path(str(run_folder / "events.jsonl")),
                **mlflow.metadata(context, run_folder.name),
            },
        )

    epoch = dg.AssetSpec(
        EPOCH_ASSET,
        deps=[trained_model],
        group_name="training",
        kinds={"pytorch"},
        owners=OWNERS,
        description="One materialization for every epoch, recorded while the training runs. Its metadata plots are the "
        "loss curves, the learning rate, the gradient norm and the speed.",
    )
    return [trained_model, epoch]


def epoch_metadata(event: Event) -> dict[str, Any]:
    """The numbers of an `epoch` event, under the names that the UI plots."""
    plain = ("train_loss", "validation_loss", "learning_rate", "gradient_norm", "seconds", "windows_per_second")
    numbers = {name: finite_or_none(event.get(name)) for name in plain}
    numbers |= {f"validation_{name}": finite_or_none(value) for name, value in event["metrics"].items()}
    metadata: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}
    metadata |= {name: dg.MetadataValue.text("not finite") for name, value in numbers.items() if value is None}
    metadata |= {"epoch": event["epoch"], "step": event["step"], "is_best": bool(event["is_best"])}
    return metadata | {"checkpoint": event["checkpoint"] or "none"}


def _record_epochs(context: dg.AssetExecutionContext, events: list[Event], recorded: set[int]) -> None:
    """Materialize the epochs among `events` that are not yet recorded, each once."""
    for event in latest_attempt(events):
        if event["type"] == "epoch" and event["epoch"] not in recorded:
            metadata = epoch_metadata(event) | {"run": run_id_of(context)}
            context.log_event(dg.AssetMaterialization(EPOCH_ASSET, metadata=metadata))
            recorded.add(event["epoch"])


def _recorded_epochs(context: dg.AssetExecutionContext) -> set[int]:
    """Epochs that this run, or a run it retries, has already materialized."""
    family = run_family(context)
    found = set()
    for record in materializations(context.instance, EPOCH_ASSET, limit=10_000):
        materialization = record.asset_materialization
        if record.run_id in family and materialization is not None:
            found.add(int(str(materialization.metadata["epoch"].value)))
    return found
