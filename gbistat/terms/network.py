"""Networks as terms: ONNX graphs evaluated with onnxruntime, with units, names and ranges checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gbistat.errors import EventsError, ParameterError, TermError, UnitsError, nearest
from gbistat.terms.graph import check_graph
from gbistat.terms.session import DTYPES, make_session, run_graph

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gbistat.data.events import Events
    from gbistat.terms.metadata import MassSpec, Quantity, TermMetadata
    from gbistat.typing import BoolArray, FloatArray

__all__ = ["NetworkTerm", "Outside", "log_mean"]

Outside = Literal["error", "evaluate"]

BATCH_SIZE = 2048
"""Events at a time: activations of a few hundred units stay in the cache, which saves a third of the time of large batches."""


@dataclass(frozen=True, eq=False)
class NetworkTerm:
    """A density or a density ratio given by one or several ONNX graphs.

    Sessions are made when the term is first evaluated, one thread each; loading a term costs no onnxruntime.

    Parameters
    ----------
    metadata : TermMetadata
        What the term is.
    graphs : tuple of bytes
        The K members, in the order of ``metadata.members``.
    outside : {"error", "evaluate"}
        What to do with events outside the range for which the term is valid.
    samplers : tuple of bytes
        The graphs of ``metadata.samplers``; `gbistat.terms.generator.GeneratorTerm` draws with them.

    Raises
    ------
    TermError
        If the number of graphs is not the number of members, a graph is damaged, or it refers to another file.

    Notes
    -----
    For a ratio of K members with logits l_k,

        ln r(x) = ln kappa + ln( (1/K) sum_k exp l_k(x) ),

    the arithmetic mean of the ratios: it keeps E_b[r] = 1, which a mean of logits does not. Densities combine in
    the same way without kappa. Sums are in float64 whatever the graphs use.
    """

    metadata: TermMetadata
    graphs: tuple[bytes, ...] = field(repr=False)
    outside: Outside = "error"
    samplers: tuple[bytes, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        for name, what, records in (
            ("graphs", "members", self.metadata.members),
            ("samplers", "samplers", self.metadata.samplers),
        ):
            graphs = tuple(getattr(self, name))
            object.__setattr__(self, name, graphs)
            if len(graphs) != len(records):
                raise TermError(f"term {self.name!r} has {len(records)} {what} and {len(graphs)} graphs; give one each")
            for record, graph in zip(records, graphs, strict=True):
                check_graph(graph, f"{self.name}/{record.file}")

    def __getstate__(self) -> dict[str, Any]:
        # Sessions cannot be sent to another process; it makes its own.
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @property
    def name(self) -> str:
        """Name of the term."""
        return self.metadata.name

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Inputs in order, the mass among them if it is one."""
        return self.metadata.feature_names

    def valid(self, events: Events) -> BoolArray:
        """Mask of the events inside every valid range, shape (n,).

        Raises
        ------
        EventsError, UnitsError
            If the events lack a feature or have another unit.
        """
        self._check_units(events)
        mask = np.ones(len(events), dtype=np.bool_)
        for item in self._limited():
            mask &= _within(events.feature(item.name), item)
        return mask

    def without_range_check(self) -> NetworkTerm:
        """Same term, evaluated also where it was never learned: the caller answers for that."""
        return replace(self, outside="evaluate")

    def member_values(self, events: Events, /, **theta: float) -> FloatArray:
        """Natural log that each member gives, without kappa.

        Parameters
        ----------
        events : Events
            n events with the term's features in the term's units.
        **theta : float
            Values of the term's parameters, if it has any.

        Returns
        -------
        array of shape (K, n)
            One row a member.

        Raises
        ------
        EventsError
            A feature is missing (nearest names offered), or the mass has another name.
        UnitsError
            A feature or the mass is in another unit.
        ParameterError
            A parameter is missing, unknown, or outside its range.
        TermError
            Events outside the valid range (counted, with the feature), a graph that cannot be evaluated or does
            not fit the metadata, or an output that is not finite (counted).
        """
        inputs = self._inputs(events, theta)
        return np.stack([self._evaluate(index, inputs) for index in range(len(self.graphs))])

    def log_ratio(self, events: Events, /, **theta: float) -> FloatArray:
        """ln of the density ratio, kappa included, shape (n,); arguments and errors as in `member_values`.

        Raises
        ------
        TermError
            Besides the errors of `member_values`: the term is a density.
        """
        if not self.metadata.is_ratio:
            raise TermError(f"term {self.name!r} is a {self.metadata.kind}, not a density_ratio; use log_prob")
        kappa = self.metadata.log_kappa
        log_kappa = 0.0 if kappa is None else kappa.value
        return log_mean(self.member_values(events, **theta)) + log_kappa

    def log_prob(self, events: Events, /, **theta: float) -> FloatArray:
        """ln of the density in the raw features, shape (n,); arguments and errors as in `member_values`.

        Raises
        ------
        TermError
            Besides the errors of `member_values`: the term is a ratio.
        """
        if self.metadata.is_ratio:
            raise TermError(f"term {self.name!r} is a density_ratio, not a density; use log_ratio")
        return log_mean(self.member_values(events, **theta))

    def _inputs(self, events: Events, theta: Mapping[str, float]) -> FloatArray:
        self._check_units(events)
        if self.outside == "error":
            self._check_ranges(events)
        values = self._theta(theta)
        return np.column_stack([events.matrix(self.feature_names), np.broadcast_to(values, (len(events), values.size))])

    def _check_units(self, events: Events) -> None:
        mass = self.metadata.mass
        if events.mass_name != mass.name:
            raise EventsError(
                f"term {self.name!r} was learned with the mass {mass.name!r}, and these events have "
                f"{events.mass_name!r}; read them with that name"
            )
        known = (events.mass_name, *events.names)
        for feature in self._limited():
            if feature.name not in known:
                raise EventsError(
                    f"term {self.name!r} needs the feature {feature.name!r}, which these events do not have; "
                    f"{nearest(feature.name, known)}"
                )
            found = events.units[feature.name]
            if found != feature.unit:
                raise UnitsError(
                    f"term {self.name!r} takes {feature.name!r} in {feature.unit!r}, and these events have it in "
                    f"{found!r}; convert them (Events.to_unit({mass.unit!r})) or declare their unit (--unit)"
                )

    def _check_ranges(self, events: Events) -> None:
        violations = []
        for item in self._limited():
            column = events.feature(item.name)
            bad = column[~_within(column, item)]
            if bad.size:
                violations.append((item, bad))
        if not violations:
            return
        item, bad = max(violations, key=lambda violation: violation[1].size)
        others = dict.fromkeys(other.name for other, _ in violations if other.name != item.name)
        also = f" (others have {', '.join(others)} outside)" if others else ""
        raise TermError(
            f"{bad.size} of {len(events)} events have {item.name} outside {_range(item)}, where term {self.name!r} is "
            f"valid: they span {bad.min():.6g} to {bad.max():.6g}{also}\n"
            "select the events inside, check the units, or evaluate outside on purpose (NetworkTerm.without_range_check)"
        )

    def _limited(self) -> list[Quantity | MassSpec]:
        return [self.metadata.mass, *self.metadata.features]

    def _theta(self, given: Mapping[str, float]) -> FloatArray:
        wanted = {item.name: item for item in self.metadata.parameters}
        for name in given:
            if name not in wanted:
                raise ParameterError(f"term {self.name!r} has no parameter {name!r}; {nearest(name, wanted)}")
        return np.array([self._parameter(item, given) for item in wanted.values()], dtype=np.float64)

    def _parameter(self, item: Quantity, given: Mapping[str, float]) -> float:
        if item.name not in given:
            raise ParameterError(f"term {self.name!r} depends on the parameter {item.name!r}; give it a value")
        value = float(given[item.name])
        low, high = item.bounds
        if not (math.isfinite(value) and low <= value <= high):
            raise ParameterError(
                f"parameter {item.name!r} = {value:g} is outside {_range(item)}, where term {self.name!r} is valid; "
                "choose a value inside"
            )
        return value

    def _evaluate(self, index: int, inputs: FloatArray) -> FloatArray:
        where = self._where(index)
        result = run_graph(self._sessions[index], inputs, None, where, batch_size=BATCH_SIZE)
        bad = int(np.count_nonzero(~np.isfinite(result)))
        if bad:
            raise TermError(
                f"{where} gives NaN or infinity for {bad} of {len(result)} events; "
                "check that they are inside the range that the term was learned in"
            )
        return result

    @cached_property
    def _sessions(self) -> tuple[Any, ...]:
        return tuple(self._session(index) for index in range(len(self.graphs)))

    def _session(self, index: int) -> Any:
        where = self._where(index)
        session = make_session(self.graphs[index], where)
        self._check_interface(session, where)
        return session

    def _check_interface(self, session: Any, where: str) -> None:
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise TermError(
                f"{where} has {len(inputs)} inputs and {len(outputs)} outputs; a term has one of each: x of shape "
                "(n, d) and one natural log an event"
            )
        wanted = self.metadata.n_inputs
        shape = list(inputs[0].shape)
        if len(shape) != 2 or shape[1] != wanted:
            columns = f"{shape[1]} columns" if len(shape) == 2 else f"shape {shape}"
            raise TermError(
                f"{where} takes an input with {columns}, and term.json lists {wanted} features and parameters "
                f"({', '.join(self._input_names())}); they must agree: export the term again"
            )
        for what, node in (("takes", inputs[0]), ("gives", outputs[0])):
            if node.type not in DTYPES:
                raise TermError(f"{where} {what} {node.type}; a term works in float32 or float64: export it again")

    def _input_names(self) -> tuple[str, ...]:
        return (*self.feature_names, *(item.name for item in self.metadata.parameters))

    def _where(self, index: int) -> str:
        return f"term {self.name!r}: {self.metadata.members[index].file}"


def log_mean(values: FloatArray) -> FloatArray:
    """ln of the mean over the first axis of exp(values), float64."""
    total: FloatArray = np.logaddexp.reduce(values, axis=0)
    return total - math.log(len(values))


def _within(column: FloatArray, item: Quantity | MassSpec) -> BoolArray:
    low, high = item.bounds
    mask: BoolArray = (column >= low) & (column <= high)
    return mask


def _range(item: Quantity | MassSpec) -> str:
    low, high = item.bounds
    return f"[{low:g}, {high:g}]" + ("" if item.unit == "1" else f" {item.unit}")
