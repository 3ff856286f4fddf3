"""Answers to the exercises of notebook 01, as students write them."""

import torch


def rating_by_loops(items, ratings, n_items):
    totals, counts = [0.0] * n_items, [0] * n_items
    for item, rating in zip(items.tolist(), ratings.tolist(), strict=True):
        totals[item] += rating
        counts[item] += 1
    means = [t / c if c else float("-inf") for t, c in zip(totals, counts, strict=True)]
    return torch.tensor(sorted(range(n_items), key=lambda i: -means[i]))


def rating_by_bincount(items, ratings, n_items):
    counts = torch.bincount(items, minlength=n_items)
    means = torch.bincount(items, weights=ratings.double(), minlength=n_items) / counts
    means[counts == 0] = -torch.inf
    return torch.argsort(means, descending=True, stable=True)


def rating_by_masks(items, ratings, n_items):
    means = []
    for i in range(n_items):
        mine = ratings[items == i]
        means.append(mine.double().mean() if len(mine) else torch.tensor(-1e30).double())
    return torch.stack(means).argsort(descending=True, stable=True)


def wins_by_loops(winners, losers, n_items):
    wins, played = [0] * n_items, [0] * n_items
    for winner, loser in zip(winners.tolist(), losers.tolist(), strict=True):
        wins[winner] += 1
        played[winner] += 1
        played[loser] += 1
    share = [w / p if p else 0.5 for w, p in zip(wins, played, strict=True)]
    return torch.tensor(sorted(range(n_items), key=lambda i: -share[i]))


def wins_by_bincount(winners, losers, n_items):
    wins = torch.bincount(winners, minlength=n_items)
    played = wins + torch.bincount(losers, minlength=n_items)
    share = (wins / played).nan_to_num(0.5)
    return torch.argsort(share, descending=True, stable=True)


def wins_by_a_table(winners, losers, n_items):
    table = torch.zeros(n_items, n_items, dtype=torch.float64)
    table.index_put_((winners, losers), torch.ones(len(winners)).double(), accumulate=True)
    won, lost = table.sum(1), table.sum(0)
    share = torch.full_like(won, 0.5)
    share[won + lost > 0] = (won / (won + lost))[won + lost > 0]
    return share.argsort(descending=True, stable=True)


RIGHT = {
    "rank_by_rating": [rating_by_loops, rating_by_bincount, rating_by_masks],
    "rank_by_wins": [wins_by_loops, wins_by_bincount, wins_by_a_table],
}


def mean_ratings(items, ratings, n_items, unrated):
    means = torch.full((n_items,), unrated, dtype=torch.float64)
    for i in set(items.tolist()):
        means[i] = ratings[items == i].double().mean()
    return means


def best_first(scores):
    return torch.argsort(scores, descending=True, stable=True)


def ties_to_the_last(scores):
    return torch.tensor(sorted(range(len(scores)), key=lambda i: (-float(scores[i]), -i)))


def overwritten(items, ratings, n_items):
    scores = torch.full((n_items,), -torch.inf, dtype=torch.float64)
    for k in range(len(items)):
        scores[items[k]] = ratings[k]
    return best_first(scores)


def totals(items, ratings, n_items):
    return torch.zeros(n_items).double().index_add(0, items, ratings.double())


def win_counts(winners, losers, n_items):
    one = torch.ones(len(winners)).double()
    zero = torch.zeros(n_items).double()
    return zero.index_add(0, winners, one), zero.index_add(0, losers, one)


def win_shares(winners, losers, n_items, never):
    won, lost = win_counts(winners, losers, n_items)
    return torch.where(won + lost == 0, never, won / (won + lost))


def written_once(winners, losers, n_items):
    won, lost = torch.zeros(n_items), torch.zeros(n_items)
    won[winners] += 1
    lost[losers] += 1
    return best_first(torch.where(won + lost > 0, won / (won + lost), 0.5))


WRONG = {
    "rank_by_rating": [
        (
            lambda i, r, n: torch.argsort(mean_ratings(i, r, n, float("inf")), stable=True),
            "worst first",
        ),
        (
            lambda i, r, n: torch.argsort(mean_ratings(i, r, n, -1e9), stable=True),
            "worst first, unrated first",
        ),
        (lambda i, r, n: best_first(mean_ratings(i, r, n, -1e9)).argsort(), "ranks for order"),
        (lambda i, r, n: best_first(totals(i, r, n)), "sum for mean"),
        (overwritten, "last rating only"),
        (lambda i, r, n: best_first(mean_ratings(i, r, n, 0.0)), "unrated as zero"),
        (lambda i, r, n: best_first(mean_ratings(i, r, n, float("nan"))), "unrated first"),
        (lambda i, r, n: ties_to_the_last(mean_ratings(i, r, n, -1e9)), "ties by the last"),
        (lambda i, r, n: mean_ratings(i, r, n, -1e9), None),
        (lambda i, r, n: best_first(mean_ratings(i, r, n, -1e9)) + 1, None),
    ],
    "rank_by_wins": [
        (
            lambda won, lost, n: torch.argsort(win_shares(won, lost, n, 0.5), stable=True),
            "worst first",
        ),
        (lambda won, lost, n: best_first(win_shares(lost, won, n, 0.5)), "worst first"),
        (lambda won, lost, n: best_first(win_shares(lost, won, n, 0.0)), "swapped"),
        (written_once, "each item once"),
        (
            lambda won, lost, n: best_first(win_shares(won, lost, n, 0.5)).argsort(),
            "ranks for order",
        ),
        (lambda won, lost, n: best_first(win_counts(won, lost, n)[0]), "number of wins"),
        (
            lambda won, lost, n: best_first(torch.sub(*win_counts(won, lost, n))),
            "wins minus losses",
        ),
        (lambda won, lost, n: best_first(win_shares(won, lost, n, 0.0)), "never compared is zero"),
        (
            lambda won, lost, n: best_first(win_shares(won, lost, n, float("nan"))),
            "never compared first",
        ),
        (lambda won, lost, n: ties_to_the_last(win_shares(won, lost, n, 0.5)), "ties by the last"),
        (lambda won, lost, n: win_shares(won, lost, n, 0.5), None),
    ],
}
