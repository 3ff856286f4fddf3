"""A taste fitted to a few dozen answers: Bradley–Terry on readable features, with its uncertainty.

A network needs thousands of preferences; a person gives some forty. What can be learned from so few
is a handful of weights: what a word of praise is worth, a complaint, a "very", one word more.
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
from rlhf_toy.envs import WordMDP
from rlhf_toy.envs.word_mdp import ADJECTIVES, FOLLOWS, INTENSIFIERS, NEGATIONS, TASTE
from rlhf_toy.plots import COLOURS, MARKERS

MARGINS = {"left": 0.2, "right": 0.985, "top": 0.87, "bottom": 0.15, "wspace": 0.17}
PRIOR_SD = 1.0  # logits; the prior's standard deviation of every weight
Z95 = 1.96  # standard deviations on either side of a 95 % interval

PRAISE = tuple(word for word in ADJECTIVES if TASTE[word] > 0)
COMPLAINT = tuple(word for word in ADJECTIVES if TASTE[word] < 0)
NEUTRAL = tuple(word for word in ADJECTIVES if TASTE[word] == 0)  # the prompt decides
FEATURES = (
    *("praise", "not + praise", "very + praise"),
    *("complaint", "not + complaint", "very + complaint"),
    *NEUTRAL,
    *("each word", "said twice", "bad grammar"),
)


def response_features(world: WordMDP, responses: Tensor) -> np.ndarray:
    """What `FEATURES` counts in each review; the prompt plays no part.

    Words of praise and of complaint count as "not + …" where they are turned round, else as such
    and, where intensified, as "very + …" on top. Neutral adjectives count 1, or −1 turned round.
    "Each word" is the number of words, "said twice" of repeated adjectives, "bad grammar" of words
    that may not follow the one before, and of a dangling end.

    Args:
        world: whose words these are.
        responses: [B, T] token ids.

    Returns:
        [B, F] counts, float64.
    """
    is_word = world.response_mask(responses) & (responses < world.n_words)
    reviews = zip(responses.tolist(), is_word.sum(1).tolist(), strict=True)
    counts = [_count([world.words[token] for token in tokens[:n]]) for tokens, n in reviews]
    return np.array(counts, dtype=float).reshape(-1, len(FEATURES))


def _count(words: list[str]) -> list[int]:
    """The features of one review, by the world's own rules of what "not" and "very" apply to."""
    counts = dict.fromkeys(FEATURES, 0)
    counts["each word"] = len(words)
    before, negated, very, said = "start", False, False, set()
    for word in words:
        kind = _kind(word)
        counts["bad grammar"] += kind not in FOLLOWS.get(before, ())
        if kind == "adjective":
            counts["said twice"] += word in said
            said.add(word)
            if word in NEUTRAL:
                counts[word] += -1 if negated else 1
            else:
                name = "praise" if word in PRAISE else "complaint"
                counts[f"not + {name}" if negated else name] += 1
                counts[f"very + {name}"] += very and not negated
        # Both wait for the next adjective; an adjective or a conjunction uses them up.
        phrase_over = kind in ("adjective", "conjunction")
        negated = not phrase_over and (negated or kind == "negation")
        very = not phrase_over and (very or kind == "intensifier")
        before = kind
    counts["bad grammar"] += bool(words) and "end" not in FOLLOWS.get(before, ())
    return list(counts.values())


def _kind(word: str) -> str:
    if word in ADJECTIVES:
        return "adjective"
    if word in INTENSIFIERS:
        return "intensifier"
    return "negation" if word in NEGATIONS else "conjunction"


@dataclass(frozen=True)
class Taste:
    """A Gaussian over the weights of the features: what the answers leave open is in it.

    Attributes:
        weights: [F] the most likely weights, in logits.
        covariance: [F, F] of the Laplace approximation.
        is_asked: bool [F], whether any pair differs in the feature; if not, the prior speaks.
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
    """Bradley–Terry by its features: logistic regression with a Gaussian prior (L7, L9).

    Minimises −Σ_k [o_k log σ(w·d_k) + (1 − o_k) log σ(−w·d_k)] + |w|²/(2 prior_sd²) by Newton's
    method. The inverse of the curvature at the minimum is taken for the covariance (Laplace).

    Args:
        differences: [N, F] features of the left response less those of the right; N may be 0.
        verdicts: [N] 1 where the left was preferred, 0 where the right was, 1/2 for a tie, which so
            counts as half a win each way. Any probability will do.
        prior_sd: standard deviation of a weight before any answer, in logits.

    Raises:
        ValueError: shapes that do not fit, verdicts outside [0, 1], or a prior_sd not above 0.
    """
    d, o = np.asarray(differences, dtype=float), np.asarray(verdicts, dtype=float)
    if d.ndim != 2 or o.shape != d.shape[:1]:
        raise ValueError(f"expected [N, F] and [N], got {list(d.shape)} and {list(o.shape)}")
    if not ((o >= 0) & (o <= 1)).all():
        raise ValueError("verdicts must be 0, 1/2, 1 or a probability between")
    if not 0 < prior_sd < np.inf:
        raise ValueError(f"prior_sd must be finite and above 0, got {prior_sd!r}")
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
    """Which share of a simulated annotator's answers a taste predicts, exactly.

    Every pair of different reviews of the fluent corpus counts as often as the corpus has it, and
    both answers to it as often as the annotator gives them; nothing is sampled. A pair to which the
    taste is indifferent counts half.

    Args:
        world: whose corpus it is.
        annotator: whose answers are to be predicted.

    Attributes:
        ceiling: the highest share that anybody can reach, for the annotator contradicts itself.
        annotator_taste: the annotator's own taste in terms of the features, as far as they go.
    """

    def __init__(self, world: WordMDP, annotator: Annotator) -> None:
        reviews, chances = world.fluent_reviews  # [N, T], [X, N]
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
        wins = self._wins.sum()  # half of the weight of all pairs: each stands in both orders
        self.ceiling = ceiling / (2 * wins)
        self._wins /= wins
        self.annotator_taste = self._project()

    def share(self, taste: Taste) -> float:
        """The share of the annotator's answers that the taste predicts, in [0, 1]."""
        scores = (self._features @ taste.weights).round(9)  # equal features, equal scores
        above, below = scores[:, None] > scores, scores[:, None] < scores
        return float(self._wins.sum(where=above) + self._wins.sum(where=~above & ~below) / 2)

    def _project(self) -> Taste:
        """The fit to the annotator's probabilities on the commonest pairs, all prompts together."""
        seen = self._wins + self._wins.T
        i, j = np.triu_indices(len(seen), 1)
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
    """The fitted weights with their intervals, and the share predicted after so many answers.

    Args:
        figure: an empty figure.
        taste: the fit.
        shares: the share of the annotator's answers that was predicted, by the number of answers.
        examination: knows the ceiling and the annotator's own taste.
        show_annotator: whether its taste is drawn beside the fit.
    """
    # Margins by hand: to work them out takes longer than all the rest of the drawing.
    figure.figure.set_layout_engine("none")
    left, right = figure.subplots(1, 2, width_ratios=(1.05, 1), gridspec_kw=MARGINS)
    _draw_weights(left, taste, examination.annotator_taste if show_annotator else None)
    _draw_shares(right, shares, examination)


def _draw_weights(axes: Axes, taste: Taste, annotator: Taste | None) -> None:
    rows = np.arange(len(FEATURES))
    clear = taste.is_asked & (np.abs(taste.weights) > taste.half_widths)
    kinds = (
        ("clear of 0", clear, {"color": COLOURS[0], "fmt": "o"}),
        ("not clear", taste.is_asked & ~clear, {"color": COLOURS[0], "fmt": "o", "mfc": "white"}),
        ("never asked", ~taste.is_asked, {"color": "0.6", "fmt": "x", "elinewidth": 1}),
    )
    for name, chosen, style in kinds:
        if chosen.any():
            widths = taste.half_widths[chosen]
            axes.errorbar(
                taste.weights[chosen], rows[chosen], xerr=widths, capsize=3, label=name, **style
            )
    if annotator is not None:
        known = annotator.is_asked
        axes.plot(
            annotator.weights[known],
            rows[known] + 0.3,
            MARKERS[3],
            color=COLOURS[1],
            label="the annotator",
        )
    axes.axvline(0, color="0.3", linewidth=1)
    axes.set_yticks(rows, [_label(name) for name in FEATURES])
    axes.invert_yaxis()
    axes.set_xlabel("weight in your taste (logits), 95 % interval")
    axes.legend(fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.4, 0.99))


def _label(feature: str) -> str:
    """A feature's name, with the words that it is about."""
    examples = {"praise": PRAISE, "complaint": COMPLAINT}.get(feature)
    return f"{feature} ({', '.join(examples)})" if examples else feature


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
    axes.plot(numbers, values, color=COLOURS[2], linewidth=1.5)
    axes.plot(numbers[-1], values[-1], MARKERS[2], color=COLOURS[2], markersize=9, label="your fit")
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
        FEATURES, taste.weights, taste.half_widths, taste.is_asked, strict=True
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
