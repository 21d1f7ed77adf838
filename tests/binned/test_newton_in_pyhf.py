"""Newton's method as pyhf's optimiser: the same minima as MINUIT, and pyhf's state left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyhf
import pytest

from gbistat.binned.backend import load_model, numpy_backend
from gbistat.binned.optimizer import NewtonOptimizer
from gbistat.binned.roots import shared_roots
from gbistat.errors import FitFailed, ModelError, OptionError

# pyhf 0.7 validates with a class that jsonschema has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:jsonschema.RefResolver is deprecated:DeprecationWarning")

MODELS = {
    "uncorrelated": ({"signal": [12.0, 11.0], "bkg": [50.0, 52.0], "bkg_uncertainty": [3.0, 7.0]}, [61.0, 58.0]),
    "correlated": (
        {"signal": [12.0, 11.0], "bkg": [50.0, 52.0], "bkg_up": [45.0, 57.0], "bkg_down": [55.0, 47.0]},
        [61.0, 70.0],
    ),
}


def make(name: str) -> tuple[Any, list[float]]:
    options, observed = MODELS[name]
    model = getattr(pyhf.simplemodels, f"{name}_background")(**options)
    return model, observed + model.config.auxdata


def fits(model: Any, data: list[float], optimizer: Any) -> list[np.ndarray]:
    before = pyhf.get_backend()
    pyhf.set_backend("numpy", optimizer)
    try:
        free = pyhf.infer.mle.fit(
            data, model, return_uncertainties=True, return_fitted_val=True, return_correlations=True
        )
        held = pyhf.infer.mle.fixed_poi_fit(0.4, data, model, return_fitted_val=True)
        cls = pyhf.infer.hypotest(1.0, data, model, return_expected_set=True)
    finally:
        pyhf.set_backend(*before)
    return [np.asarray(x) for x in (*free, *held, cls[0], *cls[1])]


def differences(model: Any, data: list[float], best: np.ndarray) -> np.ndarray:
    """Errors from second differences of -2 ln L."""
    unit = 1e-3 * np.eye(best.size)
    hessian = np.empty((best.size, best.size))
    for i, a in enumerate(unit):
        for j, b in enumerate(unit):
            corners = ((best + a + b, 1), (best + a - b, -1), (best - a + b, -1), (best - a - b, 1))
            hessian[i, j] = sum(-2.0 * sign * float(model.logpdf(p, data)[0]) for p, sign in corners) / 4e-6
    errors: np.ndarray = np.sqrt(2.0 * np.diag(np.linalg.inv(hessian)))
    return errors


@pytest.mark.parametrize("name", MODELS)
def test_same_minimum_as_minuit(name: str) -> None:
    """Poisson and Gaussian constraints; parameters to 1e-4 of an error, -2 ln L to 1e-7.

    MINUIT's own errors are a few per mille from the second differences of the function, ours are not.
    """
    model, data = make(name)
    optimizer = NewtonOptimizer(pyhf)
    ours = fits(model, data, optimizer)
    minuit = fits(model, data, pyhf.optimize.minuit_optimizer(tolerance=1e-5))
    assert optimizer.fallbacks == 0
    errors = minuit[0][:, 1]
    np.testing.assert_allclose((ours[0][:, 0] - minuit[0][:, 0]) / errors, 0.0, atol=1e-4)
    np.testing.assert_allclose(ours[0][:, 1], errors, rtol=1e-2)
    np.testing.assert_allclose(ours[1], minuit[1], atol=1e-2)
    np.testing.assert_allclose(ours[0][:, 1], differences(model, data, ours[0][:, 0]), rtol=1e-5)
    np.testing.assert_allclose(ours[2], minuit[2], atol=1e-7)
    np.testing.assert_allclose(ours[4], minuit[4], atol=1e-7)
    np.testing.assert_allclose(ours[5:], minuit[5:], rtol=1e-4)


def test_result_object_and_walls() -> None:
    """Below the wall of mu at 0 the estimate stops there, without an error."""
    model, _ = make("uncorrelated")
    data = [20.0, 20.0, *model.config.auxdata]
    optimizer = NewtonOptimizer(pyhf)
    before = pyhf.get_backend()
    pyhf.set_backend("numpy", optimizer)
    try:
        pars, result = pyhf.infer.mle.fit(data, model, return_result_obj=True, return_uncertainties=True)
    finally:
        pyhf.set_backend(*before)
    assert result.success
    assert pars[model.config.poi_index].tolist() == [0.0, 0.0]
    assert (pars[1:, 1] > 0).all()


def test_minuit_takes_over() -> None:
    model, data = make("uncorrelated")
    hasty = NewtonOptimizer(pyhf, max_iterations=1, tolerance=1e-30)
    ours = fits(model, data, hasty)
    assert hasty.fallbacks > 0
    np.testing.assert_allclose(ours[2], fits(model, data, NewtonOptimizer(pyhf))[2], atol=1e-4)


def test_backend_is_restored() -> None:
    own = pyhf.optimize.scipy_optimizer()
    default = pyhf.get_backend()
    pyhf.set_backend("numpy", own, precision="32b")
    try:
        mine = pyhf.get_backend()
        with numpy_backend() as module:
            assert module.get_backend()[0].precision == "64b"
            assert isinstance(module.get_backend()[1], NewtonOptimizer)
        assert pyhf.get_backend() == mine
        with pytest.raises(ZeroDivisionError), numpy_backend("minuit"):
            _ = 1 / 0
        assert pyhf.get_backend() == mine
        with pytest.raises(FitFailed, match="pyhf's fit did not converge"), numpy_backend() as module:
            raise module.exceptions.FailedMinimization({"message": "no minimum"})
        assert pyhf.get_backend() == mine
        with (
            pytest.raises(OptionError, match="'scipy' is unknown; names there: newton, minuit"),
            numpy_backend("scipy"),
        ):
            pass
    finally:
        pyhf.set_backend(*default)


def test_workspaces_that_pyhf_does_not_accept() -> None:
    scale = {"name": "k", "type": "normfactor", "data": None}
    channel = {"name": "c", "samples": [{"name": "s", "data": [1.0], "modifiers": [scale]}]}
    workspace = {
        "channels": [channel],
        "observations": [{"name": "c", "data": [1.0]}],
        "measurements": [{"name": "m", "config": {"poi": "", "parameters": []}}],
        "version": "1.0.0",
    }
    with numpy_backend() as module:
        with pytest.raises(ModelError, match="no parameter of interest"):
            load_model(module, workspace)
        with pytest.raises(ModelError, match="pyhf does not accept the workspace"):
            load_model(module, workspace | {"version": "9.0.0"})
        with pytest.raises(ModelError, match="pyhf does not accept the workspace"):
            load_model(module, workspace | {"channels": []})


def test_shared_roots() -> None:
    calls = []

    def function(x: float) -> np.ndarray:
        calls.append(x)
        return np.array([x, x**1.2, 3.0 * np.tanh(x / 50.0), x / (1.0 + x)])

    roots = shared_roots(function, 2.0, 4, guess=0.01)
    assert roots[:2] == pytest.approx([2.0, 2.0 ** (1 / 1.2)], rel=1e-4)
    assert roots[2] == pytest.approx(50.0 * np.arctanh(2 / 3), rel=1e-4)
    assert roots[3] is None
    assert len(calls) <= 200
    calls.clear()
    shared_roots(lambda x: function(x)[:3], 2.0, 3, guess=1.0)
    assert len(calls) < 25
