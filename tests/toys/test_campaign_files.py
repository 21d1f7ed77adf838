from __future__ import annotations

import io
import itertools
import json
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from gbistat.errors import CampaignError, OutputError, ToyFileError
from gbistat.inference.campaign import Campaign, CampaignPlan
from gbistat.inference.campaign_files import load_campaign, merge_files, read_campaign, write_campaign
from gbistat.inference.campaign_journal import Journal, journal_path, read_journal

VERSIONS = {"gbistat": ("0.1.0",)}


def plan(**changes):
    options = {
        "work": "count/1",
        "model_sha256": "a" * 64,
        "parameters": ("mu", "nu"),
        "points": np.array([[0.0, 0.1], [1.0, 1 / 3]]),
        "n_toys": (25, 10),
        "seed": 7,
        "chunk_size": 10,
        "settings": {"test": "q", "values": [0.1, 0.2]},
    }
    return CampaignPlan(**(options | changes))


def columns(a_plan, place):
    rng, size = a_plan.rng(*place), a_plan.size_of(*place)
    q = rng.random((size, 2))
    q[0, 0] = np.nan
    return {"failed": rng.random(size) < 0.5, "n": rng.poisson(3.0, size), "q": q}


def done(a_plan, places):
    return Campaign(a_plan, {place: columns(a_plan, place) for place in places}, VERSIONS)


EVERY = [(0, 0), (0, 1), (0, 2), (1, 0)]


@pytest.fixture
def path(tmp_path):
    return write_campaign(tmp_path / "toys.npz", done(plan(), EVERY))


def test_what_is_written_is_read(path):
    campaign = read_campaign(path)
    expected = done(plan(), EVERY)
    assert campaign.plan.to_json() == plan().to_json()
    assert campaign.versions == VERSIONS
    assert campaign.places == EVERY
    for place in EVERY:
        for name, array in expected.chunks[place].items():
            assert campaign.chunks[place][name].dtype == array.dtype
            assert campaign.chunks[place][name].tobytes() == array.tobytes()
    assert [entry.name for entry in path.parent.iterdir()] == ["toys.npz"]


def test_nothing_in_a_file_depends_on_the_clock(path):
    with zipfile.ZipFile(path) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.namelist()[0] == "header.json"


def test_numpy_reads_it(path):
    data = np.load(path)
    assert json.loads(data["header.json"])["schema"] == "gbistat.toys/1"
    point = np.repeat(data["task_point"], data["task_toys"])
    assert data["q"].shape == (35, 2)
    assert np.array_equal(data["n"][point == 1], columns(plan(), (1, 0))["n"])


def test_columns_that_only_one_point_has(tmp_path):
    def some(place):
        chunk = columns(plan(), place)
        return chunk if place[0] == 0 else {name: chunk[name] for name in ("n", "q")}

    whole = Campaign(plan(), {place: some(place) for place in EVERY}, VERSIONS)
    path = write_campaign(tmp_path / "toys.npz", whole)
    campaign = read_campaign(path)
    assert campaign.names == ("failed", "n", "q")
    assert campaign.column("failed").tobytes() == whole.column("failed", 0).tobytes()
    assert campaign.point_of_toy("failed").tolist() == [0] * 25
    assert campaign.column("n").tobytes() == whole.column("n").tobytes()
    assert sorted(campaign.chunks[1, 0]) == ["n", "q"]
    with pytest.raises(CampaignError, match=r"the toys at mu = 1, nu = 0\.333333 have no column 'failed'"):
        campaign.column("failed", 1)
    parts = []
    for i, places in enumerate((EVERY[2:], EVERY[:2])):
        part = Campaign(plan(), {place: some(place) for place in places}, VERSIONS)
        parts.append(write_campaign(tmp_path / f"{i}.npz", part))
    merge_files(parts, tmp_path / "merged.npz")
    assert (tmp_path / "merged.npz").read_bytes() == path.read_bytes()


def test_a_campaign_without_toys(tmp_path):
    path = write_campaign(tmp_path / "none.npz", Campaign(plan()))
    assert read_campaign(path).n_done() == 0
    assert merge_files([path, path], tmp_path / "merged.npz").n_done() == 0


def test_any_order_of_files_gives_the_same_bytes(tmp_path, path):
    parts = []
    for i, places in enumerate(([(0, 1)], [(1, 0), (0, 0)], [(0, 2), (1, 0)])):
        parts.append(write_campaign(tmp_path / f"{i}.npz", done(plan(), places)))
    for order in itertools.permutations(parts):
        merge_files(order, tmp_path / "merged.npz")
        assert (tmp_path / "merged.npz").read_bytes() == path.read_bytes()
    first = tmp_path / "first.npz"
    merge_files(parts[1:], first)
    merge_files([first, parts[0]], first)
    assert first.read_bytes() == path.read_bytes()


def test_models_are_never_mixed(tmp_path, path):
    other = write_campaign(tmp_path / "other.npz", done(plan(model_sha256="b" * 64), [(0, 0)]))
    with pytest.raises(ToyFileError, match=r"toys\.npz and .*other\.npz hold toys of different models"):
        merge_files([path, other], tmp_path / "merged.npz")
    assert not (tmp_path / "merged.npz").exists()


def rewritten(path, **members):
    """Same archive with some members replaced."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    for name, new in members.items():
        full = "header.json" if name == "header" else f"{name}.npy"
        content[full] = new(content[full])
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            if data is not None:
                archive.writestr(name, data)


def header(change):
    def new(content):
        data = json.loads(content)
        change(data)
        return json.dumps(data)

    return new


def npy(array):
    def new(_):
        stream = io.BytesIO()
        np.save(stream, array)
        return stream.getvalue()

    return new


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"header": lambda c: None}, "an archive without header.json"),
        ({"header": lambda c: c[:-9]}, "is not JSON"),
        ({"header": header(lambda d: d.update(schema="gbistat.toys/2"))}, "newer than the 'gbistat.toys/1'"),
        ({"header": header(lambda d: d.update(schema="gbistat.model/1"))}, "unknown schema 'gbistat.model/1'"),
        ({"header": header(lambda d: d["plan"].update(seed=8))}, "does not have the hash"),
        ({"header": header(lambda d: d["plan"].update(n_toys=[0, 10]))}, "0 toys at a point"),
        ({"header": header(lambda d: d["plan"].pop("seed"))}, "plan.seed is missing"),
        ({"header": header(lambda d: d["columns"].pop("q"))}, "not those that its header lists"),
        ({"header": header(lambda d: d["columns"]["q"].update(dtype="<f4"))}, "column 'q' has not the type"),
        ({"header": header(lambda d: d.update(n_toys=34))}, "does not hold the number of toys"),
        ({"header": header(lambda d: d["columns"]["q"].update(points=[0]))}, "column 'q' has not the type and length"),
        ({"n": lambda c: None}, "not those that its header lists"),
        ({"n": lambda c: c[:-8]}, "is damaged"),
        ({"n": npy(np.array([{}], dtype=object))}, "allow_pickle"),
        ({"task_toys": npy(np.array([10, 10, 6, 9]))}, "more toys than its plan"),
        ({"task_toys": npy(np.array([10, 10, 5]))}, "lists of chunks do not fit together"),
        ({"task_point": npy(np.array([0, 0, 0, 2]))}, "not in its plan"),
        ({"task_chunk": npy(np.array([0, 2, 1, 0]))}, "not in order"),
    ],
)
def test_damaged_files(path, members, message):
    rewritten(path, **members)
    with pytest.raises(ToyFileError, match=message) as caught:
        read_campaign(path)
    assert "toys.npz" in str(caught.value)
    assert str(caught.value).count("\n") <= 1


def test_every_flipped_byte_of_the_numbers_is_noticed(path):
    content = path.read_bytes()
    start = content.index(b"\x93NUMPY")
    for position in range(start, len(content) - 800, 97):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x40]) + content[position + 1 :])
        try:
            campaign = read_campaign(path)
        except ToyFileError:
            continue
        # The flip hit a byte of the archive's own bookkeeping that nothing depends on.
        expected = done(plan(), EVERY)
        assert all(campaign.column(n).tobytes() == expected.column(n).tobytes() for n in ("failed", "n", "q"))


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, -1])
def test_truncated_files(path, keep):
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(ToyFileError, match=r"toys\.npz is not a file of toys, or is damaged"):
        read_campaign(path)


def test_foreign_files(tmp_path):
    with pytest.raises(ToyFileError, match=r"there is no file of toys .*none\.npz"):
        load_campaign(tmp_path / "none.npz")
    text = tmp_path / "text.npz"
    text.write_text("mu: 1\n" * 50)
    with pytest.raises(ToyFileError, match=r"text\.npz is not a file of toys"):
        read_campaign(text)
    arrays = tmp_path / "arrays.npz"
    np.savez(arrays, q=np.zeros(3))
    with pytest.raises(ToyFileError, match=r"arrays\.npz is not a file of toys: it is an archive without header\.json"):
        read_campaign(arrays)
    packed = tmp_path / "packed.npz"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", "{}")
    with pytest.raises(ToyFileError, match=r"packed\.npz .* compressed or encrypted"):
        read_campaign(packed)
    with pytest.raises(ToyFileError, match="cannot be read: Is a directory"):
        read_campaign(tmp_path)


def test_a_place_where_nothing_can_be_written(tmp_path):
    with pytest.raises(OutputError, match="cannot be written: No such file or directory"):
        write_campaign(tmp_path / "no" / "toys.npz", done(plan(), EVERY))
    with pytest.raises(OutputError, match="cannot be written: No such file or directory"):
        Journal(journal_path(tmp_path / "no" / "toys.npz"), plan(), VERSIONS)


# Journals


@pytest.fixture
def journal(tmp_path):
    """Journal with two chunks, as a killed run leaves it."""
    file = journal_path(tmp_path / "toys.npz")
    with Journal(file, plan(), VERSIONS) as writer:
        for place in EVERY[:2]:
            writer.append(place, columns(plan(), place))
    return file


def test_a_journal_keeps_chunks(journal, tmp_path):
    campaign = read_journal(journal)
    assert campaign.places == EVERY[:2]
    assert campaign.versions == VERSIONS
    assert campaign.column("q").tobytes() == done(plan(), EVERY[:2]).column("q").tobytes()
    write_campaign(tmp_path / "toys.npz", done(plan(), EVERY[2:]))
    assert load_campaign(tmp_path / "toys.npz").places == EVERY
    (tmp_path / "toys.npz").unlink()
    assert load_campaign(tmp_path / "toys.npz").places == EVERY[:2]


@pytest.mark.parametrize("cut", [1, 7, 100])
def test_a_record_that_a_kill_cut_off_is_done_again(journal, cut):
    content = journal.read_bytes()
    journal.write_bytes(content[:-cut])
    assert read_journal(journal).places == EVERY[:1]
    with Journal(journal, plan(), VERSIONS) as writer:
        assert writer.found.places == EVERY[:1]
        for place in EVERY[1:3]:
            writer.append(place, columns(plan(), place))
    campaign = read_journal(journal)
    assert campaign.places == EVERY[:3]
    assert campaign.column("q").tobytes() == done(plan(), EVERY[:3]).column("q").tobytes()


def test_a_kill_before_the_first_record(tmp_path):
    file = journal_path(tmp_path / "toys.npz")
    file.write_bytes(b"GTJ1\x20")
    with pytest.raises(ToyFileError, match=r"journal .*toys\.npz\.journal is empty"):
        read_journal(file)
    with Journal(file, plan(), VERSIONS) as writer:
        assert not writer.found.chunks
    assert not file.exists()


def test_damaged_journals(journal, tmp_path):
    content = journal.read_bytes()
    middle = len(content) // 2
    journal.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(ToyFileError, match=r"toys\.npz\.journal is damaged: the checksum of the record"):
        Journal(journal, plan(), VERSIONS)
    journal.write_bytes(content + b"what is this")
    with pytest.raises(ToyFileError, match="is damaged: no record begins at byte"):
        read_journal(journal)
    journal.write_bytes(b"hello, world")
    with pytest.raises(ToyFileError, match="is not a journal of toys"):
        Journal(journal, plan(), VERSIONS)
    assert journal.read_bytes() == b"hello, world"
    payload = b'{"point": 0, "chunk": 0, "columns": []}\n'
    journal.write_bytes(struct.pack("<4sQI", b"GTJ1", len(payload), zlib.crc32(payload)) + payload)
    with pytest.raises(ToyFileError, match="does not begin with a plan"):
        read_journal(journal)


def test_a_journal_of_another_campaign_is_kept(journal):
    content = journal.read_bytes()
    with pytest.raises(
        ToyFileError, match=r"the campaign asked for and .*journal belong to different .* seed is 8 and 7"
    ):
        Journal(journal, plan(seed=8), VERSIONS)
    assert journal.read_bytes() == content


def test_more_toys_later_in_one_journal(journal):
    longer = plan(n_toys=(45, 10))
    with Journal(journal, longer, {"gbistat": ("0.2.0",)}) as writer:
        writer.append((0, 4), columns(longer, (0, 4)))
    campaign = read_journal(journal)
    assert campaign.plan.n_toys == (45, 10)
    assert campaign.versions == {"gbistat": ("0.1.0", "0.2.0")}
    assert campaign.n_done(0) == 25


def test_two_runs_cannot_write_one_file(journal):
    with Journal(journal, plan(), VERSIONS), pytest.raises(OutputError, match="another run is writing"):
        Journal(journal, plan(), VERSIONS)
    with Journal(journal, plan(), VERSIONS) as again:
        assert again.found.places == EVERY[:2]


def on_a_full_disk(what, path):
    """What a process says in which no file may grow beyond 20 kB: as good as a full disk.

    A process of its own: the limit is for all its files, the log of this one among them.
    """
    pytest.importorskip("resource")
    command = [sys.executable, __file__, what, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def append_too_much(path):
    big = {name: np.repeat(array, 1000, axis=0) for name, array in columns(plan(), (0, 2)).items()}
    with Journal(path, plan(), VERSIONS) as writer:
        writer.append((0, 2), big)


def write_too_much(path):
    large = plan(n_toys=(2000, 10), chunk_size=2000)
    write_campaign(path, done(large, [(0, 0)]))


def test_a_full_disk_loses_nothing_that_was_written(journal):
    result = on_a_full_disk("append_too_much", journal)
    assert result.returncode == 3, result.stderr
    assert "cannot be written: File too large" in result.stdout
    assert read_journal(journal).places == EVERY[:2]


def test_a_full_disk_leaves_the_old_file(path):
    before = path.read_bytes()
    result = on_a_full_disk("write_too_much", path)
    assert result.returncode == 3, result.stderr
    assert "toys.npz cannot be written: File too large" in result.stdout
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["toys.npz"]


if __name__ == "__main__":
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        {"append_too_much": append_too_much, "write_too_much": write_too_much}[sys.argv[1]](Path(sys.argv[2]))
    except OutputError as error:
        sys.stdout.write(str(error))
        sys.exit(3)
