"""Workspaces that cannot be used, and what is said about them."""

from __future__ import annotations

import json

import pytest

from gbistat.binned.load import load_workspace
from gbistat.errors import ModelError

# place in the workspace of every modifier, value there, message
WRONG = [
    ({"version": "2.0.0"}, "schema version '2.0.0', and only 1.0.0"),
    ({"channels__0__samples__1__data": [60.0, -1.0, 30.0]}, "'SR', sample 'top'.*count of bin 1 is -1"),
    ({"channels__0__samples__1__data": [60.0, float("nan"), 30.0]}, "'SR', sample 'top'.*bin 1 is nan"),
    ({"channels__0__samples__1__data": []}, "channel 'SR', sample 'top' has no bins"),
    ({"channels__0__samples__1__data": [60.0, 42.0]}, "'SR', sample 'top' has 2 bins where the others have 3"),
    ({"channels__0__name": "SRx"}, "channel 'SRx' has no observation; nearest names: SR"),
    ({"observations__0__name": "CR"}, "two observations are called 'CR'"),
    ({"observations__1__data": [1.0]}, "channel 'CR' has 2 bins and 1 observed counts"),
    ({"observations__1__data": [1.0, -2.0]}, "channel 'CR': the observed count of bin 1 is -2"),
    ({"channels__0__samples__0__modifiers__2__type": "histosis"}, "'SR', sample 'signal'.*'histosis'; nearest names: histosys"),
    ({"channels__0__samples__0__modifiers__3__data__lo": 0.0}, "'SR', sample 'signal': normsys 'scale': lo = 0 must be above 0"),
    ({"channels__0__samples__0__modifiers__2__data__hi_data": [1.0]}, "histosys 'scale', hi_data has 1 values for 3 bins"),
    ({"channels__0__samples__2__modifiers__3__data": [4.0, 0.0, -2.0]}, "shapesys 'fakes': the error of bin 2 is -2"),
    ({"channels__0__samples__2__modifiers__3__name": "mc_SR"}, "'other': shapesys 'mc_SR': another modifier has this name"),
    ({"channels__0__samples__0__modifiers__0__name": "nu"}, "no sample is scaled by the parameter of interest 'mu'"),
    ({"channels__0__samples__0__modifiers__0__type": "lumi"}, "does not fit the other|not a HistFactory workspace|must give auxdata"),
    ({"channels__0__samples__0__data": [0.0, 0.0, 0.0], "channels__0__samples__0__modifiers": [
        {"name": "mu", "type": "normfactor", "data": None}]}, "samples scaled by 'mu' are empty: zero signal"),
    ({"channels__1__samples__0__data": [300.0, 0.0], "channels__1__samples__1__data": [50.0, 0.0]},
     "channel 'CR', bin 1: no background is expected"),
    ({"measurements__0__config__parameters__0__auxdata": [1.0, 1.0]}, "gives 2 auxdata for 'lumi', which has 1"),
    ({"measurements__0__config__parameters": []}, "must give auxdata and sigmas for 'lumi'"),
    ({"measurements__0__config__parameters__1__sigmas": [2.0]}, "gives sigmas for 'theory', which has none"),
    ({"measurements__0__config__poi": "nu"}, "no sample is scaled by the parameter of interest 'nu'"),
    ({"measurements": []}, "should be non-empty"),
    ({"channels__0__colour": "red"}, "not a HistFactory workspace of schema 1.0.0"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("places", "message"), WRONG, ids=[next(iter(places)) + str(k) for k, (places, _) in enumerate(WRONG)]
)
def test_wrong_workspace(every_modifier, changed, places, message):
    with pytest.raises(ModelError, match=message):
        load_workspace(changed(every_modifier, **places))


def test_missing_part(every_modifier):
    del every_modifier["observations"]
    with pytest.raises(ModelError, match="no 'observations'"):
        load_workspace(every_modifier)


def test_an_observation_without_a_channel(every_modifier):
    del every_modifier["channels"][2]
    with pytest.raises(ModelError, match="the observation 'QCD' has no channel"):
        load_workspace(every_modifier)


def test_unknown_measurement(every_modifier):
    with pytest.raises(ModelError, match="no measurement 'fits'; nearest names: fit"):
        load_workspace(every_modifier, measurement="fits")


def test_files(tmp_path, every_modifier):
    path = tmp_path / "ws.json"
    with pytest.raises(ModelError, match="there is no file"):
        load_workspace(path)
    path.write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        load_workspace(path)
    path.write_text("[]")
    with pytest.raises(ModelError, match="JSON object, not a list"):
        load_workspace(path)
    path.write_text(json.dumps(every_modifier))
    assert load_workspace(path).nll.poi == "mu"


def test_patches(tmp_path, every_modifier):
    patch = [{"op": "replace", "path": "/channels/0/samples/0/data", "value": [1.0, 2.0, 3.0]}]
    patches = {
        "metadata": {},
        "patches": [
            {"metadata": {"name": "small", "values": [1]}, "patch": patch},
            {"metadata": {"name": "none", "values": [2]}, "patch": []},
        ],
        "version": "1.0.0",
    }
    path = tmp_path / "patch.json"
    path.write_text(json.dumps(patches))
    loaded = load_workspace(every_modifier, patch=path, patch_name="small")
    assert loaded.workspace["channels"][0]["samples"][0]["data"] == [1.0, 2.0, 3.0]
    assert every_modifier["channels"][0]["samples"][0]["data"] == [4.0, 11.0, 6.0]
    assert load_workspace(every_modifier, patch=patch).workspace == loaded.workspace
    with pytest.raises(ModelError, match="no patch 'smal'; nearest names: small"):
        load_workspace(every_modifier, patch=path, patch_name="smal")
    with pytest.raises(ModelError, match="the patch does not fit the workspace"):
        load_workspace(every_modifier, patch=[{"op": "remove", "path": "/channels/17"}])
    with pytest.raises(ModelError, match="no patch set was given"):
        load_workspace(every_modifier, patch_name="small")
