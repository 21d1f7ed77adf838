"""A signal of two decay modes: derivatives, closed forms, the share's interval, and one mode as a special case."""

from __future__ import annotations

import json
import math

import jacobi
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from scipy.optimize import minimize

from gbistat.cli import main
from gbistat.data.events import Events, concatenate
from gbistat.data.window import MassWindow
from gbistat.errors import ModelError
from gbistat.fit.build import build_analysis
from gbistat.fit.masses import with_held_masses
from gbistat.fit.minimize import fit
from gbistat.fit.mode_search import best_strengths
from gbistat.fit.plane import global_fit, search_plane
from gbistat.inference.limits import upper_limit
from gbistat.inference.mass_profile import SearchedProfile
from gbistat.inference.profile import profile_interval
from gbistat.likelihood.components import Component, LogArray, MassFactor, Yield
from gbistat.likelihood.constraints import NormalConstraint
from gbistat.likelihood.kappa import normalised_surface
from gbistat.likelihood.model import Model
from gbistat.likelihood.modes import DecayModes, PreparedModes
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.parameters import Parameter
from gbistat.likelihood.theta_grid import grid_of
from gbistat.terms.density import MassDensity
from gbistat.terms.metadata import TermMetadata
from gbistat.terms.model_spec import ModelSpec
from gbistat.terms.network import NetworkTerm
from gbistat.terms.shapes.registry import make_shape
from gbistat.terms.store import member_records, save_model

TRUTH = (510.0, 120.0)
SHIFT = 130.0
"""How far the second mode lies above the first in feature b: its blob is at (m_X, m_Y + SHIFT)."""


class Second:
    """The second mode: the first of the tests of one mode, at other features of the same masses."""

    def __init__(self, blob):
        self.first = blob.Blob()

    def log_ratio(self, events, *, m_X, m_Y):
        return self.first.log_ratio(events, m_X=m_X, m_Y=m_Y + SHIFT)


def problem(blob, counts, seed, *, share=None, n_bkg=1500, ranges=None):
    """Likelihood with masses and alpha free, from numbers of events of both modes."""
    rng = np.random.default_rng(seed)
    ranges = ranges or {"m_X": (400.0, 600.0), "m_Y": (50.0, 250.0)}
    other = (TRUTH[0], TRUTH[1] + SHIFT)
    x = np.r_[
        blob.background(rng.poisson(n_bkg), rng),
        blob.signal(counts[0], TRUTH, rng),
        blob.signal(counts[1], other, rng),
    ]
    grid = grid_of(ranges, dict.fromkeys(ranges, 25.0))
    pool = blob.events(blob.background(8000, rng))
    made = [normalised_surface(term, grid, pool)[0] for term in (blob.Blob(), Second(blob))]
    flat = MassDensity.fixed(make_shape("exponential"), ((0.0, 1.0),), [1e-9])
    factor = made[0] if share is None else DecayModes(*made, "alpha")
    more = [] if share is None else [share]
    model = Model(
        (
            Component("signal", Yield({"mu": 1.0}), (MassFactor(flat), factor)),
            Component("background", Yield({"n_bkg": 1.0}), (MassFactor(flat),)),
        ),
        (
            Parameter("mu", 0.0, 0.0),
            Parameter("n_bkg", float(n_bkg), 0.0),
            *(Parameter(name, 0.5 * sum(ends), *ends) for name, ends in ranges.items()),
            *more,
        ),
        (NormalConstraint("n_bkg", float(n_bkg), 0.01 * n_bkg),),
        MassWindow(0.0, 1.0),
        "mu",
    )
    return grid, ExtendedUnbinnedNLL(model, blob.events(x))


FREE = Parameter("alpha", 0.5, 0.0, 1.0)


def test_gradient_and_hessian_against_jacobi(blob):
    _, nll = problem(blob, (40, 30), 1, share=FREE)
    scale = np.array([1.0, 10.0, 2.0, 2.0, 1e-3])
    for point in (
        [60.0, 1480.0, 505.0, 130.0, 0.4],
        [30.0, 1500.0, 440.0, 200.0, 0.9],
        [5.0, 1500.0, 560.0, 77.0, 3e-3],
    ):
        theta = np.array(point)
        found = nll.evaluate(theta)
        assert found.value == pytest.approx(nll.value(theta), rel=1e-13)
        # In units in which a step of the numerical derivative stays inside the ranges.
        gradient, error = jacobi.jacobi(lambda u, at=theta: nll.value(at + scale * np.asarray(u)), np.zeros(5))
        np.testing.assert_allclose(found.gradient * scale, gradient, atol=1e-7 + 20 * np.max(np.abs(error)), rtol=1e-7)
        hessian, error = jacobi.jacobi(
            lambda u, at=theta: nll.evaluate(at + scale * np.asarray(u)).gradient, np.zeros(5)
        )
        np.testing.assert_allclose(found.hessian * scale, hessian, atol=1e-7 + 20 * np.max(np.abs(error)), rtol=1e-6)


def test_closed_form_where_all_three_do_not_overlap():
    """Signal of each mode and background in places of their own: mu = n2 + n3, alpha = n3 / (n2 + n3), and their errors."""
    counts, far = (30, 20, 950), -200.0
    n = sum(counts)
    label = np.repeat([0, 1, 2], counts)
    one, two, none = (LogArray(np.where(label == k, 0.0, far)) for k in range(3))
    model = Model(
        (
            Component("signal", Yield({"mu": 1.0}), (DecayModes(one, two, "alpha"),)),
            Component("background", Yield({"n_bkg": 1.0}), (none,)),
        ),
        (Parameter("mu", 10.0, 0.0), Parameter("n_bkg", 900.0, 0.0), FREE),
    )
    nll = ExtendedUnbinnedNLL(model, Events(mass=np.zeros(n)))
    best = fit(nll)
    assert best.value("mu") == pytest.approx(50.0, rel=1e-8)
    assert best.value("alpha") == pytest.approx(0.4, rel=1e-8)
    assert best.error("mu") == pytest.approx(math.sqrt(50.0), rel=1e-6)
    assert best.error("alpha") == pytest.approx(math.sqrt(0.4 * 0.6 / 50.0), rel=1e-6)
    assert best.covariance[0, 2] == pytest.approx(0.0, abs=1e-8)


def test_ends_of_the_share_are_the_modes_themselves(blob):
    rng = np.random.default_rng(2)
    events = blob.events(blob.background(500, rng))
    grid = grid_of(blob.ranges, dict.fromkeys(blob.ranges, 50.0))
    made = [normalised_surface(term, grid, events)[0] for term in (blob.Blob(), Second(blob))]
    prepared = DecayModes(*made).prepare(events)
    masses = np.array([510.0, 120.0])
    for share, surface in zip((0.0, 1.0), made, strict=True):
        theta = np.r_[masses, share]
        alone = surface.prepare(events)
        np.testing.assert_array_equal(prepared.log_prob(theta), alone.log_prob(masses))
        log, gradient, hessian = prepared.derivatives(theta)
        for mine, other in zip((log, gradient[:2], hessian[:2, :2]), alone.derivatives(masses), strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-9, atol=1e-9)
    middle = prepared.log_prob(np.r_[masses, 0.3])
    np.testing.assert_allclose(
        np.exp(middle), 0.7 * np.exp(prepared.log_prob(np.r_[masses, 0.0])) + 0.3 * np.exp(prepared.log_prob(np.r_[masses, 1.0])), rtol=1e-12
    )  # fmt: skip


def test_no_second_mode_is_the_model_of_one(blob):
    _, single = problem(blob, (90, 0), 3)
    grid, nll = problem(blob, (90, 0), 3, share=Parameter("alpha", 0.0, 0.0, 1.0, fixed=True))
    one, search_one = global_fit(single, grid.names, grid.axes)
    two, search_two = global_fit(nll, grid.names, grid.axes, fraction="alpha")
    np.testing.assert_allclose(two.values[:4], one.values, rtol=1e-10)
    np.testing.assert_allclose(two.errors[:4], one.errors, rtol=1e-8)
    assert two.nll == pytest.approx(one.nll, abs=1e-9)
    np.testing.assert_array_equal(search_two.q0, search_one.q0)
    assert search_two.shares is None


def test_map_profiles_strength_and_share(blob):
    grid, nll = problem(blob, (50, 40), 4, share=FREE)
    coarse = [axis[::4] for axis in grid.axes]
    search = search_plane(nll, grid.names, coarse, fraction="alpha")
    for place in np.ndindex(*search.q0.shape):
        full = fit(nll, fixed=search.node(place))
        # The map holds the background, which is constrained to 1 %.
        assert search.q0[place] == pytest.approx(2 * (search.null.nll - full.nll), abs=0.1, rel=0.03)
        if full.error("alpha") > 0 and search.q0[place] > 4:
            assert search.shares[place] == pytest.approx(full.value("alpha"), abs=0.1 * full.error("alpha"))
            assert search.strength[place] == pytest.approx(full.value("mu"), abs=0.1 * full.error("mu"))


def test_best_strengths_against_a_general_minimiser():
    rng = np.random.default_rng(5)
    for k in range(12):
        ratios = np.exp(rng.normal(-1.5, 2.0, (2, 400))) * np.array([[0.01], [0.003 * (k % 4)]])
        ratios = np.maximum(ratios, 1e-12)
        weights = rng.uniform(0.5, 1.5, 400)

        def loss(s, ratios=ratios, weights=weights):
            return -2.0 * (weights @ np.log1p(s @ ratios) - 2.0 * s.sum())

        strengths, gain = best_strengths(ratios, weights, 2.0)
        brute = min(minimize(loss, start, bounds=[(0, None)] * 2, tol=1e-12).fun for start in ([1.0, 1.0], [50.0, 5.0]))
        assert gain >= -brute - 1e-6
        assert gain == pytest.approx(-loss(strengths), abs=1e-9)
        assert (strengths >= 0).all()


def test_a_mixture_is_found_with_errors_of_the_right_size(blob):
    pulls = []
    for seed in range(8):
        counts = np.random.default_rng(500 + seed).poisson([120, 90])
        grid, nll = problem(blob, counts, 600 + seed, share=FREE)
        best, _ = global_fit(nll, grid.names, grid.axes, fraction="alpha")
        truths = {"mu": 210.0, "m_X": TRUTH[0], "m_Y": TRUTH[1], "alpha": 90.0 / 210.0}
        pulls.append([(best.value(name) - truth) / best.error(name) for name, truth in truths.items()])
    mean, width = np.mean(pulls, axis=0), np.std(pulls, axis=0)
    # 8 toys: 0.35 on the mean and 0.25 on the width; four of each for four parameters, false alarm below 1e-3.
    assert (np.abs(mean) < 1.4).all()
    assert ((width > 0.2) & (width < 2.0)).all()


def test_interval_of_the_share(blob):
    grid, nll = problem(blob, (70, 50), 7, share=FREE)
    best, search = global_fit(nll, grid.names, grid.axes, fraction="alpha")
    profile = SearchedProfile(nll, "alpha", search, best)
    interval = profile_interval(nll, "alpha", cl=0.6827, profile=profile, n_search=6)
    ((low, high),) = interval.segments
    assert 0.0 < low < best.value("alpha") < high < 1.0
    assert profile.q(low) == pytest.approx(1.0, abs=1e-3)
    # Without signal alpha means nothing: all of its range, and the result says so.
    grid, nll = problem(blob, (0, 0), 40, share=FREE, n_bkg=300)
    best, search = global_fit(nll, grid.names, grid.axes, fraction="alpha")
    assert 2 * (search.null.nll - best.nll) < 3.84
    profile = SearchedProfile(nll, "alpha", search, best)
    interval = profile_interval(nll, "alpha", cl=0.95, profile=profile, n_search=6)
    assert interval.segments == ((None, None),)
    assert [note.split(":")[1].strip() for note in interval.notes] == [
        "the range of alpha ends at 0",
        "the range of alpha ends at 1",
    ]


def second_term(blob):
    """The ONNX blob with other inputs: a network whose first layer sees m_Y + SHIFT is a blob elsewhere."""
    first = blob.term()
    graph = onnx.load_model_from_string(first.graphs[0])
    bias = np.array([[0.0, -SHIFT]], np.float32) / np.float32(blob.width)
    graph.graph.initializer.append(numpy_helper.from_array(bias, "bias"))
    graph.graph.node[0].output[0] = "d0"
    graph.graph.node.insert(1, onnx.helper.make_node("Add", ["d0", "bias"], ["d"]))
    data = graph.SerializeToString()
    members = {"member_0.onnx": data}
    content = json.loads(first.metadata.model_dump_json(by_alias=True))
    content |= {"name": "second", "members": [record.to_json() for record in member_records(members)]}
    return NetworkTerm(TermMetadata.model_validate_json(json.dumps(content)), tuple(members.values()))


def spec(blob, *, parameters=None, **changes):
    content = blob.spec().to_json()
    content["signal"] |= {"ratios": [], "modes": {"ratios": ["blob", "second"], "fraction": "alpha"}, **changes}
    content["signal"]["grid_step"] = {"m_X": 50.0, "m_Y": 50.0}
    content |= {"terms": ["blob", "second"], "parameters": parameters or {}}
    return ModelSpec.model_validate_json(json.dumps(content))


def mixed(blob, seed):
    rng = np.random.default_rng(seed)
    data = blob.spectrum(2500, 70, TRUTH, rng)
    other = blob.spectrum(0, 60, (TRUTH[0], TRUTH[1] + SHIFT), rng)
    return concatenate([data, other]), blob.spectrum(6000, 0, TRUTH, rng)


def test_model_of_two_networks(blob):
    events, pool = mixed(blob, 11)
    terms = {"blob": blob.term(), "second": second_term(blob)}
    window = MassWindow(130.0, 150.0)
    analysis = build_analysis(spec(blob), events, window, terms=terms, pool=pool)
    best = fit(analysis.nll)
    assert best.valid
    for name, truth in zip(("m_X", "m_Y"), TRUTH, strict=True):
        assert best.value(name) == pytest.approx(truth, abs=4 * best.error(name))
    assert best.value("alpha") == pytest.approx(60.0 / 130.0, abs=4 * best.error("alpha"))
    masses = analysis.masses
    assert masses.search.shares.shape == masses.search.q0.shape
    ends = [masses.sigma({"m_X": 510.0, "m_Y": 120.0, "alpha": a}) for a in (0.0, 0.5, 1.0)]
    assert ends[1] == pytest.approx(0.5 * (ends[0] + ends[2]))
    # Limits hold masses and share; with the share at 0 they are those of the first mode alone.
    held = with_held_masses(analysis, {"m_X": 300.0, "m_Y": 300.0, "alpha": 0.0})
    single = build_analysis(blob.spec(), events, window, terms={"blob": blob.term()}, pool=pool)
    alone = with_held_masses(single, {"m_X": 300.0, "m_Y": 300.0})
    found, wanted = (upper_limit(one.nll, one.reference) for one in (held, alone))
    assert found.observed == pytest.approx(wanted.observed, rel=1e-6)
    np.testing.assert_allclose(found.expected, wanted.expected, rtol=1e-6)


def test_command_line(blob, tmp_path, capsys):
    events, pool = mixed(blob, 13)
    narrow = {"m_X": {"start": 500.0, "low": 400.0, "high": 600.0}, "m_Y": {"start": 150.0, "low": 50.0, "high": 250.0}}
    save_model(
        tmp_path / "model", spec(blob, parameters=narrow), terms=[blob.term(), second_term(blob)], reference=pool
    )
    a, b = events.features.T
    np.savez(tmp_path / "events.npz", m_jj=events.mass, a=a, b=b)
    card = tmp_path / "card.yaml"
    card.write_text(f"model: model\nevents: {{path: {tmp_path}/events.npz, units: {{a: GeV, b: GeV}}}}\n")

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([arguments[0], str(card), *arguments[1:], "--json", "-"])
        captured = capsys.readouterr()
        assert stop.value.code == 0, captured.err
        return json.loads(captured.out)["results"][0]

    found = run("fit", "--mass", "m_X=510")
    entry = found["fit"]["alpha"]
    ((low, high),) = entry["intervals"]["0.6827"]
    assert low < entry["value"] < high
    assert entry["value"] == pytest.approx(60 / 130, abs=4 * entry["error"])
    assert np.shape(found["plane"]["alpha"]) == np.shape(found["plane"]["q0"])
    held = run("limits", "--no-binned", "--mass", "m_X=510", "--mass", "m_Y=120", "--mass", "alpha=0.4")
    assert held["fit"]["alpha"] == {"value": 0.4, "error": 0.0, "fixed": True}
    assert not any("fit best" in text for text in held["warnings"])
    best = run("limits", "--no-binned", "--mass", "m_X=510", "--mass", "m_Y=120")
    assert any("alpha = 0." in text and "GeV" not in text.split("alpha")[1].split(",")[0] for text in best["warnings"])


def test_declared_share_and_errors(blob):
    events, pool = mixed(blob, 12)
    terms = {"blob": blob.term(), "second": second_term(blob)}
    window = MassWindow(130.0, 150.0)

    def built(**kwargs):
        return build_analysis(spec(blob, **kwargs), events, window, terms=terms, pool=pool)

    held = built(parameters={"alpha": {"start": 0.25, "fixed": True}})
    assert fit(held.nll).value("alpha") == 0.25
    assert held.masses.search.shares is None
    tight = built(
        parameters={"alpha": {"start": 0.2, "low": 0.1, "high": 0.3, "constraint": {"mean": 0.2, "sigma": 0.01}}}
    )
    assert fit(tight.nll).value("alpha") == pytest.approx(0.2, abs=0.02)
    assert tight.masses.search.shares.max() <= 0.3
    with pytest.raises(ModelError, match="a share of decay modes lies between 0 and 1"):
        built(parameters={"alpha": {"start": 0.2, "low": -0.5}})
    with pytest.raises(ModelError, match=r"exactly those of signal\.modes"):
        build_analysis(
            ModelSpec.model_validate_json(json.dumps({**spec(blob).to_json(), "terms": ["blob", "second", "third"],
                "signal": {**spec(blob).to_json()["signal"], "ratios": ["third"]}})),
            events, window, terms={**terms, "third": blob.term()}, pool=pool,
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"signal\.modes\.ratios has 'secnd', which is not in terms"):
        spec(blob, modes={"ratios": ["blob", "secnd"]})
    with pytest.raises(ValueError, match="the parameter of interest"):
        spec(blob, modes={"ratios": ["blob", "second"], "fraction": "mu"})
    with pytest.raises(ValueError, match="'blob' twice"):
        spec(blob, modes={"ratios": ["blob", "blob"]})
    with pytest.raises(ModelError, match="depend on different parameters"):
        DecayModes(LogArray(np.zeros(2)), normalised_surface(
            blob.Blob(), grid_of(blob.ranges, dict.fromkeys(blob.ranges, 200.0)), blob.events(np.zeros((2, 2))), smooth=False
        )[0])  # fmt: skip


def test_prepared_modes_do_not_overflow():
    """A mode that is e^400 times denser than the other somewhere."""
    one, two = LogArray(np.array([0.0, -400.0])), LogArray(np.array([-400.0, 0.0]))
    events = Events(mass=np.zeros(2))
    prepared = PreparedModes(one.prepare(events), two.prepare(events))
    log, gradient, hessian = prepared.derivatives(np.array([0.5]))
    np.testing.assert_allclose(log, math.log(0.5))
    np.testing.assert_allclose(gradient, [[-2.0, 2.0]])
    np.testing.assert_allclose(hessian, -4.0)
