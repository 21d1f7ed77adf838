"""HS3: there and back, and pyhs3 as another reader of the same document."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gbistat.binned.hs3 import from_hs3, to_hs3
from gbistat.binned.load import load_workspace
from gbistat.errors import ModelError
from gbistat.inference.limits import upper_limit


@pytest.fixture
def source(every_modifier, changed):
    """All seven modifiers, with an error in each bin of the shapesys."""
    return changed(
        every_modifier,
        channels__0__samples__2__data=[12.0, 3.0, 8.0],
        channels__0__samples__2__modifiers__2__data=[1.0, 0.5, 1.5],
        channels__0__samples__2__modifiers__3__data=[4.0, 1.0, 2.0],
    )


def test_there_and_back(source, rng):
    first, second = load_workspace(source).nll, load_workspace(from_hs3(json.loads(json.dumps(to_hs3(source))))).nll
    assert sorted(first.names) == sorted(second.names)
    ranges = [{p.name: (p.start, p.low, p.high, p.fixed) for p in nll.parameters} for nll in (first, second)]
    assert ranges[0] == ranges[1]
    for _ in range(5):
        theta = first.start_vector() + rng.normal(scale=0.1, size=first.npar)
        named = dict(zip(first.names, theta, strict=True))
        assert second.value(np.array([named[name] for name in second.names])) == pytest.approx(
            first.value(theta), rel=1e-12
        )
    assert upper_limit(second).observed == pytest.approx(upper_limit(first).observed, rel=1e-6)


def test_pyhs3_reads_the_same_likelihood(source, rng):
    pyhs3 = pytest.importorskip("pyhs3")
    pytensor = pytest.importorskip("pytensor")
    from pytensor.graph.traversal import explicit_graph_inputs

    pyhs3.Workspace(**to_hs3(source))
    # pyhs3 0.4.2 cannot evaluate statistical errors of a channel in a joint model.
    for channel in source["channels"]:
        for sample in channel["samples"]:
            sample["modifiers"] = [m for m in sample["modifiers"] if m["type"] != "staterror"]
    nll = load_workspace(source).nll
    reader = pyhs3.Workspace(**to_hs3(source))
    model = reader.model(reader.analyses["fit"])
    inputs = list(explicit_graph_inputs([model.log_prob]))
    function = pytensor.function(inputs, model.log_prob, on_unused_input="ignore", mode="FAST_COMPILE")

    def theirs(theta):
        values = {**model.data, **model.free_params, **dict(zip(nll.names, theta, strict=True))}
        arguments = [np.asarray(values[x.name], dtype=x.dtype) for x in inputs]
        shaped = [a.reshape([1] * x.ndim) if a.ndim < x.ndim else a for a, x in zip(arguments, inputs, strict=True)]
        return -float(np.squeeze(function(*shaped)))

    start = nll.start_vector()
    for _ in range(3):
        theta = start + rng.normal(scale=0.15, size=start.size)
        assert nll.value(theta) - nll.value(start) == pytest.approx(theirs(theta) - theirs(start), abs=1e-9)


def test_what_hs3_cannot_say(every_modifier, source, changed):
    with pytest.raises(ModelError, match="shapesys 'fakes' has a bin without events or without error"):
        to_hs3(every_modifier)
    moved = changed(source, measurements__0__config__parameters__1={"name": "theory", "auxdata": [0.5]})
    with pytest.raises(ModelError, match=r"'theory' has auxiliary values \[0.5\] that are not the nominal ones"):
        to_hs3(moved)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"analyses": []}, "no analyses"),
        (
            {"analyses__0__likelihood": "other"},
            "no likelihoods 'other'; nearest names: main_likelihood|no likelihoods 'other'",
        ),
        ({"likelihoods__0__data__0": "observed_SRx"}, "no data 'observed_SRx'; nearest names: observed_SR"),
        ({"distributions__0__type": "gaussian_dist"}, "'SR' is a gaussian_dist; only histfactory_dist"),
        ({"data__0__type": "unbinned"}, "data 'observed_SR' are unbinned"),
        ({"distributions__3__mean": "theory"}, "'lumi_constraint': HistFactory has one for 'lumi' alone"),
        (
            {"distributions__0__samples__0__modifiers__3__constraint": "LogNormal"},
            "'signal': a normsys with a LogNormal",
        ),
        (
            {"distributions__0__samples__0__modifiers__3__data__interpolation": "code1"},
            "interpolation 'code1' is not 'code4'",
        ),
        ({"distributions__0__samples__1__data__contents": [-1.0, 2.0, 3.0]}, "'SR', sample 'top'.*bin 0 is -1"),
    ],
)
def test_documents_that_cannot_be_read(source, changed, places, message):
    with pytest.raises(ModelError, match=message):
        from_hs3(changed(to_hs3(source), **places))


def test_unknown_analysis(source):
    with pytest.raises(ModelError, match="no analyses 'fits'; nearest names: fit"):
        from_hs3(to_hs3(source), analysis="fits")
