"""Classifiers that tell data from generated events, each asked only about events that it did not see.

Two ways: `cross_fit` asks about every event, by classifiers trained on all other folds; `forward_fit` trains on the folds before. Only
the second has p-values from permuted labels. In a cross-fit a fluctuation of one fold is learned and found again in the
others, and theirs in it: the statistics of the folds go up and down together, and labels permuted under frozen scores do not know
(p < 0.05 in a fifth of samples that are alike). Forward, the scores of a fold depend on earlier folds alone.

The quick one is an ensemble of gradient-boosted trees; the other one is the network of arXiv:2305.16774, Table 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gbistat import extras
from gbistat.errors import EventsError, OptionError
from gbistat.training.classifier_network import NetworkOptions, train_network

if TYPE_CHECKING:
    from gbistat.typing import BoolArray, FloatArray, IntArray

__all__ = ["ClassifierOptions", "CrossFit", "ForwardFit", "cross_fit", "forward_fit", "train_once"]


@dataclass(frozen=True)
class ClassifierOptions:
    """Which classifier, and how many of it.

    Parameters
    ----------
    kind : {"trees", "network"}
        Gradient-boosted trees (scikit-learn) or a network (Keras).
    members : int
        Classifiers of an ensemble, each with its own seed; their probabilities are averaged.
    leaves, smallest_leaf, learning_rate, trees
        Of the boosted trees; at most so many.
    validation, patience : float, int
        Share of the training events that stops the boosting, after so many trees without a gain on them.
    network : NetworkOptions
        Of the network.
    """

    kind: Literal["trees", "network"] = "trees"
    members: int = 3
    leaves: int = 8
    smallest_leaf: int = 200
    learning_rate: float = 0.05
    trees: int = 300
    validation: float = 0.1
    patience: int = 10
    network: NetworkOptions = field(default_factory=NetworkOptions)

    def __post_init__(self) -> None:
        if self.kind not in ("trees", "network"):
            raise OptionError(f"no classifier {self.kind!r}; take 'trees' or 'network'")
        if min(self.members, self.trees, self.smallest_leaf, self.patience) < 1 or self.leaves < 2:
            raise OptionError(f"{self}: sizes must be positive and leaves at least 2")
        if not (self.learning_rate > 0 and 0 < self.validation < 1):
            raise OptionError(
                f"{self}: the learning rate must be positive and the share that validates between 0 and 1"
            )


@dataclass(frozen=True, eq=False)
class CrossFit:
    """Outputs of cross-fitted classifiers.

    Parameters
    ----------
    logit : array of shape (n,)
        Logit of the mean probability of the members that did not see an event.
    member_logit : array of shape (members, n)
        Logit of each of them.
    fold : int array of shape (n,)
        Which classifiers these are.
    train_rows, train_fold, train_logit : arrays of shape (n (folds - 1),)
        Events that trained, the fold whose classifiers they trained, and what these say about them.
    """

    logit: FloatArray
    member_logit: FloatArray
    fold: IntArray
    train_rows: IntArray
    train_fold: IntArray
    train_logit: FloatArray


def cross_fit(
    inputs: FloatArray,
    is_data: BoolArray,
    fold: IntArray,
    *,
    rng: np.random.Generator,
    options: ClassifierOptions | None = None,
) -> CrossFit:
    """Train on all folds but one and ask about that one, for every fold.

    Parameters
    ----------
    inputs : array of shape (n, d)
        Features, finite.
    is_data : bool array of shape (n,)
        Labels; the classes count equally in the training, whatever their numbers.
    fold : int array of shape (n,)
        Folds, two or more.
    rng : numpy.random.Generator
        Seeds of the members.
    options : ClassifierOptions, optional
        Which classifier.

    Raises
    ------
    EventsError
        If shapes do not fit, a value is not finite, or a class is missing or tiny.
    OptionError
        If there are fewer than two folds.
    MissingExtra
        If scikit-learn, or Keras, is not installed.
    """
    found = _fit_folds(inputs, is_data, fold, earlier=False, rng=rng, options=options or ClassifierOptions())
    return CrossFit(found.logit, found.member_logit, found.fold, found.train_rows, found.train_fold, found.train_logit)


@dataclass(frozen=True, eq=False)
class ForwardFit:
    """Outputs of classifiers that were trained on earlier folds.

    Parameters
    ----------
    rows : int array of shape (m,)
        Events that were asked about: all but those of the first fold, in their order.
    logit : array of shape (m,)
        Logit of the mean probability of the members.
    member_logit : array of shape (members, m)
        Logit of each of them.
    fold : int array of shape (m,)
        Folds of these events.
    train_rows, train_fold, train_logit : arrays of shape (t,)
        Events that trained, the fold that their classifiers were asked about, and what these say about them.
    """

    rows: IntArray
    logit: FloatArray
    member_logit: FloatArray
    fold: IntArray
    train_rows: IntArray
    train_fold: IntArray
    train_logit: FloatArray


def forward_fit(
    inputs: FloatArray,
    is_data: BoolArray,
    fold: IntArray,
    *,
    rng: np.random.Generator,
    options: ClassifierOptions | None = None,
) -> ForwardFit:
    """Train on the folds before one and ask about that one, for every fold but the first.

    Parameters
    ----------
    inputs, is_data, fold, rng, options
        As for `cross_fit`; folds are taken in the order of their numbers.

    Raises
    ------
    EventsError, OptionError, MissingExtra
        As for `cross_fit`.

    Notes
    -----
    Labels are exchangeable within a fold whatever came before, so that the statistics of the folds are uncorrelated where nothing
    is to be found, and labels permuted under frozen scores have their width.
    """
    return _fit_folds(inputs, is_data, fold, earlier=True, rng=rng, options=options or ClassifierOptions())


def _fit_folds(
    inputs: FloatArray,
    is_data: BoolArray,
    fold: IntArray,
    *,
    earlier: bool,
    rng: np.random.Generator,
    options: ClassifierOptions,
) -> ForwardFit:
    """Train on the other folds, or on the earlier ones, and ask about each that has some."""
    x, folds = _checked(inputs, is_data, fold)
    members = np.full((options.members, len(x)), np.nan)
    rows, of_fold, logits = [], [], []
    for k in folds[1:] if earlier else folds:
        train, test = np.flatnonzero(fold < k if earlier else fold != k), np.flatnonzero(fold == k)
        outputs = train_once(x[train], is_data[train], np.concatenate([x[test], x[train]]), rng=rng, options=options)
        members[:, test] = outputs[:, : test.size]
        rows.append(train)
        of_fold.append(np.full(train.size, k))
        logits.append(_mean_logit(outputs[:, test.size :]))
    asked = np.flatnonzero(fold > folds[0]) if earlier else np.arange(len(x))
    return ForwardFit(
        asked,
        _mean_logit(members[:, asked]),
        members[:, asked],
        np.asarray(fold, dtype=np.int64)[asked],
        np.concatenate(rows),
        np.concatenate(of_fold),
        np.concatenate(logits),
    )


def _checked(inputs: FloatArray, is_data: BoolArray, fold: IntArray) -> tuple[FloatArray, IntArray]:
    """Inputs as floats, and the folds in order."""
    x = np.asarray(inputs, dtype=np.float64)
    if x.ndim != 2 or is_data.shape != (len(x),) or fold.shape != (len(x),):
        raise EventsError(f"inputs {x.shape}, labels {is_data.shape} and folds {fold.shape} do not fit")
    bad = int(np.sum(~np.isfinite(x).all(axis=1)))
    if bad:
        raise EventsError(f"{bad} of {len(x)} events have NaN or infinite features; remove these events")
    folds = np.unique(fold)
    if folds.size < 2:
        raise OptionError("one fold leaves no events to train on; give two or more")
    return x, folds


def train_once(
    inputs: FloatArray,
    is_data: BoolArray,
    ask: FloatArray,
    *,
    rng: np.random.Generator,
    options: ClassifierOptions | None = None,
) -> FloatArray:
    """Train an ensemble on some events and ask it about others.

    Parameters
    ----------
    inputs, is_data : arrays of shape (n, d), (n,)
        Training events; the classes get equal total weight.
    ask : array of shape (m, d)
        Events to ask about.
    rng : numpy.random.Generator
        Seeds.
    options : ClassifierOptions, optional
        Which classifier.

    Returns
    -------
    array of shape (members, m)
        Logits, for equal priors.

    Raises
    ------
    EventsError
        If a class has fewer than 20 training events.
    """
    options = options or ClassifierOptions()
    n_data = int(is_data.sum())
    if min(n_data, is_data.size - n_data) < 20:
        raise EventsError(
            f"{n_data} data and {is_data.size - n_data} generated events are too few to train on; 20 of each"
        )
    weights = np.where(is_data, 0.5 * is_data.size / n_data, 0.5 * is_data.size / (is_data.size - n_data))
    seeds = rng.integers(2**31 - 1, size=options.members)
    if options.kind == "network":
        return train_network(inputs, is_data, weights, ask, seeds=[int(s) for s in seeds], options=options.network)
    return np.stack([_trees(options, int(seed)).fit(inputs, is_data, weights).decision_function(ask) for seed in seeds])


def _trees(options: ClassifierOptions, seed: int) -> Any:
    return extras.sklearn_ensemble().HistGradientBoostingClassifier(
        max_iter=options.trees,
        learning_rate=options.learning_rate,
        max_leaf_nodes=options.leaves,
        min_samples_leaf=options.smallest_leaf,
        early_stopping=True,
        validation_fraction=options.validation,
        n_iter_no_change=options.patience,
        random_state=seed,
    )


def _mean_logit(members: FloatArray) -> FloatArray:
    """Logit of the mean probability, without ever forming one that saturates."""
    log_yes = np.logaddexp.reduce(-np.logaddexp(0.0, -members), axis=0)
    log_no = np.logaddexp.reduce(-np.logaddexp(0.0, members), axis=0)
    result: FloatArray = log_yes - log_no
    return result
