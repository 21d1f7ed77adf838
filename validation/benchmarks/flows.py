"""Time of one epoch of the generator's training against zuko, a public PyTorch package of flows, same architecture.

    python validation/benchmarks/flows.py --peer PYTHON [--quick]

PYTHON is the interpreter of an environment with zuko and torch (``pip install zuko``); without one the study says so and stops.
Both train the flow of the shipped card (masked autoregressive, rational-quadratic splines) on as many events with Adam and
the same batches, each compiled or not as its package does by itself. zuko runs twice, with one thread and with as many as there are
cores, and the faster counts. Epochs alternate, so that a busy machine slows all alike; what is compared is the median. Seconds of
processor time stand beside.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
CARD = HERE.parents[1] / "models" / "dijet-background" / "card.yaml"
N_EVENTS = 88_576
LARGEST_RATIO = 1.0
LARGEST_SECONDS = 10.0

PEER = """
import json, sys, time
import torch, zuko
request = json.loads(sys.stdin.readline())
torch.manual_seed(1)
torch.set_num_threads(request["threads"])
flow = zuko.flows.NSF(
    features=request["features"], context=1, bins=request["bins"], transforms=request["layers"],
    hidden_features=tuple(request["hidden"]), activation=torch.nn.SiLU,
)
optimiser = torch.optim.Adam(flow.parameters(), lr=request["rate"])
x = torch.randn(request["n"], request["features"] + 1)
versions = {"zuko": zuko.__version__ if hasattr(zuko, "__version__") else "?", "torch": torch.__version__}
print(json.dumps({"parameters": sum(p.numel() for p in flow.parameters()), **versions}), flush=True)
for line in sys.stdin:
    begin, cpu = time.perf_counter(), time.process_time()
    for batch in x[torch.randperm(len(x))].split(request["batch"]):
        loss = -flow(batch[:, :1]).log_prob(batch[:, 1:]).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
        optimiser.step()
    print(json.dumps([time.perf_counter() - begin, time.process_time() - cpu]), flush=True)
"""


class Peer:
    """zuko in a process of its own, which trains one epoch whenever it is told."""

    def __init__(self, interpreter: Path, request: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [str(interpreter), "-c", PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.about = json.loads(self._ask(json.dumps(request)))

    def epoch(self) -> tuple[float, float]:
        wall, cpu = json.loads(self._ask("go"))
        return wall, cpu

    def _ask(self, line: str) -> str:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("the peer stopped; is zuko installed in its environment?")
        return answer

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def ours(card: Any, n: int) -> Any:
    """Function that trains one epoch and returns its seconds, of the clock and of processors."""
    from gbistat.data.transforms import FeatureTransform
    from gbistat.training.flow import FlowScaling, build_flow, compile_flow

    d = len(card.features)
    ones = np.ones(d)
    scaling = FlowScaling(FeatureTransform(card.features, 0 * ones, ones, 0 * ones, ones), 8.0, 0.3)
    flow = build_flow(card.flow, scaling, entropy=[1])
    compile_flow(flow, card.optimiser)
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(n, d))
    x = np.column_stack([np.exp(rng.normal(8.0, 0.3, n)), 1.0 / (1.0 + np.exp(-logits))]).astype(np.float32)
    zeros = np.zeros((n, 1), np.float32)

    def epoch() -> tuple[float, float]:
        begin, cpu = time.perf_counter(), time.process_time()
        order = rng.permutation(n)
        flow.density.fit(x[order], zeros, batch_size=card.optimiser.batch_size, epochs=1, shuffle=False, verbose=0)
        return time.perf_counter() - begin, time.process_time() - cpu

    return epoch


def evaluation_seconds(n: int) -> tuple[float, float]:
    """CPU seconds that the shipped generator takes for ln p of n events, and for drawing them, all members, one core."""
    from gbistat.terms.generator import GeneratorTerm
    from gbistat.terms.store import load_model

    model = load_model("dijet-background")
    generator = GeneratorTerm(model.terms[model.spec.background.features])
    rng = np.random.default_rng(2)
    mass = rng.uniform(3300.0, 3700.0, n)
    features = generator.sample(mass[:1000], rng=rng)
    generator.log_prob(features, mass[:1000])
    begin = time.process_time()
    features = generator.sample(mass, rng=rng)
    middle = time.process_time()
    generator.log_prob(features, mass)
    return time.process_time() - middle, middle - begin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="Python interpreter of an environment with zuko")
    parser.add_argument("--threads", type=int, nargs="*", help="threads of zuko  [default: 1, and all cores]")
    parser.add_argument("--quick", action="store_true", help="fewer events and epochs; no verdict on the ratio")
    options = parser.parse_args()
    density, drawing = evaluation_seconds(100_000)
    fast = density <= LARGEST_SECONDS
    print(
        f"exported ensemble, 100,000 events on one core: ln p in {density:.1f} s (at most {LARGEST_SECONDS:g}), drawn in "
        f"{drawing:.1f} s: {'PASS' if fast else 'FAIL'}"
    )
    if options.peer is None:
        print("no --peer given: the comparison with zuko is skipped")
        return 0 if fast else 1
    from gbistat.training.background_card import load_background_card

    card = load_background_card(CARD)
    n, epochs = (10_240, 2) if options.quick else (N_EVENTS, 3)
    request = {
        "n": n,
        "features": len(card.features),
        "bins": card.flow.bins,
        "layers": card.flow.layers,
        "hidden": card.flow.hidden,
        "batch": card.optimiser.batch_size,
        "rate": card.optimiser.learning_rate,
    }
    counts = options.threads or sorted({1, os.cpu_count() or 1})
    names = {f"zuko, {threads} thread(s)": threads for threads in counts}
    peers = {name: Peer(options.peer, {**request, "threads": threads}) for name, threads in names.items()}
    epoch = ours(card, n)
    begin, _ = epoch()
    runs = {"gbistat": epoch, **{name: peer.epoch for name, peer in peers.items()}}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for number in range(epochs + 1):
        for name, run in runs.items():
            seconds = run()
            if number:  # the first warms up
                times[name].append(seconds)
    about = next(iter(peers.values())).about
    for peer in peers.values():
        peer.close()
    median = {name: statistics.median(wall for wall, _ in values) for name, values in times.items()}
    ratio = median["gbistat"] / min(median[name] for name in peers)
    print(
        f"{platform.processor() or platform.machine()}, {n} events, batches of {card.optimiser.batch_size}; peer {about}"
    )
    print(f"first epoch of gbistat, compilation included: {begin:.1f} s")
    for name, values in times.items():
        walls, cpus = zip(*values, strict=True)
        spread = f"({min(walls):.2f} to {max(walls):.2f})"
        print(f"{name:18s} {median[name]:.2f} s an epoch {spread}, {statistics.median(cpus):.2f} s of processors")
    good = ratio <= LARGEST_RATIO
    print(f"gbistat / zuko = {ratio:.2f} (at most {LARGEST_RATIO:g}): {'PASS' if good else 'FAIL'}")
    return 0 if fast and (good or options.quick) else 1


if __name__ == "__main__":
    sys.exit(main())
