"""The long world: reviews of up to 32 words, too many to enumerate, and yet solved exactly.

The rules are here; words, taste and corpus come from a `LongSpec`. Everything that the taste must
remember of a review is the state of a finite automaton, so dynamic programming finds the optimum.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_toy.checks import check_type
from rlhf_toy.envs.automaton import Automaton
from rlhf_toy.envs.long_spec import KINDS, STAYS, LongSpec
from rlhf_toy.envs.text_world import TextWorld

# Which kind of word may come in each place of a clause; any other word is crossed out, at a cost.
GRAMMAR = {
    "open": ("determiners",),
    "determined": ("aspects",),
    "named": ("verbs",),
    "claimed": ("adjectives", "intensifiers", "negations"),
    "negated": ("adjectives", "intensifiers"),
    "intensified": ("adjectives",),
    "complete": ("conjunctions", "end"),
}
MOST_STATES = 10_000


class State(NamedTuple):
    """What the rules remember of the review so far."""

    place: str  # a key of GRAMMAR, or "end"
    mentioned: tuple[int, ...] = ()  # the aspects of all clauses so far, sorted
    aspect: int = -1  # of the clause, −1 where it does not matter
    factor: float = 1.0  # of the clause's negation and intensifier
    sign: float = 0.0  # of the clause if complete, else what the conjunction promises; 0: neither


END = State("end")


class Rules:
    """The grammar, taste and corpus of a spec, one word at a time."""

    def __init__(self, spec: LongSpec) -> None:
        self.spec = spec
        self.words = [(kind, word) for kind in KINDS for word in spec.words_by_kind[kind]]
        self.words.append(("end", ""))
        self.aspects = [word for word, _ in spec.aspects]
        self.worths = [dict(worths) for _, worths in spec.aspects]
        pairs = (*spec.intensifiers, *spec.negations, *spec.conjunctions)
        self.numbers, self.weights = dict(pairs), dict(spec.corpus_weights)

    def write(self, state: State, kind: str, word: str) -> tuple[State, float, float]:
        """Return the state after a word, the cost, and the worth to multiply with importance."""
        spec, number = self.spec, self.numbers.get(word)
        if kind == "end" or state is END:
            complete = state.place in ("complete", "end")
            return END, 0.0 if complete else spec.unfinished_cost, 0.0
        if kind not in GRAMMAR[state.place]:
            return state, spec.grammar_cost, 0.0
        if kind == "determiners":
            return state._replace(place="determined"), 0.0, 0.0
        if kind == "aspects":
            aspect = self.aspects.index(word)
            repeated = aspect in state.mentioned
            mentioned = tuple(sorted({*state.mentioned, aspect}))
            after = state._replace(place="named", mentioned=mentioned, aspect=aspect)
            return after, repeated * spec.repetition_cost, 0.0
        if kind == "verbs":
            return state._replace(place="claimed"), 0.0, 0.0
        if kind in ("intensifiers", "negations"):
            place = "negated" if kind == "negations" else "intensified"
            return state._replace(place=place, factor=state.factor * number), 0.0, 0.0
        if kind == "conjunctions":
            return State("open", state.mentioned, sign=state.sign * _sign(number)), 0.0, 0.0
        worth = self.worth(state, word)
        cost = spec.nonsense_cost * (worth is None)
        cost += spec.contrast_cost * ((worth or 0.0) * state.sign < 0)
        return State("complete", state.mentioned, sign=_sign(worth or 0.0)), cost, worth or 0.0

    def worth(self, state: State, adjective: str) -> float | None:
        """The worth of an adjective in a clause, or None if it makes no sense there."""
        worth = self.worths[state.aspect].get(adjective)
        return None if worth is None else state.factor * worth

    def weight(self, state: State, kind: str, word: str) -> float:
        """How often the corpus takes a word, compared with the others of its kind."""
        if kind == "aspects":
            return self.spec.careless if self.aspects.index(word) in state.mentioned else 1.0
        if kind != "adjectives":
            return 1.0
        worth = self.worth(state, word)
        if worth is None:
            return 0.0
        return self.weights.get(word, 1.0) * (self.spec.careless if worth * state.sign < 0 else 1.0)

    def reference(self, state: State) -> list[float]:
        """The reference's probability of each word and the end token in a state."""
        spec, A, allowed = self.spec, len(self.words), GRAMMAR.get(state.place, ())
        negated = spec.negated * ("negations" in allowed)
        intensified = spec.intensified * ("intensifiers" in allowed)
        shares = {"adjectives": 1 - negated - intensified, "conjunctions": 1 - spec.ended}
        shares |= {"negations": negated, "intensifiers": intensified, "end": spec.ended}
        chances = [0.0 if allowed else 1 / A] * A  # after the end, any word will do
        for kind in allowed:
            places = [i for i, (other, _) in enumerate(self.words) if other == kind]
            weights = [self.weight(state, *self.words[i]) for i in places]
            for i, weight in zip(places, weights, strict=True):
                chances[i] = shares.get(kind, 1.0) * weight / sum(weights)
        return [spec.floor + (1 - A * spec.floor) * chance for chance in chances]


def _sign(number: float) -> float:
    return float((number > 0) - (number < 0))


@lru_cache(maxsize=4)
def build_automaton(spec: LongSpec, horizon: int) -> Automaton:
    """Return the automaton of a spec's grammar and taste, whose states are all that can occur.

    Raises:
        ValueError: it has more than 10,000 states.
    """
    rules = Rules(spec)
    places: dict[State, int] = {State("open"): 0}
    states, successors, costs, worths, reference = [State("open")], [], [], [], []
    for state in states:  # grows on the way
        outcomes = [rules.write(state, kind, word) for kind, word in rules.words]
        for after, _, _ in outcomes:
            if after not in places:
                places[after] = len(states)
                states.append(after)
        if len(states) > MOST_STATES:
            advice = "name fewer aspects, or fewer different factors"
            raise ValueError(f"the automaton must have at most {MOST_STATES:,} states: {advice}")
        successors.append([places[after] for after, _, _ in outcomes])
        costs.append([cost for _, cost, _ in outcomes])
        worths.append([worth for _, _, worth in outcomes])
        reference.append(rules.reference(state))
    importance = torch.ones(len(spec.prompts), len(rules.aspects) + 1, dtype=torch.float64)
    for prompt, factors in spec.importance:
        for aspect, factor in factors:
            importance[spec.prompts.index(prompt), rules.aspects.index(aspect)] = factor
    costs, worths, probabilities = (
        torch.tensor(table, dtype=torch.float64) for table in (costs, worths, reference)
    )
    # Aspect −1 of a state without one is the last column.
    counts = importance[:, torch.tensor([state.aspect for state in states])]
    unfinished = [spec.unfinished_cost * (s.place not in ("complete", "end")) for s in states]
    final_rewards = -torch.tensor(unfinished, dtype=torch.float64).expand(len(spec.prompts), -1)
    rewards = counts[..., None] * worths - costs
    return Automaton(
        torch.tensor(successors), rewards, probabilities.log(), final_rewards, 0, horizon
    )


class LongReview(TextWorld):
    """Write a review of up to 32 words, one word at a time.

    ## Description
    A prompt arrives (in `STAYS` a hotel, a castle, an igloo …) and a review is written, such as
    "the room is very clean and the staff is not rude but the price is rather high". A hidden taste
    says how much it is liked. There are about 10⁵⁴ reviews, so nothing can be enumerated. Still
    the optimum is exact, because grammar and taste need to remember only the state of a finite
    automaton (see `automaton`), and so does the reference.

    ## Action Space
    `Discrete(n_words + 1)`, `Discrete(49)` for `STAYS`: the word to append, in the order of
    `words`, and last the end token.

    ## Observation Space
    `Dict`: `prompt`, the prompt's index, and `response`, `max_length` token ids. Those not written
    yet are the pad token, n_words + 1.

    ## Rewards
    0 until the review is over, then its true reward r(x, y) in logits: the worth of its adjectives
    for the aspects that they are about, multiplied by negation, intensifier and the importance of
    the aspect for the prompt. Subtracted are the costs of words out of place, of an aspect that
    was mentioned before, of adjectives that make no sense, of wrong conjunctions, and of a review
    that stops before its clause is complete. A word out of place is crossed out: it costs, and
    changes nothing else.

    ## Starting State
    An empty review of a random prompt, all equally likely, or of `reset(options={"prompt": ...})`,
    an index or a text.

    ## Episode End
    The episode terminates after the end token or after `max_length` words. It is never truncated.

    ## Arguments
    * `spec=STAYS`: the words, the taste and the corpus, see `LongSpec`.
    * `max_length=None`: the largest number of words; None for that of the spec, 32 in `STAYS`.
    * `render_mode=None`: `"ansi"` gives the review so far as a text.
    """

    def __init__(
        self, spec: LongSpec = STAYS, max_length: int | None = None, render_mode: str | None = None
    ) -> None:
        check_type("spec", spec, LongSpec, "a LongSpec such as STAYS")
        length = spec.max_length if max_length is None else max_length
        super().__init__(spec.prompts, spec.words, length, True, render_mode)
        self.world_spec = spec
        self._automata = {torch.device("cpu"): build_automaton(spec, self.max_length)}

    def automaton(self, device: str | torch.device = "cpu") -> Automaton:
        """Return the world as an `Automaton`, whose tables are copied to each device once."""
        device = torch.device(device)
        if device not in self._automata:
            self._automata[device] = self._automata[torch.device("cpu")].to(device)
        return self._automata[device]

    def response_rewards(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """Return the true reward of each review, see `TextWorld.response_rewards`.

        One pass over the T positions, all reviews of the batch at once.
        """
        written = self.written_mask(prompts, responses)
        padded = responses.masked_fill(~written, self.pad_token)
        return self.automaton(responses.device).response_rewards(prompts, padded)

    def sample_corpus(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sample n prompts [n] and reviews [n, T] from the reference."""
        prompts = self.sample_prompts(n, generator)
        automaton = self.automaton(prompts.device)
        draw = lambda _, states: automaton.ref_logps_at(prompts, states)  # noqa: E731
        return prompts, automaton.sample(prompts, generator, draw)
