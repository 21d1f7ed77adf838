"""JSON Schemas that come with gbistat: current, and true of the models that come with it."""

from __future__ import annotations

import json

import jsonschema
import pytest

from gbistat.cli import main
from gbistat.errors import OptionError
from gbistat.terms.schemas import KINDS, current_schema, published_schema, write_schemas
from gbistat.terms.store import shipped_models


def without_prose(value):
    """Schema without titles and descriptions, which say nothing about what is valid."""
    if isinstance(value, dict):
        return {
            k: without_prose(v) for k, v in value.items() if k not in ("title", "description") or isinstance(v, dict)
        }
    return [without_prose(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_current(kind, tmp_path):
    assert without_prose(published_schema(kind)) == without_prose(current_schema(kind))
    write_schemas(tmp_path)
    assert json.loads((tmp_path / f"{kind}.schema.json").read_text()) == current_schema(kind)


def test_shipped_models_follow_them():
    models, terms = jsonschema.Draft202012Validator(published_schema("model")), published_schema("term")
    for folder in shipped_models().values():
        document = json.loads((folder / "model.json").read_text())
        models.validate(document)
        for path in folder.glob("terms/*/term.json"):
            jsonschema.Draft202012Validator(terms).validate(json.loads(path.read_text()))
        assert not models.is_valid({**document, "colour": "red"})
        assert not models.is_valid({key: value for key, value in document.items() if key != "background"})


def test_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["model", "schema", "term"])
    assert stop.value.code == 0
    assert json.loads(capsys.readouterr().out) == published_schema("term")


def test_unknown_kind():
    for function in (published_schema, current_schema):
        with pytest.raises(OptionError, match="'modle'; nearest names: model"):
            function("modle")
