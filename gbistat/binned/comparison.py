"""The unbinned result beside binned ones of the same events: what the differences are, and where they come from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import numpy as np

from gbistat.binned.binning import LOG_RATIO, Binning
from gbistat.binned.convergence import BIN_NUMBERS, ToyComparison, convergence, normalised
from gbistat.binned.fit import binned_inference
from gbistat.binned.inference import gbistat_result
from gbistat.binned.load import load_workspace
from gbistat.binned.observables import event_values, reference_values
from gbistat.binned.postfit import post_fit
from gbistat.binned.threshold import best_threshold
from gbistat.binned.twin import binned_twin, unconstrained_shapes
from gbistat.binned.workspace import to_pyhf
from gbistat.errors import FitFailed, ModelError, OptionError, ParameterError, ScanRangeError
from gbistat.fit.minimize import fit
from gbistat.likelihood.constraints import NormalConstraint
from gbistat.likelihood.parameters import start_vector
from gbistat.likelihood.reference import needs_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gbistat.binned.convergence import Convergence, Differences
    from gbistat.binned.exact import ExactBins
    from gbistat.binned.load import LoadedWorkspace
    from gbistat.binned.postfit import PostFit
    from gbistat.binned.results import BinnedResult
    from gbistat.binned.workspace import BinnedTwin
    from gbistat.data.events import Events
    from gbistat.likelihood.model import Model
    from gbistat.likelihood.nll import ExtendedUnbinnedNLL
    from gbistat.likelihood.reference import Reference
    from gbistat.typing import FloatArray, IntArray, Json

__all__ = ["Comparison", "ComparisonOptions", "ComparisonRow", "compare_binned"]

P = ParamSpec("P")
T = TypeVar("T")
SHIFTED = 0.002
"""Relative deviation of the signal's normalisation on the reference events from 1 above which a note tells about it."""
MASS_BINS, RATIO_BINS = 20, 30
"""Bins of pyhf's twins, as :func:`gbistat.binned.twin.binned_results` has them."""
TOY_BINS = (2, 20)
"""Numbers of bins that toys are fitted in, besides the main one and the largest."""


@dataclass(frozen=True)
class ComparisonOptions:
    """How much a comparison does.

    Parameters
    ----------
    bins : tuple of int
        Numbers of bins of the log ratio.
    main_bins : int, default 200
        The one that has a row of its own.
    toys : int, default 50
        Toys that all methods fit; 0 for none.
    seed : int, default 1
        Of these toys.
    cl : float, default 0.95
        Confidence level of limits.
    intervals : tuple of float
        Confidence levels of intervals.

    Raises
    ------
    OptionError
        If a number is out of its range.
    """

    bins: tuple[int, ...] = BIN_NUMBERS
    main_bins: int = 200
    toys: int = 50
    seed: int = 1
    cl: float = 0.95
    intervals: tuple[float, ...] = (0.6827, 0.95)

    def __post_init__(self) -> None:
        if self.toys < 0:
            raise OptionError(f"{self.toys} toys; ask for 0 or more")
        if not self.bins or min(self.bins) < 2 or self.main_bins < 2:
            raise OptionError(f"numbers of bins {list(self.bins)} and {self.main_bins}: each must be 2 or more")


@dataclass(frozen=True, eq=False)
class ComparisonRow:
    """One method.

    Parameters
    ----------
    name : str
        What it is.
    result : BinnedResult
        Its numbers.
    toys : Differences or None
        Its estimates beside unbinned ones of the same toys.
    pull : float or None
        Difference to the unbinned estimate of the data (with the signal normalised on the reference events), less its mean in
        toys, over its standard deviation there: are the two results compatible?
    """

    name: str
    result: BinnedResult
    toys: Differences | None = None
    pull: float | None = None

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "name": self.name,
            **self.result.to_dict(),
            "toys": None if self.toys is None else self.toys.to_dict(),
            "pull": self.pull,
        }


@dataclass(frozen=True, eq=False)
class Comparison:
    """All methods, the cost of binning, and fitted distributions.

    Parameters
    ----------
    rows : tuple of ComparisonRow
        The methods besides the unbinned one.
    convergence : Convergence or None
        Cost of binning in the log ratio.
    toys : tuple of Differences
        Estimates for numbers of bins, beside unbinned ones of the same toys.
    post_fits : tuple of PostFit
        Fitted distributions.
    notes : tuple of str
        What a reader must know.
    """

    rows: tuple[ComparisonRow, ...]
    convergence: Convergence | None
    toys: tuple[Differences, ...]
    post_fits: tuple[PostFit, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> Json:
        """Plain numbers, for JSON, without the rows."""
        return {
            "convergence": None if self.convergence is None else self.convergence.to_dict(),
            "toys": [toys.to_dict() for toys in self.toys],
            "post_fits": [post.to_dict() for post in self.post_fits],
        }


def compare_binned(
    model: Model,
    nll: ExtendedUnbinnedNLL,
    events: Events,
    reference: Reference | None,
    twins: Sequence[BinnedResult],
    options: ComparisonOptions,
) -> Comparison:
    """Compare the unbinned result of a window with binned ones.

    Parameters
    ----------
    model, nll, events, reference
        An analysis of one window.
    twins : sequence of BinnedResult
        pyhf's results, as `limits` has them.
    options : ComparisonOptions
        How much to do.

    Returns
    -------
    Comparison
        A part that cannot be made is left out, and a note says why.

    Raises
    ------
    OptionError
        If an option is out of its range.
    """
    work = _Work(model, nll, events, reference, options)
    rows = [ComparisonRow(_pyhf_name(twin, events), twin) for twin in twins]
    posts = []
    for row in rows:
        post = work.attempt(f"the fitted distribution of {row.result.observable}", work.twin, row.name, row.result)
        posts += [] if post is None else [post]
    summary = None
    if work.usable is not None and needs_pool(model):
        cut = work.attempt("a cut-and-count result", work.cut_and_count)
        made = work.attempt("the cost of binning", work.binning)
        rows += [] if cut is None else [cut]
        if made is not None:
            summary, more = made
            rows += more
    toys = work.attempt("toys", work.run_toys) or ()
    return Comparison(_judged(rows, toys, summary), summary, toys, tuple(posts), tuple(work.notes))


def _judged(
    rows: Sequence[ComparisonRow], toys: Sequence[Differences], summary: Convergence | None
) -> tuple[ComparisonRow, ...]:
    """Rows with their toys, and how far they are from the unbinned estimate by the measure of these."""
    by_name = {item.name: item for item in toys}
    judged = []
    for row in rows:
        found = by_name.get(row.name)
        pull = None
        if found is not None and summary is not None and found.spread > 0:
            pull = ((row.result.value - summary.estimate) / summary.error - found.mean) / found.spread
        judged.append(ComparisonRow(row.name, row.result, found, pull))
    return tuple(judged)


def _pyhf_name(result: BinnedResult, events: Events) -> str:
    bump = "bump hunt, " if result.observable == events.mass_name else ""
    return f"pyhf, {bump}{result.n_bins} bins in {result.observable}"


class _Work:
    """Parts of a comparison of one window, and what was noted on the way."""

    def __init__(
        self,
        model: Model,
        nll: ExtendedUnbinnedNLL,
        events: Events,
        reference: Reference | None,
        options: ComparisonOptions,
    ) -> None:
        self.model = model
        self.nll = nll
        self.events = events
        self.options = options
        self.usable = None if reference is None or reference.kind == "data" else reference
        self.notes: list[str] = []
        self.loaded: dict[str, tuple[LoadedWorkspace, IntArray]] = {}
        self.exact: dict[str, ExactBins] = {}
        loose = unconstrained_shapes(model)
        best = fit(nll) if loose else None
        self.held = {name: best.value(name) for name in loose} if best is not None else {}

    def attempt(self, what: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Result of one part; a part that fails leaves a note and does not take the others with it."""
        try:
            return work(*args, **kwargs)
        except (ModelError, ParameterError, FitFailed, ScanRangeError) as error:
            self.notes.append(f"no {what}: {error}" if not what.startswith("the ") else f"not shown, {what}: {error}")
            return None

    def twin(self, name: str, result: BinnedResult) -> PostFit:
        """Load the twin behind one of pyhf's results; its fitted distribution."""
        n_bins = MASS_BINS if result.observable == self.events.mass_name else RATIO_BINS
        twin = binned_twin(
            self.model,
            self.nll,
            self.events,
            result.observable,
            reference=self.usable,
            held=self.held,
            n_bins=n_bins,
        )
        return self._keep(name, twin)

    def _keep(self, name: str, twin: BinnedTwin) -> PostFit:
        loaded = load_workspace(twin.workspace)
        if self.usable is not None and self.usable.kind == "pool":
            values = reference_values(self.model, self.usable, twin.observable, self.held)
            self.loaded[name] = (loaded, twin.binning.index(values))
        return post_fit(loaded, twin.observable, twin.binning)

    def cut_and_count(self) -> ComparisonRow:
        """One bin above the threshold with the best expected limit, by pyhf."""
        reference = self.usable
        if reference is None:
            raise ModelError("a threshold needs reference events")
        values = reference_values(self.model, reference, LOG_RATIO, self.held)
        theta = start_vector(self.model.parameters, self.held)
        densities = {
            component.name: reference.measure * np.exp(prepared.log_density(theta))
            for component, prepared in zip(self.model.components, reference.mixture.components, strict=True)
        }
        yields = dict(zip(densities, reference.mixture.yields(theta), strict=True))
        signal = densities.pop(self.model.signal)
        background = sum((float(yields[name]) * share for name, share in densities.items()), np.zeros(signal.size))
        cut = best_threshold(
            values, background, signal, relative_error=self._background_error(background), cl=self.options.cl
        )
        highest = max(float(values.max()), float(self._ratios().max(initial=cut)))
        binning = Binning(LOG_RATIO, np.array([cut, math.floor(highest) + 2.0]))
        twin = to_pyhf(self.model, self.events, binning, reference=reference, mixture=self.nll.mixture, held=self.held)
        result = binned_inference(twin, cl=self.options.cl, intervals=self.options.intervals)
        name = f"pyhf, cut and count, {LOG_RATIO} > {cut:.3g}"
        self._keep(name, twin)
        self.notes += [f"{name}: {note}" for note in result.notes]
        return ComparisonRow(name, result)

    def _background_error(self, background: FloatArray) -> float:
        """Relative error of the number of background events, from the constraints."""
        index = [c.name for c in self.model.components if c.name != self.model.signal]
        names = {name for label in index for name in self.model.component(label).rate.linear}
        variances = [
            float(np.diag(c.covariance)[list(c.names).index(name)])
            for c in self.model.constraints
            if isinstance(c, NormalConstraint)
            for name in names & set(c.names)
        ]
        return math.sqrt(sum(variances)) / float(background.sum())

    def _ratios(self) -> FloatArray:
        return event_values(self.model, self.events, LOG_RATIO, mixture=self.nll.mixture, held=self.held)

    def binning(self) -> tuple[Convergence, list[ComparisonRow]]:
        """Cost of binning in the log ratio, and rows of the main number of bins and of the likelihood that it tends to."""
        reference = self.usable
        if reference is None:
            raise ModelError("bins of the log ratio need reference events")
        numbers = tuple(sorted({*self.options.bins, self.options.main_bins}))
        values = self._ratios()
        summary, exact = convergence(
            self.model,
            self.nll,
            reference,
            values,
            bins=numbers,
            cl=self.options.cl,
            weights=self.events.weights,
        )
        rows = []
        if abs(reference.normalisation - 1.0) > SHIFTED:
            own = normalised(self.nll, self.model, reference)
            name = "unbinned, normalised on the reference"
            result = gbistat_result(
                own, (reference,), observable="unbinned", n_bins=0, cl=self.options.cl, intervals=self.options.intervals
            )
            rows.append(ComparisonRow(name, result))
            self.notes.append(
                f"the signal density integrates to {reference.normalisation:.4f} over the reference events; templates are normalised "
                f"on them and the unbinned ratio is not, which moves {self.model.poi} by "
                f"{summary.estimate - fit(self.nll).value(self.model.poi):+.3g}: compare binned results with the row that "
                "has the same normalisation"
            )
        if abs(summary.expected_plain / summary.expected - 1.0) > SHIFTED:
            self.notes.append(
                f"before data the unbinned likelihood expects a limit of {summary.expected_plain:.4g} on its Asimov set, and of "
                f"{summary.expected:.4g} where densities are normalised on the reference events for all values of the nuisances, as "
                "templates are: these events are few"
            )
        for number, (binning, bins) in exact.items():
            self.exact[self._exact_name(bins)] = bins
            if number == self.options.main_bins:
                result = gbistat_result(
                    bins.nll(binning.counts(values, self.events.weights)),
                    (bins.reference,),
                    observable=LOG_RATIO,
                    n_bins=bins.n_bins,
                    cl=self.options.cl,
                    intervals=self.options.intervals,
                )
                rows.append(ComparisonRow(self._exact_name(bins), result))
        return summary, rows

    @staticmethod
    def _exact_name(bins: ExactBins) -> str:
        return f"{bins.n_bins} bins in {LOG_RATIO}"

    def run_toys(self) -> tuple[Differences, ...]:
        """Estimates of all methods on the same toys, at the unbinned estimate (or at 0 if that is negative)."""
        reference = self.usable
        if self.options.toys == 0 or reference is None or reference.kind != "pool":
            return ()
        mu = max(fit(self.nll).value(self.model.poi), 0.0)
        toys = ToyComparison(self.model, self.nll, reference, mu)
        for name, (loaded, index) in self.loaded.items():
            toys.add_workspace(name, loaded, index)
        wanted = {*TOY_BINS, self.options.main_bins}
        for name, bins in self.exact.items():
            if bins.n_bins in wanted or bins is list(self.exact.values())[-1]:
                toys.add_exact(name, bins)
        return toys.run(self.options.toys, rng=np.random.default_rng(self.options.seed))
