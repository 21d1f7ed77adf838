"""Check the document that ``gbistat limits --json -`` prints on standard output, as a program would read it."""

from __future__ import annotations

import json
import sys

document = json.load(sys.stdin)
if document["schema"] != "gbistat.limits/1" or not document["model"]["sha256"]:
    raise SystemExit(f"unexpected head: {document['schema']}, {document['model']}")
(result,) = document["results"]
mu = result["fit"]["mu"]
(low, high), *_ = mu["intervals"]["0.95"]
expected = result["limit"]["expected"]
if not low < mu["value"] < high or sorted(expected) != expected or len(expected) != 5:
    raise SystemExit(f"numbers out of order: {mu}, {result['limit']}")
if not result["binned"]["limit"]["observed"] > 0 or result["significance"]["z_local"] < 0:
    raise SystemExit(f"no cross-check: {result['binned']}")
sys.stdout.write(f"ok: mu = {mu['value']:.2f}, limit {result['limit']['observed']:.2f}\n")
