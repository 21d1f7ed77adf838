"""The checks of a generator in one call: what an exported background says about itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.data.transforms import FeatureTransform
from gbistat.errors import EventsError, OutputError
from gbistat.terms.generator_quality import GeneratorQuality
from gbistat.training.background_card import load_background_card
from gbistat.training.generator_checks import likelihood_bins, normalisation, region_test
from gbistat.training.run import run_kind
from gbistat.training.sigma_card import load_sigma_card
from gbistat.training.splits import read_sample

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from gbistat.data.events import Events
    from gbistat.terms.generator import GeneratorTerm
    from gbistat.terms.generator_quality import RegionTest
    from gbistat.terms.protocols import ConditionalDensity
    from gbistat.training.two_sample import TwoSampleOptions
    from gbistat.typing import FloatArray

    Blind: TypeAlias = Callable[[tuple[float, float]], tuple[ConditionalDensity, bool]]

__all__ = ["FEWEST", "CheckOptions", "check_generator", "held_out_events", "pseudo_windows"]

FEWEST = 500
"""Held-out events that a region needs to be tested."""


@dataclass(frozen=True)
class CheckOptions:
    """How much is spent on the checks.

    Parameters
    ----------
    n_integrals : int
        Masses at which the density is integrated.
    n_points : int
        Points of each integral.
    n_bins : int
        Bins of the mass, of equal numbers of events, for the likelihood.
    largest : int
        Most events of a two-sample test.
    tests : TwoSampleOptions or None
        Classifier.
    """

    n_integrals: int = 5
    n_points: int = 32_768
    n_bins: int = 8
    largest: int = 40_000
    tests: TwoSampleOptions | None = None


def check_generator(
    blind: Blind,
    held_out: FloatArray,
    names: Sequence[str],
    *,
    window: tuple[float, float],
    unit: str,
    bounds: Sequence[tuple[float | None, float | None]],
    rng: np.random.Generator,
    truth: FloatArray | None = None,
    options: CheckOptions | None = None,
) -> GeneratorQuality:
    """Normalisation, likelihood, and two-sample tests in sidebands, pseudo-windows and, for simulation, the signal region.

    Parameters
    ----------
    blind : callable
        The generator for a window, and whether it saw no event of that window in training; a sideband flow gives itself for
        every window, a SIGMA model interpolates any.
    held_out : array of shape (n, 1 + d)
        Mass and features of sideband events that trained nothing.
    names : sequence of str
        Names of the mass and of the d features.
    window : (float, float)
        Signal region.
    unit : str
        Unit of the mass.
    bounds : sequence of (float or None, float or None)
        Ends of the generator's range of each feature.
    rng : numpy.random.Generator
        Samples and classifiers.
    truth : array of shape (n, 1 + d), optional
        True background in the signal region: simulation only.
    options : CheckOptions, optional
        How much is spent.

    Raises
    ------
    EventsError
        If there are too few held-out events.
    """
    options = options or CheckOptions()
    if len(held_out) < FEWEST:
        raise EventsError(f"{len(held_out)} held-out events are too few to check a generator; keep {FEWEST} or more")
    density, _ = blind(window)
    mass, x = held_out[:, 0], held_out[:, 1:]
    transform = FeatureTransform.fit(x, names[1:], margin=0.1, bounds=bounds)
    central = np.quantile(mass, np.linspace(0.02, 0.98, options.n_integrals - 1))
    masses = np.sort(np.r_[central, 0.5 * (window[0] + window[1])])
    log_prob = density.log_prob(x, mass)
    edges = np.unique(np.quantile(mass, np.linspace(0.0, 1.0, options.n_bins + 1)))
    edges[-1] = np.nextafter(edges[-1], np.inf)

    def test(kind: str, span: tuple[float, float], events: FloatArray) -> RegionTest:
        chosen, blinded = blind(span) if kind == "pseudo-window" else (density, kind == "signal region")
        some = events[rng.permutation(len(events))[: options.largest]]
        return region_test(
            chosen,
            some[:, 1:],
            some[:, 0],
            kind=kind,  # type: ignore[arg-type]
            edges=span,
            blinded=blinded,
            rng=rng,
            options=options.tests,
        )

    regions = [test("sidebands", (float(edges[0]), float(edges[-1])), held_out)]
    if truth is not None and len(truth) >= FEWEST:
        regions.append(test("signal region", window, truth))
    for span in pseudo_windows(window, (float(edges[0]), float(edges[-1]))):
        inside = held_out[(mass >= span[0]) & (mass < span[1])]
        if len(inside) >= FEWEST:
            regions.append(test("pseudo-window", span, inside))
    return GeneratorQuality(
        names[0],
        unit,
        window,
        tuple(
            normalisation(density, float(m), rng=rng, transform=transform, n_points=options.n_points) for m in masses
        ),
        likelihood_bins(log_prob, mass, edges.tolist()),
        tuple(regions),
    )


def pseudo_windows(window: tuple[float, float], span: tuple[float, float]) -> tuple[tuple[float, float], ...]:
    """Windows of the same relative width inside the sidebands, a quarter of a width apart from the window and each other.

    Examples
    --------
    >>> [(round(a), round(b)) for a, b in pseudo_windows((3300.0, 3700.0), (2400.0, 5200.0))]
    [(2479, 2780), (2860, 3207), (3807, 4269), (4393, 4925)]
    """
    ratio = window[1] / window[0]
    gap = ratio**0.25
    found: list[tuple[float, float]] = []
    low, high = window[0] / gap / ratio, window[0] / gap
    while low >= span[0] and len(found) < 2:
        found.append((low, high))
        low, high = low / gap / ratio, low / gap
    found.reverse()
    low, high = window[1] * gap, window[1] * gap * ratio
    above = 0
    while high <= span[1] and above < 2:
        found.append((low, high))
        low, high, above = high * gap, high * gap * ratio, above + 1
    return tuple(found)


def held_out_events(
    run: str | Path, generator: GeneratorTerm, events: str | Path | None
) -> tuple[FloatArray, FloatArray | None, Events | None]:
    """Events of a run that trained nothing, inside the range of its generator.

    Parameters
    ----------
    run : path
        Folder of a background or SIGMA training.
    generator : GeneratorTerm
        What was exported from it.
    events : path, optional
        Folder of the file of events, if they are simulated background.

    Returns
    -------
    (array of shape (n, 1 + d), array or None, Events or None)
        Sideband events, the signal region, and the whole spectrum; the last two only with `events`.

    Raises
    ------
    OutputError
        If the run is damaged.
    EventsError
        If the events do not fit the card.
    """
    folder = Path(run)
    load = load_sigma_card if run_kind(folder) == "sigma" else load_background_card
    card: Any = load(folder / "card.yaml")
    try:
        with np.load(folder / "held_out.npz", allow_pickle=False) as arrays:
            kept: FloatArray = arrays["background"]
    except (OSError, ValueError, KeyError, EOFError) as problem:
        raise OutputError(
            f"{folder / 'held_out.npz'} cannot be read ({problem}); train again in a new folder"
        ) from None

    def inside(x: FloatArray) -> FloatArray:
        low, high = generator.metadata.mass.bounds
        chosen: FloatArray = x[(x[:, 0] >= low) & (x[:, 0] <= high) & generator.inside(x[:, 1:])]
        return chosen

    side = inside(kept[(kept[:, 0] < card.window[0]) | (kept[:, 0] >= card.window[1])])
    if events is None:
        return side, None, None
    spectrum = read_sample(events, card.background, card).part("reference")
    x = inside(spectrum.matrix(card.names))
    return side, x[(x[:, 0] >= card.window[0]) & (x[:, 0] < card.window[1])], spectrum
