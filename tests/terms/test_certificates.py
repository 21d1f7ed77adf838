"""Certificates in the metadata of terms: attached whole or not at all, hashes that fit, and the model's hash unchanged."""

from __future__ import annotations

import json

import pytest

from gbistat.diagnostics.saved import certificate_note, model_verdict
from gbistat.errors import ModelError, OutputError
from gbistat.terms.certificates import attach_certificate, certificate_of
from gbistat.terms.files import sha256
from gbistat.terms.metadata import CertificateRecord
from gbistat.terms.model_spec import ModelSpec
from gbistat.terms.store import inline_model, load_model, save_model, with_checks

DOCUMENT = b'{"schema": "gbistat.diagnose/1"}\n'


def certificate(**changes):
    content = {
        "verdict": "UNDECIDED",
        "statement": "bias of mu 1 +- 1 sigma: below 2.6 at 95 %",
        "bias": (1.0, 1.0),
        "tolerance": 0.2,
        "region": "sidebands",
        "window": (3300.0, 3700.0),
        "generator": "gen",
        "events": "dijets.h5",
        "model_sha256": "0" * 64,
        "diagnostics_sha256": "0" * 64,
    }
    return CertificateRecord(**{**content, **changes})


@pytest.fixture
def model(make, tmp_path):
    return save_model(
        tmp_path / "small",
        make.spec(),
        terms=[make.term([make.linear([0.01, 1.0])])],
        reference=make.events(),
        files={"README.md": b"words", "card.yaml": b"kind: test\n"},
    )


def test_a_certificate_travels_in_the_term(model):
    assert model_verdict(model) is None
    before = {p: p.read_bytes() for p in model.directory.rglob("*") if p.is_file()}
    attached = attach_certificate(model, certificate(), DOCUMENT)
    assert attached.directory == model.directory
    assert attached.sha256 == model.sha256 == load_model(model.directory).sha256
    found = certificate_of(load_model(model.directory))
    assert found == certificate(model_sha256=model.sha256, diagnostics_sha256=sha256(DOCUMENT))
    assert (model.directory / "diagnostics.json").read_bytes() == DOCUMENT
    # model.json has the new hash of term.json; everything else is as it was.
    changed = {p.relative_to(model.directory).as_posix() for p in before if p.read_bytes() != before[p]}
    assert changed == {"model.json", "terms/ratio/term.json"}
    records = {r["file"]: r["sha256"] for r in json.loads((model.directory / "model.json").read_text())["files"]}
    assert records["terms/ratio/term.json"] == sha256((model.directory / "terms/ratio/term.json").read_bytes())
    assert model_verdict(attached) == "UNDECIDED (gen against sidebands): bias of mu 1 +- 1 sigma: below 2.6 at 95 %"


def test_an_earlier_certificate_is_replaced(model):
    attach_certificate(model, certificate(), DOCUMENT)
    second = attach_certificate(load_model(model.directory), certificate(verdict="FAIL"), b"{}\n")
    assert second.sha256 == model.sha256
    assert certificate_of(second).verdict == "FAIL"
    assert not list(model.directory.parent.glob(".*"))


def test_a_certificate_of_something_else_says_so(model):
    attached = attach_certificate(model, certificate(), DOCUMENT)
    assert "another version" in certificate_note(certificate_of(attached), attached.directory, "1" * 64)
    (attached.directory / "diagnostics.json").write_text("{}")
    assert "is not the one that it was made from" in model_verdict(attached)
    # Networks alone: the long form may be left behind.
    (attached.directory / "diagnostics.json").unlink()
    assert model_verdict(attached).startswith("UNDECIDED")


def test_nothing_is_written_where_it_cannot_be_whole(model, monkeypatch):
    def broken(*_):
        raise OSError(28, "No space left on device")

    before = {p: p.read_bytes() for p in model.directory.rglob("*") if p.is_file()}
    monkeypatch.setattr("gbistat.terms.certificates._edit", broken)
    with pytest.raises(OutputError, match="No space left"):
        attach_certificate(model, certificate(), DOCUMENT)
    assert {p: p.read_bytes() for p in model.directory.rglob("*") if p.is_file()} == before
    assert not list(model.directory.parent.glob(".*"))


def test_models_without_a_place_for_it(make):
    plain = {k: v for k, v in make.model_json()["signal"].items() if k != "ratios"}
    spec = ModelSpec.model_validate(make.model_json(terms=[], features=[], signal=plain))
    with pytest.raises(ModelError, match="no folder, or no generator and no ratio"):
        attach_certificate(inline_model(spec), certificate(), DOCUMENT)


def test_new_checks_take_the_certificate_away(make, tmp_path):
    # It is of the model as it was.
    model = save_model(tmp_path / "m", make.spec(), terms=[make.term([make.linear([0.01, 1.0])])])
    attach_certificate(model, certificate(), DOCUMENT)
    checked = with_checks(load_model(model.directory), "ratio", {"quality": 1.0})
    assert certificate_of(checked) is None
    assert not (checked.directory / "diagnostics.json").exists()
