from __future__ import annotations

import math

import h5py
import numpy as np
import pytest
import vector

from gbistat.data.features import FEATURES, column_unit, derivable
from gbistat.errors import EventsError


def columns_of(jet1, jet2):
    """Columns of one event from two dictionaries of jet quantities."""
    return {f"{name}j{k}": np.array([value]) for k, jet in ((1, jet1), (2, jet2)) for name, value in jet.items()}


def swapped(columns):
    return {name[:-1] + {"1": "2", "2": "1"}[name[-1]]: values for name, values in columns.items() if name[-2] == "j"}


def mass_longdouble(columns):
    """(sum E)^2 - (sum p)^2 in extended precision, the textbook form."""
    c = {name: np.asarray(values, dtype=np.longdouble) for name, values in columns.items()}
    energy = sum(np.sqrt(sum(c[f"p{a}j{j}"] ** 2 for a in "xyz") + c[f"mj{j}"] ** 2) for j in (1, 2))
    momentum2 = sum((c[f"p{a}j1"] + c[f"p{a}j2"]) ** 2 for a in "xyz")
    return np.sqrt(energy**2 - momentum2)


def test_massless_back_to_back_jets_have_twice_the_momentum_as_mass():
    columns = columns_of(
        {"px": 1500.0, "py": 0.0, "pz": 0.0, "m": 0.0}, {"px": -1500.0, "py": 0.0, "pz": 0.0, "m": 0.0}
    )
    assert FEATURES["m_jj"].values(columns) == pytest.approx(3000.0, rel=1e-15)
    assert FEATURES["dphi_jj"].values(columns) == pytest.approx(math.pi)
    assert FEATURES["dR_jj"].values(columns) == pytest.approx(math.pi)


def test_two_jets_at_rest_have_the_sum_of_their_masses():
    rest = {"px": 0.0, "py": 0.0, "pz": 0.0}
    assert FEATURES["m_jj"].values(columns_of({**rest, "m": 3.0}, {**rest, "m": 4.0})) == pytest.approx(7.0, rel=1e-15)


def test_dijet_mass_is_invariant_under_a_boost(dijets):
    columns = dijets()
    beta = 0.6
    gamma = 1.0 / math.sqrt(1.0 - beta**2)
    boosted = dict(columns)
    for j in (1, 2):
        energy = np.sqrt(sum(columns[f"p{a}j{j}"] ** 2 for a in "xyz") + columns[f"mj{j}"] ** 2)
        boosted[f"pzj{j}"] = gamma * (columns[f"pzj{j}"] + beta * energy)
    feature = FEATURES["m_jj"]
    np.testing.assert_allclose(feature.values(boosted), feature.values(columns), rtol=1e-12)


def test_dijet_mass_against_extended_precision(dijets):
    columns = dijets()
    np.testing.assert_allclose(FEATURES["m_jj"].values(columns), mass_longdouble(columns).astype(float), rtol=1e-13)


def test_light_fast_pair_keeps_its_digits():
    # Two muons of 500 GeV, 0.5 mrad apart: (sum E)^2 - (sum p)^2 in float64 is right to 1e-9 at best.
    muon = 0.1056583755
    a = {"px": 500.0, "py": 0.0, "pz": 0.0, "m": muon}
    b = {"px": 500.0 * math.cos(5e-4), "py": 500.0 * math.sin(5e-4), "pz": 0.0, "m": muon}
    columns = columns_of(a, b)
    want = float(mass_longdouble(columns)[0])
    assert FEATURES["m_jj"].values(columns)[0] == pytest.approx(want, rel=2e-10)


def test_substructure_ratios_follow_the_jet_masses():
    heavy = {"m": 400.0, "tau1": 0.4, "tau2": 0.1, "tau3": 0.05}
    light = {"m": 50.0, "tau1": 0.2, "tau2": 0.16, "tau3": 0.12}
    values = {
        name: FEATURES[name].values(columns_of(light, heavy))[0] for name in FEATURES if name[:3] in ("tau", "m_l")
    }
    assert values["m_light"] == 50.0
    assert values["tau21_light"] == pytest.approx(0.16 / (0.2 + 1e-5), rel=1e-15)
    assert values["tau21_heavy"] == pytest.approx(0.1 / (0.4 + 1e-5), rel=1e-15)
    assert values["tau32_light"] == pytest.approx(0.12 / (0.16 + 1e-5), rel=1e-15)
    assert values["tau32_heavy"] == pytest.approx(0.05 / (0.1 + 1e-5), rel=1e-15)
    assert values["tau21_j1"] == values["tau21_light"]
    assert values["tau32_j2"] == values["tau32_heavy"]


def test_jet_without_structure_gives_zero_not_nan():
    jet = {"m": 1.0, "tau1": 0.0, "tau2": 0.0}
    assert FEATURES["tau21_light"].values(columns_of(jet, jet))[0] == 0.0


@pytest.mark.parametrize("name", [name for name in FEATURES if not name.endswith(("_j1", "_j2"))])
def test_features_ordered_by_mass_do_not_see_the_order_by_momentum(name, dijets):
    columns = dijets()
    feature = FEATURES[name]
    np.testing.assert_allclose(feature.values(swapped(columns)), feature.values(columns), rtol=1e-14, atol=1e-14)


def test_light_and_heavy_split_the_two_jets(dijets):
    columns = dijets()
    for stem in ("m", "pt", "eta", "tau21", "tau32"):
        by_mass = np.sort([FEATURES[f"{stem}_{which}"].values(columns) for which in ("light", "heavy")], axis=0)
        by_pt = np.sort([FEATURES[f"{stem}_{which}"].values(columns) for which in ("j1", "j2")], axis=0)
        np.testing.assert_array_equal(by_mass, by_pt)
    assert np.all(FEATURES["m_light"].values(columns) <= FEATURES["m_heavy"].values(columns))
    difference = FEATURES["m_heavy"].values(columns) - FEATURES["m_light"].values(columns)
    np.testing.assert_array_equal(FEATURES["dm"].values(columns), difference)


@pytest.mark.parametrize("name", list(FEATURES))
def test_energy_features_scale_with_the_unit_and_no_others(name, dijets):
    columns = dijets()
    energies = {c: v * 1e-3 if column_unit(c, "GeV") == "GeV" else v for c, v in columns.items()}
    feature = FEATURES[name]
    scale = 1e-3 if feature.unit("TeV") == "TeV" else 1.0
    np.testing.assert_allclose(feature.values(energies), scale * feature.values(columns), rtol=1e-12)


def test_delta_phi_wraps_around():
    def at(phi):
        return {"px": math.cos(phi), "py": math.sin(phi), "pz": 0.0}

    assert FEATURES["dphi_jj"].values(columns_of(at(3.1), at(-3.1)))[0] == pytest.approx(2 * math.pi - 6.2, rel=1e-12)


def test_pseudorapidity_and_delta_r_closed_form():
    def at(pt, eta, phi):
        return {"px": pt * math.cos(phi), "py": pt * math.sin(phi), "pz": pt * math.sinh(eta)}

    columns = columns_of(at(700.0, 1.2, 0.3), at(650.0, -0.4, 2.5))
    assert FEATURES["eta_j1"].values(columns)[0] == pytest.approx(1.2, rel=1e-14)
    assert FEATURES["pt_j2"].values(columns)[0] == pytest.approx(650.0, rel=1e-14)
    assert FEATURES["dR_jj"].values(columns)[0] == pytest.approx(math.hypot(1.6, 2.2), rel=1e-14)


@pytest.mark.parametrize("name", list(FEATURES))
def test_32_bit_columns_are_widened_before_arithmetic(name, dijets):
    narrow = {column: values.astype(np.float32) for column, values in dijets().items()}
    wide = {column: values.astype(np.float64) for column, values in narrow.items()}
    values = FEATURES[name].values(narrow)
    assert values.dtype == np.float64
    np.testing.assert_array_equal(values, FEATURES[name].values(wide))


def test_declared_columns_are_exactly_those_that_are_used(dijets):
    class Spy(dict):
        def __getitem__(self, key):
            used.add(key)
            return super().__getitem__(key)

    for feature in FEATURES.values():
        used = set()
        feature.compute(Spy({name: values for name, values in dijets(5).items() if name in feature.columns}))
        assert used == set(feature.columns), feature.name


def test_derivable_features_need_all_their_columns(dijets):
    columns = dijets(3)
    assert set(derivable(columns)) == set(FEATURES)
    without = derivable([name for name in columns if not name.startswith("tau3")])
    assert set(FEATURES) - set(without) == {name for name in FEATURES if name.startswith("tau32")}
    assert derivable(["pxj1", "M"]) == ()


def test_missing_column_is_named():
    with pytest.raises(EventsError, match=r"'dm' needs the column\(s\) mj2; nearest names: mj1"):
        FEATURES["dm"].values({"mj1": np.ones(3)})


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("mj1", "TeV"),
        ("pzj2", "TeV"),
        ("mX", "TeV"),
        ("m_jj", "TeV"),
        ("tau1j1", "1"),
        ("label", "1"),
        ("dR_jj", "1"),
        ("M", None),
    ],
)
def test_unit_of_a_name(name, unit):
    assert column_unit(name, "TeV") == unit


def test_real_dijets_against_vector(shared_data):
    with h5py.File(shared_data / "signal_qq_3500_500_100.features.h5") as file:
        names = [name.decode() for name in file["df/block0_items"]]
        table = file["df/block0_values"][()]
    columns = {name: table[:, k] for k, name in enumerate(names)}
    jets = [
        vector.array(
            {a: columns[f"{a}j{j}"].astype(float) for a in ("px", "py", "pz")} | {"m": columns[f"mj{j}"].astype(float)}
        )
        for j in (1, 2)
    ]
    np.testing.assert_allclose(FEATURES["m_jj"].values(columns), (jets[0] + jets[1]).mass, rtol=1e-12)
    np.testing.assert_allclose(FEATURES["dR_jj"].values(columns), jets[0].deltaR(jets[1]), rtol=1e-9)
    np.testing.assert_allclose(FEATURES["eta_j2"].values(columns), jets[1].eta, rtol=1e-9, atol=1e-12)
    # The resonance is where it was generated; the masses of ungroomed jets lie somewhat above those of X and Y.
    assert np.median(FEATURES["m_jj"].values(columns)) == pytest.approx(3500.0, rel=0.03)
    assert np.median(FEATURES["m_light"].values(columns)) == pytest.approx(100.0, rel=0.3)
    assert np.median(FEATURES["m_heavy"].values(columns)) == pytest.approx(500.0, rel=0.1)
