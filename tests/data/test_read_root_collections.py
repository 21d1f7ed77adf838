"""Jagged collections as leading pairs: synthetic trees with known pairs, and public files against uproot by hand."""

from __future__ import annotations

import awkward as ak
import numpy as np
import pytest
import uproot
import vector

from gbistat.data.features import FEATURES
from gbistat.data.read import iter_events, read_events, summarise_events
from gbistat.errors import EventsError

FEATURES_ASKED = ("m_light", "dm", "tau21_light", "tau21_heavy", "pt_j1", "pt_j2")


def write_jagged(path, jets, names, flat=None, kind="ttree", dtype="float64"):
    """Write one jagged branch a member; `names` maps members to branch names."""
    branches = {names[member]: ak.values_astype(values, dtype) for member, values in jets.items() if member in names}
    flat = flat or {}
    with uproot.recreate(path) as file:
        make = file.mktree if kind == "ttree" else file.mkrntuple
        types = dict.fromkeys(branches, f"var * {dtype}") | {name: values.dtype for name, values in flat.items()}
        if kind == "ttree":
            tree = make("Events", types)
            tree.extend({**branches, **flat})
        else:
            make("Events", {**branches, **flat})
    return path


def naming(prefix, members):
    return {member: f"{prefix}{member}" for member in members}


def by_hand(jets):
    """Leading pairs by a plain loop over events: columns of those with two jets or more, and their row numbers."""
    rows, columns = [], {f"{stem}j{k}": [] for k in (1, 2) for stem in ("px", "py", "pz", "m", "tau1", "tau2")}
    lists = {member: values.tolist() for member, values in jets.items()}
    for row, pts in enumerate(lists["pt"]):
        if len(pts) < 2:
            continue
        rows.append(row)
        for k, j in enumerate(sorted(range(len(pts)), key=lambda i: -pts[i])[:2], start=1):
            pt, eta, phi = (lists[member][row][j] for member in ("pt", "eta", "phi"))
            values = {"px": pt * np.cos(phi), "py": pt * np.sin(phi), "pz": pt * np.sinh(eta)}
            values |= {"m": lists["mass"][row][j], "tau1": lists["tau1"][row][j], "tau2": lists["tau2"][row][j]}
            for stem, value in values.items():
                columns[f"{stem}j{k}"].append(value)
    return np.array(rows), {name: np.array(values) for name, values in columns.items()}


@pytest.mark.parametrize("kind", ["ttree", "rntuple"])
@pytest.mark.parametrize("chunk_size", [7, 1000])
def test_leading_pairs_against_a_loop(kind, chunk_size, jagged, tmp_path, rng):
    jets = jagged(60)
    weights = rng.uniform(0.5, 2.0, 60)
    path = write_jagged(tmp_path / "nano.root", jets, naming("FatJet_", jets), {"genWeight": weights}, kind)
    rows, columns = by_hand(jets)
    events = read_events(
        path, features=FEATURES_ASKED, mapping={"jets": "FatJet"}, weights="genWeight", chunk_size=chunk_size
    )
    np.testing.assert_allclose(events.mass, FEATURES["m_jj"].values(columns), rtol=1e-12)
    for name in FEATURES_ASKED:
        np.testing.assert_allclose(events.feature(name), FEATURES[name].values(columns), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(events.weights, weights[rows])
    assert events.notes == (f"{60 - len(rows)} of 60 events have fewer than two FatJet and are left out",)


@pytest.mark.parametrize("kind", ["ttree", "rntuple"])
def test_notes_of_chunks_add_up(kind, jagged, tmp_path):
    jets = jagged(50)
    path = write_jagged(tmp_path / "nano.root", jets, naming("Jet_", jets), None, kind)
    parts = list(iter_events(path, mapping={"jets": "Jet"}, chunk_size=9))
    skipped = sum(int(note.split()[0]) for part in parts for note in part.notes)
    assert sum(map(len, parts)) + skipped == 50
    summary = summarise_events(path, mapping={"jets": "Jet"})
    assert (summary.n_rows, summary.n_events) == (50, 50 - skipped)


def test_rntuple_collection_of_records(jagged, tmp_path):
    jets = jagged(40)
    path = tmp_path / "records.root"
    with uproot.recreate(path) as file:
        file.mkrntuple("Events", {"Jet": ak.zip(jets), "run": np.arange(40)})
    events = read_events(path, features=["tau21_light"], mapping={"jets": "Jet"}, chunk_size=11)
    _, columns = by_hand(jets)
    np.testing.assert_allclose(events.mass, FEATURES["m_jj"].values(columns), rtol=1e-12)
    np.testing.assert_allclose(events.feature("tau21_light"), FEATURES["tau21_light"].values(columns), rtol=1e-12)


@pytest.mark.parametrize(
    "members",
    [
        ("Px", "Py", "Pz", "E"),
        ("px", "py", "pz", "energy"),
        ("PX", "PY", "PZ", "M"),
        ("PT", "Eta", "Phi", "Mass"),
        ("pt", "eta", "phi", "e"),
    ],
)
@pytest.mark.parametrize("separator", ["_", "."])
def test_coordinates_and_spellings(members, separator, jagged, tmp_path):
    jets = jagged(30)
    momenta = vector.zip({name: jets[name] for name in ("pt", "eta", "phi", "mass")})
    words = {"px": momenta.px, "py": momenta.py, "pz": momenta.pz, "e": momenta.energy, "energy": momenta.energy}
    words |= {"m": jets["mass"], **jets}
    branches = {member: words[member.lower()] for member in members}
    path = write_jagged(tmp_path / "any.root", branches, naming(f"Jet{separator}", branches))
    events = read_events(path, mapping={"jets": "Jet"})
    np.testing.assert_allclose(events.mass, FEATURES["m_jj"].values(by_hand(jets)[1]), rtol=1e-9)


def test_momenta_in_32_bits_are_widened_before_arithmetic(jagged, tmp_path):
    jets = {name: ak.values_astype(values, np.float32) for name, values in jagged(80).items()}
    path = write_jagged(tmp_path / "narrow.root", jets, naming("Jet_", jets), dtype="float32")
    wide = {name: ak.values_astype(values, np.float64) for name, values in jets.items()}
    events = read_events(path, mapping={"jets": "Jet"})
    np.testing.assert_allclose(events.mass, FEATURES["m_jj"].values(by_hand(wide)[1]), rtol=1e-12)


def test_other_members_become_columns_of_each_jet(jagged, tmp_path):
    jets = jagged(30)
    jets["btag"] = jets["pt"] * 2.0
    path = write_jagged(tmp_path / "tag.root", jets, naming("Jet_", jets))
    events = read_events(
        path,
        features=["btagj1", "btagj2", "pt_j1", "pt_j2"],
        mapping={"jets": "Jet"},
        units={"btagj1": "1", "btagj2": "1"},
    )
    np.testing.assert_allclose(events.features[:, :2], 2.0 * events.features[:, 2:], rtol=1e-12)


def test_nan_in_any_object_is_seen(jagged, tmp_path):
    jets = jagged(40)
    counts = ak.num(jets["pt"])
    row = int(np.flatnonzero(counts >= 4)[-1])  # far into the file, beyond the first chunk
    flat = ak.flatten(jets["pt"]).to_numpy().copy()
    start = int(ak.sum(counts[:row]))
    flat[start + int(np.argmin(flat[start : start + counts[row]]))] = (
        np.nan
    )  # the softest jet, which is not of the pair
    path = write_jagged(tmp_path / "nan.root", {**jets, "pt": ak.unflatten(flat, counts)}, naming("Jet_", jets))
    with pytest.raises(EventsError, match=rf"'m_jj' in 1 \(rows {row}\)"):
        read_events(path, mapping={"jets": "Jet"}, chunk_size=6)


def test_rounding_of_a_light_mass_is_silent_and_a_spacelike_object_is_noted(tmp_path):
    p = np.array([[300.0, 200.0], [300.0, 200.0], [300.0, 200.0]])
    energy = p.copy()
    energy[1, 0] *= 1.0 - 1e-8  # rounding
    energy[2, 0] *= 0.98  # not rounding
    jets = {"px": p * [1.0, -1.0], "py": 0.0 * p, "pz": 0.0 * p, "E": energy}
    path = write_jagged(
        tmp_path / "slow.root", {k: ak.from_regular(ak.Array(v)) for k, v in jets.items()}, naming("Jet_", jets)
    )
    events = read_events(path, mapping={"jets": "Jet"}, features=["m_j1"])
    np.testing.assert_array_equal(events.feature("m_j1"), 0.0)
    np.testing.assert_allclose(events.mass, 2.0 * np.sqrt(300.0 * 200.0), rtol=1e-12)
    assert events.notes == ("1 of 3 events have a leading Jet with E below |p|, whose mass is taken as 0",)


def test_unknown_collection_offers_near_ones(jagged, tmp_path):
    jets = jagged(10)
    path = write_jagged(tmp_path / "nano.root", jets, naming("FatJet_", jets))
    with pytest.raises(EventsError, match="no collection 'Fatjets' with momenta; nearest names: FatJet"):
        read_events(path, mapping={"jets": "Fatjets"})


def test_collection_without_mass_or_energy(jagged, tmp_path):
    jets = jagged(10)
    path = write_jagged(tmp_path / "nano.root", jets, naming("Jet_", ("pt", "eta", "phi", "tau1")))
    with pytest.raises(EventsError, match=r"'Jet' has neither a mass nor an energy \(only pt, eta, phi, tau1\)"):
        read_events(path, mapping={"jets": "Jet"})


def test_jagged_file_without_a_mapping_says_which_collections_there_are(jagged, tmp_path):
    jets = jagged(10)
    path = write_jagged(tmp_path / "nano.root", jets, naming("FatJet_", jets), {"run": np.arange(10)})
    with pytest.raises(
        EventsError, match=r"jagged collections here: FatJet; choose one, for example mapping=\{'jets': 'FatJet'\}"
    ):
        read_events(path)
    with pytest.raises(EventsError, match="column 'FatJet_pt' holds a list in each row; map its collection"):
        read_events(path, mass="FatJet_pt")
    assert "jagged collections here: FatJet" in summarise_events(path).notes[0]


def test_summary_of_a_tree_with_nothing_but_lists(tmp_path):
    path = tmp_path / "lists.root"
    with uproot.recreate(path) as file:
        file.mkrntuple("Events", {"x": ak.Array([[1.0], [], [2.0]])})
    summary = summarise_events(path)
    assert (summary.n_rows, summary.n_events, summary.columns) == (3, 3, ())
    assert "holds a list in each row" in summary.unusable["x"]


def test_no_event_with_two_objects(tmp_path):
    jets = {name: ak.Array([[1.0], [], [2.0]]) for name in ("pt", "eta", "phi", "mass")}
    path = write_jagged(tmp_path / "single.root", jets, naming("Jet_", jets))
    with pytest.raises(EventsError, match="no usable event: 3 of 3 events have fewer than two Jet and are left out"):
        read_events(path, mapping={"jets": "Jet"})


def test_dimuon_masses_of_a_flat_tree(shared_data):
    path = shared_data / "root" / "uproot-Zmumu.root"
    with uproot.open(path) as file:
        mass = file["events"]["M"].array(library="np")
    np.testing.assert_array_equal(read_events(path, mass="M", chunk_size=500).mass, mass)
    mapping = {f"{axis}j{k}": f"{axis}{k}" for k in (1, 2) for axis in ("px", "py", "pz")}
    angles = read_events(path, mass="M", features=["dphi_jj", "eta_j1"], mapping=mapping)
    with uproot.open(path) as file:
        eta, phi1, phi2 = (file["events"][name].array(library="np") for name in ("eta1", "phi1", "phi2"))
    # The file's own angles differ from those of its momenta by up to 1e-3 in eta and 3e-3 in phi.
    np.testing.assert_allclose(angles.feature("eta_j1"), eta, atol=2e-3)
    wrapped = np.abs((phi1 - phi2 + np.pi) % (2 * np.pi) - np.pi)
    np.testing.assert_allclose(angles.feature("dphi_jj"), wrapped, atol=6e-3)


def test_dimuons_of_a_jagged_tree_by_hand(shared_data):
    path = shared_data / "root" / "uproot-HZZ.root"
    events = read_events(path, mass="m_mumu", mapping={"jets": "Muon", "m_mumu": "m_jj"}, chunk_size=300)
    with uproot.open(path) as file:
        arrays = file["events"].arrays([f"Muon_{name}" for name in ("Px", "Py", "Pz", "E")])
    masses = []
    for event in arrays.tolist():
        p4 = np.array([event[f"Muon_{name}"] for name in ("E", "Px", "Py", "Pz")], dtype=np.float64).T
        if len(p4) >= 2:
            total = p4[np.argsort(-np.hypot(p4[:, 1], p4[:, 2]))[:2]].sum(axis=0)
            masses.append(np.sqrt(total[0] ** 2 - np.sum(total[1:] ** 2)))
    # The file has 32-bit E and p, whose mass is rounding for a muon: E^2 = p^2 + m^2 holds to about 1e-7.
    np.testing.assert_allclose(events.mass, masses, rtol=1e-5)
    assert events.notes == (f"{2421 - len(masses)} of 2421 events have fewer than two Muon and are left out",)
    assert np.median(events.mass) == pytest.approx(91.2, abs=3.0)


@pytest.mark.parametrize("collection", ["Jet", "Muon", "GenJet"])
def test_nanoaod_against_vector(collection, shared_data):
    path = shared_data / "root" / "nanoAOD_2015_CMS_Open_Data_ttbar.root"
    events = read_events(path, features=["dR_jj", "m_heavy"], mapping={"jets": collection}, chunk_size=64)
    with uproot.open(path) as file:
        arrays = file["Events"].arrays([f"{collection}_{name}" for name in ("pt", "eta", "phi", "mass")])
    wide = {name: ak.values_astype(arrays[f"{collection}_{name}"], np.float64) for name in ("pt", "eta", "phi", "mass")}
    wide["mass"] = ak.where(wide["mass"] < 0, 0.0, wide["mass"])  # some 32-bit jet masses are rounded below zero
    momenta = vector.zip(wide)
    momenta = momenta[ak.num(momenta) >= 2]
    momenta = momenta[ak.argsort(momenta.pt, ascending=False)]
    first, second = momenta[:, 0], momenta[:, 1]
    np.testing.assert_allclose(events.mass, (first + second).mass.to_numpy(), rtol=1e-9)
    np.testing.assert_allclose(events.feature("dR_jj"), first.deltaR(second).to_numpy(), rtol=1e-9)
    np.testing.assert_allclose(
        events.feature("m_heavy"), np.maximum(first.mass, second.mass).to_numpy(), rtol=1e-9, atol=1e-9
    )
    assert f"{200 - len(events)} of 200 events have fewer than two {collection}" in events.notes[0]
