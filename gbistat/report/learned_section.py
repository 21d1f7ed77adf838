"""The section of a report's page about a signal that was learned from the data."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

from gbistat import extras

if TYPE_CHECKING:
    from pathlib import Path

    from gbistat.typing import Json

__all__ = ["learned_signal_section"]

ROWS = 15
"""Events of the table on the page."""

_TEMPLATE = """<h2>A signal learned from the data, {{ d.window[0] }}-{{ d.window[1] }} GeV</h2>
<div class="scroll"><table>
<tr><th></th><th>null: {{ d.null.name }}</th><th>null: mean of the generator</th></tr>
<tr><td>ln e against background only</td><td class="n">{{ "%.2f" | format(d.discovery.log_e) }}</td>
<td class="n">{{ "%.2f" | format(d.plain_null.discovery.log_e) }}</td></tr>
<tr><td>p-value at most</td><td class="n">{{ "%.2g" | format(d.discovery.p_at_most) }}</td>
<td class="n">{{ "%.2g" | format(d.plain_null.discovery.p_at_most) }}</td></tr>
<tr><td>signal fraction, {{ d.fraction.cl * 100 }} % lower limit</td><td class="n">{{ "%.3g" | format(d.fraction.low) }}</td>
<td class="n">{{ "%.3g" | format(d.plain_null.fraction.low) }}</td></tr>
<tr><td>signal events among {{ d.n_events }}</td><td class="n">&gt; {{ "%.3g" | format(d.signal_events.low) }}</td><td></td></tr>
<tr><td>upper limit</td><td>none</td><td>none</td></tr>
</table></div>
<p>Null: {{ d.null.description }}. No upper limit: {{ d.fraction.why_no_upper_end }}.</p>
<p>For the learned density only: fraction {{ "%.3g" | format(d.estimate.value) }} &plusmn; {{ "%.2g" | format(d.estimate.error) }}.</p>
{% for warning in d.warnings %}<p class="warning">{{ warning }}</p>{% endfor %}
{% if events %}<h3>Purest events</h3>
<div class="scroll"><table><tr>{% for name in names %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in events %}<tr>{% for value in row %}<td class="n">{{ value }}</td>{% endfor %}</tr>
{% endfor %}</table></div>{% endif %}
"""


def learned_signal_section(document: Json, directory: Path) -> str:
    """HTML of the section, with the document's text escaped.

    Parameters
    ----------
    document : dict
        Content of ``learned_signal.json``.
    directory : Path
        Folder of results; ``anomalies.csv`` there gives the table of events.

    Raises
    ------
    MissingExtra
        If jinja2 is not installed.
    """
    file = directory / "anomalies.csv"
    rows: list[list[str]] = []
    if file.is_file():
        with file.open(newline="", encoding="utf-8") as stream:
            rows = [row for _, row in zip(range(ROWS + 1), csv.reader(stream), strict=False)]
    shown = [[_short(value) for value in row] for row in rows[1:]]
    environment = extras.jinja2().Environment(autoescape=True)
    section: str = environment.from_string(_TEMPLATE).render(d=document, names=rows[0] if rows else [], events=shown)
    return section


def _short(value: str) -> str:
    try:
        return f"{float(value):.5g}"
    except ValueError:
        return value
