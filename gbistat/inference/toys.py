"""Toy experiments: event counts, events and auxiliary measurements drawn at true parameters, and fitted.

A toy draws a Poisson number of events at every point of a pool (or in every cell of it) with the mean that the true
parameters give, and a new value of every auxiliary measurement. It is then fitted as data are: a free fit, and one for
each tested value of the parameter of interest, with all other parameters profiled.

Two forms:

- "compressed": counts in cells of the pool. Cells join points that tell the same about the parameter of interest
  (:mod:`gbistat.inference.cells`); the density of a cell is the mean over its points, so that the compressed likelihood
  is that of the cell's number, consistent at any width: it loses information, by a known amount, and has no bias. Parameters
  that move densities (background shape, mass scale, directions of a log ratio) enter through an expansion of each cell's
  density to second order around the true values, with exact derivatives, which keeps the normalisation: an approximation, as
  good as the change by a few standard deviations of a constrained parameter is small. An offset of a log ratio is exact.
- "exact": single events, as in the likelihood of data. Batched where densities are fixed, one by one otherwise.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from gbistat.errors import FitFailed, ModelError, OptionError, ParameterError, nearest
from gbistat.fit.minimize import fit
from gbistat.inference.pools import Pool
from gbistat.inference.toy_experiment import Experiment
from gbistat.inference.toy_information import toy_cells
from gbistat.inference.toy_results import ToyResults
from gbistat.inference.toy_singles import SingleToys
from gbistat.inference.toy_tests import answer
from gbistat.likelihood.parameters import index_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.fit.build import Analysis
    from gbistat.inference.cells import Cells
    from gbistat.inference.pools import PoolReport
    from gbistat.inference.toy_information import Fixed
    from gbistat.inference.toy_results import TestSpec
    from gbistat.likelihood.nll import NLL
    from gbistat.likelihood.reference import Reference
    from gbistat.typing import FloatArray

__all__ = ["ToyModel", "ToyOptions", "data_statistics", "toy_statistics"]

Form = Literal["compressed", "exact"]
KEPT_EXPERIMENTS = 64


@dataclass(frozen=True)
class ToyOptions:
    """How toys are drawn and fitted.

    Parameters
    ----------
    form : {"compressed", "exact"}, default "compressed"
        Counts in cells of the pool, or single events.
    information_loss : float, default 5e-4
        Largest relative increase of the variance of the estimate by compression: 5e-4 is an r.m.s. difference to the
        exact estimate of 2.2 % of its error.
    max_cells : int, default 4000
        Largest number of cells, even if more is lost then.
    max_pool_shift : float, default 3
        Largest shift of the estimate, in its errors, that the finite pool would cause if densities were not normalised
        on it (``sqrt(N / M)``). They are, so that it is no bias; it is a measure of how far the pool is from the truth.
    max_pool_error : float, default 0.1
        Largest relative error of the error of the estimate that the finite pool may cause.
    batch_size : int, default 2048
        Toys fitted at a time; changes nothing but speed and memory.
    compiled : bool or None, default None
        Whether exact toys use compiled loops (extra ``fast``): by default where numba is installed. The results are the
        same up to rounding.

    Raises
    ------
    OptionError
        If a value makes no sense.
    """

    form: Form = "compressed"
    information_loss: float = 5e-4
    max_cells: int = 4000
    max_pool_shift: float = 3.0
    max_pool_error: float = 0.1
    batch_size: int = 2048
    compiled: bool | None = None

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise OptionError(f"form of toys {self.form!r} is unknown; {nearest(self.form, get_args(Form))}")
        for name in ("information_loss", "max_pool_shift", "max_pool_error"):
            if not getattr(self, name) > 0:
                raise OptionError(f"{name} {getattr(self, name):g} must be above 0")
        for name in ("max_cells", "batch_size"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} {getattr(self, name)} must be at least 1")


@dataclass(frozen=True, eq=False)
class ToyModel:
    """A likelihood and the pools that its toys are drawn from; make it with `from_nll` or `from_analysis`.

    It can be pickled and sent to other processes, and holds no network.

    Parameters
    ----------
    nll : NLL
        Likelihood of the observed data: parameters, constraints, and what `profiled` fits.
    references : tuple of Reference
        One for each data term.
    options : ToyOptions
        How toys are drawn and fitted.

    Raises
    ------
    ModelError
        If references and data terms do not match, or the likelihood is not extended.
    EventsError
        If a pool has points of negative weight.
    """

    nll: NLL
    references: tuple[Reference, ...]
    options: ToyOptions = field(default_factory=ToyOptions)
    pools: tuple[Pool, ...] = field(init=False, repr=False)
    _cells: dict[tuple[Fixed, ...], tuple[Cells, ...]] = field(init=False, repr=False)
    _experiments: dict[Any, Experiment] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.references) != len(self.nll.mixtures):
            raise ModelError(f"{len(self.references)} reference(s) for {len(self.nll.mixtures)} data term(s)")
        if not all(mixture.extended for mixture in self.nll.mixtures):
            raise ModelError(
                "toys need an extended likelihood, which predicts the number of events; use ExtendedUnbinnedNLL"
            )
        index_of(self.nll.poi, self.nll.parameters)
        # A plain likelihood: the subclass keeps the model, whose networks cannot be sent to other processes.
        object.__setattr__(self, "nll", self.nll.replaced(self.nll.mixtures, self.nll.constraints))
        object.__setattr__(self, "pools", tuple(Pool(r, self.nll.names) for r in self.references))
        object.__setattr__(self, "_cells", {})
        object.__setattr__(self, "_experiments", {})

    @classmethod
    def from_nll(
        cls, nll: NLL, references: Reference | tuple[Reference, ...], *, options: ToyOptions | None = None
    ) -> ToyModel:
        """Toys of a likelihood.

        Parameters
        ----------
        nll : NLL
            Likelihood of the data.
        references : Reference or tuple of Reference
            Points of each data term: a pool of background events, or quadrature nodes.
        options : ToyOptions, optional
            How toys are drawn and fitted.
        """
        several = references if isinstance(references, tuple) else (references,)
        return cls(nll, several, options or ToyOptions())

    @classmethod
    def from_analysis(cls, analysis: Analysis, *, options: ToyOptions | None = None) -> ToyModel:
        """Toys of an analysis of one window.

        Raises
        ------
        ModelError
            If the analysis has no reference events.
        """
        if analysis.reference is None:
            raise ModelError(
                "this model looks at features and has no reference events in the window, so that toys cannot be drawn; "
                "give held-out background events (reference.json of the model, or reference_from_pool)"
            )
        return cls.from_nll(analysis.nll, analysis.reference, options=options)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the p parameters."""
        return self.nll.names

    @property
    def poi(self) -> str:
        """Parameter of interest."""
        return self.nll.poi

    @property
    def poi_index(self) -> int:
        """Its position."""
        return self.nll.names.index(self.nll.poi)

    def theta(self, **values: float) -> FloatArray:
        """Start values with some replaced, shape (p,).

        Raises
        ------
        ParameterError
            If a name is unknown or a value outside its range.
        """
        return self.nll.start_vector(**values)

    def profiled(self, value: float) -> FloatArray:
        """Parameters with the one of interest at a value and the others fitted to the observed data, shape (p,).

        Raises
        ------
        FitFailed
            If that fit is not valid.
        """
        return fit(self.nll, fixed={self.poi: value}).raise_if_invalid().values

    def pool_reports(self, theta: FloatArray) -> tuple[PoolReport, ...]:
        """What the pools are worth for toys with these true parameters, one report a data term."""
        return self._experiment(np.asarray(theta, dtype=np.float64), ((),)).reports

    def cells(self, hypotheses: tuple[Fixed, ...] = ((),)) -> tuple[Cells, ...]:
        """Cells of each data term in compressed toys, with the relative loss of information; made once.

        Raises
        ------
        ModelError
            If the compressed form does not suit the model.
        """
        if hypotheses not in self._cells:
            self._cells[hypotheses] = toy_cells(self, hypotheses)
        return self._cells[hypotheses]

    def _experiment(self, theta: FloatArray, hypotheses: tuple[Fixed, ...]) -> Experiment:
        """All that toys at a truth need, made once."""
        key = (theta.tobytes(), hypotheses)
        if key not in self._experiments:
            if len(self._experiments) >= (KEPT_EXPERIMENTS if self.options.form == "compressed" else 2):
                self._experiments.clear()
            self._experiments[key] = Experiment(self, theta, hypotheses)
        return self._experiments[key]

    def __getstate__(self) -> dict[str, bytes]:
        # Read-only mappings, of which yields and events are made, are not picklable by themselves.
        buffer = io.BytesIO()
        pickler = pickle.Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL)
        pickler.dispatch_table = {MappingProxyType: lambda mapping: (_read_only, (dict(mapping),))}
        pickler.dump((self.nll, self.references, self.options))
        return {"packed": buffer.getvalue()}

    def __setstate__(self, state: dict[str, bytes]) -> None:
        nll, references, options = pickle.loads(state["packed"])
        for name, value in (("nll", nll), ("references", references), ("options", options)):
            object.__setattr__(self, name, value)
        self.__post_init__()


def toy_statistics(
    model: ToyModel,
    theta_true: FloatArray,
    tests: Sequence[TestSpec],
    n_toys: int,
    *,
    rng: np.random.Generator,
) -> ToyResults:
    """Draw toys at true parameters and evaluate test statistics on each.

    Parameters
    ----------
    model : ToyModel
        What is drawn and fitted.
    theta_true : array of shape (p,)
        True parameters: ``model.theta(mu=...)``, or ``model.profiled(mu)`` for toys at the nuisances that the data prefer.
        Parameters declared fixed are fitted at their start values, whatever is true.
    tests : sequence of TestSpec
        Test statistics; may be empty, for estimates alone.
    n_toys : int
        How many.
    rng : numpy.random.Generator
        Source of randomness. Data and each auxiliary measurement have children of it: the toys do not depend on the batch
        size, and those of a longer run begin with those of a shorter one.

    Returns
    -------
    ToyResults
        One row a toy; failed toys are there, with NaN and a status.

    Raises
    ------
    OptionError
        If `n_toys` is not positive.
    ParameterError
        If the truth is not finite, outside the ranges, or has a negative density somewhere.
    EventsError
        If the pool is too small; with the number of points needed.
    ModelError
        If a parameter moves a density and nothing constrains it, so that the compressed form does not hold.
    """
    if n_toys < 1:
        raise OptionError(f"{n_toys} toys; ask for at least one")
    truth = _checked_truth(model, theta_true)
    specs = tuple(tests)
    _check_tests(model, specs)
    hypotheses = tuple(dict.fromkeys(test.fixed for test in specs)) or ((),)
    experiment = model._experiment(truth, hypotheses)
    statistics = np.empty((n_toys, len(specs)))
    estimates, errors = np.empty((n_toys, len(hypotheses))), np.empty((n_toys, len(hypotheses)))
    values, status = np.empty((n_toys, len(model.names))), np.zeros(n_toys, dtype=np.int64)
    n_events = np.empty((n_toys, len(model.references)), dtype=np.int64)
    poi = model.poi_index
    begin = 0
    for batch in experiment.batches(n_toys, rng=rng):
        rows = slice(begin, begin + batch.count)
        n_events[rows] = batch.n_events
        for h, hypothesis in enumerate(experiment.hypotheses):
            columns = [t for t, test in enumerate(specs) if test.fixed == hypotheses[h]]
            asked = [specs[t] for t in columns]
            result = answer(batch.toys(h), asked, hypothesis.theta, hypothesis.free, poi, batch.count)
            statistics[rows, columns] = result.statistics
            estimates[rows, h], errors[rows, h] = result.theta[:, poi], result.error
            status[rows] = np.maximum(status[rows], result.status)
            if h == 0:
                values[rows] = result.theta
        begin += batch.count
    return ToyResults(
        names=model.names,
        poi=model.poi,
        theta_true=truth,
        tests=specs,
        n_events=n_events,
        statistics=statistics,
        estimates=estimates,
        errors=errors,
        values=values,
        status=status,
        form=model.options.form,
    )


def data_statistics(model: ToyModel, tests: Sequence[TestSpec]) -> FloatArray:
    """Evaluate test statistics on the observed data, by the same definitions as on toys: shape (t,).

    Raises
    ------
    FitFailed
        If a fit fails.
    """
    specs = tuple(tests)
    _check_tests(model, specs)
    result = np.empty(len(specs))
    free = np.array([not parameter.fixed for parameter in model.nll.parameters])
    for fixed in dict.fromkeys(test.fixed for test in specs):
        columns = [t for t, test in enumerate(specs) if test.fixed == fixed]
        start = model.theta(**dict(fixed))
        loose = free & ~np.isin(model.names, [name for name, _ in fixed])
        found = answer(SingleToys((model.nll,)), [specs[t] for t in columns], start, loose, model.poi_index, 1)
        if not np.isfinite(found.statistics[0]).all():
            raise FitFailed(f"the fits to the observed data failed, so that {specs[columns[0]].statistic} is not known")
        result[columns] = found.statistics[0]
    return result


def _read_only(mapping: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    """Read-only mapping; the type itself cannot be named in a pickle."""
    return MappingProxyType(mapping)


def _checked_truth(model: ToyModel, theta: FloatArray) -> FloatArray:
    truth = np.array(theta, dtype=np.float64)
    if truth.shape != (len(model.names),) or not np.isfinite(truth).all():
        raise ParameterError(
            f"true parameters must be {len(model.names)} finite numbers ({', '.join(model.names)}), not {truth.tolist()}"
        )
    for parameter, value in zip(model.nll.parameters, truth, strict=True):
        parameter.check(float(value))
    return truth


def _check_tests(model: ToyModel, tests: Sequence[TestSpec]) -> None:
    parameter = model.nll.parameters[model.poi_index]
    for test in tests:
        parameter.check(test.value)
        for name, value in test.fixed:
            if name == model.poi:
                raise OptionError(
                    f"{name} is the parameter of interest: give its value as the tested one, not as fixed"
                )
            model.nll.parameters[index_of(name, model.nll.parameters)].check(value)
        if test.statistic.endswith("tilde") and test.value < 0:
            raise OptionError(f"{test.statistic} tests values of 0 and above, not {test.value:g}; use tmu or qmu")
