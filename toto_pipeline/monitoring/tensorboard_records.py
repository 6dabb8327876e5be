"""Events as TensorBoard's records: scalars, histograms, images, texts, the graph, and the HPARAMS page.

A scalar is a float32, as in every event file. `framed` of a record is the same in every process.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from tensorboard.compat.proto.attr_value_pb2 import AttrValue
from tensorboard.compat.proto.event_pb2 import Event as Record
from tensorboard.compat.proto.event_pb2 import SessionLog
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.node_def_pb2 import NodeDef
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_BLOB_SEQUENCE, DATA_CLASS_TENSOR, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_DOUBLE, DT_STRING
from tensorboard.compat.proto.versions_pb2 import VersionDef
from tensorboard.plugins.histogram.metadata import PLUGIN_NAME as HISTOGRAMS
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.image.metadata import PLUGIN_NAME as IMAGES
from tensorboard.plugins.text.metadata import PLUGIN_NAME as TEXTS

from toto_pipeline.events.schema import Event

Setting = float | bool | str

_LONGEST_SETTING = 200
_FIRST_COLUMNS = frozenset(
    f"training.{name}" for name in ("batch_size", "epochs", "learning_rate", "optimizer", "tune")
)
"""TensorBoard shows five columns until more are asked for, those first that are said to differ."""
_PNG_SIZE = slice(16, 24)


def scalars(step: int, time: float, values: Iterable[tuple[str, float]]) -> Any:
    record = Record(step=step, wall_time=time)
    add = record.summary.value.add
    for name, value in values:
        add(tag=name, simple_value=value)
    return record


def restart(step: int, time: float) -> Any:
    """From here on TensorBoard forgets what it has of this step and of later ones.

    The first such record of a run makes it forget nothing: it is needed for the others to work.
    """
    return Record(step=step, wall_time=time, session_log=SessionLog(status=SessionLog.START))


def histogram(name: str, step: int, time: float, event: Event) -> Any:
    """One row for each bin: left edge, right edge, count."""
    edges = np.asarray(event["edges"], dtype="<f8")
    rows = np.column_stack((edges[:-1], edges[1:], np.asarray(event["counts"], dtype="<f8")))
    tensor = TensorProto(dtype=DT_DOUBLE, tensor_content=rows.tobytes())
    for size in rows.shape:
        tensor.tensor_shape.dim.add(size=size)
    return _of_plugin(HISTOGRAMS, name, step, time, tensor)


def image(name: str, step: int, time: float, png: bytes) -> Any:
    width, height = struct.unpack(">II", png[_PNG_SIZE])
    tensor = TensorProto(dtype=DT_STRING, string_val=[str(width).encode(), str(height).encode(), png])
    tensor.tensor_shape.dim.add(size=3)
    return _of_plugin(IMAGES, name, step, time, tensor, DATA_CLASS_BLOB_SEQUENCE)


def text(name: str, step: int, time: float, markdown: str) -> Any:
    return _of_plugin(TEXTS, name, step, time, TensorProto(dtype=DT_STRING, string_val=[markdown.encode()]))


def as_markdown(plain: str) -> str:
    """Markdown that shows `plain` letter for letter, line by line."""
    return "  \n".join(map(_line_as_markdown, plain.splitlines()))


def _line_as_markdown(line: str) -> str:
    line = re.sub(r"([\\`*_{}\[\]])", r"\\\1", line)
    line = re.sub(r"[&<>|~]", lambda found: f"&#{ord(found[0])};", line)
    line = re.sub(r"^(\s*)([-+#=:])", lambda found: f"{found[1]}&#{ord(found[2])};", line)
    line = re.sub(r"^(\s*\d+)\.", r"\1\\.", line)
    return re.sub(r"^\s+", lambda found: "&#160;" * len(found[0]), line)


def graph(step: int, time: float, modules: Iterable[Mapping[str, Any]]) -> Any:
    """The modules as nodes that nest as their names do, each joined to the one registered before it beside it."""
    definition = GraphDef(versions=VersionDef(producer=22), node=_nodes(modules))
    return Record(step=step, wall_time=time, graph_def=definition.SerializeToString(deterministic=True))


def _nodes(modules: Iterable[Mapping[str, Any]]) -> Iterator[Any]:
    last_in: dict[str, str] = {}
    for module in modules:
        name = _node_name(str(module["name"])) or _node_name(str(module["kind"]))
        parent = name.rpartition("/")[0]
        before = last_in.get(parent)
        last_in[parent] = name
        yield NodeDef(name=name, op=str(module["kind"]), input=[before] if before else [], attr=_attributes(module))


def _node_name(dotted: str) -> str:
    return re.sub(r"[^A-Za-z0-9_/>-]", "_", dotted.replace(".", "/"))


def _attributes(module: Mapping[str, Any]) -> dict[str, Any]:
    parameters: Any = module.get("parameters") or {}
    shapes = parameters if isinstance(parameters, Mapping) else {}
    count = sum(int(np.prod(shape)) for shape in shapes.values()) if shapes is parameters else int(parameters)
    return {
        "class": AttrValue(s=str(module["kind"]).encode()),
        "parameters": AttrValue(i=count),
        "trained": AttrValue(i=int(module.get("trained") or 0)),
        **{f"shape of {key}": AttrValue(s=" x ".join(map(str, shape)).encode()) for key, shape in shapes.items()},
    }


def settings_of(config: Mapping[str, Any], prefix: str = "") -> dict[str, Setting]:
    """Settings by dotted name: numbers, truth values and short texts. What is null or has a long list is left out."""
    found: dict[str, Setting] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= settings_of(value, f"{prefix}{key}.")
        elif isinstance(value, bool | int | float | str):
            found[f"{prefix}{key}"] = value
        elif isinstance(value, list | tuple) and value and not any(isinstance(item, Mapping) for item in value):
            found[f"{prefix}{key}"] = ", ".join(map(str, value))
    return {key: value for key, value in found.items() if not isinstance(value, str) or len(value) <= _LONGEST_SETTING}


def session_start(step: int, time: float, run: str, settings: Mapping[str, Setting]) -> Any:
    info = plugin_data_pb2.SessionStartInfo(group_name=run, start_time_secs=time)
    for name, value in settings.items():
        setattr(info.hparams[name], _field_of(value), value)
    data = plugin_data_pb2.HParamsPluginData(session_start_info=info)
    return _hparams(hparams_metadata.SESSION_START_INFO_TAG, step, time, data)


def experiment(step: int, time: float, settings: Mapping[str, Setting], metrics: Iterable[str]) -> Any:
    """What the HPARAMS page has columns for: each setting, and each of the scalars `metrics`."""
    data = plugin_data_pb2.HParamsPluginData(
        experiment=api_pb2.Experiment(
            time_created_secs=time,
            hparam_infos=[
                api_pb2.HParamInfo(name=name, type=_type_of(value), differs=name in _FIRST_COLUMNS)
                for name, value in settings.items()
            ],
            metric_infos=[
                api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=tag.partition("/")[2])
                for tag in metrics
            ],
        )
    )
    return _hparams(hparams_metadata.EXPERIMENT_TAG, step, time, data)


def session_end(step: int, time: float, outcome: str) -> Any:
    status = {
        "completed": api_pb2.STATUS_SUCCESS,
        "stopped": api_pb2.STATUS_SUCCESS,
        "canceled": api_pb2.STATUS_UNKNOWN,  # it neither failed nor came to its end, and there is no word for that
    }.get(outcome, api_pb2.STATUS_FAILURE)
    info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time)
    data = plugin_data_pb2.HParamsPluginData(session_end_info=info)
    return _hparams(hparams_metadata.SESSION_END_INFO_TAG, step, time, data)


def _field_of(value: Setting) -> str:
    if isinstance(value, bool):
        return "bool_value"
    return "string_value" if isinstance(value, str) else "number_value"


def _type_of(value: Setting) -> Any:
    if isinstance(value, bool):
        return api_pb2.DATA_TYPE_BOOL
    return api_pb2.DATA_TYPE_STRING if isinstance(value, str) else api_pb2.DATA_TYPE_FLOAT64


def _hparams(tag: str, step: int, time: float, data: Any) -> Any:
    data.version = hparams_metadata.PLUGIN_DATA_VERSION
    content = data.SerializeToString(deterministic=True)
    return _of_plugin(
        hparams_metadata.PLUGIN_NAME, tag, step, time, hparams_metadata.NULL_TENSOR, DATA_CLASS_TENSOR, content
    )


def _of_plugin(
    plugin: str,
    tag: str,
    step: int,
    time: float,
    tensor: Any,
    data_class: Any = DATA_CLASS_TENSOR,
    content: bytes = b"",
) -> Any:
    metadata = SummaryMetadata(
        plugin_data=SummaryMetadata.PluginData(plugin_name=plugin, content=content), data_class=data_class
    )
    record = Record(step=step, wall_time=time)
    record.summary.value.add(tag=tag, metadata=metadata, tensor=tensor)
    return record
