"""``gbistat fit | limits | scan`` on an exported model with free masses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from gbistat.cli import main
from gbistat.errors import ModelError, OptionError
from gbistat.fit.plane import PlaneSearch
from gbistat.plotting.plane import draw_plane, draw_plane_limits
from gbistat.terms.store import save_model

TRUTH = (510.0, 120.0)


@pytest.fixture(scope="module")
def folder(blob, tmp_path_factory):
    """Model, reference events and data on disk."""
    place = tmp_path_factory.mktemp("masses")
    rng = np.random.default_rng(21)
    save_model(place / "model", blob.spec(), terms=[blob.term()], reference=blob.spectrum(4000, 0, TRUTH, rng))
    events = blob.spectrum(2500, 90, TRUTH, rng)
    a, b = events.features.T
    np.savez(place / "events.npz", m_jj=events.mass, a=a, b=b)
    return place


def run(capsys, folder, *arguments, code=0):
    units = folder / "card.yaml"
    units.write_text(f"model: model\nevents: {{path: {folder}/events.npz, units: {{a: GeV, b: GeV}}}}\n")
    with pytest.raises(SystemExit) as stop:
        main([arguments[0], str(units), *map(str, arguments[1:])])
    captured = capsys.readouterr()
    assert stop.value.code == code, captured.err
    return captured


def test_fit_gives_masses_with_intervals_and_a_plane(folder, capsys, tmp_path):
    printed = run(capsys, folder, "fit", "--output", tmp_path / "out")
    assert "m_X" in printed.out
    document = json.loads((tmp_path / "out" / "fit.json").read_text())
    (result,) = document["results"]
    for name, truth in zip(("m_X", "m_Y"), TRUTH, strict=True):
        entry = result["fit"][name]
        assert abs(entry["value"] - truth) < 4 * entry["error"]
        ((low, high),) = entry["intervals"]["0.95"]
        assert low < entry["value"] < high
    assert result["plane"]["names"] == ["m_X", "m_Y"]
    assert np.shape(result["plane"]["q0"]) == (12, 12)
    assert (tmp_path / "out" / "plane.png").stat().st_size > 10_000


def test_the_error_of_the_mass_scale_is_in_errors_and_intervals(folder, blob, capsys, tmp_path):
    scale = {name: {"absolute": 8.0, "relative": 0.01} for name in ("m_X", "m_Y")}
    spec = blob.spec(mass_scale=scale)
    pool = blob.spectrum(4000, 0, TRUTH, np.random.default_rng(21))
    save_model(tmp_path / "scaled", spec, terms=[blob.term()], reference=pool)

    def fitted(*arguments):
        (result,) = json.loads(run(capsys, folder, "fit", "--json", "-", *arguments).out)["results"]
        return result

    plain, wider = fitted(), fitted("--model", tmp_path / "scaled")
    assert wider["plane"]["mass_scale"] == scale
    assert plain["plane"]["mass_scale"] == {}
    for name in ("m_X", "m_Y"):
        one, two = plain["fit"][name], wider["fit"][name]
        assert two["value"] == one["value"]
        total = np.hypot(one["error"], np.hypot(8.0, 0.01 * one["value"]))
        assert two["error"] == pytest.approx(total)
        ((low, high),) = two["intervals"]["0.6827"]
        assert high - low == pytest.approx(2.0 * total, rel=0.1)
    assert wider["fit"]["mu"] == plain["fit"]["mu"]
    with pytest.raises(SystemExit):
        main(["model", "show", str(tmp_path / "scaled")])
    assert "error of m_X  8 GeV and 1 %, in quadrature" in capsys.readouterr().out


def test_a_deficit_at_every_mass_is_no_failure(folder, blob, capsys, tmp_path):
    """No signal wanted anywhere: mu is 0 and the mass may be anything."""
    events = blob.spectrum(2500, 0, TRUTH, np.random.default_rng(22))
    a, b = events.features.T
    kept = np.abs(a - 510.0) > 150.0
    np.savez(tmp_path / "events.npz", m_jj=events.mass[kept], a=a[kept], b=b[kept])
    out = run(capsys, folder, "fit", "--events", tmp_path / "events.npz", "--mass", "m_X=510", "--json", "-").out
    (result,) = json.loads(out)["results"]
    assert result["fit"]["mu"]["value"] == pytest.approx(0.0, abs=1e-6)
    assert result["fit"]["m_Y"]["error"] is None
    assert result["fit"]["m_Y"]["intervals"]["0.6827"] == [[None, None]]
    assert "the 0.6827 interval of m_Y has no upper end: the range of m_Y ends at 600" in result["warnings"]
    assert "[open, open]" in run(capsys, folder, "fit", "--events", tmp_path / "events.npz", "--mass", "m_X=510").out


def test_limits_are_at_the_best_masses_or_at_those_given(folder, capsys):
    def limits(*arguments):
        out = run(capsys, folder, "limits", "--no-binned", "--json", "-", *arguments).out
        (result,) = json.loads(out)["results"]
        return result

    best = limits()
    assert any("that they were searched for is not in them" in text for text in best["warnings"])
    masses = {name: best["fit"][name]["value"] for name in ("m_X", "m_Y")}
    held = limits(*(f"--mass={name}={value:.10g}" for name, value in masses.items()))
    assert held["fit"]["m_X"] == {"value": pytest.approx(masses["m_X"]), "error": 0.0, "fixed": True}
    assert not any("searched for" in text for text in held["warnings"])
    assert held["limit"]["observed"] == pytest.approx(best["limit"]["observed"], rel=0.02)
    assert held["limit"]["expected"][2] == pytest.approx(best["limit"]["expected"][2], rel=0.02)
    elsewhere = limits("--mass", "m_X=200", "--mass", "m_Y=400")
    assert elsewhere["significance"]["z_local"] < 3.0 < best["significance"]["z_local"]


def test_scan_over_the_plane(folder, capsys, tmp_path):
    printed = run(
        capsys, folder, "scan", "--step", "275", "--toys", "300", "--seed", "5",
        "--output", tmp_path / "out", "--json", tmp_path / "s.json",
    )  # fmt: skip
    assert "the ten largest local significances of 9" in " ".join(printed.out.split())
    document = json.loads((tmp_path / "s.json").read_text())
    assert document == json.loads((tmp_path / "out" / "scan.json").read_text())
    assert document["schema"] == "gbistat.scan/1"
    assert document["axes"] == [[50.0, 325.0, 600.0]] * 2
    observed, expected = np.array(document["observed"]), np.array(document["expected"])
    assert observed.shape == (3, 3)
    assert (np.diff(expected, axis=-1) > 0).all()
    assert document["failures"] == []
    found = document["global"]
    assert (found["n_toys"], found["seed"], found["symmetric"], found["searched"]) == (300, 5, False, 144)
    assert found["method"] == "euler-characteristic"  # 90 events: no toy comes near
    assert found["p0_local"] < found["p0_global"] < 1e-4
    assert found["methods"][0]["p0_global_interval"][0] == 0.0
    assert found["z_global_interval"][0] < found["z_global"] < found["z_local"]
    assert "largest excess of 144 nodes" in " ".join(printed.out.split())
    # One node alone, by the other command.
    out = run(capsys, folder, "limits", "--no-binned", "--json", "-", "--mass", "m_X=325", "--mass", "m_Y=50").out
    (result,) = json.loads(out)["results"]
    assert observed[1, 0] == pytest.approx(result["limit"]["observed"], rel=0.02)
    assert document["z_local"][1][0] == pytest.approx(result["significance"]["z_local"], abs=0.05)
    assert (tmp_path / "out" / "limits_plane.png").stat().st_size > 10_000


def test_labels_in_the_file_change_nothing(folder, capsys):
    """True masses and labels of events are columns that nothing reads: the same numbers to the last digit without them."""
    with np.load(folder / "events.npz") as file:
        columns = dict(file)
    n = columns["m_jj"].size
    documents = []
    for extra in (
        {},
        {"label": np.r_[np.zeros(n - 90), np.ones(90)], "mX": np.full(n, 510.0), "mY": np.full(n, 120.0)},
    ):
        np.savez(folder / "labelled.npz", **columns, **extra)
        (folder / "labelled.yaml").write_text(
            f"model: model\nevents: {{path: {folder}/labelled.npz, units: {{a: GeV, b: GeV}}}}\n"
        )
        with pytest.raises(SystemExit) as stop:
            main(["fit", str(folder / "labelled.yaml"), "--json", "-"])
        assert stop.value.code == 0
        documents.append(json.loads(capsys.readouterr().out)["results"])
    assert documents[0] == documents[1]


def test_bad_requests(folder, capsys):
    assert "'m_Z' to hold" in run(capsys, folder, "fit", "--mass", "m_Z=3", code=1).err
    assert "not NAME=VALUE" in run(capsys, folder, "fit", "--mass", "m_X", code=2).err
    assert "m_X = 900 is outside 50 to 600" in run(capsys, folder, "fit", "--mass", "m_X=900", code=1).err
    assert "-1 toys" in run(capsys, folder, "scan", "--toys", "-1", code=1).err
    assert "no look elsewhere" in run(
        capsys, folder, "scan", "--step", "550", "--toys", "5", "--mass", "m_X=510", code=1
    ).err  # fmt: skip
    assert "step -5 must be above 0" in run(capsys, folder, "scan", "--step", "-5", code=1).err
    with pytest.raises(SystemExit):
        main(["scan", "--model", "dijet-qq-3500", "--window", "3300", "3700"])
    assert "does not depend on masses" in capsys.readouterr().err
    generator = ("--background", "dijet-background-substructure")
    assert "'blob' depends on masses" in run(capsys, folder, "fit", *generator, code=1).err


def test_figures_of_a_plane(blob):
    axes = tuple(np.linspace(50.0, 600.0, 12) for _ in range(2))
    x, y = np.meshgrid(*axes, indexing="ij")
    q0 = 30.0 * np.exp(-0.5 * ((x - 500) ** 2 + (y - 100) ** 2) / 80.0**2)
    search = PlaneSearch(("m_X", "m_Y"), axes, q0, q0, None)
    ax = Figure().subplots()
    artists = draw_plane(search.finer(), ax, best=(500.0, 100.0), unit="GeV")
    assert ax.get_xlabel() == r"$m_\mathrm{X}$ [GeV]"
    assert len(artists["contours"]) == 2
    assert [text.get_text() for text in artists["legend"].get_texts()] == ["best fit", "68.27 %", "95 %"]
    assert artists["map"].get_array().max() == pytest.approx(np.sqrt(q0.max()), rel=0.02)
    both = draw_plane(search, Figure().subplots(), close=search.finer(), exchangeable=True)["contours"]
    ends = [np.concatenate([path.vertices for path in contour.get_paths()]) for contour in both]
    assert len(both) == 4
    for here, there in ((0, 1), (2, 3)):
        assert np.allclose(ends[here].min(axis=0), ends[there].min(axis=0)[::-1], atol=1.0)
        assert np.allclose(ends[here].max(axis=0), ends[there].max(axis=0)[::-1], atol=1.0)
    line = PlaneSearch(("m",), axes[:1], q0[:, 0], q0[:, 0], None)
    with pytest.raises(OptionError, match="two masses, not 1"):
        draw_plane(line, Figure().subplots())
    with pytest.raises(ModelError, match="not drawn as a plane"):
        line.finer()
    with pytest.raises(OptionError, match="cannot draw 'expcted'"):
        draw_plane_limits(type("Limits", (), {"names": ("a", "b"), "cl": 0.95})(), Figure().subplots(), which="expcted")
