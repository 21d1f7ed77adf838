"""A tilt of the background that a model names: read, checked, normalised on the generator, profiled."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import ndtri

from gbistat.cli import main
from gbistat.config import resolve_options
from gbistat.data.events import Events
from gbistat.data.window import MassWindow
from gbistat.errors import ModelError
from gbistat.fit.build import build_analysis
from gbistat.fit.minimize import fit
from gbistat.terms.certificates import attach_certificate
from gbistat.terms.metadata import CertificateRecord
from gbistat.terms.store import load_model, save_model
from gbistat.terms.tilted import save_tilted

WINDOW = MassWindow(3300.0, 3700.0)
OFF, A = 0.2, 1.5
"""The generator is N(OFF, 1) in u and the data N(0, 1); signal is N(A, 1), and the ratio is to the generator."""


@pytest.fixture
def folders(toy, tmp_path):
    """Model of the signal, generator, and the generator with the exact tilt."""
    ratio = toy.ratio(0.0, 0.0, slope=A - OFF, constant=-0.5 * (A**2 - OFF**2))
    tilt = toy.ratio(0.0, 0.0, name="tilt", slope=-OFF, constant=0.5 * OFF**2)
    save_model(tmp_path / "small", toy.spec(), terms=[ratio])
    generator = save_model(tmp_path / "generator", toy.background_spec(), terms=[toy.generator((OFF, OFF))])
    save_tilted(generator, tmp_path / "tilted", tilt)
    return tmp_path


def even_events(toy):
    """Background whose features in the window are quantiles of the truth: fluctuations in the masses alone."""
    events = toy.events()
    rng = np.random.default_rng(3)
    mass, u = events.mass, rng.normal(size=len(events))
    inside = (mass >= WINDOW.low) & (mass < WINDOW.high)
    u[inside] = rng.permutation(ndtri((np.arange(inside.sum()) + 0.5) / inside.sum()))
    return Events(mass, (u + toy.slope * (mass - 3500.0))[:, None], ("t",), {"t": "1"})


def test_a_profiled_tilt_removes_the_bias(toy, folders):
    np.savez(folders / "events.npz", m_jj=(events := even_events(toy)).mass, t=events.feature("t"))
    pulls = {}
    for background in ("generator", "tilted"):
        options = resolve_options(
            model=folders / "small", events=folders / "events.npz", background=folders / background
        )
        model = options.model
        analysis = build_analysis(model.spec, events, WINDOW, terms=model.terms, background=options.background)
        result = fit(analysis.nll).raise_if_invalid()
        pulls[background] = result.value("mu") / result.error("mu")
    # Six standard errors off; the masses fluctuate, which moves a right fit by one (two: false alarm in 20 seeds).
    assert pulls["generator"] < -6
    assert abs(pulls["tilted"]) < 2
    assert result.value("background_tilt") == pytest.approx(1.0, abs=0.3)
    # Asimov data without signal, nu where the data have it: the density is normalised, n_bkg is what it was.
    reference = analysis.reference
    names = list(analysis.nll.names)
    theta = np.array([0.0 if name == "mu" else result.value(name) for name in names])
    expected = reference.weights(theta[[names.index(name) for name in reference.mixture.names]]).sum()
    assert expected == pytest.approx(result.value("n_bkg"), rel=0.01)


def test_the_tilt_of_a_models_own_reference_events(toy, tmp_path):
    ratio = toy.ratio(0.0, 0.0, slope=A - OFF, constant=-0.5 * (A**2 - OFF**2))
    tilt = toy.ratio(0.0, 0.0, name="tilt", slope=-OFF, constant=0.5 * OFF**2)
    events = even_events(toy)
    pool = Events(events.mass, events.features + OFF, ("t",), {"t": "1"})
    model = save_tilted(save_model(tmp_path / "small", toy.spec(), terms=[ratio], reference=pool), tmp_path / "t", tilt)
    assert model.spec.reference is not None
    analysis = build_analysis(model.spec, events, WINDOW, terms=model.terms, pool=pool)
    result = fit(analysis.nll).raise_if_invalid()
    assert abs(result.value("mu") / result.error("mu")) < 2
    with pytest.raises(ModelError, match="needs background events in the window"):
        build_analysis(model.spec, events, WINDOW, terms=model.terms)


def test_limits_with_a_tilt(toy, folders, capsys):
    # And with certificates of the model and of the generator: both verdicts are printed.
    events = toy.events(n=6000)
    for name, verdict in (("small", "FAIL"), ("tilted", "UNDECIDED")):
        record = CertificateRecord(
            verdict=verdict,
            statement="because",
            tolerance=0.2,
            region="sidebands",
            generator=name,
            events="some.npz",
            model_sha256="0" * 64,
            diagnostics_sha256="0" * 64,
        )
        attach_certificate(load_model(folders / name), record, b"{}\n")
    np.savez(folders / "events.npz", m_jj=events.mass, t=events.feature("t"))
    arguments = ["limits", "--model", str(folders / "small"), "--events", str(folders / "events.npz")]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--background", str(folders / "tilted"), "--json", "-"])
    assert stop.value.code == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert "background_tilt" in result["fit"]
    assert result["limit"]["observed"] > 0
    assert result["binned"] is not None
    notes = [warning for warning in result["warnings"] if warning.startswith("diagnostics")]
    assert notes == [
        "diagnostics of the background small: FAIL (small against sidebands): because",
        "diagnostics of the background gaussian-background: UNDECIDED (tilted against sidebands): because",
    ]


def test_bad_tilts(toy, folders, tmp_path):
    generator = load_model(folders / "generator")
    with pytest.raises(ModelError, match="already has a term"):
        save_tilted(generator, tmp_path / "x", toy.ratio(name="gaussian"))
    with pytest.raises(ModelError, match="must be a density_ratio"):
        save_tilted(generator, tmp_path / "x", toy.generator(name="other"))
    for spec, message in [
        ({"term": "tilted"}, r"background.tilt has 'tilted', which is not in terms"),
        ({"term": "ratio", "parameter": "mu"}, "names 'mu', which is already a parameter"),
    ]:
        background = {"mass": {"shape": "exponential"}, "fit_range": [2800.0, 4800.0], "tilt": spec}
        with pytest.raises(ValueError, match=message):
            toy.spec(background=background)
