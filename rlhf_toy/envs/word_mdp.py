"""The token MDP: short reviews, written word by word, and a hidden taste that judges them.

The rules are here; words, grammar, taste and corpus come from a `WordSpec`.
"""

from __future__ import annotations

from functools import cached_property
from itertools import product

import torch
from torch import Tensor

from rlhf_toy.checks import check_number, check_type
from rlhf_toy.envs.text_world import TextWorld, digest
from rlhf_toy.envs.word_spec import KINDS, REVIEWS, WordSpec


class WordMDP(TextWorld):
    """Write a short review of a prompt's subject, one word at a time.

    ## Description
    A prompt arrives (in `REVIEWS` a film, a concert, a nap …) and a review of a few words is
    written. Each action appends one word; the end token closes the review. A hidden taste, the
    rules below with the numbers of a `WordSpec`, says how much the review is liked. This is the
    token view of a language model: the state is the prompt and the words so far, and appending is
    deterministic.

    ## Action Space
    `Discrete(n_words + 1)`, `Discrete(11)` for `REVIEWS`: the word to append, in the order of
    `words`, and last the end token.

    ## Observation Space
    `Dict`: `prompt`, the prompt's index, and `response`, `max_length` token ids. Those not written
    yet are the pad token, n_words + 1.

    ## Rewards
    0 until the review is over, then its true reward r(x, y) in logits: the worth of its adjectives
    (multiplied by intensifiers and negations, and dependent on the prompt) minus the costs of
    repetition, broken grammar, wrong conjunctions and silence.

    ## Starting State
    An empty review of a random prompt, all equally likely, or of `reset(options={"prompt": ...})`,
    an index or a text.

    ## Episode End
    The episode terminates after the end token or after `max_length` words. It is never truncated.

    ## Arguments
    * `spec=REVIEWS`: the words, the grammar, the taste and the corpus, see `WordSpec`.
    * `max_length=None`: the largest number of words; None for that of the spec, 5 in `REVIEWS`.
    * `render_mode=None`: `"ansi"` gives the review so far as a text.
    """

    def __init__(
        self,
        spec: WordSpec = REVIEWS,
        max_length: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        check_type("spec", spec, WordSpec, "a WordSpec such as REVIEWS")
        length = spec.max_length if max_length is None else max_length
        super().__init__(spec.prompts, spec.words, length, True, render_mode)
        self.world_spec = spec
        order = (*KINDS, "end", "start")
        self._kinds = torch.tensor([order.index(kind) for kind in (*spec.kinds, "end")])
        follows = dict(spec.grammar)
        self._may_follow = torch.tensor(
            [[after in follows.get(before, ()) for after in order[:-1]] for before in order]
        )
        # The number of each word: an adjective's worth, a factor, or a conjunction's sign.
        numbers = [number for kind in KINDS for _, number in getattr(spec, kind)]
        self._numbers = torch.tensor([[*numbers, 0.0]] * self.n_prompts, dtype=torch.float64)
        for prompt, taste in spec.prompt_taste:
            for word, worth in taste:
                self._numbers[self.prompts.index(prompt), self.words.index(word)] = worth

    def response_rewards(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """Return the true reward of each review, see `TextWorld.response_rewards`.

        One pass over the T positions, all reviews of the batch at once.
        """
        mask = self.written_mask(prompts, responses)
        spec, device = self.world_spec, responses.device
        kinds, may_follow = self._kinds.to(device), self._may_follow.to(device)
        numbers = self._numbers.to(device)
        adjective, intensifier, negation, conjunction, end, start = range(len(KINDS) + 2)

        reward = torch.zeros(len(responses), dtype=torch.float64, device=device)
        intensity = torch.ones_like(reward)  # the factor of the phrase's intensifier
        sign = torch.ones_like(reward)  # the factor of the phrase's negation
        phrase = torch.zeros_like(reward)  # the worth of the phrase before the last conjunction
        joint = torch.zeros_like(reward)  # the sign of the conjunction before this phrase, or 0
        before = torch.full_like(prompts, start)  # the kind of the last word
        said = torch.zeros(len(responses), self.n_actions, dtype=torch.bool, device=device)
        for t in range(self.max_length):
            here = mask[:, t]
            word = responses[:, t].where(here, self.end_token)
            kind, number = kinds[word], numbers[prompts, word]
            is_adjective, is_conjunction = kind == adjective, kind == conjunction

            value = sign * (intensity * number)
            reward += is_adjective * value
            mismatch = joint * value.sign() * phrase.sign() < 0
            reward -= spec.contrast_cost * (is_adjective & mismatch).double()
            repeated = said.gather(1, word[:, None])[:, 0]
            reward -= spec.repetition_cost * (is_adjective & repeated).double()
            said.scatter_(1, word[:, None], (repeated | is_adjective)[:, None])
            silent = (kind == end) & (before == start)
            reward -= spec.grammar_cost * (here & ~may_follow[before, kind] & ~silent).double()
            reward -= spec.silence_cost * (here & silent).double()

            joint = torch.where(is_conjunction, number, joint).masked_fill(is_adjective, 0.0)
            phrase = torch.where(is_adjective, value, phrase)
            phrase_over = is_adjective | is_conjunction
            intensity, sign = (x.masked_fill(phrase_over, 1.0) for x in (intensity, sign))
            intensity = torch.where(kind == intensifier, number, intensity)
            sign = torch.where(kind == negation, number, sign)
            before = torch.where(here, kind, before)
        dangling = (before != end) & ~may_follow[before, end]  # cut off where it may not end
        return reward - spec.grammar_cost * dangling.double()

    @cached_property
    def fluent_reviews(self) -> tuple[Tensor, Tensor]:
        """Every review of the corpus [N, T], and its probability for each prompt [X, N].

        A fluent review is one phrase or two, joined by a conjunction of the right sign.

        Raises:
            ValueError: no review of the corpus has this grammar and fits into `max_length` words.
        """
        spec = self.world_spec
        weights = {word: 1.0 for word, _ in spec.adjectives} | dict(spec.corpus_weights)
        total = sum(weights.values())
        phrases = []  # words, probability, adjective, sign of the negation
        modifiers = ([None, *dict(spec.negations)], [None, *dict(spec.intensifiers)])
        for negation, intensifier, adjective in product(*modifiers, weights):
            chance = weights[adjective] / total
            chance *= spec.negated / len(spec.negations) if negation else 1 - spec.negated
            modified = spec.intensified / len(spec.intensifiers)
            chance *= modified if intensifier else 1 - spec.intensified
            words = [word for word in (negation, intensifier, adjective) if word]
            phrases.append((words, chance, adjective, -1 if negation else 1))

        single = 1 - spec.two_phrases
        reviews = [(words, [single * chance] * self.n_prompts) for words, chance, _, _ in phrases]
        signs = [sign for _, sign in spec.conjunctions]
        for (words, chance, one, sign), (more, further, other, other_sign) in product(
            phrases, repeat=2
        ):
            if one == other:
                continue
            worth = self._numbers[:, [self.words.index(one), self.words.index(other)]]
            contrast = sign * other_sign * worth.prod(1) < 0
            for conjunction, joint in spec.conjunctions:
                fits = contrast if joint < 0 else ~contrast | (joint == 0)
                share = spec.two_phrases * chance * further / signs.count(joint)
                reviews.append(([*words, conjunction, *more], (share * fits).tolist()))

        kinds = dict(zip(spec.words, spec.kinds, strict=True))
        short = [review for review in reviews if len(review[0]) <= self.max_length]
        kept = [(y, p) for y, p in short if spec.is_grammatical([kinds[word] for word in y])]
        if not any(sum(chances) for _, chances in kept):
            found = f"no review of the corpus has this grammar and at most {self.max_length} words"
            raise ValueError(f"{found}: change the grammar, the shares of phrases, or max_length")
        probabilities = torch.tensor([chances for _, chances in kept], dtype=torch.float64).T
        tokens = torch.stack([self.encode_words(words) for words, _ in kept])
        return tokens, probabilities / probabilities.sum(1, keepdim=True)

    def sample_corpus(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sample n prompts [n] and fluent reviews of them [n, T]."""
        prompts = self.sample_prompts(n, generator)
        tokens, probabilities = self.fluent_reviews
        weights = probabilities.to(prompts.device)[prompts]
        chosen = torch.multinomial(weights, 1, generator=generator)[:, 0]
        return prompts, tokens.to(prompts.device)[chosen]


class SlipperyWordMDP(WordMDP):
    """The word world with slips of the pen: sometimes another word is appended than the chosen one.

    ## Description
    As `WordMDP`, but the chosen token is appended only with probability 1 − slip. Otherwise any
    other token is, the end token included, each equally likely. The reward depends on what was
    written, not on what was chosen. With such stochastic transitions the log-ratio of DPO is no
    longer the reward up to a constant.

    ## Action Space
    `Discrete(n_words + 1)`, `Discrete(11)` for `REVIEWS`: the chosen word, in the order of `words`,
    and last the end token.

    ## Observation Space
    As in `WordMDP`: `prompt`, and `response`, the tokens that were written.

    ## Rewards
    As in `WordMDP`, for what was written.

    ## Starting State
    As in `WordMDP`.

    ## Episode End
    After an end token was written, chosen or not, or after `max_length` words.

    ## Arguments
    * `slip=0.1`: the probability that another token is appended, in [0, 1].
    * `spec=REVIEWS`, `max_length=None`, `render_mode=None`: as in `WordMDP`.
    """

    def __init__(
        self,
        slip: float = 0.1,
        spec: WordSpec = REVIEWS,
        max_length: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        check_number("slip", slip, low=0, high=1)
        super().__init__(spec, max_length, render_mode)
        self.slip = float(slip)

    @property
    def fingerprint(self) -> str:
        """As `TextWorld.fingerprint`, with the probability of a slip."""
        return digest(super().fingerprint, self.slip)

    def transition(self, actions: Tensor, uniforms: Tensor) -> Tensor:
        """Return the token that is appended, see `TextWorld.transition`: [B] × 2 → [B]."""
        actions = super().transition(actions, uniforms)
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
        """[A, A] float64 probabilities that a token is appended (column) for a chosen one (row)."""
        stay = torch.eye(self.n_actions, dtype=torch.float64)
        return (1 - self.slip) * stay + self.slip / (self.n_actions - 1) * (1 - stay)
