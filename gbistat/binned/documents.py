"""HistFactory workspaces and patches from files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gbistat import extras
from gbistat.errors import ModelError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gbistat.typing import Json

    Source = str | Path | Mapping[str, Any]
    Patch = str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]]

__all__ = ["patched", "read_json"]


def read_json(path: str | Path) -> Any:
    """Content of a JSON file.

    Raises
    ------
    ModelError
        If it cannot be read, or is not JSON.
    """
    file = Path(path)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"there is no file {file}; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise ModelError(f"{file} is not JSON: {error}") from error


def patched(source: Source, patch: Patch | None = None, patch_name: str | None = None) -> Json:
    """Workspace as plain data, with a signal patch applied.

    Parameters
    ----------
    source : path or dict
        The workspace.
    patch : path, list or dict, optional
        A JSON patch (RFC 6902), or a patch set of pyhf's schema.
    patch_name : str, optional
        Which patch of a patch set.

    Raises
    ------
    ModelError
        If a file cannot be read, the patch does not fit the workspace, or the patch set has none of that name.
    """
    workspace = read_json(source) if isinstance(source, (str, Path)) else copy.deepcopy(source)
    if not isinstance(workspace, dict):
        raise ModelError(f"a workspace is a JSON object, not a {type(workspace).__name__}")
    if patch is None:
        if patch_name is not None:
            raise ModelError(f"patch {patch_name!r} was asked for, but no patch set was given")
        return workspace
    operations = read_json(patch) if isinstance(patch, (str, Path)) else patch
    if isinstance(operations, dict):
        operations = _from_set(operations, patch_name)
    jsonpatch = extras.jsonpatch()
    try:
        result: Json = jsonpatch.apply_patch(workspace, operations)
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"the patch does not fit the workspace: {error}; is it for another background model?"
        ) from error
    return result


def _from_set(patch_set: Mapping[str, Any], name: str | None) -> Sequence[Mapping[str, Any]]:
    patches = patch_set.get("patches")
    if not isinstance(patches, list) or not patches:
        raise ModelError("the patch is neither a list of operations nor a patch set with 'patches'")
    try:
        known = {str(patch["metadata"]["name"]): patch["patch"] for patch in patches}
    except (KeyError, TypeError) as error:
        raise ModelError(f"a patch of the patch set has no {error}") from error
    if name is None and len(known) == 1:
        name = next(iter(known))
    if name is None or name not in known:
        raise ModelError(f"the patch set has no patch {name!r}; {nearest(str(name), known)}")
    chosen: Sequence[Mapping[str, Any]] = known[name]
    return chosen
