"""An exactly known background, a signal of unknown density, and a quick learner of it that stands for a flow.

Background: exponential mass on a window and two features; in the normal scores of their distribution functions, which is
how events are written here, exactly N(0, 1) in three dimensions. Signal: a narrow Gaussian off the centre. The learner fits
``(1 - w) p_b + w N(mean, covariance)`` by expectation maximisation from the places where events are in excess: no knowledge
of where or how wide the signal is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

D = 3
N_EVENTS = 10_000
MEAN = np.array([0.0, 1.3, 1.3])
WIDTH = 0.3
FOLDS = 5
MEMBERS = 2
LOG_2PI = np.log(2.0 * np.pi)


def draw(n_signal: float, rng: np.random.Generator, n: float = N_EVENTS) -> tuple[np.ndarray, np.ndarray]:
    """Events in Poisson numbers, shuffled, and their labels."""
    s, b = rng.poisson(n_signal), rng.poisson(n - n_signal)
    x = np.vstack([MEAN + WIDTH * rng.standard_normal((s, D)), rng.standard_normal((b, D))])
    label = np.r_[np.ones(s, bool), np.zeros(b, bool)]
    order = rng.permutation(s + b)
    return x[order], label[order]


def log_background(x: np.ndarray) -> np.ndarray:
    return -0.5 * (x**2).sum(axis=1) - 0.5 * D * LOG_2PI


def true_log_ratio(x: np.ndarray) -> np.ndarray:
    return Gaussian(MEAN, WIDTH**2 * np.eye(D)).log_prob(x) - log_background(x)


@dataclass(frozen=True)
class Gaussian:
    mean: np.ndarray
    covariance: np.ndarray

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        lower = np.linalg.cholesky(self.covariance)
        z = np.linalg.solve(lower, (x - self.mean).T)
        return -0.5 * (z**2).sum(axis=0) - np.log(np.diag(lower)).sum() - 0.5 * D * LOG_2PI

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return self.mean + rng.standard_normal((n, D)) @ np.linalg.cholesky(self.covariance).T


@dataclass(frozen=True)
class Learned:
    """Members with their fractions."""

    members: tuple[Gaussian, ...]
    fractions: tuple[float, ...]

    def log_ratio(self, x: np.ndarray) -> np.ndarray:
        b = log_background(x)
        return np.stack([member.log_prob(x) - b for member in self.members])

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        parts = np.array_split(np.arange(n), len(self.members))
        return np.vstack([m.sample(len(p), rng) for m, p in zip(self.members, parts, strict=True)])


def learn(x: np.ndarray, rng: np.random.Generator, members: int = MEMBERS) -> Learned:
    """An ensemble: each member begins elsewhere and sees nine tenths of the training events."""
    found = [_fit(x[rng.random(len(x)) < 0.9], rng) for _ in range(members)]
    return Learned(tuple(f[0] for f in found), tuple(f[1] for f in found))


def _fit(x: np.ndarray, rng: np.random.Generator) -> tuple[Gaussian, float]:
    b = log_background(x)
    best: tuple[float, Gaussian, float] | None = None
    for mean in _starts(x, b, rng):
        state = (Gaussian(mean, 0.16 * np.eye(D)), 0.003)
        near = np.flatnonzero(((x - mean) ** 2).sum(axis=1) < 3.0)
        state = em(x[near], b[near], *state, steps=15, total=len(x))
        state = em(x, b, *state, steps=3)
        gain = float(np.log1p(state[1] * np.expm1(state[0].log_prob(x) - b)).sum())
        if best is None or gain > best[0]:
            best = (gain, *state)
    assert best is not None
    return em(x, b, best[1], best[2], steps=20)


def _starts(x: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where a kernel of width 0.35 finds the largest excess, in units of its error."""
    h = 0.35
    centres = x[rng.choice(len(x), min(len(x), 250), replace=False)]
    squares = ((x[:, None, :] - centres[None]) ** 2).sum(axis=-1)
    kernel = np.exp(-0.5 * squares / h**2)
    norm = (h**2 / (1 + h**2)) ** (D / 2)
    expected = len(x) * norm * np.exp(-0.5 * (centres**2).sum(axis=1) / (1 + h**2))
    excess = (kernel.sum(axis=0) - 1.0 - expected) / np.sqrt(expected + 1.0)
    chosen: list[int] = []
    for k in np.argsort(-excess):
        if all(((centres[k] - centres[j]) ** 2).sum() > 0.5 for j in chosen):
            chosen.append(int(k))
        if len(chosen) == 4:
            break
    return centres[chosen]


def em(
    x: np.ndarray,
    b: np.ndarray,
    g: Gaussian,
    w: float,
    *,
    steps: int,
    total: int | None = None,
    hold: float | None = None,
) -> tuple[Gaussian, float]:
    """Expectation maximisation; the covariance is shrunk as if by ten events of width 0.3."""
    n = len(x) if total is None else total
    for _ in range(steps):
        log_r = g.log_prob(x) - b
        share = w * np.exp(log_r) / (1.0 - w + w * np.exp(log_r))
        size = float(share.sum())
        if size < 1.0:
            break
        mean = share @ x / size
        z = x - mean
        covariance = ((z * share[:, None]).T @ z + 10.0 * 0.09 * np.eye(D)) / (size + 10.0)
        g, w = Gaussian(mean, covariance), (min(max(size / n, 1e-4), 0.2) if hold is None else hold)
    return g, w


def supervised_q0(x: np.ndarray) -> float:
    """Discovery statistic with the true signal density."""
    return float(_q0(np.expm1(true_log_ratio(x))[None])[0])


def searched_q0(x: np.ndarray) -> float:
    """Largest q0 of signals of known widths and mass but unknown means of both features: what a search over two masses does."""
    grid = np.arange(-2.4, 2.5, 0.3)
    near = x[np.abs(x[:, 0] - MEAN[0]) < 4 * WIDTH]
    rest = len(x) - len(near)
    best = 0.0
    base = -0.5 * ((near[:, 0] - MEAN[0]) / WIDTH) ** 2 + 0.5 * near[:, 0] ** 2 - np.log(WIDTH)
    one = [-0.5 * ((near[:, [j]] - grid) / WIDTH) ** 2 + 0.5 * near[:, [j]] ** 2 - np.log(WIDTH) for j in (1, 2)]
    for k in range(grid.size):
        excess = np.expm1(base[None] + one[0][:, k][None] + one[1].T)
        best = max(best, float(_q0(excess, rest).max()))
    return best


def _q0(excess: np.ndarray, rest: int = 0) -> np.ndarray:
    """2 max over w >= 0 of sum ln(1 + w (r - 1)) for rows of r - 1; `rest` further events have r = 0."""
    w = np.full(len(excess), 1e-3)
    for _ in range(25):
        score = excess / (1.0 + w[:, None] * excess)
        slope = score.sum(axis=1) - rest / (1.0 - w)
        curvature = (score**2).sum(axis=1) + rest / (1.0 - w) ** 2
        w = np.clip(w + slope / curvature, 1e-7, np.minimum(10.0 * w, 0.5))
    return 2.0 * np.maximum(np.log1p(w[:, None] * excess).sum(axis=1) + rest * np.log1p(-w), 0.0)


def rule_interval(
    x: np.ndarray, folds: np.ndarray, net: Learned, drop: float = float(np.log(2.0))
) -> tuple[float, float]:
    """Interval of the rule "ln L within ln 2 of its maximum" from one test fold and a training at each of 15 fractions."""
    train, test = x[folds != 0], x[folds == 0]
    b_train, b_test = log_background(train), log_background(test)
    grid = np.geomspace(1e-5, 0.1, 15)
    values = []
    for w in grid:
        ratios = []
        for member in net.members:
            g, _ = em(train, b_train, member, float(w), steps=8, hold=float(w))
            ratios.append(g.log_prob(test) - b_test)
        mixed = logsumexp(ratios, axis=0) - np.log(len(ratios))
        values.append(float(np.log1p(w * np.expm1(mixed)).sum()))
    level, log_w, best = max(values) - drop, np.log(grid), int(np.argmax(values))
    low, high = 0.0, 1.0
    for k in range(best, 0, -1):
        if values[k - 1] < level:
            low = float(np.exp(np.interp(level, [values[k - 1], values[k]], log_w[k - 1 : k + 1])))
            break
    for k in range(best, len(grid) - 1):
        if values[k + 1] < level:
            high = float(np.exp(np.interp(-level, [-values[k], -values[k + 1]], log_w[k : k + 2])))
            break
    return low, high
