"""Records of term.json and model.json: what is accepted, and what a person reads when something is not."""

from __future__ import annotations

import copy
import json
import re

import numpy as np
import pytest

from gbistat.errors import CardError, ModelError, TermError
from gbistat.terms.metadata import TermMetadata, json_schema
from gbistat.terms.model_spec import ModelSpec, ParameterSpec
from gbistat.terms.shape_spec import ShapeSpec
from gbistat.terms.validation import validate

GRAPHS = {"member_0.onnx": b"a", "member_1.onnx": b"b"}


def changed(data, path, value):
    """Copy of nested data with one entry replaced, or removed if the value is ``...``."""
    data = copy.deepcopy(data)
    *parents, last = path
    here = data
    for step in parents:
        here = here[step]
    if value is ...:
        del here[last]
    else:
        here[last] = value
    return data


def test_term_survives_json(make):
    data = make.term_json(GRAPHS)
    term = validate(TermMetadata, data, error=TermError, where="term.json")
    again = validate(TermMetadata, json.loads(json.dumps(term.to_json())), error=TermError, where="term.json")
    assert again == term
    assert term.to_json()["schema"] == "gbistat.term/1"
    assert term.feature_names == ("m_light", "tau21_light")
    assert term.n_inputs == 2
    assert term.is_ratio
    assert term.log_kappa.value == 0.25
    assert term.training.settings == {"layers": [5], "optimiser": "adam"}
    # Everything given is kept: nothing is dropped in silence.
    flat = term.to_json()
    for key, value in data.items():
        assert flat[key] == value or isinstance(value, (dict, list))


def test_model_survives_json(make):
    spec = validate(ModelSpec, make.model_json(), error=ModelError, where="model.json")
    again = validate(ModelSpec, json.loads(json.dumps(spec.to_json())), error=ModelError, where="model.json")
    assert again == spec
    assert spec.poi == "mu"
    assert spec.to_json()["signal"]["yield"] == {"poi": "mu", "nominal": 1.0}
    assert spec.background.yield_ == "sideband"


def test_model_of_a_run_card_needs_no_network():
    card = {
        "mass": {"name": "m_mumu", "unit": "GeV"},
        "signal": {"mass": {"shape": "gaussian", "parameters": {"mean": 9.46, "sigma": "width"}}},
        "background": {"mass": {"shape": "exponential"}, "fit_range": [8, 12]},
        "parameters": {"width": {"start": 0.08, "low": 0.01, "high": 0.3}},
    }
    spec = validate(ModelSpec, card, error=CardError, where="card.yaml: model")
    assert (spec.terms, spec.window, spec.reference) == ((), None, None)
    assert spec.background.fit_range == (8.0, 12.0)
    assert spec.background.mass.is_free
    assert spec.signal.mass.model_parameters == ("width",)
    assert spec.parameters["width"] == ParameterSpec(start=0.08, low=0.01, high=0.3)


TERM_MISTAKES = [
    (("features", 1, "unti"), "1", r"term\.json: unknown key 'unti' in features\[1\]; nearest names: unit"),
    (("log_kapa",), None, r"unknown key 'log_kapa'; nearest names: log_kappa"),
    (("features", 0, "name"), ..., r"features\[0\]\.name is missing; add it"),
    (("features", 0, "low"), "0", r'features\[0\]\.low is "0"; it must be a number; it is text here: write it without'),
    (("features", 0, "low"), 2000.0, r"features\[0\]: 'm_light': low 2000 is not below high 1000"),
    (("features", 0, "unit"), "gev", r"features\[0\]\.unit: unit 'gev' is not known; write 'GeV'"),
    (("features", 0, "role"), "input", r"features\[0\]\.role is \"input\"; allowed: 'feature' or 'conditional'"),
    (("features", 1, "name"), "m_light", r"the name 'm_light' appears twice among the features and parameters"),
    (("features",), [], r"features is \[\]; it must have at least 1 item"),
    (("features",), 3, r"features is 3; it must be a list"),
    (("kind",), "ratio", r"kind is \"ratio\"; allowed: 'density', 'density_ratio', 'mass_density' or 'signal_density'"),
    (("combine",), "mean_density", r"combine 'mean_density' does not fit kind 'density_ratio'; use 'mean_ratio'"),
    (("combine",), "none", r"2 members need a way to combine, and combine is 'none'; use 'mean_ratio'"),
    (("log_kappa",), None, r"log_kappa is missing: a ratio needs its normalisation"),
    (("log_kappa", "sigma"), -1.0, r"log_kappa\.sigma is -1\.0; it must be at least 0"),
    (("log_kappa", "value"), float("nan"), r"log_kappa\.value is NaN; it must be a finite number"),
    (("mass", "low"), 4000.0, r"mass: low 4000 is not below high 3700"),
    (("mass",), "m_jj", r"mass is \"m_jj\"; it must be a mapping of names to values"),
    (("members", 0, "sha256"), "12ab", r"members\[0\]\.sha256 is \"12ab\"; it must match the pattern"),
    (("members", 1, "file"), "member_0.onnx", r"the file 'member_0\.onnx' appears twice among the members"),
    (("name",), "../ratio", r"name: the name '\.\./ratio' cannot be a folder's name; use letters"),
    (("training", "seed"), 1.5, r"training\.seed is 1\.5; it must be an integer"),
    (("training", "epochs"), True, r"training\.epochs is true; it must be an integer"),
    (("parity", "n_events"), 0, r"parity\.n_events is 0; it must be greater than 0"),
]


@pytest.mark.parametrize(("path", "value", "message"), TERM_MISTAKES)
def test_mistakes_in_a_term(make, path, value, message):
    data = changed(make.term_json(GRAPHS), path, value)
    with pytest.raises(TermError, match=message) as caught:
        validate(TermMetadata, data, error=TermError, where="term.json")
    assert str(caught.value).startswith("term.json: ")
    assert str(caught.value).count("\n") == 0


def test_density_refuses_kappa_and_ratio_means(make):
    data = make.term_json(GRAPHS, kind="density", combine="mean_density")
    with pytest.raises(TermError, match=r"log_kappa belongs to a density_ratio, and this term is a density; remove it"):
        validate(TermMetadata, data, error=TermError, where="term.json")
    data = make.term_json(GRAPHS, kind="density", log_kappa=None)
    with pytest.raises(TermError, match=r"combine 'mean_ratio' does not fit kind 'density'; use 'mean_density'"):
        validate(TermMetadata, data, error=TermError, where="term.json")


def test_mass_as_a_feature_has_the_unit_of_the_mass(make):
    features = [{"name": "m_jj", "unit": "TeV", "role": "conditional"}]
    with pytest.raises(TermError, match=r"the mass 'm_jj' is in GeV and, as a feature, in TeV; give it one unit"):
        validate(TermMetadata, make.term_json(GRAPHS, features=features), error=TermError, where="term.json")


MODEL_MISTAKES = [
    (("singal",), {}, r"unknown key 'singal'; nearest names: signal"),
    (("signal", "mass", "shpae"), "x", r"unknown key 'shpae' in signal\.mass; nearest names: shape"),
    (("background", "yield"), "sidebnd", r"background\.yield is \"sidebnd\"; allowed: 'sideband', 'free' or 'fixed'"),
    (("background", "fit_range"), [2800], r"background\.fit_range\[1\] is missing; add it"),
    (
        ("background", "fit_range"),
        [7000, 2800],
        r"background\.fit_range: \[7000, 2800\] is empty; write the lower edge",
    ),
    (("background", "fit_range"), [2800, 7000, 1], r"background\.fit_range is .*; it must have at most 2 item\(s\)"),
    (("window",), [2000, 3700], r"window 2000-3700 is not inside background\.fit_range 2800-7000 GeV"),
    (("window",), [3200, 3700], r"window 3200-3700 is not inside valid 3300-3700 GeV"),
    (("valid",), [3300, 9000], r"valid 3300-9000 is not inside background\.fit_range 2800-7000 GeV"),
    (
        ("signal", "mass", "parameters", "sigma"),
        "widht",
        r"signal\.mass\.parameters refers to 'widht', which is not in",
    ),
    (
        ("signal", "mass", "parameters", "sigma"),
        {"times_centre": 1.0},
        r"unknown key 'times_centre' in signal\.mass\.parameters\.sigma; nearest names: times_center, times",
    ),
    (
        ("signal", "mass", "parameters", "sigma"),
        {"parameter": "mass_scale", "times": 2.0, "times_center": 1.0},
        r"signal\.mass\.parameters\.sigma: times and times_center exclude each other",
    ),
    (("signal", "mass", "parameters", "sigma"), {"times": 1.0}, r"a link needs parameter or times_center"),
    (("signal", "mass", "parameters", "sigma"), [1], r"signal\.mass\.parameters\.sigma is \[1\]; it must be a number"),
    (("signal", "mass", "parameters", "sigma"), True, r"signal\.mass\.parameters\.sigma is true; it must be a number"),
    (("signal", "ratios"), ["ration"], r"signal\.ratios has 'ration', which is not in terms; nearest names: ratio"),
    (("signal", "yield", "nominal"), 0.0, r"signal\.yield\.nominal is 0\.0; it must be greater than 0"),
    (("signal", "efficiency", "eff_tau21"), -0.1, r"signal\.efficiency\.eff_tau21 is -0\.1; it must be greater than 0"),
    (("signal", "efficiency"), {"mu": 0.1}, r"signal\.efficiency names 'mu', which is already a parameter"),
    (
        ("parameters", "mass_scale", "start"),
        2.0,
        r"parameters\.mass_scale: start 2 is outside its range \[0\.95, 1\.05\]",
    ),
    (("parameters", "mass_scale", "low"), 1.2, r"parameters\.mass_scale: low 1\.2 is not below high 1\.05"),
    (("parameters", "mass_scale", "constraint", "sigma"), 0, r"mass_scale\.constraint\.sigma is 0; it must be greater"),
    (("parameters", "mass_scale", "fixed"), 1, r"parameters\.mass_scale\.fixed is 1; it must be true or false"),
    (
        ("parameters", "mass_scale", "limits"),
        [0, 1],
        r"unknown key 'limits' in parameters\.mass_scale; names there: start",
    ),
    (("terms",), ["../ratio"], r"terms\[0\]: the name '\.\./ratio' cannot be a folder's name"),
    (("terms",), ["ratio", "ratio"], r"terms has 'ratio' twice; list it once"),
    (("features",), ["m_jj"], r"features has the mass 'm_jj'; the mass is always read"),
]


@pytest.mark.parametrize(("path", "value", "message"), MODEL_MISTAKES)
def test_mistakes_in_a_model(make, path, value, message):
    data = changed(make.model_json(), path, value)
    with pytest.raises(CardError, match=message):
        validate(ModelSpec, data, error=CardError, where="card.yaml")


def test_several_mistakes_make_two_lines(make):
    data = changed(make.model_json(), ("window",), "wide")
    data = changed(data, ("signal", "mass", "shape"), 3)
    with pytest.raises(ModelError, match="also wrong: ") as caught:
        validate(ModelSpec, data, error=ModelError, where="model.json")
    assert str(caught.value).splitlines() == [
        'model.json: window is "wide"; it must be a list',
        "also wrong: signal.mass.shape",
    ]


def test_number_that_yaml_reads_as_text():
    with pytest.raises(CardError, match=re.escape("in YAML 1.0e-3 instead of 1e-3")):
        validate(ParameterSpec, {"start": "1e-3"}, error=CardError, where="card.yaml")


def test_whole_content_of_the_wrong_kind():
    with pytest.raises(CardError, match=r"card\.yaml: the whole content is \[1\]; it must be a mapping"):
        validate(ModelSpec, [1], error=CardError, where="card.yaml")


def test_affine_map_of_every_kind_of_value():
    spec = ShapeSpec.model_validate(
        {
            "shape": "double_crystal_ball",
            "parameters": {
                "n": 3,
                "mean": {"parameter": "scale", "times_center": 1.01},
                "sigma": {"times_center": 0.03},
                "alpha": "alpha",
                "beta": {"parameter": "alpha", "times": 2.0},
                "gamma": {"parameter": "scale"},
            },
        }
    )
    names = ["mean", "sigma", "alpha", "beta", "gamma", "n"]
    affine = spec.affine(names, centre=3500.0)
    assert affine.parameters == ("scale", "alpha")
    values = np.array([1.1, 0.7])
    expected = [1.01 * 3500 * 1.1, 0.03 * 3500, 0.7, 1.4, 1.1, 3.0]
    np.testing.assert_allclose(affine.offset + affine.matrix @ values, expected, rtol=1e-15)


def test_affine_map_needs_every_shape_parameter_and_no_other():
    spec = ShapeSpec(shape="gaussian", parameters={"mean": 1.0})
    with pytest.raises(ModelError, match=r"shape 'gaussian' has no value for its parameter\(s\) sigma"):
        spec.affine(["mean", "sigma"], 1.0)
    with pytest.raises(ModelError, match=r"shape 'gaussian' has no parameter 'mean'; nearest names: means"):
        spec.affine(["means", "sigma"], 1.0)
    free = ShapeSpec(shape="histogram").affine([], 1.0)
    assert (free.offset.size, free.matrix.shape, free.parameters) == (0, (0, 0), ())


def test_json_schema_uses_the_names_on_disk():
    schema = json_schema(ModelSpec)
    assert {"schema", "signal", "background"} <= set(schema["properties"])
    assert "yield" in schema["$defs"]["SignalSpec"]["properties"]
    assert schema["additionalProperties"] is False
    assert json_schema()["properties"]["schema"]["const"] == "gbistat.term/1"
