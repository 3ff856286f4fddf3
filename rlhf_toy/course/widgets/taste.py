"""A taste fitted to a few dozen answers: Bradley–Terry on readable features, with its uncertainty.

A network needs thousands of preferences, but a person gives about forty. So few answers can
determine only a handful of weights: the worth of a word of praise, a complaint, a "very", one word
more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from rlhf_toy.annotators import Annotator
from rlhf_toy.checks import check_positive, shown
from rlhf_toy.course.widgets.parts import panels
from rlhf_toy.envs import WordMDP, WordSpec
from rlhf_toy.plots import COLOUR, MARKERS

MARGINS = {"left": 0.2, "right": 0.985, "top": 0.87, "bottom": 0.15, "wspace": 0.17}
PRIOR_SD = 1.0  # logits; the prior's standard deviation of every weight
Z95 = 1.96  # standard deviations on either side of a 95 % interval


def adjective_groups(spec: WordSpec) -> dict[str, tuple[str, ...]]:
    """The adjectives of praise and of complaint, and the neutral ones, where the prompt decides."""
    return {
        "praise": tuple(word for word, worth in spec.adjectives if worth > 0),
        "complaint": tuple(word for word, worth in spec.adjectives if worth < 0),
        "neutral": tuple(word for word, worth in spec.adjectives if worth == 0),
    }


def feature_names(world: WordMDP) -> tuple[str, ...]:
    """The F features that `response_features` counts, named with the words of this world."""
    spec = world.world_spec
    negation, intensifier = ("/".join(dict(t)) for t in (spec.negations, spec.intensifiers))
    return (
        *("praise", f"{negation} + praise", f"{intensifier} + praise"),
        *("complaint", f"{negation} + complaint", f"{intensifier} + complaint"),
        *adjective_groups(spec)["neutral"],
        *("each word", "said twice", "bad grammar"),
    )


def response_features(world: WordMDP, responses: Tensor) -> np.ndarray:
    """Count the features of `feature_names` in each review; the prompt plays no part.

    A word of praise or complaint after a negation counts as "not + …". Without a negation it counts
    as praise or complaint and, if it is intensified, also as "very + …". Neutral adjectives count
    1, or −1 after a negation. "Each word" is the number of words, "said twice" the number of
    repeated adjectives, "bad grammar" the number of words that may not follow the word before them,
    plus 1 if the review may not end where it does.

    Args:
        world: the world that the words belong to.
        responses: [B, T] token ids.

    Returns:
        [B, F] counts, float64.
    """
    is_word = world.response_mask(responses) & (responses < world.n_words)
    counts = [
        _count(world.world_spec, tokens[:n])
        for tokens, n in zip(responses.tolist(), is_word.sum(1).tolist(), strict=True)
    ]
    return np.array(counts, dtype=float)


def _count(spec: WordSpec, tokens: list[int]) -> list[int]:
    """The features of one review, by the world's own rules for negations and intensifiers."""
    group_of = {word: name for name, words in adjective_groups(spec).items() for word in words}
    follows = dict(spec.grammar)
    plain, negative, intense = ({"praise": 0, "complaint": 0} for _ in range(3))
    neutral = {word: 0 for word, group in group_of.items() if group == "neutral"}
    before, negated, intensified, said, twice, slips = "start", False, False, set(), 0, 0
    for token in tokens:
        word, kind = spec.words[token], spec.kinds[token]
        slips += kind not in follows.get(before, ())
        if kind == "adjectives":
            twice += word in said
            said.add(word)
            group = group_of[word]
            if group == "neutral":
                neutral[word] += -1 if negated else 1
            else:
                (negative if negated else plain)[group] += 1
                intense[group] += intensified and not negated
        # Both wait for the next adjective; an adjective or a conjunction ends the phrase.
        phrase_over = kind in ("adjectives", "conjunctions")
        negated = not phrase_over and (negated or kind == "negations")
        intensified = not phrase_over and (intensified or kind == "intensifiers")
        before = kind
    slips += bool(tokens) and "end" not in follows.get(before, ())
    phrases = [counts[group] for group in plain for counts in (plain, negative, intense)]
    return [*phrases, *neutral.values(), len(tokens), twice, slips]


@dataclass(frozen=True)
class Taste:
    """A Gaussian over the weights of the features, whose width shows what the answers leave open.

    Attributes:
        weights: [F] the most likely weights, in logits.
        covariance: [F, F] of the Laplace approximation.
        is_asked: bool [F], whether any pair differs in the feature; if none does, weight and width
            are those of the prior.
    """

    weights: np.ndarray
    covariance: np.ndarray
    is_asked: np.ndarray

    @property
    def half_widths(self) -> np.ndarray:
        """[F] half of each weight's 95 % interval."""
        return Z95 * np.sqrt(np.diag(self.covariance))

    def predict(self, differences: np.ndarray) -> np.ndarray:
        """P(left preferred), and the ends of its 95 % interval: [N, F] left − right → [3, N]."""
        logits = differences @ self.weights
        half = Z95 * np.sqrt(np.einsum("nf,fg,ng->n", differences, self.covariance, differences))
        return expit(np.stack([logits, logits - half, logits + half]))


def fit_taste(differences: ArrayLike, verdicts: ArrayLike, prior_sd: float = PRIOR_SD) -> Taste:
    """Fit Bradley–Terry rewards to features: logistic regression with a Gaussian prior.

    Minimises −Σ_k [o_k log σ(w·d_k) + (1 − o_k) log σ(−w·d_k)] + |w|²/(2 prior_sd²) by Newton's
    method. The covariance is the inverse of the curvature at the minimum (Laplace's approximation).

    Args:
        differences: [N, F] features of the left response minus those of the right; N may be 0.
        verdicts: [N] 1 if the left was preferred, 0 if the right was, 1/2 for a tie, which counts
            as half a win for each. Any probability is possible.
        prior_sd: standard deviation of a weight before any answer, in logits.

    Raises:
        TypeError: `prior_sd` is not a number.
        ValueError: shapes that do not fit, differences that are not finite, verdicts outside
            [0, 1], or a prior_sd not above 0.
    """
    d, o = np.asarray(differences, dtype=float), np.asarray(verdicts, dtype=float)
    if d.ndim != 2 or o.shape != d.shape[:1]:
        raise ValueError(
            "differences must be [N, F] and verdicts [N], got shapes "
            f"{list(d.shape)} and {list(o.shape)}"
        )
    if not np.isfinite(d).all():
        raise ValueError("differences must be finite numbers, got NaN or infinity")
    if not ((o >= 0) & (o <= 1)).all():
        raise ValueError(f"verdicts must be probabilities from 0 to 1, got {shown(verdicts)}")
    check_positive(prior_sd=prior_sd)
    precision = 1 / prior_sd**2

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits = d @ weights
        value = (np.logaddexp(0, logits) - o * logits).sum() + precision * (weights**2).sum() / 2
        return value, d.T @ (expit(logits) - o) + precision * weights

    def curvature(weights: np.ndarray) -> np.ndarray:
        logits = d @ weights
        return (d.T * (expit(logits) * expit(-logits))) @ d + precision * np.eye(d.shape[1])

    start = np.zeros(d.shape[1])
    fit = minimize(loss, start, jac=True, hess=curvature, method="trust-exact")
    return Taste(fit.x, np.linalg.inv(curvature(fit.x)), (d != 0).any(0))


class Examination:
    """The share of a simulated annotator's answers that a taste predicts, computed exactly.

    Every pair of different reviews of the fluent corpus is weighted by its probability in the
    corpus, and each answer by its probability; nothing is sampled. A pair to which the taste is
    indifferent counts half.

    Args:
        world: the world whose corpus the pairs come from.
        annotator: the simulated annotator.

    Attributes:
        features: the names of the F features.
        groups: the words of praise and of complaint, see `adjective_groups`.
        ceiling: the highest share that anyone can reach, because the annotator contradicts itself.
        annotator_taste: the annotator's own taste, as far as the features can express it.
    """

    def __init__(self, world: WordMDP, annotator: Annotator) -> None:
        reviews, chances = world.fluent_reviews  # [N, T], [X, N]
        self.features, self.groups = feature_names(world), adjective_groups(world.world_spec)
        self._features = response_features(world, reviews)
        n = len(reviews)
        self._wins = np.zeros((n, n))  # how often the row is preferred to the column
        ceiling = 0.0
        for prompt in range(world.n_prompts):
            rewards = world.response_rewards(torch.full((n,), prompt), reviews)
            first, second = rewards.repeat_interleave(n), rewards.repeat(n)
            p = annotator.preference_probability(first, second).view(n, n).numpy()
            seen = np.outer(chances[prompt], chances[prompt])
            np.fill_diagonal(seen, 0.0)
            self._wins += seen * p
            ceiling += float((seen * np.maximum(p, 1 - p)).sum())
        wins = self._wins.sum()  # half of the weight of all pairs: each is there in both orders
        self.ceiling = ceiling / (2 * wins)
        self._wins /= wins
        self.annotator_taste = self._project()

    def share(self, taste: Taste) -> float:
        """The share of the annotator's answers that the taste predicts, in [0, 1]."""
        scores = (self._features @ taste.weights).round(9)  # equal features, equal scores
        above, below = scores[:, None] > scores, scores[:, None] < scores
        return float(self._wins.sum(where=above) + self._wins.sum(where=~above & ~below) / 2)

    def _project(self) -> Taste:
        """The fit to the annotator's probabilities on the most common pairs of all prompts."""
        seen = self._wins + self._wins.T
        i, j = np.nonzero(np.triu(seen, 1))  # the pairs that some prompt has
        common = np.argsort(-seen[i, j], kind="stable")[:20_000]
        i, j = i[common], j[common]
        return fit_taste(self._features[i] - self._features[j], self._wins[i, j] / seen[i, j])


# The chart


def draw_taste(
    figure: Figure,
    taste: Taste,
    shares: Mapping[int, float],
    examination: Examination,
    show_annotator: bool = False,
) -> None:
    """Draw the fitted weights with their intervals, and the share predicted against answers given.

    Args:
        figure: an empty figure.
        taste: the fit.
        shares: number of answers → share of the annotator's answers predicted after them.
        examination: the world's examination, with the ceiling and the annotator's own taste.
        show_annotator: whether the annotator's taste is drawn beside the fit.
    """
    left, right = panels(figure, 2, MARGINS, width_ratios=(1.05, 1))
    _draw_weights(left, taste, examination, show_annotator)
    _draw_shares(right, shares, examination)


def _draw_weights(axes: Axes, taste: Taste, examination: Examination, show_annotator: bool) -> None:
    rows = np.arange(len(examination.features))
    clear = taste.is_asked & (np.abs(taste.weights) > taste.half_widths)
    yours = {"color": COLOUR["learned reward"], "fmt": "o"}
    kinds = (
        ("clear of 0", clear, yours),
        ("not clear", taste.is_asked & ~clear, yours | {"mfc": "white"}),
        ("never asked", ~taste.is_asked, {"color": "0.6", "fmt": "x", "elinewidth": 1}),
    )
    for name, chosen, style in kinds:
        if chosen.any():
            widths = taste.half_widths[chosen]
            axes.errorbar(
                taste.weights[chosen], rows[chosen], xerr=widths, capsize=3, label=name, **style
            )
    if show_annotator:
        annotator = examination.annotator_taste
        known = annotator.is_asked
        axes.plot(
            annotator.weights[known],
            rows[known] + 0.3,
            MARKERS[3],
            color=COLOUR["true reward"],
            label="the annotator",
        )
    axes.axvline(0, color="0.3", linewidth=1)
    axes.set_yticks(rows, [_label(name, examination.groups) for name in examination.features])
    axes.invert_yaxis()
    axes.set_xlabel("weight in your taste (logits), 95 % interval")
    axes.legend(fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.4, 0.99))


def _label(feature: str, groups: Mapping[str, tuple[str, ...]]) -> str:
    """A feature's name, with the words that belong to it."""
    return f"{feature} ({', '.join(groups[feature])})" if groups.get(feature) else feature


def _draw_shares(axes: Axes, shares: Mapping[int, float], examination: Examination) -> None:
    numbers = sorted(shares)
    best = examination.share(examination.annotator_taste)
    for value, style, name in (
        (examination.ceiling, "--", "at best, anybody"),
        (best, "-.", "at best, these features"),
        (0.5, ":", "coin toss"),
    ):
        axes.axhline(value, color="0.35", linestyle=style, linewidth=1.2, label=name)
    values = [shares[n] for n in numbers]
    colour = COLOUR["learned reward"]
    axes.plot(numbers, values, color=colour, linewidth=1.5)
    axes.plot(numbers[-1], values[-1], MARKERS[2], color=colour, markersize=9, label="your fit")
    axes.set_xlim(0, max(20, 1.08 * numbers[-1]))
    axes.set_ylim(min(0.4, min(values) - 0.02), 0.8)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("answers")
    axes.set_title("simulated annotator's answers predicted", fontsize=10)
    axes.legend(fontsize=8, loc="lower right", ncols=2)


def taste_words(taste: Taste, share: float, examination: Examination) -> str:
    """The chart in words."""
    clear, open_, never = [], [], []
    for name, weight, half, asked in zip(
        examination.features, taste.weights, taste.half_widths, taste.is_asked, strict=True
    ):
        if not asked:
            never.append(name)
        elif abs(weight) > half:
            clear.append(f"{name} {weight:+.2f} ({weight - half:+.2f} to {weight + half:+.2f})")
        else:
            open_.append(f"{name} {weight:+.2f}")
    text = f"Clear of 0, in logits: {', '.join(clear) or 'nothing yet'}. "
    if open_:
        text += f"Not clear: {', '.join(open_)}. "
        text += f"Never asked: {', '.join(never)}. " if never else ""
    best = examination.share(examination.annotator_taste)
    return text + (
        f"Your fit predicts {share:.1%} of the simulated annotator's answers to all pairs of "
        f"fluent reviews. A coin toss predicts 50%, these features at best {best:.1%}, anybody at "
        f"best {examination.ceiling:.1%}."
    )
