"""Terms and models on disk: round trips, damage, paths that leave the folder, nothing half-written."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest

from gbistat.errors import ModelError, OutputError, TermError
from gbistat.terms import store
from gbistat.terms.files import sha256
from gbistat.terms.metadata import TermMetadata
from gbistat.terms.store import (
    find_model,
    inline_model,
    load_model,
    load_reference,
    load_term,
    save_model,
    save_term,
    shipped_models,
)


@pytest.fixture
def graphs(make):
    return {"member_0.onnx": make.mlp(1)[0], "member_1.onnx": make.mlp(2)[0]}


@pytest.fixture
def term_folder(make, graphs, tmp_path):
    save_term(tmp_path / "ratio", TermMetadata.model_validate(make.term_json(graphs)), graphs)
    return tmp_path / "ratio"


@pytest.fixture
def model_folder(make, graphs, tmp_path):
    save_model(
        tmp_path / "small",
        make.spec(),
        terms=[make.term(list(graphs.values()))],
        reference=make.events(50, weights=np.linspace(0.5, 1.5, 50)),
        reference_description="held-out background",
        files={"README.md": b"# small\n", "card.yaml": b"seed: 1\n"},
    )
    return tmp_path / "small"


def edit(path, **changes):
    """Change entries of a JSON file; ``...`` removes one."""
    data = json.loads(path.read_bytes())
    data.update(changes)
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))


def edit_model(folder, **changes):
    """Change model.json without its list of hashed files, so that the change itself is what is found."""
    edit(folder / "model.json", **{"files": [], **changes})


# Round trips -------------------------------------------------------------------------------------------------------


def test_term_round_trip(make, graphs, term_folder):
    term = load_term(term_folder)
    assert sorted(path.name for path in term_folder.iterdir()) == ["member_0.onnx", "member_1.onnx", "term.json"]
    assert term.metadata == TermMetadata.model_validate(make.term_json(graphs))
    events = make.events()
    np.testing.assert_array_equal(term.log_ratio(events), make.term(list(graphs.values())).log_ratio(events))


def test_model_round_trip(make, model_folder):
    model = load_model(model_folder)
    assert model.name == "small"
    assert list(model.terms) == ["ratio"]
    assert model.directory == model_folder
    assert [record.file for record in model.spec.files] == ["card.yaml", "terms/ratio/term.json"]
    assert model.terms["ratio"].log_ratio(make.events()).shape == (200,)
    assert load_model(model_folder / "model.json").sha256 == model.sha256


def test_reference_round_trip(make, model_folder):
    events = make.events(50, weights=np.linspace(0.5, 1.5, 50))
    reference = load_reference(load_model(model_folder))
    np.testing.assert_array_equal(reference.mass, events.mass)
    np.testing.assert_array_equal(reference.features, events.features)
    np.testing.assert_array_equal(reference.weights, events.weights)
    assert (reference.names, dict(reference.units)) == (events.names, dict(events.units))


@pytest.mark.parametrize("n", [0, 3])
def test_reference_of_few_events_without_features(make, tmp_path, n):
    events = make.events(n, features=np.empty((n, 0)), names=())
    model = save_model(tmp_path / "m", make.spec(terms=[], features=[], signal=plain_signal()), reference=events)
    reference = load_reference(model)
    assert (len(reference), reference.names) == (n, ())


def plain_signal():
    return {"mass": {"shape": "gaussian", "parameters": {"mean": {"times_center": 1.0}, "sigma": 80.0}}}


def test_nine_digits_hold_a_float32(make, tmp_path):
    values = np.random.default_rng(1).lognormal(3.0, 4.0, 500).astype(np.float32)
    events = make.events(500, features=np.column_stack([values, values]).astype(float))
    model = save_model(tmp_path / "m", make.spec(terms=[], signal=plain_signal()), reference=events, digits=9)
    np.testing.assert_array_equal(load_reference(model).feature("m_light").astype(np.float32), values)
    exact = save_model(tmp_path / "exact", make.spec(terms=[], signal=plain_signal()), reference=events)
    sizes = [(folder / "reference.json").stat().st_size for folder in (model.directory, exact.directory)]
    assert sizes[0] < 0.75 * sizes[1]


def test_model_without_reference(make, tmp_path):
    model = save_model(tmp_path / "m", make.spec(terms=[], signal=plain_signal()))
    assert load_reference(model) is None


def test_hash_of_a_model_is_stable_and_sensitive(make, graphs, model_folder, tmp_path):
    before = load_model(model_folder).sha256
    (model_folder / "README.md").write_text("other prose")
    assert load_model(model_folder).sha256 == before
    other = save_model(tmp_path / "other", make.spec(), terms=[make.term([make.mlp(9)[0], graphs["member_1.onnx"]])])
    assert other.sha256 != before
    assert len(before) == 64


def test_model_of_a_run_card(make):
    spec = make.spec(terms=[], signal=plain_signal())
    model = inline_model(spec)
    assert (model.directory, dict(model.terms), load_reference(model)) == (None, {}, None)
    assert model.sha256 == inline_model(make.spec(terms=[], signal=plain_signal())).sha256
    assert model.sha256 != inline_model(make.spec(terms=[], signal=plain_signal(), description="x")).sha256
    with pytest.raises(ModelError, match=r"model 'small' is written in a run card and names files"):
        inline_model(make.spec())


# Damage ------------------------------------------------------------------------------------------------------------


def test_changed_graph_is_found_by_its_hash(term_folder, graphs, make):
    other = make.mlp(3)[0]
    (term_folder / "member_1.onnx").write_bytes(other)
    found, expected = sha256(other)[:12], sha256(graphs["member_1.onnx"])[:12]
    message = rf"member_1\.onnx is not the file that term\.json describes: its sha256 begins with {found}, expected {expected}"
    with pytest.raises(TermError, match=message + r"; copy the folder again or export it again"):
        load_term(term_folder)


def test_corrupted_graph_with_a_matching_hash(term_folder, graphs):
    content = graphs["member_0.onnx"][:-20]
    (term_folder / "member_0.onnx").write_bytes(content)
    edit(term_folder / "term.json", combine="none", members=[{"file": "member_0.onnx", "sha256": sha256(content)}])
    with pytest.raises(TermError, match=r"ratio/member_0\.onnx is not a readable ONNX graph \(cut off"):
        load_term(term_folder)


def test_missing_files(term_folder, tmp_path):
    (term_folder / "member_0.onnx").unlink()
    with pytest.raises(TermError, match=r"member_0\.onnx is missing or not a file; copy the folder again"):
        load_term(term_folder)
    with pytest.raises(TermError, match=r"term\.json is missing or not a file; is this the folder of a term\?"):
        load_term(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x04\x95pickle", r"term\.json is not JSON: it is not UTF-8 text"),
        (b'{"schema": ', r"term\.json is not JSON: Expecting value at line 1, column 12"),
        (b'{"a": 1, "a": 2}', r"term\.json has the key 'a' twice"),
        (b'{"a": NaN}', r"term\.json has NaN, which is not JSON; write a finite number, or null"),
        (b"[1]", r"term\.json holds a JSON list; it must hold a mapping"),
        (b'{"a":' * 200_000, r"term\.json is nested too deeply"),
        (b"{}", r'term\.json has no schema; it must say "schema": "gbistat.term/1"'),
    ],
)
def test_term_json_that_is_no_term(term_folder, content, message):
    (term_folder / "term.json").write_bytes(content)
    with pytest.raises(TermError, match=message):
        load_term(term_folder)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (
            "gbistat.term/2",
            r"schema 'gbistat.term/2', newer than the 'gbistat.term/1' that this gbistat reads; upgrade it",
        ),
        ("gbistat.model/1", r"has the unknown schema 'gbistat.model/1'; it must say .*is this the right file"),
        ("gbistat.term/0", r"has the unknown schema 'gbistat.term/0'"),
        (1, r"has the unknown schema 1"),
    ],
)
def test_schema_is_checked_before_anything_else(term_folder, schema, message):
    edit(term_folder / "term.json", schema=schema, key_of_the_future=1)
    with pytest.raises(TermError, match=message):
        load_term(term_folder)


def test_mistake_in_term_json_names_file_and_field(term_folder):
    edit(term_folder / "term.json", kinds="x")
    with pytest.raises(TermError, match=r"ratio/term\.json: unknown key 'kinds'; nearest names: kind"):
        load_term(term_folder)


# Paths -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file",
    ["/etc/passwd", "../member_0.onnx", "a/../../member_0.onnx", "C:\\x.onnx", "..\\x.onnx", "C:x.onnx", "a\0.onnx"],
)
def test_paths_outside_the_folder_are_refused(term_folder, graphs, file):
    content = graphs["member_0.onnx"]
    (term_folder.parent / "member_0.onnx").write_bytes(content)
    edit(term_folder / "term.json", combine="none", members=[{"file": file, "sha256": sha256(content)}])
    with pytest.raises(
        TermError, match=r"points outside its own folder, which is refused; write a plain relative path"
    ):
        load_term(term_folder)


def test_links_that_leave_the_folder_are_refused(term_folder, graphs):
    outside = term_folder.parent / "outside.onnx"
    outside.write_bytes(graphs["member_0.onnx"])
    (term_folder / "member_0.onnx").unlink()
    (term_folder / "member_0.onnx").symlink_to(outside)
    with pytest.raises(TermError, match=r"member_0\.onnx is a link to .*outside\.onnx, outside its own folder"):
        load_term(term_folder)


def test_linked_term_folder_and_term_json_are_refused(model_folder, tmp_path):
    folder = model_folder / "terms" / "ratio"
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(ModelError, match=r"terms/ratio/term\.json is a link to .*outside its own folder"):
        load_model(model_folder)
    edit_model(model_folder)
    with pytest.raises(ModelError, match=r"terms/ratio is a link to .*elsewhere, outside its own folder"):
        load_model(model_folder)


def test_folder_reached_through_a_link_is_fine(model_folder, tmp_path):
    (tmp_path / "link").symlink_to(model_folder, target_is_directory=True)
    assert load_model(tmp_path / "link").sha256 == load_model(model_folder).sha256


def test_only_onnx_members(term_folder, graphs):
    (term_folder / "weights.pkl").write_bytes(graphs["member_0.onnx"])
    record = {"file": "weights.pkl", "sha256": sha256(graphs["member_0.onnx"])}
    edit(term_folder / "term.json", combine="none", members=[record])
    with pytest.raises(
        TermError, match=r"'weights\.pkl' is not an \.onnx file of this folder; terms hold JSON and ONNX"
    ):
        load_term(term_folder)


def test_links_in_a_circle_are_refused(term_folder):
    (term_folder / "member_0.onnx").unlink()
    (term_folder / "member_0.onnx").symlink_to(term_folder / "member_0.onnx")
    with pytest.raises(TermError, match=r"member_0\.onnx (leads nowhere|is missing or not a file)"):
        load_term(term_folder)


def test_name_that_the_file_system_cannot_hold(term_folder, graphs):
    file = "a" * 5000 + ".onnx"
    edit(term_folder / "term.json", combine="none", members=[{"file": file, "sha256": "0" * 64}])
    with pytest.raises(TermError, match=r"cannot be read: File name too long; check its name"):
        load_term(term_folder)
    with pytest.raises(ModelError, match=r"cannot be read: File name too long; check name and permissions"):
        find_model("a" * 5000)


def test_named_pipe_is_not_read(term_folder):
    (term_folder / "member_0.onnx").unlink()
    os.mkfifo(term_folder / "member_0.onnx")
    with pytest.raises(TermError, match=r"member_0\.onnx is missing or not a file"):
        load_term(term_folder)


# Models ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["card.yaml", "reference.json", "terms/ratio/term.json"])
def test_changed_file_of_a_model(model_folder, file):
    (model_folder / file).write_bytes((model_folder / file).read_bytes() + b" ")
    with pytest.raises(ModelError, match=rf"{file} is not the file that model\.json describes: its sha256 begins with"):
        load_model(model_folder)


def test_reference_is_checked_again_when_it_is_read(model_folder):
    model = load_model(model_folder)
    (model_folder / "reference.json").unlink()
    with pytest.raises(ModelError, match=r"reference\.json is missing"):
        load_reference(model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "gbistat.model/7"}, r"model\.json has schema 'gbistat.model/7', newer than the 'gbistat.model/1'"),
        ({"name": ...}, r'model\.json has no name; add "name": "small"'),
        ({"terms": ["ratio", "other"]}, r"terms/other/term\.json is missing or not a file"),
        ({"terms": ["../small"]}, r"cannot be a folder's name"),
        ({"features": ["m_light"]}, r"term 'ratio' needs the feature 'tau21_light', which features does not list"),
        (
            {"mass": {"name": "m_jj", "unit": "TeV"}},
            r"has the mass 'm_jj' in TeV, and its term 'ratio' has 'm_jj' in GeV",
        ),
        ({"valid": [3300, 4000]}, r"valid 3300-4000 is wider than the 3300-3700 GeV in which term 'ratio' is valid"),
        ({"valid": None, "window": [3200, 3700]}, r"window 3200-3700 is wider than the 3300-3700 GeV in which term"),
        ({"reference": {"file": "../r.json", "sha256": "0" * 64}}, r"'\.\./r\.json' points outside its own folder"),
    ],
)
def test_mistakes_in_model_json(model_folder, changes, message):
    edit_model(model_folder, **changes)
    with pytest.raises(ModelError, match=message):
        load_model(model_folder)


def test_term_under_another_name(model_folder):
    edit_model(model_folder)
    edit(model_folder / "terms" / "ratio" / "term.json", name="another")
    with pytest.raises(ModelError, match=r"lists the term 'ratio', and its term\.json has the name 'another'"):
        load_model(model_folder)


def test_density_where_a_ratio_is_needed(model_folder):
    edit_model(model_folder)
    edit(model_folder / "terms" / "ratio" / "term.json", kind="density", combine="mean_density", log_kappa=None)
    with pytest.raises(ModelError, match=r"signal\.ratios has 'ratio', which is a density; a ratio must be"):
        load_model(model_folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "gbistat.events/2"}, r"reference\.json has schema 'gbistat.events/2', newer"),
        ({"mass": [1.0]}, r"reference\.json: 'm_light' has 50 values for 1 masses"),
        ({"names": ["m_light"]}, r"names are \['m_light'\] and features has"),
        ({"mass": ["3500"] * 50}, r'mass\[0\] is "3500"; it must be a number'),
        ({"mass_name": "m_x"}, r"has the mass 'm_x' in GeV, and the model 'm_jj' in GeV"),
        ({"names": [], "features": {}}, r"reference\.json lacks the model's feature 'm_light'"),
    ],
)
def test_mistakes_in_reference_json(model_folder, changes, message):
    path = model_folder / "reference.json"
    edit(path, **changes)
    edit_model(model_folder, reference={"file": "reference.json", "sha256": sha256(path.read_bytes())})
    with pytest.raises(ModelError, match=message):
        load_reference(load_model(model_folder))


# Names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["wheel", "checkout"])
def test_shipped_models_are_found_in_a_wheel_and_in_a_checkout(model_folder, tmp_path, monkeypatch, layout):
    package = tmp_path / "site" / "gbistat"
    place = (package if layout == "wheel" else package.parent) / "models"
    place.mkdir(parents=True)
    model_folder.rename(place / "dijet")
    monkeypatch.setattr(store, "__file__", str(package / "terms" / "store.py"))
    assert shipped_models() == {"dijet": place / "dijet"}
    assert find_model("dijet") == place / "dijet"
    with pytest.raises(
        ModelError, match=r"there is no model 'dijte': neither a folder nor a shipped model; nearest names: dijet"
    ):
        find_model("dijte")


def test_shipped_model_wins_over_a_folder_of_the_same_name(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "shipped_models", lambda: {"small": tmp_path / "shipped"})
    monkeypatch.chdir(tmp_path)
    assert find_model("small") == tmp_path / "shipped"
    assert find_model("./small").resolve() == model_folder.resolve()


def test_folder_without_model_json(tmp_path):
    with pytest.raises(ModelError, match=r"is not a model: it has no model\.json; give the folder"):
        load_model(tmp_path)


# Writing -----------------------------------------------------------------------------------------------------------


def test_existing_place_is_kept_unless_asked(make, graphs, term_folder):
    metadata = TermMetadata.model_validate(make.term_json(graphs))
    with pytest.raises(OutputError, match=r"ratio already exists; choose another place or allow overwriting"):
        save_term(term_folder, metadata, graphs)
    (term_folder / "old.txt").write_text("old")
    save_term(term_folder, metadata.model_copy(update={"checks": {"auc": 0.5}}), graphs, overwrite=True)
    assert load_term(term_folder).metadata.checks == {"auc": 0.5}
    assert not (term_folder / "old.txt").exists()
    assert [path.name for path in term_folder.parent.iterdir()] == ["ratio"]


def test_foreign_folder_is_never_replaced(make, graphs, tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"thesis exists and holds no term\.json, so it is not replaced"):
        save_term(folder, TermMetadata.model_validate(make.term_json(graphs)), graphs, overwrite=True)
    assert (folder / "thesis.tex").exists()


def test_place_that_cannot_be_written(make, graphs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/ratio cannot be written: Not a directory; choose another place"):
        save_term(tmp_path / "file" / "ratio", TermMetadata.model_validate(make.term_json(graphs)), graphs)


def test_nothing_is_left_of_a_term_that_would_not_load(make, graphs, tmp_path):
    metadata = TermMetadata.model_validate(make.term_json(graphs))
    with pytest.raises(TermError, match=r"the graphs given \(member_0\.onnx\) are not the members in its metadata"):
        save_term(tmp_path / "a", metadata, {"member_0.onnx": graphs["member_0.onnx"]})
    with pytest.raises(TermError, match=r"are not the members in its metadata .*by name or by hash"):
        save_term(tmp_path / "a", metadata, {**graphs, "member_1.onnx": graphs["member_0.onnx"]})
    bad = {"member_0.onnx": b"not a graph"}
    with pytest.raises(TermError, match=r"ratio/member_0\.onnx is not"):
        save_term(tmp_path / "a", TermMetadata.model_validate(make.term_json(bad)), bad)
    unwritable = metadata.model_copy(update={"checks": {"auc": math.nan}})
    with pytest.raises(TermError, match=r"term 'ratio' cannot be written as JSON: .*; replace NaN and inf by null"):
        save_term(tmp_path / "a", unwritable, graphs)
    escaping = {"../x.onnx": graphs["member_0.onnx"]}
    with pytest.raises(TermError, match=r"'\.\./x\.onnx' points outside its own folder"):
        save_term(tmp_path / "a", TermMetadata.model_validate(make.term_json(escaping)), escaping)
    assert list(tmp_path.iterdir()) == []


def test_failed_overwriting_keeps_the_old_model(make, model_folder, graphs):
    before = load_model(model_folder).sha256
    wrong = make.spec(features=["m_light"])
    with pytest.raises(ModelError, match=r"needs the feature 'tau21_light'"):
        save_model(model_folder, wrong, terms=[make.term(list(graphs.values()))], overwrite=True)
    assert load_model(model_folder).sha256 == before
    assert [path.name for path in model_folder.parent.iterdir()] == ["small"]


def test_model_and_terms_must_agree_when_written(make, tmp_path):
    with pytest.raises(
        ModelError, match=r"model 'small' lists the terms \['ratio'\] and was given \[\]; give the same"
    ):
        save_model(tmp_path / "m", make.spec())


@pytest.mark.parametrize("file", ["net.pkl", "model.json", "sub/card.yaml", "../card.yaml"])
def test_foreign_files_are_not_stored_in_a_model(make, tmp_path, file):
    with pytest.raises(ModelError, match=r"cannot be stored in a model|points outside its own folder"):
        save_model(tmp_path / "m", make.spec(terms=[], signal=plain_signal()), files={file: b""})
    assert list(tmp_path.iterdir()) == []
