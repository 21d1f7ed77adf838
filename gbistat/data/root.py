"""ROOT through uproot: flat columns of a TTree or RNTuple, and its jagged collections as awkward arrays."""

from __future__ import annotations

import importlib
import lzma
import re
import struct
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat import extras
from gbistat.data.table import Chunk, is_number, read_errors
from gbistat.errors import EventsError, nearest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["RootTable", "four_momentum", "open_root"]

_MEMBER = re.compile(r"(?P<collection>[^./]+?)[_.](?P<member>[^./]+)")
_FOURTH = {"mass": "mass", "m": "mass", "e": "E", "energy": "E"}
_TREES = ["TTree", "TNtuple", "TNtupleD", "ROOT::RNTuple"]
_LISTS = "holds a list in each row; map its collection, for example mapping={'jets': 'FatJet'}"


@dataclass(frozen=True)
class RootTable:
    """An open TTree or RNTuple.

    Parameters
    ----------
    columns : tuple of str
        Names that hold one number a row.
    collections : mapping
        Jagged collections: name, to a mapping from member (``pt``) to column (``FatJet_pt``).
    """

    path: Path
    format: str
    n_rows: int
    tree: Any
    columns: tuple[str, ...]
    damage: tuple[type[Exception], ...]
    collections: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    unusable: Mapping[str, str] = field(default_factory=dict)

    @property
    def hint(self) -> str:
        """Which collections could be mapped to jets."""
        usable = [name for name, members in self.collections.items() if four_momentum(members)]
        if not usable:
            return ""
        usual = next((name for name in ("FatJet", "Jet") if name in usable), usable[0])
        others = ", ".join([usual, *(name for name in usable if name != usual)][:6]) + (", ..." if usable[6:] else "")
        return f"jagged collections here: {others}; choose one, for example mapping={{'jets': {usual!r}}}"

    def chunks(self, names: Sequence[str], size: int) -> Iterator[Chunk]:
        """Rows in order, as float64 columns."""
        start = 0
        for arrays in self.arrays(names, size):
            columns = {name: np.asarray(arrays[name]).astype(np.float64) for name in names}
            count = len(next(iter(columns.values())))
            yield Chunk(count, np.arange(start, start + count), columns)
            start += count

    def arrays(self, names: Collection[str], size: int) -> Iterator[dict[str, Any]]:
        """Awkward arrays of the columns asked for, flat or jagged, at most `size` rows at a time."""
        wanted = set(names)
        # A callable, because uproot reads a plain string as an expression or a pattern ("Jet.pt" is neither).
        batches = self.tree.iterate(filter_name=lambda name: name in wanted, step_size=size, library="ak")
        while True:
            with read_errors(self.path, "ROOT", *self.damage):
                batch = next(batches, None)
                if batch is None:
                    return
                found = {name: _pick(batch, name) for name in wanted}
            yield found


def _pick(batch: Any, name: str) -> Any:
    """A column of a batch: a branch, a branch below another one, or a field of an RNTuple collection."""
    for label in batch.fields:
        if name in (label, label.rsplit("/", 1)[-1]):
            return batch[label]
    parent, _, member = name.partition(".")
    return batch[parent][member]


@contextmanager
def open_root(path: Path, tree: str | None = None) -> Iterator[RootTable]:
    """Open a ROOT file.

    Parameters
    ----------
    path : Path
        An existing file.
    tree : str, optional
        Which TTree or RNTuple, where the file holds several.

    Raises
    ------
    EventsError
        If it is not ROOT, is truncated, or holds no tree or several (the message names them).
    """
    uproot = extras.uproot()
    _check_header(path)
    damage = _damage(uproot)
    with read_errors(path, "ROOT", *damage):
        # A mapping, because a plain string is split at its colons into file and object.
        file = uproot.open({str(path): None})
    with file:
        with read_errors(path, "ROOT", *damage):
            table = _table(path, file, tree, damage)
        yield table


def _check_header(path: Path) -> None:
    """Compare the length that the header declares with the length of the file: uproot may not notice a lost end."""
    with read_errors(path, "ROOT", OSError), path.open("rb") as stream:
        head = stream.read(20)
    if head[:4] != b"root" or len(head) < 20:
        raise EventsError(f"{path} is not a ROOT file (it begins with {head[:4]!r}); check the suffix")
    (version,) = struct.unpack(">i", head[4:8])
    # From version 1000000 on the file has 64-bit pointers.
    (end,) = struct.unpack(">q", head[12:20]) if version >= 1_000_000 else struct.unpack(">i", head[12:16])
    size = path.stat().st_size
    if end > size:
        raise EventsError(f"{path} is truncated: it has {size} of {end} bytes; get the file again")


def _damage(uproot: Any) -> tuple[type[Exception], ...]:
    """What uproot and its decompressors raise on damaged bytes."""
    cramjam = importlib.import_module("cramjam")
    own = (uproot.deserialization.DeserializationError, cramjam.DecompressionError, zlib.error, lzma.LZMAError)
    plain = (OSError, ValueError, TypeError, LookupError, AttributeError, EOFError, AssertionError, struct.error)
    # A damaged class name sends uproot into a recursion without end (RuntimeError), a damaged length asks for terabytes.
    return (*own, *plain, RuntimeError, MemoryError)


def _table(path: Path, file: Any, tree: str | None, damage: tuple[type[Exception], ...]) -> RootTable:
    names = list(file.keys(cycle=False, filter_classname=_TREES))
    if tree is not None:
        chosen = tree.strip("/").partition(";")[0]
        if chosen not in names:
            raise EventsError(f"{path} has no tree {tree!r}; {nearest(chosen, names)}")
    elif not names:
        held = ", ".join(sorted(set(file.classnames().values()))) or "nothing"
        raise EventsError(f"{path} holds no TTree or RNTuple, only {held}; give a file with a tree of events")
    elif len(names) > 1:
        trees = ", ".join(f"{name} ({file[name].num_entries} entries)" for name in names)
        raise EventsError(f"{path} holds {len(names)} trees: {trees}; choose one (tree={names[0]!r})")
    else:
        chosen = names[0]
    held_tree = file[chosen]
    is_ttree = hasattr(held_tree, "branches")
    flat, jagged, unusable = _ttree_columns(held_tree) if is_ttree else _rntuple_columns(held_tree)
    unusable.update(dict.fromkeys(jagged, _LISTS))
    return RootTable(
        path=path,
        format=f"ROOT ({'TTree' if is_ttree else 'RNTuple'} {chosen})",
        n_rows=int(held_tree.num_entries),
        tree=held_tree,
        columns=tuple(flat),
        damage=damage,
        collections=_collections(jagged),
        unusable=unusable,
    )


def _ttree_columns(tree: Any) -> tuple[list[str], list[str], dict[str, str]]:
    """Names of flat columns, of jagged columns, and of what is neither."""
    uproot = extras.uproot()
    flat: list[str] = []
    jagged: list[str] = []
    unusable: dict[str, str] = {}
    for branch in tree.itervalues(recursive=True):
        kind = branch.interpretation
        if isinstance(kind, uproot.AsDtype) and is_number(kind.to_dtype):
            flat.append(branch.name)
        elif isinstance(kind, uproot.AsJagged) and _plain_content(uproot, kind):
            jagged.append(branch.name)
        elif not branch.branches:
            unusable[branch.name] = f"has type {branch.typename}, not one number a row"
    return flat, jagged, unusable


def _plain_content(uproot: Any, kind: Any) -> bool:
    return isinstance(kind.content, uproot.AsDtype) and is_number(kind.content.to_dtype)


def _rntuple_columns(tree: Any) -> tuple[list[str], list[str], dict[str, str]]:
    """Names of flat fields, of jagged fields (``Jet.pt`` within a collection), and of what is neither."""
    forms = extras.awkward().forms
    top = tree.arrays(entry_start=0, entry_stop=0, library="ak").layout.form
    flat: list[str] = []
    jagged: list[str] = []
    unusable: dict[str, str] = {}
    for name, form in zip(top.fields, top.contents, strict=True):
        content = form.content if isinstance(form, forms.ListOffsetForm) else None
        if isinstance(form, forms.NumpyForm):
            flat.append(name)
        elif isinstance(content, forms.NumpyForm) and form.parameter("__array__") is None:
            jagged.append(name)
        elif isinstance(content, forms.RecordForm):
            jagged.extend(
                f"{name}.{member}"
                for member, inner in zip(content.fields, content.contents, strict=True)
                if isinstance(inner, forms.NumpyForm)
            )
        else:
            unusable[name] = f"has type {form.type}, not one number a row"
    return flat, jagged, unusable


def _collections(jagged: Sequence[str]) -> dict[str, dict[str, str]]:
    """Collections that hold momenta, from names such as ``FatJet_pt``, ``Jet.PT`` or ``Jet_Px``."""
    members: dict[str, dict[str, str]] = {}
    for name in jagged:
        match = _MEMBER.fullmatch(name)
        if match:
            members.setdefault(match["collection"], {})[match["member"]] = name
    return {name: found for name, found in members.items() if _axes(found)}


def _axes(members: Mapping[str, str]) -> tuple[str, ...]:
    there = {member.lower() for member in members}
    for axes in (("px", "py", "pz"), ("pt", "eta", "phi")):
        if there.issuperset(axes):
            return axes
    return ()


def four_momentum(members: Mapping[str, str]) -> dict[str, str]:
    """Coordinates of a collection in the words of `vector`, to columns; empty if they are incomplete.

    Examples
    --------
    >>> four_momentum({"PT": "Jet.PT", "Eta": "Jet.Eta", "Phi": "Jet.Phi", "Mass": "Jet.Mass", "Tau": "Jet.Tau"})
    {'pt': 'Jet.PT', 'eta': 'Jet.Eta', 'phi': 'Jet.Phi', 'mass': 'Jet.Mass'}
    """
    by_lower = {member.lower(): column for member, column in members.items()}
    axes = _axes(members)
    fourth = next((word for word in _FOURTH if word in by_lower), None)
    if not axes or fourth is None:
        return {}
    return {**{axis: by_lower[axis] for axis in axes}, _FOURTH[fourth]: by_lower[fourth]}
