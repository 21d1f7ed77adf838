"""One HTML page of a folder of results: nothing else is needed to read it, no network and no other file."""

from __future__ import annotations

import base64
import json
import math
from typing import TYPE_CHECKING, Any

from gbistat import __version__, extras
from gbistat.errors import OutputError
from gbistat.report.files import write_text
from gbistat.report.learned_section import learned_signal_section

if TYPE_CHECKING:
    from pathlib import Path

    from gbistat.typing import Json

__all__ = ["render_page", "write_page"]

DOCUMENTS = ("diagnostics", "limits", "fit", "compare", "coverage", "learned_signal")
TYPES = {".png": "image/png", ".svg": "image/svg+xml"}
CAPTIONS = {
    "weights": "Weights of data and of generated events.",
    "weights_log": "The same, logarithmic: tails to the right are missing in the generator, to the left spurious.",
    "log_weights": "ln w, and the ratio of data to generated events, which should follow w.",
    "roc": "ROC curve minus the diagonal, with the band of samples that are alike.",
    "calibration": "Data over generated events in bins of the weight.",
    "null_distributions": "Statistics in units of their null widths; bars hold 68 and 95 % of permutations.",
    "pulls": "Pulls of the generator's ensemble; narrower than 1 where its errors are shared between events.",
    "generator_errors": "Error of the density by the ensemble, against the weight.",
    "impact": "Bias of mu projected from the difference, in units of its error; thin bars are 95 % bounds.",
    "nplm": "NPLM: t of permuted labels and of the data.",
    "nplm_map": "NPLM: data events by the fitted log ratio; red where there are more than in the reference.",
    "spectrum": "Mass spectrum with the fit.",
    "profile": "Profile likelihood.",
    "cls": "CLs against the signal strength.",
    "comparison": "Limits, unbinned and binned.",
    "signal_score": "Events above a log ratio, for the folds of a signal learned from the data.",
}

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1f; background: #fff; margin: 0 auto; max-width: 60rem; padding: 1rem; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.2rem; border-bottom: 1px solid #ccc; margin-top: 2rem; }
h3 { font-size: 1rem; margin-bottom: .3rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
td, th { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid #e4e4e8; vertical-align: top; }
td.n { font-variant-numeric: tabular-nums; white-space: nowrap; }
.verdict { display: inline-block; padding: .1rem .7rem; border-radius: .3rem; color: #fff; font-weight: 600; }
.PASS { background: #2e6b34; } .FAIL { background: #b3261e; } .UNDECIDED { background: #8a5a00; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; } figure img { width: 100%; height: auto; } figcaption { font-size: .85rem; color: #555; }
.warning { border-left: .25rem solid #8a5a00; padding-left: .6rem; margin: .4rem 0; }
code { overflow-wrap: anywhere; font-size: .85rem; }
details summary { cursor: pointer; }
pre { overflow-x: auto; font-size: .75rem; background: #f6f6f8; padding: .6rem; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% if diagnostics %}
<h2>Diagnostics <span class="verdict {{ diagnostics.verdict }}">{{ diagnostics.verdict }}</span></h2>
<ul>{% for reason in diagnostics.reasons %}<li>{{ reason }}</li>{% endfor %}</ul>
{% if diagnostics.statement %}<p class="warning">{{ diagnostics.statement }}</p>{% endif %}
<p>{{ diagnostics.classifier.n[0] }} data in the {{ diagnostics.region }}, {{ diagnostics.classifier.n[1] }} events of
{{ diagnostics.generator }}.</p>
<div class="scroll"><table>
<tr><th>check</th><th>value</th><th>p</th><th>null</th><th></th></tr>
{% for row in diagnostics.checks %}<tr><td>{{ row.name }}</td><td class="n">{{ row.value | number }}</td>
<td class="n">{{ row.p | number }}</td><td>{{ row.null | null }}</td><td>{{ row.verdict }}</td></tr>
{% endfor %}</table></div>
{% if diagnostics.classifier.modes %}<h3>Compatible failure modes</h3>
<ul>{% for mode in diagnostics.classifier.modes %}<li><b>{{ mode.code }}</b> {{ mode.description }}:
{{ mode.evidence | join("; ") }}</li>{% endfor %}</ul>{% endif %}
{% set found = diagnostics.classifier.regions | selectattr("p", "lt", 0.05) | list %}
{% if found %}<h3>Regions that differ</h3>
<div class="scroll"><table><tr><th>observable</th><th>from</th><th>to</th><th>too many</th><th>data</th><th>generated</th><th>p</th></tr>
{% for r in found[:6] %}<tr><td>{{ r.obs }}</td><td class="n">{{ r.low | number }}</td><td class="n">{{ r.high | number }}</td>
<td>{{ r.excess }}</td><td class="n">{{ r.n_data }}</td><td class="n">{{ r.n_gen }}</td><td class="n">{{ r.p | number }}</td></tr>{% endfor %}
</table></div>{% endif %}
{% set rules = (diagnostics.classifier.rules or []) | selectattr("p", "lt", 0.01) | list %}
{% if rules %}<ul>{% for r in rules[:4] %}<li>{{ r.rule }}: {{ r.n_data }} data, {{ r.n_gen }} generated (p = {{ r.p | number }})</li>{% endfor %}</ul>{% endif %}
{% endif %}
{% for result in results %}
<h2>{{ result.verb }}, {{ result.window[0] | number }}-{{ result.window[1] | number }} GeV</h2>
<div class="scroll"><table>
<tr><td>events</td><td class="n">{{ result.n_events }}</td></tr>
{% for name, p in result.parameters %}<tr><td>{{ name }}</td><td class="n">{{ p.value | number }} &plusmn; {{ p.error | number }}
{% for cl, segments in (p.intervals or {}).items() %}<br>{{ (cl | float * 100) | number }} %: {% for s in segments %}[{{ s[0] | number }}, {{ s[1] | number }}] {% endfor %}{% endfor %}</td></tr>{% endfor %}
{% if result.limit %}<tr><td>{{ (result.limit.cl * 100) | number }} % limit, observed</td><td class="n">{{ result.limit.observed | number }}</td></tr>
<tr><td>expected, -2 to +2 sigma</td><td class="n">{% for x in result.limit.expected %}{{ x | number }} {% endfor %}</td></tr>{% endif %}
{% if result.significance %}<tr><td>local significance</td><td class="n">{{ result.significance.z_local | number }}</td></tr>{% endif %}
</table></div>
{% for warning in result.warnings %}<p class="warning">{{ warning }}</p>{% endfor %}
{% endfor %}
{% for section in sections %}{{ section | safe }}{% endfor %}
{% if figures %}<h2>Figures</h2>
<div class="figures">{% for figure in figures %}<figure><img alt="{{ figure.name }}" src="{{ figure.source }}">
<figcaption>{{ figure.caption }}</figcaption></figure>{% endfor %}</div>{% endif %}
<h2>Provenance</h2>
<div class="scroll"><table>{% for name, value in provenance %}<tr><td>{{ name }}</td><td><code>{{ value }}</code></td></tr>{% endfor %}</table></div>
{% for name, text in documents %}<details><summary>{{ name }}</summary><pre>{{ text }}</pre></details>{% endfor %}
</body>
</html>
"""


def write_page(directory: Path, output: Path | None = None) -> Path:
    """Write the page of a folder of results.

    Parameters
    ----------
    directory : Path
        Folder that ``gbistat limits | fit | diagnose --output`` wrote to.
    output : Path, optional
        File; ``report.html`` in the folder by default.

    Raises
    ------
    OutputError
        If the folder holds no results, one of them cannot be read, or the page cannot be written.
    """
    return write_text(output or directory / "report.html", render_page(directory))


def render_page(directory: Path) -> str:
    """HTML of a folder of results.

    Parameters
    ----------
    directory : Path
        Folder of results.

    Raises
    ------
    OutputError
        If the folder holds no results, or one of them cannot be read.
    MissingExtra
        If jinja2 is not installed.
    """
    documents = _documents(directory)
    figures = [
        {"name": path.stem, "source": _inline(path), "caption": _caption(path.stem)}
        for path in sorted(directory.iterdir(), key=_order)
        if path.suffix in TYPES
    ]
    environment = extras.jinja2().Environment(autoescape=True, undefined=extras.jinja2().ChainableUndefined)
    environment.filters |= {"number": _number, "null": _null}
    first = next(iter(documents.values()))
    model = first.get("model") or {}
    page: str = environment.from_string(TEMPLATE).render(
        title=f"gbistat: {model.get('name') or directory.name}",
        diagnostics=documents.get("diagnostics"),
        results=[entry for name in ("limits", "fit", "compare") for entry in _results(name, documents.get(name))],
        sections=[learned_signal_section(learned, directory)] if (learned := documents.get("learned_signal")) else [],
        figures=figures,
        provenance=_provenance(documents),
        documents=[(f"{name}.json", json.dumps(content, indent=1)) for name, content in documents.items()],
    )
    return page


def _documents(directory: Path) -> dict[str, Json]:
    if not directory.is_dir():
        raise OutputError(f"there is no folder {directory}; give one that gbistat limits or diagnose --output wrote")
    found = {}
    for name in DOCUMENTS:
        path = directory / f"{name}.json"
        if path.is_file():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise OutputError(f"{path} cannot be read: {error}; make it again") from error
            if not isinstance(content, dict) or not str(content.get("schema", "")).startswith("gbistat."):
                raise OutputError(f"{path} is no result of gbistat: it has no schema; remove it")
            found[name] = content
    if not found:
        raise OutputError(
            f"{directory} holds none of {', '.join(f'{name}.json' for name in DOCUMENTS)}: nothing to report"
        )
    return found


def _results(verb: str, document: Json | None) -> list[Json]:
    entries = []
    for entry in (document or {}).get("results", []):
        rows = entry.get("rows") or [entry]
        fit = entry.get("fit") or rows[0].get("fit") or {}
        entries.append(
            {
                "verb": verb,
                "window": entry.get("window") or [None, None],
                "n_events": entry.get("n_events"),
                "parameters": list(fit.items()),
                "limit": rows[0].get("limit"),
                "significance": rows[0].get("significance"),
                "warnings": entry.get("warnings") or [],
            }
        )
    return entries


def _provenance(documents: dict[str, Json]) -> list[tuple[str, str]]:
    rows = [("gbistat that wrote this page", __version__)]
    for name, content in documents.items():
        model, events = content.get("model") or {}, content.get("events") or {}
        rows.append((f"{name}: schema", str(content["schema"])))
        if content.get("version"):
            rows.append((f"{name}: version", str(content["version"])))
        rows.append((f"{name}: model", f"{model.get('name')} sha256 {model.get('sha256')}"))
        if events.get("path"):
            rows.append((f"{name}: events", str(events["path"])))
        rows += [(f"{name}: {key}", str(value)) for key, value in (content.get("settings") or {}).items()]
    return rows


def _inline(path: Path) -> str:
    return f"data:{TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def _caption(stem: str) -> str:
    if stem.startswith("slices_"):
        return f"{stem.removeprefix('slices_')}: all events, and those of the largest and the smallest weights."
    if stem.startswith("signal_") and stem not in CAPTIONS:
        return f"{stem.removeprefix('signal_')} of the signal that was found: data weighted with purity, and draws from the networks."
    if stem.startswith("closure_"):
        return f"{stem.removeprefix('closure_')}: do reweighted generated events look like data."
    return CAPTIONS.get(stem, stem.replace("_", " "))


def _order(path: Path) -> tuple[int, str]:
    """Limits first, then diagnostics in the order of the captions."""
    order = ["spectrum", "profile", "cls", "comparison", *CAPTIONS]
    return (order.index(path.stem) if path.stem in order else len(order), path.name)


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "" if value is None else str(value)
    if isinstance(value, int):
        return str(value)
    return f"{value:.4g}" if math.isfinite(value) else "?"


def _null(value: Any) -> str:
    if not isinstance(value, dict):
        return ""
    parts = [f"{_number(value['mean'])}"] if value.get("mean") is not None else []
    parts += [f"± {_number(value[key])}" for key in ("std", "error") if value.get(key) is not None]
    if value.get("ndf") is not None:
        parts.append(f"{value['ndf']:.1f} dof")
    if value.get("truth_vs_truth") is not None:
        parts.append(f"(truth: {_number(value['truth_vs_truth'])})")
    return " ".join(parts)
