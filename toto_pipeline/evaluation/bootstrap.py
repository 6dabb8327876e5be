"""How sure the difference between two models is: a paired block bootstrap, and a test by swapping.

Both models forecast the very same windows, so their errors are compared pairwise. The gain is 1 - candidate / reference
of the chosen metric: 0.03 is 3 % less error.

The interval. A resample draws units with replacement, each with both models' scores. A unit is a series with all its
windows, because the windows of a series resemble each other; where there are fewer series than windows (one long
multivariate series, say) it is a block of neighbouring windows in time with all their series, because neighbours
resemble each other too (circular blocks of n^(1/3) of n windows; the order is that of Hall, Horowitz and Jing, On
blocking rules for the bootstrap with dependent data, Biometrika 82, 1995). Percentile bounds of a few units are too
narrow; they are widened as Hesterberg, What Teachers Should Know about the Bootstrap (The American Statistician 69,
2015, section 4.1) proposes: the share alpha becomes Phi(-sqrt(n / (n - 1)) * t(1 - alpha, n - 1)) for n units, n being
the number of blocks where windows are drawn.

What it says. Of series: that the candidate is better on series like these, at these points in time; a shock that hits
all series at once counts as one of theirs. Of windows: that it is better on these very series, at times like these.

The chance. Were the two models alike, either could have made either's errors: in each unit they may be swapped. The
chance is the share of such swaps, the real assignment among them, that show a gain as large as the real one. It needs
no large numbers and no thin tails: if swapping the models in any unit leaves the distribution of their errors as it
is, and the units are independent, a chance of alpha or less comes up with a probability of at most alpha (Phipson and
Smyth, Permutation P-values Should Never Be Zero, 2010). With a `margin` the reference's errors are first lowered by it.

Shapes: U units that are resampled, P parts (candidate, references, denominator), C cells (window, variate), R
resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from toto_pipeline.evaluation.metrics import encode, fraction, mean_ratio, numbers

if TYPE_CHECKING:
    import pyarrow as pa

ROUNDING = 1e-12
"""What sums of equal numbers may differ by, as a share of them."""
MOST_UNITS = 10_000
"""More units than this are tied together with their neighbours: it changes little and bounds time and memory."""
_CHUNK_VALUES = 4_000_000
"""Resampled counts held at once: 32 MB."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Columns = Mapping[str, Floats]
"""Columns of one model's rows, as `tables_by_model` gives them."""
Unit = Literal["series", "windows"]


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """What is resampled, how often. block_windows: windows in a block; None for the rule of the module's docstring."""

    confidence: float = 0.95
    resamples: int = 2000
    seed: int = 0
    unit: Literal["auto", "series", "windows"] = "auto"
    block_windows: int | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The candidate against one reference. Gains are shares of the reference's error; higher is better."""

    reference: str
    metric: str
    candidate_score: float
    reference_score: float
    gain: float
    low: float
    high: float
    confidence: float
    """That the gain is above `low`, and likewise that it is below `high`."""
    chance: float
    """Of a gain over `margin` this large if the models were alike; see the module's docstring."""
    margin: float
    units: int
    unit: Unit
    """What was resampled: series or windows."""
    block: int
    """Neighbouring units that were drawn together."""

    @property
    def draws(self) -> int:
        """Blocks of units: what is taken to be independent."""
        return -(-self.units // self.block)


@dataclass(frozen=True)
class Units:
    """sums_UPC: of each part, in each cell; the last part is the denominator. count: units before any were tied."""

    unit: Unit
    count: int
    block: int
    sums_UPC: Floats

    @property
    def independent(self) -> float:
        """How many there are for the widening: blocks, where neighbours are drawn together."""
        return len(self.sums_UPC) / self.drawn_together

    @property
    def drawn_together(self) -> int:
        """`block`, in units as they were tied."""
        return max(1, round(self.block * len(self.sums_UPC) / self.count))


def sorted_codes(scores: pa.Table, name: str) -> tuple[list[str], Integers]:
    """A text column as its different texts, sorted, and an index into them for each row."""
    names, index = encode(scores, name)
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = np.empty(len(names), dtype=np.int64)
    rank[order] = np.arange(len(names))
    return [names[place] for place in order], rank[index]


def tables_by_model(scores: pa.Table) -> dict[str, dict[str, Floats]]:
    """Model to its columns, with integer keys; rows by series, variate and window, in whatever order they came."""
    models, model = encode(scores, "model")
    series, (variates, variate) = sorted_codes(scores, "series")[1], sorted_codes(scores, "variate")
    window = scores.column("window").to_numpy().astype(np.int64)
    keys = {"series": series, "variate": variate, "window": window, "cell": window * max(1, len(variates)) + variate}
    tables = {}
    for code, name in enumerate(models):
        rows = model == code
        columns = {**numbers(scores, rows), **{key: values[rows] for key, values in keys.items()}}
        order = np.lexsort((columns["window"], columns["variate"], columns["series"]))
        tables[name] = {column: values[order] for column, values in columns.items()}
    return tables


def compare(
    candidate: Columns,
    references: Mapping[str, Columns],
    *,
    metric: str,
    how: Resampling,
    margins: Mapping[str, float] | None = None,
) -> list[Comparison]:
    """The candidate against each reference on the very same rows.

    Args:
        margins: reference to the gain that is asked of the candidate, 0 where it is not named; see `Comparison.chance`.
    """
    own, denominator = fraction(candidate, metric)
    others = [fraction(table, metric)[0] for table in references.values()]
    units = make_units(candidate, [own, *others, denominator], how)
    asked = np.array([(margins or {}).get(name, 0.0) for name in references])
    scores = part_scores(units.sums_UPC.sum(axis=0)[None])[:, 0]
    low, high = _bounds(units, how) if units.independent > 1 else np.full((2, len(references)), math.nan)
    chance = _chances(units, asked, how)
    return [
        Comparison(
            reference=name,
            metric=metric,
            candidate_score=float(scores[0]),
            reference_score=float(scores[place + 1]),
            gain=float(gain(scores[0], scores[place + 1])),
            low=float(low[place]),
            high=float(high[place]),
            confidence=how.confidence,
            chance=float(chance[place]),
            margin=float(asked[place]),
            units=units.count,
            unit=units.unit,
            block=units.block,
        )
        for place, name in enumerate(references)
    ]


def make_units(table: Columns, parts: Sequence[Floats], how: Resampling) -> Units:
    """What is resampled, and the sums of the parts in it."""
    series, windows = (len(np.unique(table[name])) for name in ("series", "window"))
    if how.unit == "series" or (how.unit == "auto" and series >= windows):
        sums_UPC = _scored(sums_by_cell(table, table["series"], parts))
        return Units("series", len(sums_UPC), 1, _tied(sums_UPC))
    sums_UPC = _scored(_sums_by_window(table, parts))
    count = len(sums_UPC)
    block = how.block_windows or max(1, round(count ** (1 / 3)))
    return Units("windows", count, min(block, count), _tied(sums_UPC))


def sums_by_cell(table: Columns, group: Floats | Integers, parts: Sequence[Floats]) -> Floats:
    """(groups, P, C): each part added up over the rows of a group and cell; groups in ascending order."""
    (group_count, group_index), (cell_count, cell) = (_dense(values) for values in (group, table["cell"]))
    place, size = group_index * cell_count + cell, group_count * cell_count
    return np.stack(
        [np.bincount(place, weights=part, minlength=size).reshape(group_count, cell_count) for part in parts], axis=1
    )


def part_scores(totals_RPC: Floats) -> Floats:
    """(P - 1, R): the metric of the candidate and of each reference."""
    return np.stack([mean_ratio(totals_RPC[:, part], totals_RPC[:, -1]) for part in range(totals_RPC.shape[1] - 1)])


def gain(candidate: Floats, reference: Floats) -> Floats:
    """1 - candidate / reference; against a faultless reference 0 for another such and -inf for any error."""
    faultless = reference <= 0
    ratio = candidate / np.where(faultless, 1.0, reference)
    result: Floats = np.where(faultless, np.where(candidate > 0, -np.inf, 0.0), 1 - ratio)
    return np.where(np.isnan(candidate) | np.isnan(reference), np.nan, result)


def widened_alpha(confidence: float, units: float) -> float:
    """The share of the bootstrap distribution to cut off, widened for few units (Hesterberg 2015)."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    t = float(stdtrit(units - 1, confidence))
    return NormalDist().cdf(-math.sqrt(units / (units - 1)) * t)


def _dense(values: Floats | Integers) -> tuple[int, Integers]:
    """How many different values there are, and which of them each is."""
    different, index = np.unique(values, return_inverse=True)
    return len(different), index.astype(np.int64)


def _sums_by_window(table: Columns, parts: Sequence[Floats]) -> Floats:
    """(windows, P, 1): the ratios of a window's cells added up, and how many they are; windows in order of time."""
    (cell_count, cell), (window_count, window) = _dense(table["cell"]), _dense(table["window"])
    *numerators, denominator = (np.bincount(cell, weights=part, minlength=cell_count) for part in parts)
    window_of_cell = np.zeros(cell_count, dtype=np.int64)
    window_of_cell[cell] = window
    defined = denominator > 0
    ratios = [np.where(defined, part, 0.0) / np.where(defined, denominator, 1.0) for part in numerators]
    terms = [*ratios, defined.astype(np.float64)]
    by_window = [np.bincount(window_of_cell, weights=term, minlength=window_count) for term in terms]
    return np.stack(by_window, axis=1)[:, :, None]


def _scored(sums_UPC: Floats) -> Floats:
    """Without units in which the metric is undefined, such as a constant series: a resample of those has no score."""
    scored = sums_UPC[:, -1].sum(axis=1) > 0
    return sums_UPC[scored] if scored.any() else sums_UPC


def _tied(sums_UPC: Floats) -> Floats:
    """At most `MOST_UNITS` units, neighbours added up."""
    units = len(sums_UPC)
    if units <= MOST_UNITS:
        return sums_UPC
    starts = np.arange(MOST_UNITS) * units // MOST_UNITS
    return np.add.reduceat(sums_UPC, starts, axis=0)


def _bounds(units: Units, how: Resampling) -> Floats:
    """(2, references): lower and upper bounds of the gains, each holding with the confidence."""
    gains = np.concatenate(list(_resampled_gains(units, how)))
    alpha = widened_alpha(how.confidence, units.independent)
    low = np.quantile(gains, alpha, axis=0, method="lower")
    return np.stack([low, np.quantile(gains, 1 - alpha, axis=0, method="higher")])


def _resampled_gains(units: Units, how: Resampling) -> Iterator[Floats]:
    """(resamples, references), in chunks: how often each block is drawn, times the blocks' sums.

    The last block of a resample is cut so that every resample has as many units as there are.
    """
    random = np.random.default_rng(how.seed)
    count, parts, cells = units.sums_UPC.shape
    block = units.drawn_together
    draws = -(-count // block)
    whole = _block_sums(units.sums_UPC, block).reshape(count, -1)
    rest = _block_sums(units.sums_UPC, count - (draws - 1) * block).reshape(count, -1)
    chunk = max(1, _CHUNK_VALUES // max(count, parts * cells))
    for first in range(0, how.resamples, chunk):
        resamples = min(chunk, how.resamples - first)
        starts = random.integers(0, count, size=(resamples, draws), dtype=np.int32)
        times = np.stack([np.bincount(row, minlength=count) for row in starts[:, :-1]]).astype(np.float64)
        totals = times @ whole + rest[starts[:, -1]]
        scores = part_scores(totals.reshape(resamples, parts, cells))
        yield gain(scores[0], scores[1:]).T


def _block_sums(sums_UPC: Floats, length: int) -> Floats:
    """(U, P, C): the sums of the `length` units that begin at each, the first following the last."""
    if length == 1:
        return sums_UPC
    circle = np.concatenate([np.zeros_like(sums_UPC[:1]), sums_UPC, sums_UPC[: length - 1]]).cumsum(axis=0)
    added: Floats = circle[length:] - circle[:-length]
    return added


def _chances(units: Units, margins: Floats, how: Resampling) -> Floats:
    """(references,): see the module's docstring. The denominators are the same whoever made the errors."""
    random = np.random.default_rng([how.seed, 1])
    total_C = units.sums_UPC[:, -1].sum(axis=0)
    defined = total_C > 0
    weight_C = np.where(defined, 1.0, 0.0) / np.where(defined, total_C, 1.0) / max(1, int(defined.sum()))
    error_UP = units.sums_UPC[:, :-1] @ weight_C
    excess = error_UP[:, :1] - (1 - margins) * error_UP[:, 1:]
    excess = np.add.reduceat(excess, np.arange(0, len(excess), units.drawn_together), axis=0)
    tolerance = ROUNDING * error_UP.sum()
    as_large = np.zeros(len(margins))
    chunk = max(1, _CHUNK_VALUES // len(excess))
    for first in range(0, how.resamples, chunk):
        signs = random.integers(0, 2, size=(min(chunk, how.resamples - first), len(excess)), dtype=np.int8)
        swapped = (2.0 * signs - 1.0) @ excess
        as_large += (swapped <= excess.sum(axis=0) + tolerance).sum(axis=0)
    chance: Floats = (as_large + 1) / (how.resamples + 1)
    return chance
