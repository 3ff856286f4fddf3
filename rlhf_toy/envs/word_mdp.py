"""The token MDP: short reviews, written word by word, and a hidden taste that judges them.

Everything an instructor may want to change stands at the top of this file.
"""

from __future__ import annotations

from functools import cached_property
from itertools import product

import torch
from torch import Tensor

from rlhf_toy.envs.text_world import TextWorld

# The prompts: what a review is about.
PROMPTS = ("film", "concert", "library", "holiday", "meeting", "nap")

# The words, by what they do. The end token comes on top of them.
ADJECTIVES = ("good", "great", "bad", "dull", "long", "loud")
INTENSIFIERS = ("very",)
NEGATIONS = ("not",)
CONJUNCTIONS = ("and", "but")
WORDS = ADJECTIVES + INTENSIFIERS + NEGATIONS + CONJUNCTIONS
MAX_LENGTH = 5

# The hidden taste, in logits. What an adjective is worth, and where that depends on the prompt.
TASTE = {"good": 0.5, "great": 1.2, "bad": -1.0, "dull": -0.6, "long": 0.0, "loud": 0.0}
TASTE_OF_PROMPT = {
    "film": {"long": -0.3, "loud": 0.3},
    "concert": {"long": 0.6, "loud": 1.0},
    "library": {"long": 0.3, "loud": -1.2},
    "holiday": {"long": 1.0, "loud": -0.6},
    "meeting": {"long": -1.2, "loud": -0.3},
    "nap": {"long": 1.0, "loud": -1.2, "dull": 0.3},
}
INTENSITY = 1.5  # "very" multiplies what follows
NEGATION = -0.5  # "not" turns it round, and weakens it
REPETITION_COST = 1.0  # for every adjective that was said before
GRAMMAR_COST = 1.2  # for every word that may not follow the one before it, and a dangling end
CONTRAST_COST = 0.6  # for an "and" between praise and complaint, or a "but" between two of a kind
SILENCE_COST = 1.2  # for saying nothing

# The grammar: which kind of word may follow which. A review ends after an adjective.
KINDS = ("adjective", "intensifier", "negation", "conjunction", "end")
FOLLOWS = {
    "start": ("adjective", "intensifier", "negation"),
    "adjective": ("conjunction", "end"),
    "intensifier": ("adjective",),
    "negation": ("adjective", "intensifier"),
    "conjunction": ("adjective", "intensifier", "negation"),
}

# The corpus of fluent reviews: one phrase or two, joined as praise and complaint demand.
ADJECTIVE_WEIGHTS = {"good": 4, "great": 2, "bad": 3, "dull": 3, "long": 3, "loud": 3}
TWO_PHRASES = 0.6  # the share of reviews with two phrases
VERY_SHARE = 0.3
NOT_SHARE = 0.25


class WordMDP(TextWorld):
    """Write a short review of a prompt's subject, one word at a time.

    ## Description
    A prompt arrives (a film, a concert, a nap …) and a review of up to five words is written. Each
    action appends one word; the end token closes the review. A hidden taste, a small system of
    rules at the top of this file, says how much the review is liked. This is the token view of a
    language model: the state is the prompt with the words so far, and appending is deterministic
    (L4).

    ## Action Space
    `Discrete(11)`: the word to append, in the order of `WORDS`, and last the end token.

    ## Observation Space
    `Dict`: `prompt`, the prompt's index, and `response`, `max_length` token ids of which those not
    yet written are the pad token 11.

    ## Rewards
    0 until the review is over, then its true reward r(x, y) in logits: the worth of its adjectives
    (more after "very", turned round after "not", and dependent on the prompt) less the costs of
    repetition, broken grammar, false contrast and silence.

    ## Starting State
    An empty review of a prompt drawn uniformly, or of `reset(options={"prompt": ...})`, an index or
    a text.

    ## Episode End
    The episode terminates after the end token or after `max_length` words. It is never truncated.

    ## Arguments
    * `max_length=5`: the largest number of words.
    * `render_mode=None`: `"ansi"` gives the review so far as a text.
    """

    def __init__(self, max_length: int = MAX_LENGTH, render_mode: str | None = None) -> None:
        super().__init__(PROMPTS, WORDS, max_length, has_end_token=True, render_mode=render_mode)
        kinds = (ADJECTIVES, INTENSIFIERS, NEGATIONS, CONJUNCTIONS)
        self._kinds = torch.tensor(
            [kind for kind, words in enumerate(kinds) for _ in words] + [KINDS.index("end")]
        )
        # One row more for the start of a review, the last.
        self._may_follow = torch.tensor(
            [[after in FOLLOWS.get(before, ()) for after in KINDS] for before in (*KINDS, "start")]
        )
        self._worth = torch.zeros(self.n_prompts, self.n_actions, dtype=torch.float64)
        for x, prompt in enumerate(PROMPTS):
            for word, worth in (TASTE | TASTE_OF_PROMPT[prompt]).items():
                self._worth[x, WORDS.index(word)] = worth

    def response_rewards(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """True reward of each review, see `TextWorld.response_rewards`.

        One pass over the T positions, all reviews of the batch at once.
        """
        device = responses.device
        kinds, may_follow = self._kinds.to(device), self._may_follow.to(device)
        worth = self._worth.to(device)
        adjective, intensifier, negation, conjunction, end = range(len(KINDS))
        but = WORDS.index("but")

        mask = self.response_mask(responses)
        reward = torch.zeros(len(responses), dtype=torch.float64, device=device)
        very = torch.zeros_like(mask[:, 0])  # whether the next adjective is intensified
        negated = torch.zeros_like(mask[:, 0])  # … and whether it is turned round
        phrase = torch.zeros_like(reward)  # the worth of the phrase before the last conjunction
        joint = torch.zeros_like(reward)  # +1 after "and", −1 after "but", 0 before either
        before = torch.full_like(prompts, len(KINDS))  # the kind of the last word; here the start
        said = torch.zeros(len(responses), self.n_actions, dtype=torch.bool, device=device)
        for t in range(self.max_length):
            here = mask[:, t]
            word = responses[:, t].clamp(max=self.n_actions - 1)  # pads are masked out below
            kind = kinds[word]
            is_adjective = here & (kind == adjective)

            value = worth[prompts, word]
            value = torch.where(very, INTENSITY * value, value)
            value = torch.where(negated, NEGATION * value, value)
            reward += is_adjective * value
            mismatch = joint * value.sign() * phrase.sign() < 0
            reward -= CONTRAST_COST * (is_adjective & mismatch).double()
            repeated = said.gather(1, word[:, None])[:, 0]
            reward -= REPETITION_COST * (is_adjective & repeated).double()
            said.scatter_(1, word[:, None], (repeated | is_adjective)[:, None])
            silent = (kind == end) & (before == len(KINDS))
            reward -= GRAMMAR_COST * (here & ~may_follow[before, kind] & ~silent).double()
            reward -= SILENCE_COST * (here & silent).double()

            is_conjunction = here & (kind == conjunction)
            joint = torch.where(is_conjunction, torch.where(word == but, -1.0, 1.0), joint)
            joint = torch.where(is_adjective, 0.0, joint)
            phrase = torch.where(is_adjective, value, phrase)
            phrase_over = is_adjective | is_conjunction
            very = (very & ~phrase_over) | (here & (kind == intensifier))
            negated = (negated & ~phrase_over) | (here & (kind == negation))
            before = torch.where(here, kind, before)
        dangling = (before != end) & (before != adjective)  # cut off at the length limit
        return reward - GRAMMAR_COST * dangling.double()

    @cached_property
    def fluent_reviews(self) -> tuple[Tensor, Tensor]:
        """Every review of the corpus grammar [N, T], and how likely each prompt makes it [X, N]."""
        total = sum(ADJECTIVE_WEIGHTS.values())
        phrases = []  # words, probability, adjective, sign that "not" gives
        for negated, very, adjective in product((False, True), (False, True), ADJECTIVES):
            chance = ADJECTIVE_WEIGHTS[adjective] / total
            chance *= NOT_SHARE if negated else 1 - NOT_SHARE
            chance *= VERY_SHARE if very else 1 - VERY_SHARE
            words = ["not"] * negated + ["very"] * very + [adjective]
            phrases.append((words, chance, adjective, -1 if negated else 1))

        reviews, chances = [], []
        for words, chance, _, _ in phrases:
            reviews.append(words)
            chances.append([(1 - TWO_PHRASES) * chance] * self.n_prompts)
        for (words, chance, one, sign), (more, further, other, other_sign) in product(
            phrases, repeat=2
        ):
            if one == other:
                continue
            worth = self._worth[:, [WORDS.index(one), WORDS.index(other)]]
            contrast = sign * other_sign * worth.prod(1) < 0
            for conjunction in CONJUNCTIONS:
                fits = contrast if conjunction == "but" else ~contrast
                reviews.append([*words, conjunction, *more])
                chances.append((TWO_PHRASES * chance * further * fits).tolist())
        short = [i for i, words in enumerate(reviews) if len(words) <= self.max_length]
        tokens = torch.stack([self.encode_words(reviews[i]) for i in short])
        probabilities = torch.tensor([chances[i] for i in short], dtype=torch.float64).T
        return tokens, probabilities / probabilities.sum(1, keepdim=True)

    def sample_corpus(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n prompts [n] and fluent reviews of them [n, T], see `TextWorld.sample_corpus`."""
        tokens, probabilities = self.fluent_reviews
        prompts = self.sample_prompts(n, generator)
        weights = probabilities.to(prompts.device)[prompts]
        chosen = torch.multinomial(weights, 1, generator=generator)[:, 0]
        return prompts, tokens.to(prompts.device)[chosen]


class SlipperyWordMDP(WordMDP):
    """The word world with a slip of the pen: the appended word is sometimes another.

    ## Description
    As `WordMDP`, but the token that is appended is the chosen one only with probability 1 − slip;
    else it is any other token, the end token included, each equally likely. The reward sees what
    was written, not what was meant. With stochastic transitions the log-ratio of DPO is no longer
    the reward up to a constant (L29).

    ## Action Space
    `Discrete(11)`: the word meant, in the order of `WORDS`, and last the end token.

    ## Observation Space
    As in `WordMDP`: `prompt`, and `response`, the tokens that were written.

    ## Rewards
    As in `WordMDP`, of what was written.

    ## Starting State
    As in `WordMDP`.

    ## Episode End
    After an end token was written, meant or not, or after `max_length` words.

    ## Arguments
    * `slip=0.1`: the probability that another token is appended, in [0, 1].
    * `max_length=5`, `render_mode=None`: as in `WordMDP`.
    """

    def __init__(
        self, slip: float = 0.1, max_length: int = MAX_LENGTH, render_mode: str | None = None
    ) -> None:
        if not 0 <= slip <= 1:
            raise ValueError(f"slip must be a probability in [0, 1], got {slip}")
        super().__init__(max_length, render_mode)
        self.slip = slip

    def transition(self, actions: Tensor, uniforms: Tensor) -> Tensor:
        """The token that is appended, see `TextWorld.transition`: [B] × 2 → [B]."""
        if self.slip == 0:
            return actions
        others = (uniforms / self.slip * (self.n_actions - 1)).long().clamp(max=self.n_actions - 2)
        return torch.where(uniforms < self.slip, others + (others >= actions), actions)

    @property
    def is_deterministic(self) -> bool:
        """Whether the pen never slips."""
        return self.slip == 0

    @cached_property
    def transition_probabilities(self) -> Tensor:
        """[A, A] float64: how likely each token is appended (columns) when one is meant (rows)."""
        stay = torch.eye(self.n_actions, dtype=torch.float64)
        return (1 - self.slip) * stay + self.slip / (self.n_actions - 1) * (1 - stay)
