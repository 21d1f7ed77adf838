from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import norm

from gbistat.data.transforms import FeatureTransform
from gbistat.errors import EventsError, OptionError

jacobi = pytest.importorskip("jacobi")

NAMES = ("m_light", "dm", "tau21_light")


@pytest.fixture
def sideband(rng):
    n = 4000
    return np.column_stack([rng.gamma(3.0, 40.0, n), rng.exponential(150.0, n), rng.beta(4.0, 2.0, n)])


@pytest.fixture
def transform(sideband):
    return FeatureTransform.fit(sideband, NAMES)


def test_fitted_events_become_standard(transform, sideband):
    inside = transform.inside(sideband)
    y = transform.forward(sideband[inside])
    np.testing.assert_allclose(y.mean(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(y.std(axis=0), 1.0, rtol=1e-12)


def test_only_the_extreme_events_are_outside(transform, sideband):
    outside = ~transform.inside(sideband)
    extremes = np.zeros(len(sideband), dtype=bool)
    extremes[sideband.argmin(axis=0)] = True
    extremes[sideband.argmax(axis=0)] = True
    np.testing.assert_array_equal(outside, extremes)


def test_margin_keeps_the_extreme_events(sideband):
    wide = FeatureTransform.fit(sideband, NAMES, margin=0.05)
    assert wide.inside(sideband).all()
    length = np.ptp(sideband, axis=0)
    np.testing.assert_allclose(wide.low, sideband.min(axis=0) - 0.05 * length, rtol=1e-12)
    np.testing.assert_allclose(wide.high, sideband.max(axis=0) + 0.05 * length, rtol=1e-12)


def test_forward_is_the_textbook_formula(transform, sideband):
    x = sideband[transform.inside(sideband)]
    u = (x - transform.low) / (transform.high - transform.low)
    np.testing.assert_allclose(
        transform.forward(x), (np.log(u / (1 - u)) - transform.mean) / transform.std, rtol=1e-9, atol=1e-9
    )


def test_inverse_undoes_forward(transform, sideband):
    x = sideband[transform.inside(sideband)]
    np.testing.assert_allclose(transform.inverse(transform.forward(x)), x, rtol=1e-12)


def test_inverse_stays_in_range_and_keeps_digits_at_the_ends():
    transform = FeatureTransform(("a",), [0.0], [1.0], [0.0], [1.0])
    y = np.array([[-30.0], [-5.0], [0.0], [5.0]])
    np.testing.assert_allclose(transform.forward(transform.inverse(y)), y, rtol=1e-12, atol=1e-12)
    far = transform.inverse(np.array([[-800.0], [800.0]]))
    assert far.min() >= 0.0
    assert far.max() <= 1.0


@pytest.mark.parametrize("ends", [(0.0, 1000.0), (-1000.0, 0.0)])
def test_inverse_keeps_digits_next_to_either_end(ends):
    transform = FeatureTransform(("a",), [ends[0]], [ends[1]], [0.0], [1.0])
    y = np.array([[30.0 if ends[1] == 0.0 else -30.0]])
    np.testing.assert_allclose(transform.forward(transform.inverse(y)), y, rtol=1e-12)


def test_log_jacobian_against_numerical_derivative(transform, sideband):
    # Away from the ends, so that the steps of the numerical derivative stay inside the range.
    u = (sideband - transform.low) / (transform.high - transform.low)
    middle = sideband[np.all((u > 0.25) & (u < 0.75), axis=1)]
    assert len(middle) > 10
    for row in middle[:25]:
        jacobian, _ = jacobi.jacobi(lambda v: transform.forward(v[None, :])[0], row)
        _, want = np.linalg.slogdet(jacobian)
        assert transform.log_abs_det(row[None, :])[0] == pytest.approx(want, rel=1e-7, abs=1e-7)


def test_log_jacobian_is_the_published_form(transform, sideband):
    x = sideband[transform.inside(sideband)]
    u = (x - transform.low) / (transform.high - transform.low)
    z = np.log(u / (1 - u))
    want = np.log(2 * (1 + np.cosh(z)) / (transform.std * (transform.high - transform.low))).sum(axis=1)
    np.testing.assert_allclose(transform.log_abs_det(x), want, rtol=1e-9)


def test_density_carried_back_to_the_features_is_normalised():
    transform = FeatureTransform(("m",), [20.0], [700.0], [-1.1], [0.8])
    x = np.linspace(20.0, 700.0, 200_001)[1:-1, None]
    log_p = norm.logpdf(transform.forward(x)[:, 0]) + transform.log_abs_det(x)
    assert np.trapezoid(np.exp(log_p), x[:, 0]) == pytest.approx(1.0, abs=1e-6)


def test_dictionary_survives_json_exactly(transform, sideband):
    again = FeatureTransform.from_dict(json.loads(json.dumps(transform.to_dict())))
    assert again.names == transform.names
    x = sideband[transform.inside(sideband)]
    np.testing.assert_array_equal(again.forward(x), transform.forward(x))


def test_transform_cannot_be_changed(transform):
    with pytest.raises(ValueError, match="read-only"):
        transform.low[0] = 0.0


def test_constant_feature_is_named(sideband):
    sideband[:, 1] = 7.5
    with pytest.raises(EventsError, match=r"'dm' is constant \(7.5\) in all 4000 events"):
        FeatureTransform.fit(sideband, NAMES)


def test_feature_with_three_values_is_refused():
    x = np.column_stack([np.tile([0.0, 1.0, 2.0], 10), np.linspace(0.0, 1.0, 30)])
    with pytest.raises(EventsError, match=r"'n' takes 3 distinct value\(s\)"):
        FeatureTransform.fit(x, ["n", "x"])


def test_nan_is_counted(sideband):
    sideband[[3, 8], 2] = np.nan
    with pytest.raises(EventsError, match="'tau21_light' is NaN or infinite in 2 of 4000 events"):
        FeatureTransform.fit(sideband, NAMES)


def test_events_outside_are_counted_and_the_feature_named(transform):
    x = transform.inverse(np.zeros((5, 3)))
    x[:2, 1] = -3.0
    for method in (transform.forward, transform.log_abs_det):
        with pytest.raises(EventsError, match=r"2 of 5 events are outside the transform's range, most of them in 'dm'"):
            method(x)
    assert transform.inside(x).tolist() == [False, False, True, True, True]


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (np.zeros((5, 2)), r"shape \(5, 2\); 3 names need \(n, 3\)"),
        (np.zeros(5), r"shape \(5,\)"),
        (np.ones((2, 3)), "2 events are too few"),
    ],
)
def test_wrong_shapes_to_fit(x, match):
    with pytest.raises(EventsError, match=match):
        FeatureTransform.fit(x, NAMES)


def test_wrong_shape_to_apply(transform):
    with pytest.raises(EventsError, match=r"this transform takes \(n, 3\): m_light, dm, tau21_light"):
        transform.forward(np.zeros((4, 2)))


@pytest.mark.parametrize("margin", [-0.1, np.nan, np.inf])
def test_wrong_margin(sideband, margin):
    with pytest.raises(OptionError, match="margin"):
        FeatureTransform.fit(sideband, NAMES, margin=margin)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"std": [1.0, 0.0, 1.0]}, "'dm' has no spread"),
        ({"low": [1e9, 0.0, 0.0]}, "'m_light' has an empty range"),
        ({"mean": [0.0, np.nan, 0.0]}, "'mean' of a transform of 3 features must hold 3 finite numbers"),
        ({"mean": [0.0]}, "must hold 3 finite numbers"),
        ({"mean": ["x", 0.0, 0.0]}, "not a number"),
        ({"names": ["a", "a", "b"]}, "one name a feature, each once"),
        ({"extra": 1}, r"unknown: \['extra'\]"),
    ],
)
def test_damaged_dictionary(transform, change, match):
    with pytest.raises(EventsError, match=match):
        FeatureTransform.from_dict({**transform.to_dict(), **change})


def test_dictionary_that_lacks_a_key(transform):
    document = transform.to_dict()
    del document["std"]
    with pytest.raises(EventsError, match=r"absent: \['std'\]"):
        FeatureTransform.from_dict(document)
