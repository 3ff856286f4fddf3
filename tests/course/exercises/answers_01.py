"""Answers to the exercises of notebook 01, as students write them."""

import torch


def pairs_by_loops(scores, truth):
    right, pairs = 0.0, 0
    for i in range(len(truth)):
        for j in range(i):
            product = (scores[i] - scores[j]) * (truth[i] - truth[j])
            right += 0.5 if product == 0 else float(product > 0)
            pairs += 1
    return right / pairs


def pairs_by_combinations(scores, truth):
    pairs = torch.combinations(torch.arange(len(scores)))
    agreement = torch.sign(scores[pairs].diff() * truth[pairs].diff())
    return (agreement.mean() + 1) / 2


def pairs_by_sorting(scores, truth):
    s = scores[truth.argsort(descending=True)]
    above, below = torch.triu_indices(len(s), len(s), 1)
    won, tied = (s[above] > s[below]).double(), (s[above] == s[below]).double()
    return (won + 0.5 * tied).mean()


def standardise_by_loops(raters, ratings):
    result = ratings.clone()
    for person in set(raters.tolist()):
        mine = raters == person
        mean, spread = ratings[mine].mean(), ratings[mine].std(unbiased=False)
        result[mine] = (ratings[mine] - mean) / spread if spread > 0 else 0.0
    return result


def standardise_by_bincount(raters, ratings):
    count = raters.bincount()
    centred = ratings - (raters.bincount(ratings) / count)[raters]
    spread = (raters.bincount(centred**2) / count).sqrt()[raters]
    return torch.where(spread > 0, centred / spread, 0.0)


def standardise_with_epsilon(raters, ratings):
    same = (raters[:, None] == raters).double()
    count = same.sum(1)
    mean = same @ ratings / count
    square = same @ ratings**2 / count
    return (ratings - mean) / (square - mean**2).clamp(min=0).sqrt().clamp(min=1e-6)


def kappa_by_loops(first, second):
    a, b = first.tolist(), second.tolist()
    observed = sum(x == y for x, y in zip(a, b, strict=True)) / len(a)
    chance = sum(a.count(label) * b.count(label) for label in set(a)) / len(a) ** 2
    return (observed - chance) / (1 - chance)


def kappa_by_a_table(first, second):
    n = int(max(first.max(), second.max())) + 1
    table = torch.zeros(n, n, dtype=torch.float64)
    table.index_put_((first, second), torch.ones(len(first)).double(), accumulate=True)
    table /= table.sum()
    chance = table.sum(1) @ table.sum(0)
    return (table.trace() - chance) / (1 - chance)


def kappa_by_all_pairs(first, second):
    disagreement = (first != second).double().mean()
    return 1 - disagreement / (first[:, None] != second).double().mean()


RIGHT = {
    "pairs_right": [pairs_by_combinations, pairs_by_loops, pairs_by_sorting],
    "standardise_ratings": [
        standardise_by_loops,
        standardise_by_bincount,
        standardise_with_epsilon,
    ],
    "cohen_kappa": [kappa_by_loops, kappa_by_a_table, kappa_by_all_pairs],
}


def products(scores, truth):
    pairs = torch.combinations(torch.arange(len(scores)))
    return (scores[pairs].diff() * truth[pairs].diff())[:, 0]


def every_cell(scores, truth):
    product = (scores[:, None] - scores[None]) * (truth[:, None] - truth[None])
    return ((product > 0).double() + 0.5 * (product == 0)).mean()


def adjacent(scores, truth):
    ordered = scores[truth.argsort()]
    lower, upper = ordered[:-1], ordered[1:]
    return ((upper > lower).double() + 0.5 * (upper == lower)).mean()


def each_rater(raters, ratings, what):
    result = ratings.clone()
    for person in raters.unique():
        mine = raters == person
        result[mine] = what(ratings[mine])
    return result


def or_zero(x, spread):
    return x / spread if spread > 0 else 0 * x


def n_minus_1(x):
    return or_zero(x - x.mean(), (((x - x.mean()) ** 2).sum() / max(len(x) - 1, 1)).sqrt())


def chance_parts(first, second):
    labels = sorted(set(first.tolist()) | set(second.tolist()))
    one = torch.stack([(first == label).double().mean() for label in labels])
    two = torch.stack([(second == label).double().mean() for label in labels])
    return (first == second).double().mean(), one, two


def kappa_with(first, second, chance):
    observed, one, two = chance_parts(first, second)
    chance = chance(one, two)
    return (observed - chance) / (1 - chance)


def difference_only(first, second):
    observed, one, two = chance_parts(first, second)
    return observed - (one * two).sum()


def relative_to_chance(first, second):
    observed, one, two = chance_parts(first, second)
    return observed / (one * two).sum() - 1


def correlation(first, second):
    return torch.corrcoef(torch.stack([first, second]).double())[0, 1]


WRONG = {
    "pairs_right": [
        (lambda s, t: (products(s, t) > 0).double().mean(), "equal is wrong"),
        (lambda s, t: (products(s, t) >= 0).double().mean(), "equal is right"),
        (
            lambda s, t: (products(s, t)[products(s, t) != 0] > 0).double().mean(),
            "equal is dropped",
        ),
        (lambda s, t: products(s, t).sign().mean(), "tau"),
        (lambda s, t: pairs_by_loops(s, -t), "share wrong"),
        (every_cell, "itself"),
        (adjacent, "neighbours only"),
        (lambda s, t: pairs_by_loops(s, t) * len(s) * (len(s) - 1) / 2, None),
    ],
    "standardise_ratings": [
        (lambda w, r: each_rater(w, r, lambda x: x - x.mean()), "offset only"),
        (lambda w, r: each_rater(w, r, lambda x: or_zero(x, x.std(correction=0))), "gain only"),
        (lambda w, r: or_zero(r - r.mean(), r.std(correction=0)), "all as one"),
        (
            lambda w, r: each_rater(w, r, lambda x: (x - x.mean()) / r.std(correction=0)),
            "spread of all",
        ),
        (lambda w, r: each_rater(w, r, n_minus_1), "sample spread"),
        (
            lambda w, r: each_rater(w, r, lambda x: or_zero(x - x.mean(), x.var(correction=0))),
            "variance",
        ),
        (
            lambda w, r: each_rater(w, r, lambda x: (x - x.mean()) / x.std(correction=0)),
            "no spread",
        ),
        (lambda w, r: each_rater(w, r, lambda x: or_zero(x - x.median(), x.std())), None),
    ],
    "cohen_kappa": [
        (lambda a, b: (a == b).double().mean(), "raw agreement"),
        (lambda a, b: kappa_with(a, b, lambda one, two: 1 / len(one)), "equal labels"),
        (
            lambda a, b: kappa_with(a, b, lambda one, two: (((one + two) / 2) ** 2).sum()),
            "pooled frequencies",
        ),
        (difference_only, "not divided"),
        (relative_to_chance, "divided by chance"),
        (lambda a, b: kappa_with(a, b, lambda one, two: (one**2).sum()), "first one twice"),
        (lambda a, b: kappa_with(a, b, lambda one, two: one[-1] * two[-1]), "one label only"),
        (correlation, None),
    ],
}
