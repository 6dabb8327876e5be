"""TensorBoard's view of a run: `tensorboard --logdir <home>/runs` shows every run by the name of its folder.

SCALARS      every measurement, at its step: TensorBoard's axis is the step of training
HISTOGRAMS   and DISTRIBUTIONS: the histograms
IMAGES       figures/...: the figures, drawn here
TEXT         the texts, and warnings/...
GRAPHS       the modules of the model, as they nest
HPARAMS      the settings of each run beside hparam/...: the scores of its best epoch

Long runs are thinned as `tensorboard_frequency` says. When a run goes on behind a checkpoint, TensorBoard is told to
forget what an earlier attempt had behind it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from toto_pipeline.events.measurements import measurements
from toto_pipeline.events.schema import Event, number
from toto_pipeline.monitoring import tensorboard_records as records
from toto_pipeline.monitoring.drawing import DrawingError, draw
from toto_pipeline.monitoring.sink import FollowedRun, RunOutcome, State
from toto_pipeline.monitoring.tensorboard_files import EventFiles, Place
from toto_pipeline.monitoring.tensorboard_frequency import Length, part_of_run, shows_reading, shows_step

FOLDER = "tensorboard"

Values = list[tuple[str, float]]


@dataclass
class Course:
    """How far a run is shown: what a process that goes on must know. Fit for JSON but for `length`.

    Attributes:
        skipped: step, time and values of the last step that was left out; None if the last one is shown.
        readings: how many readings of the machine there were.
        shown: by the name of a histogram or figure, the part of the run that was shown last.
        settings: to be shown on the HPARAMS page as soon as it is known which scores there are.
        best: scores of the best epoch, as shown, and the step they are shown at.
    """

    step: int = 0
    time: float = 0.0
    length: Length = field(default_factory=Length)
    started: bool = False
    has_graph: bool = False
    skipped: list[Any] | None = None
    readings: int = 0
    shown: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] | None = None
    best: dict[str, float] = field(default_factory=dict)
    best_step: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Course:
        known = {item.name for item in fields(cls)}
        course = cls(**copy.deepcopy({key: item for key, item in value.items() if key in known}))
        return replace(course, length=Length(**value.get("length", {})))


class TensorBoardMonitor:
    """The sink that writes `<run>/tensorboard`. See `Sink` for its methods."""

    name = "tensorboard"

    def __init__(self) -> None:
        self._run = ""
        self._files: EventFiles | None = None

    def open(self, run: FollowedRun, state: State) -> None:
        self._folder = run.folder / FOLDER
        self._run = run.name
        self._state = state
        self._files = self._opened()

    def write(self, events: Sequence[Event]) -> State:
        """Show the events. If that fails, what was written is found again by the next call with the same events."""
        files = self._files or self._opened()
        course = Course.from_json(self._state.get("course", {}))
        try:
            for event in events:
                for record in projected(event, course, self._run):
                    files.append(record)
            place = files.commit()
        except BaseException:
            self._abandon(files)
            raise
        self._files = files
        self._state = {"place": asdict(place), "course": course.to_json()}
        return self._state

    def close(self, outcome: RunOutcome | None) -> None:
        """Show how the run ended. It is no part of the state: if the run goes on after all, it is taken back."""
        files = self._files or self._opened()
        try:
            if outcome is not None:
                course = Course.from_json(self._state.get("course", {}))
                files.append(records.session_end(course.step, course.time, outcome))
                files.commit()
        finally:
            self._abandon(files)

    def _opened(self) -> EventFiles:
        return EventFiles(self._folder, Place(**self._state.get("place", {})))

    def _abandon(self, files: EventFiles) -> None:
        self._files = None
        files.close()


def projected(event: Event, course: Course, run: str) -> Iterator[Any]:
    """The records that show `event`; `course` is moved on. Types that are not known give none."""
    course.time = number(event["time"])
    handler = _HANDLERS.get(event["type"])
    if handler is not None:
        if event["type"] != "run_started":
            course.step = int(event.get("step", course.step))
        yield from handler(event, course, run)


def _run_started(event: Event, course: Course, run: str) -> Iterator[Any]:
    resumed_from = int(event.get("resumed_from") or 0)
    first = resumed_from + 1 if course.started else 0
    course.length = Length(int(event.get("total_steps") or 0), int(event.get("steps_per_epoch") or 0))
    course.step = resumed_from
    course.skipped = None
    yield records.restart(first, course.time)
    if course.started:
        last = part_of_run(first, course.length) - 1
        course.shown = {name: min(part, last) for name, part in course.shown.items()}
        if course.best_step >= first:
            course.best = {}
        return
    course.started = True
    course.settings = records.settings_of(event.get("config") or {})
    yield records.session_start(0, course.time, run, course.settings)


def _step(event: Event, course: Course, _: str) -> Iterator[Any]:
    values = list(measurements(event))
    if shows_step(course.step, course.length) or not all(math.isfinite(value) for _, value in values):
        course.skipped = None
        yield records.scalars(course.step, course.time, values)
    else:
        course.skipped = [course.step, course.time, values]


def _epoch(event: Event, course: Course, _: str) -> Iterator[Any]:
    values = list(measurements(event))
    yield records.scalars(course.step, course.time, values)
    scores = _scores(event, values)
    if course.settings:
        yield records.experiment(0, course.time, course.settings, scores)
    course.settings = None
    if event.get("is_best"):
        yield from _best(scores, course)


def _scores(event: Event, values: Values) -> dict[str, float]:
    """What the HPARAMS page says of an epoch."""
    scores = {
        f"hparam/{'validation_loss' if name == 'validation/loss' else name.removeprefix('validation/')}": value
        for name, value in values
        if name.startswith("validation/")
    }
    return {**scores, "hparam/best_epoch": number(event.get("epoch"))}


def _best(scores: Mapping[str, float], course: Course) -> Iterator[Any]:
    finite = {name: value for name, value in scores.items() if math.isfinite(value)}
    if finite and finite != course.best:
        course.best, course.best_step = finite, course.step
        yield records.scalars(course.step, course.time, finite.items())


def _run_ended(event: Event, course: Course, _: str) -> Iterator[Any]:
    if course.skipped is not None:
        step, time, values = course.skipped
        course.skipped = None
        yield records.scalars(step, time, values)
    best = event.get("best") or {}
    told = {"hparam/best_epoch": best.get("epoch"), "hparam/validation_loss": best.get("validation_loss")}
    known = {name: number(value) for name, value in told.items() if value is not None}
    yield from _best({**course.best, **known}, course)


def _measured(event: Event, course: Course, _: str) -> Iterator[Any]:
    values = list(measurements(event))
    if values:
        yield records.scalars(course.step, course.time, values)


def _system(event: Event, course: Course, run: str) -> Iterator[Any]:
    if shows_reading(course.readings):
        yield from _measured(event, course, run)
    course.readings += 1


def _histogram(event: Event, course: Course, _: str) -> Iterator[Any]:
    name = _histogram_name(str(event["name"]))
    if event.get("counts") and _is_due(name, course):
        yield records.histogram(name, course.step, course.time, event)


def _histogram_name(name: str) -> str:
    """Names of scalars are taken: TensorBoard shows one kind of data under a name."""
    return f"histograms/{name}" if name.partition("/")[0] in _SCALAR_GROUPS else name


_SCALAR_GROUPS = frozenset(
    {"train", "epoch", "validation", "statistics", "speed", "checkpoint", "host", "process", "gpu", "hparam"}
)


def _figure(event: Event, course: Course, _: str) -> Iterator[Any]:
    name = f"figures/{event['name']}"
    if not _is_due(name, course):
        return
    try:
        png = draw(event["figure"])
    except DrawingError as error:
        message = f"The figure {event['name']} cannot be drawn: {error}."
        yield records.text(f"warnings/{name}", course.step, course.time, records.as_markdown(message))
    else:
        yield records.image(name, course.step, course.time, png)


def _is_due(name: str, course: Course) -> bool:
    part = part_of_run(course.step, course.length)
    if part <= course.shown.get(name, -1):
        return False
    course.shown[name] = part
    return True


def _text(event: Event, course: Course, _: str) -> Iterator[Any]:
    yield records.text(f"text/{event['name']}", course.step, course.time, str(event["text"]))


def _warning(event: Event, course: Course, _: str) -> Iterator[Any]:
    message = records.as_markdown(str(event.get("message") or ""))
    yield records.text(f"warnings/{event.get('name')}", course.step, course.time, message)


def _model(event: Event, course: Course, _: str) -> Iterator[Any]:
    if not course.has_graph:
        course.has_graph = True
        yield records.graph(course.step, course.time, event["modules"])


_HANDLERS = {
    "run_started": _run_started,
    "step": _step,
    "epoch": _epoch,
    "run_ended": _run_ended,
    "checkpoint_saved": _measured,
    "system": _system,
    "histogram": _histogram,
    "figure": _figure,
    "text": _text,
    "warning": _warning,
    "model": _model,
}
