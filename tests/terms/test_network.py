"""Networks as terms: values against numpy, checks of names, units and ranges, refusal of foreign graphs."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper
from scipy.special import logsumexp

from gbistat.data.events import Events
from gbistat.errors import EventsError, ParameterError, TermError, UnitsError
from gbistat.terms import network, session
from gbistat.terms.graph import check_graph


def test_linear_logit(make):
    events = make.events()
    term = make.term([make.linear([0.002, -1.5], 0.3, dtype=np.float64)], combine="none")
    expected = 0.002 * events.feature("m_light") - 1.5 * events.feature("tau21_light") + 0.3 + 0.25
    np.testing.assert_allclose(term.log_ratio(events), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("flat", [False, True])
def test_output_may_be_flat_or_a_column(make, flat):
    events = make.events()
    term = make.term([make.linear([0.0, 1.0], flat=flat)])
    result = term.log_ratio(events)
    assert result.shape == (len(events),)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, events.feature("tau21_light") + 0.25, rtol=1e-6)


def test_network_in_float32_agrees_with_numpy_in_float64(make):
    events = make.events()
    content, function = make.mlp(1)
    np.testing.assert_allclose(
        make.term([content]).log_ratio(events), function(events.features) + 0.25, rtol=0, atol=1e-5
    )


def test_ensemble_is_the_arithmetic_mean_of_ratios(make):
    events = make.events()
    networks = [make.mlp(seed) for seed in (1, 2, 3)]
    term = make.term([content for content, _ in networks])
    values = np.stack([function(events.features) for _, function in networks])
    np.testing.assert_allclose(term.member_values(events), values, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        term.log_ratio(events), logsumexp(values, axis=0) - math.log(3) + 0.25, rtol=0, atol=1e-5
    )


def test_mean_of_ratios_keeps_the_normalisation(make):
    # b = N(0, 1); exp(a x - a^2/2) is N(a, 1)/b with E_b = 1 exactly, and so is the mean of several.
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    shifts = (-1.0, 0.5, 1.5)
    term = make.term(
        [make.linear([a], -0.5 * a * a, dtype=np.float64) for a in shifts],
        features=[{"name": "z"}],
        log_kappa={"value": 0.0, "sigma": 0.0, "method": "closed form"},
    )
    events = Events(mass=np.full(60, 3500.0), features=nodes[:, None], names=["z"])
    mean = weights @ np.exp(term.log_ratio(events)) / weights.sum()
    assert mean == pytest.approx(1.0, abs=1e-12)


def test_large_logits_do_not_overflow(make):
    events = make.events(3)
    term = make.term([make.linear([0.0, 0.0], 2000.0), make.linear([0.0, 0.0], -2000.0)])
    np.testing.assert_allclose(term.log_ratio(events), 2000.0 - math.log(2) + 0.25, rtol=1e-14)


def test_density_gives_log_prob(make):
    events = make.events()
    graphs = [make.linear([0.0, a], dtype=np.float64) for a in (1.0, 2.0)]
    term = make.term(graphs, kind="density", combine="mean_density", log_kappa=None)
    tau = events.feature("tau21_light")
    expected = np.log(0.5 * (np.exp(tau) + np.exp(2 * tau)))
    np.testing.assert_allclose(term.log_prob(events), expected, rtol=1e-13)
    with pytest.raises(TermError, match=r"term 'ratio' is a density, not a density_ratio; use log_prob"):
        term.log_ratio(events)
    with pytest.raises(TermError, match=r"term 'ratio' is a density_ratio, not a density; use log_ratio"):
        make.term(graphs).log_prob(events)


def test_mass_and_parameters_are_inputs_in_the_documented_order(make):
    events = make.events()
    term = make.term(
        [make.linear([1.0, 10.0, 100.0], dtype=np.float64)],
        features=[{"name": "tau21_light"}, {"name": "m_jj", "unit": "GeV", "role": "conditional"}],
        parameters=[{"name": "m_X", "unit": "GeV", "low": 100, "high": 600}],
    )
    expected = events.feature("tau21_light") + 10 * events.mass + 100 * 350.0 + 0.25
    np.testing.assert_allclose(term.log_ratio(events, m_X=350.0), expected, rtol=1e-13)
    with pytest.raises(ParameterError, match=r"parameter 'm_X' = 700 is outside \[100, 600\] GeV, where term 'ratio'"):
        term.log_ratio(events, m_X=700.0)
    with pytest.raises(ParameterError, match=r"parameter 'm_X' = nan is outside"):
        term.log_ratio(events, m_X=math.nan)
    with pytest.raises(ParameterError, match=r"term 'ratio' depends on the parameter 'm_X'; give it a value"):
        term.log_ratio(events)
    with pytest.raises(ParameterError, match=r"term 'ratio' has no parameter 'm_x'; nearest names: m_X"):
        term.log_ratio(events, m_x=300.0)


def test_columns_are_found_by_name(make):
    events = make.events()
    swapped = Events(
        mass=events.mass,
        features=events.features[:, ::-1],
        names=("tau21_light", "m_light"),
        units={"m_light": "GeV"},
    )
    term = make.term([make.mlp(1)[0]])
    np.testing.assert_array_equal(term.log_ratio(swapped), term.log_ratio(events))


def test_batches_do_not_change_the_result(make, monkeypatch):
    events = make.events(101)
    whole = make.term([make.mlp(1)[0]]).log_ratio(events)
    monkeypatch.setattr(session, "BATCH_SIZE", 7)
    np.testing.assert_allclose(make.term([make.mlp(1)[0]]).log_ratio(events), whole, rtol=0, atol=1e-6)


def test_no_events_give_no_values(make):
    assert make.term([make.mlp(1)[0]]).log_ratio(make.events(0)).shape == (0,)


def test_term_travels_to_another_process(make):
    events = make.events()
    term = make.term([make.mlp(1)[0]])
    before = term.log_ratio(events)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(term)).log_ratio(events), before)


def test_missing_feature_offers_the_nearest(make):
    events = make.events(names=("m_light", "tau21_lihgt"))
    with pytest.raises(EventsError, match=r"needs the feature 'tau21_light', .*; nearest names: tau21_lihgt"):
        make.term([make.mlp(1)[0]]).log_ratio(events)


def test_mass_of_another_name(make):
    events = Events(mass=[91.0], mass_name="m_mumu")
    with pytest.raises(EventsError, match=r"learned with the mass 'm_jj', and these events have 'm_mumu'"):
        make.term([make.mlp(1)[0]]).log_ratio(events)


def test_units_are_checked_and_never_converted(make):
    term = make.term([make.mlp(1)[0]])
    with pytest.raises(UnitsError, match=r"takes 'm_jj' in 'GeV', and these events have it in 'TeV'; convert them"):
        term.log_ratio(make.events().to_unit("TeV"))
    units = {"m_jj": "GeV", "m_light": "TeV"}
    with pytest.raises(UnitsError, match=r"takes 'm_light' in 'GeV', and these events have it in 'TeV'"):
        term.log_ratio(make.events(units=units))
    with pytest.raises(UnitsError, match="TeV"):
        term.valid(make.events(units=units))


def test_events_outside_the_valid_range_are_counted(make):
    events = make.events(10)
    features = np.array(events.features)
    features[:3, 1] = [1.2, -0.1, 3.0]
    features[4, 0] = 2000.0
    outside = make.events(10, features=features)
    term = make.term([make.linear([0.0, 1.0])])
    with pytest.raises(
        TermError, match=r"3 of 10 events have tau21_light outside \[0, 1\], where term 'ratio' is"
    ) as e:
        term.log_ratio(outside)
    assert "they span -0.1 to 3 (others have m_light outside)" in str(e.value)
    assert str(e.value).count("\n") == 1
    np.testing.assert_array_equal(np.flatnonzero(~term.valid(outside)), [0, 1, 2, 4])
    np.testing.assert_allclose(term.without_range_check().log_ratio(outside), features[:, 1] + 0.25, rtol=1e-6)
    assert term.valid(events).all()


def test_mass_outside_the_valid_range(make):
    mass = np.full(4, 3500.0)
    mass[0] = 3800.0
    with pytest.raises(TermError, match=r"1 of 4 events have m_jj outside \[3300, 3700\] GeV"):
        make.term([make.mlp(1)[0]]).log_ratio(make.events(4, mass=mass))


def test_output_that_is_not_finite_is_counted(make):
    model = make.onnx_model([helper.make_node("ReduceSum", ["l", "axes"], ["y"])], {"axes": np.array([1])}, 2)
    model.graph.node.insert(0, helper.make_node("Log", ["x"], ["l"]))
    features = np.array(make.events(5).features)
    features[[1, 3], 1] = 0.0
    with pytest.raises(TermError, match=r"member_0\.onnx gives NaN or infinity for 2 of 5 events"):
        make.term([model.SerializeToString()]).log_ratio(make.events(5, features=features))


def test_wrong_number_of_inputs(make):
    with pytest.raises(
        TermError, match=r"takes an input with 3 columns, and term\.json lists 2 features and parameters \(m_light, tau"
    ):
        make.term([make.linear([1.0, 2.0, 3.0])]).log_ratio(make.events())


def test_two_inputs_or_outputs_are_refused(make):
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("x", "y2")]
    model = make.onnx_model([helper.make_node("Add", ["x", "y2"], ["y"])], {}, 2, inputs=inputs, output=("n", 2))
    with pytest.raises(TermError, match=r"member_0\.onnx has 2 inputs and 1 outputs; a term has one of each"):
        make.term([model.SerializeToString()]).log_ratio(make.events())


def test_several_values_an_event_are_refused(make):
    model = make.onnx_model([helper.make_node("Identity", ["x"], ["y"])], {}, 2, output=("n", 2))
    with pytest.raises(TermError, match=r"gives an output of shape \(200, 2\) for 200 events; it must be"):
        make.term([model.SerializeToString()]).log_ratio(make.events())


def test_half_precision_is_refused(make):
    with pytest.raises(TermError, match=r"takes tensor\(float16\); a term works in float32 or float64"):
        make.term([make.linear([1.0, 2.0], dtype=np.float16)]).log_ratio(make.events())


def test_operator_unknown_to_the_runtime(make):
    model = make.onnx_model([helper.make_node("Erfcx", ["x"], ["y"])], {}, 2)
    with pytest.raises(TermError, match=r"member_0\.onnx is not a usable ONNX graph: .*Erfcx.*; export the term again"):
        make.term([model.SerializeToString()]).log_ratio(make.events())


def test_each_member_needs_its_graph(make):
    term = make.term([make.mlp(1)[0]])
    with pytest.raises(TermError, match=r"term 'ratio' has 1 members and 2 graphs"):
        network.NetworkTerm(term.metadata, term.graphs * 2)


def test_sessions_are_made_at_the_first_evaluation(tmp_path, make):
    for index, content in enumerate([make.mlp(1)[0]]):
        (tmp_path / f"{index}.onnx").write_bytes(content)
    script = (
        "import sys, pathlib\n"
        "import gbistat.terms.store\n"
        "from gbistat.terms.graph import check_graph\n"
        f"check_graph(pathlib.Path({str(tmp_path)!r}, '0.onnx').read_bytes(), 'x')\n"
        "print([m for m in ('onnx', 'onnxruntime', 'tensorflow') if m in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# Graphs that keep values elsewhere ---------------------------------------------------------------------------------


def external(location="weights.bin", *, flag=True):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 1])
    if flag:
        tensor.data_location = TensorProto.EXTERNAL
    if location is not None:
        tensor.external_data.add(key="location", value=location)
    return tensor


def with_initializer(model, tensor):
    model.graph.initializer.append(tensor)


def with_constant(model, tensor):
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def with_constant_list(model, tensor):
    attribute = AttributeProto(name="values", type=AttributeProto.TENSORS, tensors=[tensor])
    model.graph.node[0].attribute.append(attribute)


def with_subgraph(model, tensor):
    branch = helper.make_graph([], "branch", [], [], [tensor])
    model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=branch))


def with_sparse(model, tensor):
    indices = numpy_helper.from_array(np.array([0]), "i")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(tensor, indices, [2]))


def with_function(model, tensor):
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    model.functions.append(helper.make_function("d", "f", [], ["c"], [node], [helper.make_opsetid("", 13)]))


def with_training(model, tensor):
    model.training_info.add().initialization.CopyFrom(helper.make_graph([], "t", [], [], [tensor]))


PLACES = [with_initializer, with_constant, with_constant_list, with_subgraph, with_sparse, with_function, with_training]


@pytest.mark.parametrize("put", PLACES)
@pytest.mark.parametrize("tensor", [external(), external("/etc/passwd", flag=False), external(None)])
def test_values_in_another_file_are_refused_wherever_they_hide(make, put, tensor):
    model = ModelProto.FromString(make.linear([1.0, 2.0]))
    put(model, numpy_helper.from_array(np.zeros((2, 1), np.float32), "w"))
    check_graph(model.SerializeToString(), "member_0.onnx")
    put(model, tensor)
    with pytest.raises(TermError, match=r"member_0\.onnx keeps tensor values in another file, which is refused"):
        check_graph(model.SerializeToString(), "member_0.onnx")


def test_graph_with_values_elsewhere_never_becomes_a_term(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(np.ones(2, np.float32).tobytes())
    model = ModelProto.FromString(make.linear([1.0, 2.0]))
    model.graph.initializer[0].CopyFrom(external())
    with pytest.raises(TermError, match=r"ratio/member_0\.onnx keeps tensor values in another file"):
        make.term([model.SerializeToString()])


def test_damaged_graphs(make):
    content = make.mlp(1)[0]
    for damaged in (
        content[:-7],
        content[: len(content) // 2],
        b"\x00" + content,
        b"\xff" * 40,
        b"PK\x03\x04" + b"0" * 99,
    ):
        with pytest.raises(TermError, match=r"m\.onnx is not a readable ONNX graph \(.*\); copy the file again"):
            check_graph(damaged, "m.onnx")
    for empty in (b"", ModelProto(ir_version=8).SerializeToString()):
        with pytest.raises(TermError, match=r"m\.onnx is not an ONNX graph: its \d+ bytes hold no graph"):
            check_graph(empty, "m.onnx")


def test_every_cut_of_a_graph_is_refused_by_the_check_or_by_the_runtime(make):
    content = make.mlp(1)[0]
    events = make.events(2)
    for length in range(0, len(content), 11):
        with pytest.raises(TermError, match=r"member_0\.onnx"):
            make.term([content[:length]]).log_ratio(events)


def test_key_with_superfluous_bits_is_refused(make):
    # data_location = 14 with bit 33 set: 32-bit parsers drop the bit and see an external tensor.
    key, encoded = (1 << 33) | (14 << 3), b""
    while key:
        encoded += bytes([(key & 0x7F) | (0x80 if key >= 0x80 else 0)])
        key >>= 7
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 1]).SerializeToString() + encoded + b"\x01"
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    with pytest.raises(TermError, match=r"m\.onnx is not a readable ONNX graph \(no field at byte"):
        check_graph(b"\x3a" + bytes([len(graph)]) + graph, "m.onnx")


def test_deep_nesting_ends_in_a_message():
    graph = helper.make_graph([], "g", [], [])
    for _ in range(25):
        graph = helper.make_graph([helper.make_node("If", ["x"], ["z"], then_branch=graph)], "g", [], [])
    content = helper.make_model(graph).SerializeToString()
    with pytest.raises(TermError, match=r"messages nested more than 64 deep"):
        check_graph(content, "m.onnx")
