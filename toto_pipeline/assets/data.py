"""series_snapshot and training_data: from files to what a model learns from."""

import dagster as dg

from toto_pipeline.assets.common import OWNERS, columns, picture, run_id_of, table, upstream_fact, user_errors
from toto_pipeline.assets.launchpad import config_class
from toto_pipeline.automation.jobs import FORECAST
from toto_pipeline.config import RetrainSettings, build
from toto_pipeline.resources import HomeResource
from toto_pipeline.settings.data import DataSettings, PreparationSettings
from toto_pipeline.training.run_files import record_settings


def data_assets(settings: RetrainSettings) -> list[dg.AssetsDefinition]:
    snapshot_config = config_class(DataSettings, settings.data)
    preparation_config = config_class(PreparationSettings, settings.preparation)

    @dg.asset(
        group_name="data",
        kinds={"parquet", "arrow"},
        owners=OWNERS,
        description="The input series as they were read, validated, and stored under the hash of their content. Data "
        "that has not changed keeps its version, so nothing downstream becomes stale.",
    )
    def series_snapshot(
        context: dg.AssetExecutionContext,
        config: snapshot_config,
        home: HomeResource,
    ) -> dg.MaterializeResult[None]:
        from toto_pipeline.data.snapshot import picture as draw
        from toto_pipeline.data.snapshot import preview, take_snapshot

        with user_errors():
            opened = home.open()
            settings = build(DataSettings, config.model_dump(), section="data")
            if context.run.job_name != FORECAST:  # a forecast is no retraining and gets no run folder
                record_settings(opened.run(run_id_of(context)), data=settings.model_dump(mode="json"))
            snapshot = take_snapshot(settings, opened)
        manifest = snapshot.manifest
        for repair in manifest.repairs:
            context.log.warning(repair)
        return dg.MaterializeResult(
            data_version=dg.DataVersion(snapshot.fingerprint),
            metadata={
                "fingerprint": snapshot.fingerprint,
                "source": manifest.source,
                "layout": manifest.layout,
                "series": manifest.n_series,
                "variates": ", ".join(manifest.variates),
                "dagster/row_count": manifest.n_rows,
                "span": f"{manifest.start} to {manifest.end}",
                "frequency": manifest.frequency or "irregular",
                "gaps": manifest.n_gaps,
                "missing_values": manifest.n_missing,
                "repairs": "\n".join(manifest.repairs) or "none were needed",
                "dagster/column_schema": columns(manifest.columns),
                "preview": table(preview(snapshot)),
                "picture": picture(draw(snapshot)),
                "folder": dg.MetadataValue.path(str(snapshot.folder)),
            },
        )

    @dg.asset(
        group_name="data",
        kinds={"numpy"},
        owners=OWNERS,
        deps=[series_snapshot],
        description="The series on a regular grid, missing values marked, cut by time into training, validation and "
        "test spans, and stored so that training reads windows without loading everything.",
    )
    def training_data(
        context: dg.AssetExecutionContext,
        config: preparation_config,
        home: HomeResource,
    ) -> dg.MaterializeResult[None]:
        from toto_pipeline.data.snapshot import open_snapshot
        from toto_pipeline.data.training_data import picture as draw
        from toto_pipeline.data.training_data import prepare_training_data

        fingerprint = upstream_fact(context, "series_snapshot", "fingerprint")
        with user_errors():
            opened = home.open()
            settings = build(PreparationSettings, config.model_dump(), section="preparation")
            record_settings(opened.run(run_id_of(context)), preparation=settings.model_dump(mode="json"))
            data = prepare_training_data(open_snapshot(opened.snapshots / fingerprint), settings, opened)
        manifest = data.manifest
        for sentence in (*manifest.repairs, *manifest.dropped):
            context.log.warning(sentence)
        return dg.MaterializeResult(
            data_version=dg.DataVersion(data.fingerprint),
            metadata={
                "fingerprint": data.fingerprint,
                "snapshot": manifest.snapshot,
                "series": manifest.n_series,
                "steps": manifest.n_steps,
                "missing_steps": manifest.n_missing,
                "frequency": manifest.frequency,
                "season_steps": manifest.season,
                "context_length": manifest.context_length,
                "horizon": manifest.horizon,
                "training_from": manifest.train_start,
                "validation_from": manifest.validation_start,
                "test_from": manifest.test_start,
                "test_to": manifest.end,
                "left_out": "\n".join(manifest.dropped) or "nothing",
                "picture": picture(draw(data)),
                "folder": dg.MetadataValue.path(str(data.folder)),
            },
        )

    return [series_snapshot, training_data]
