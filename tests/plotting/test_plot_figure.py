"""Figures in files."""

from __future__ import annotations

import logging
import os
import struct
import subprocess
import sys
import zlib

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from gbistat.data.window import MassWindow
from gbistat.errors import OutputError
from gbistat.plotting.figure import figure_file
from gbistat.plotting.limits import draw_cls_scan, draw_comparison, save_cls_scan, save_comparison, save_limits
from gbistat.plotting.mass import draw_spectrum, save_spectrum
from gbistat.plotting.scans import draw_profile, save_profile
from gbistat.plotting.style import styled


def png_size(path):
    """Width and height in pixels; every chunk's checksum is verified, and the file ends with IEND."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    position, size, kind = 8, None, b""
    while position < len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        kind, body = data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        (checksum,) = struct.unpack(">I", data[position + 8 + length : position + 12 + length])
        assert zlib.crc32(kind + body) == checksum
        size = struct.unpack(">II", body[:8]) if kind == b"IHDR" else size
        position += 12 + length
    assert kind == b"IEND"
    return size


def test_every_figure_is_a_png_of_its_size(tmp_path, spectrum, profile, cls_scan, limit, caplog):
    """At 200 dots an inch; a glyph or a font that is missing would be a warning, which fails, or in the log."""
    caplog.set_level(logging.WARNING)
    windows = [MassWindow(3000.0, 3300.0), MassWindow(3300.0, 3700.0)]
    written = [
        (save_spectrum(spectrum(), tmp_path / "spectrum.png"), (1400, 1280)),
        (save_profile(*profile(best=-12.0), tmp_path / "profile.png", label="signal events"), (1400, 1120)),
        (save_profile(*profile(low=60.0), tmp_path / "open.png"), (1400, 1120)),
        (save_cls_scan(cls_scan(), limit(), tmp_path / "cls.png"), (1400, 1120)),
        (save_limits(windows, [limit(), limit()], tmp_path / "limits.png", mass_name="m_jj"), (1400, 1120)),
        (save_comparison([("unbinned", limit()), ("binned", limit())], tmp_path / "compare.png"), (1800, 600)),
    ]
    for path, size in written:
        assert png_size(path) == size
        assert 10_000 < path.stat().st_size < 400_000
    assert sorted(tmp_path.iterdir()) == sorted(path for path, _ in written)
    assert caplog.messages == []


def test_text_of_a_figure_stays_inside_it(tmp_path, limit):
    """Long names of methods and long labels are neither cut off nor on top of each other."""
    label = "cross-section times branching fraction times acceptance [fb]"
    rows = [
        (
            f"a method whose long name goes on and on and on and on, from number {k} to the next and further and further, until it ends",
            limit(sigma=29.0 + k),
        )
        for k in range(3)
    ]
    with styled():
        with figure_file(tmp_path / "x.png", size=(9.0, 5.0)) as (ax,):
            draw_comparison(rows, ax, label=label)
        figure = ax.figure
        figure.draw_without_rendering()
        texts = [*ax.texts, *ax.get_yticklabels(), ax.xaxis.label, *ax.get_legend().get_texts()]
        boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert all(figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.parametrize(("suffix", "start"), [("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_vector_formats(tmp_path, profile, suffix, start):
    path = save_profile(*profile(), tmp_path / f"profile.{suffix}")
    assert path.read_bytes().startswith(start)


def test_same_result_gives_the_same_file_whatever_the_users_settings_which_are_back_afterwards(tmp_path, profile):
    plain = save_profile(*profile(), tmp_path / "plain.png").read_bytes()
    with mpl.rc_context({"font.size": 30.0, "axes.facecolor": "red", "savefig.bbox": "tight"}):
        other = save_profile(*profile(), tmp_path / "other.png").read_bytes()
        assert mpl.rcParams["font.size"] == 30.0
    assert plain == other


def test_style_is_undone_after_an_error():
    before = mpl.rcParams["font.size"]
    with styled():
        assert mpl.rcParams["font.size"] == 14.0
    with pytest.raises(ZeroDivisionError), styled():
        _ = 1 / 0
    assert mpl.rcParams["font.size"] == before


def test_an_older_file_is_replaced_and_readable_by_others(tmp_path, profile):
    path = tmp_path / "profile.png"
    path.write_text("old")
    save_profile(*profile(), path)
    assert png_size(path) == (1400, 1120)
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_failed_drawing_leaves_the_older_file(tmp_path, profile, limit):
    path = tmp_path / "x.png"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), figure_file(path):
        _ = 1 / 0
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("where", ["missing/profile.png", "file/profile.png", "folder.png"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, where):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    with (
        pytest.raises(OutputError, match=rf"{where} cannot be written: .*; choose another place"),
        figure_file(tmp_path / where),
    ):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder.png"}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_read_only_folder_is_named(tmp_path, profile):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written: Permission denied"):
        save_profile(*profile(), tmp_path / "x.png")


def test_an_unknown_format_is_refused(tmp_path, profile):
    with pytest.raises(OutputError, match=r"no figure format '.pgn'; nearest names: png"):
        save_profile(*profile(), tmp_path / "profile.pgn")


def test_plot_functions_work_in_the_users_own_figure(spectrum, profile, cls_scan, limit):
    """Without the style: labels, colours and ranges do not depend on it."""
    figure = Figure()
    axes = figure.subplots(2, 2)
    draw_spectrum(spectrum(), *axes[:, 0])
    draw_profile(*profile(), axes[0, 1])
    draw_cls_scan(cls_scan(), limit(), axes[1, 1])
    figure.draw_without_rendering()


def test_importing_the_plots_imports_no_matplotlib_and_drawing_chooses_no_backend(tmp_path):
    code = (
        "import sys\n"
        "from gbistat.plotting.limits import save_limits\n"
        "from gbistat.plotting.mass import save_spectrum\n"
        "assert not {'matplotlib', 'mplhep'} & set(sys.modules)\n"
        "import numpy as np\n"
        "from gbistat.data.window import MassWindow\n"
        "from gbistat.fit.spectrum import MassSpectrum\n"
        "one = np.ones(3)\n"
        f"save_spectrum(MassSpectrum(np.arange(4.0), one, one, one, one, MassWindow(1, 2), 'm', 'GeV'), {str(tmp_path / 'x.png')!r})\n"
        "import matplotlib\n"
        "chosen = dict.__getitem__(matplotlib.rcParams, 'backend')\n"
        "assert not isinstance(chosen, str), chosen\n"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("MPLBACKEND", "DISPLAY")}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
