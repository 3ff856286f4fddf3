"""Who said what: the praise and blame of each word of a response that a student types (L30)."""

from __future__ import annotations

import math

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from rlhf_toy.course.widgets.parts import InteractiveCell, in_a_row, picture, png, say, words
from rlhf_toy.envs import WordMDP
from rlhf_toy.exact import soft_value_iteration, state_logps, tabular_mdp
from rlhf_toy.models import PolicyModel, check_fits


def states_before(world: WordMDP, prompt: int, response: Tensor) -> Tensor:
    """The state of `exact.state_logps` in which each token of a response was written.

    Args:
        world: a deterministic world.
        prompt: its number.
        response: [T] token ids.

    Returns:
        [T] numbers of states; what stands after the end of the response means nothing.
    """
    strings = sum(world.n_words**t for t in range(world.max_length))  # that go on
    so_far = response.repeat(world.max_length, 1).tril(-1)  # row t has the words before t
    later = torch.ones_like(so_far, dtype=torch.bool).triu()
    return prompt * strings + world.response_index(so_far.masked_fill(later, world.end_token))


def draw_credit(figure: Figure, names: list[str], credit: Tensor, rows: list[str]) -> None:
    """A heat map of [rows, tokens], logits, with each token's name and number.

    Args:
        figure: an empty figure.
        names: of the tokens.
        credit: [R, T], logits.
        rows: what each row shows.
    """
    figure.set_layout_engine("none")
    axes = figure.add_axes((0.2, 0.1, 0.78, 0.75))
    bound = max(1.0, float(credit.abs().max()))
    axes.imshow(credit.numpy(), cmap="PuOr_r", vmin=-bound, vmax=bound, aspect="auto")
    for row, values in enumerate(credit.tolist()):
        for place, (name, value) in enumerate(zip(names, values, strict=True)):
            colour = "w" if abs(value) > 0.55 * bound else "k"
            text = f"{name}\n{value:+.2f}"
            axes.text(place, row, text, ha="center", va="center", color=colour, fontsize=11)
    axes.set_xticks([])
    axes.set_yticks(range(len(rows)), rows)
    axes.grid(False)
    axes.set_title("blame < 0 < praise, logits (purple: blame, orange: praise)", fontsize=10)


class WhoSaidWhat(InteractiveCell):
    """Token advantages of a response that is typed in, exact and in the log-ratios of a policy.

    The exact ones are Q*(s, a) − V*(s) by soft value iteration; beside them stands
    β log π(a|s)/π_ref(a|s) of the policy.

    Attributes:
        prompt, text: the controls; the text is read when Enter is pressed or the field is left.
        credit: [2, T] of the response that is shown, exact and the policy's, logits.
        picture: the heat map.
        line: what it shows, in words, or what is wrong with the text.
    """

    def __init__(
        self,
        world: WordMDP,
        reference: PolicyModel,
        policy: PolicyModel,
        beta: float,
        prompt: str = "library",
        text: str = "very loud",
    ) -> None:
        """Computes the tables of all states once.

        Args:
            world: a deterministic word world.
            reference: π_ref.
            policy: whose log-ratios are shown.
            beta: KL weight.
            prompt: to start with.
            text: words to start with.

        Raises:
            TypeError: `world` is no `WordMDP`, or a model no `PolicyModel`.
            ValueError: a model of another world, a world that slips, a bad β, or an unknown prompt
                or word.
        """
        if not isinstance(world, WordMDP):
            raise TypeError(f"world must be a WordMDP, got {world!r}")
        if not world.is_deterministic:
            raise ValueError(
                "with slips a log-ratio is no advantage: give a WordMDP, or one with slip=0"
            )
        for name, model in (("reference", reference), ("policy", policy)):
            if not isinstance(model, PolicyModel):
                raise TypeError(f"{name} must be a PolicyModel, got {model!r}")
            check_fits(model, world)
        if not 0 < beta < math.inf:
            raise ValueError(f"beta must be a finite number above 0, got {beta!r}")
        self._world, self._beta = world, beta
        ref_logps = state_logps(reference, world).cpu()  # [S, A]
        Q, V, _ = soft_value_iteration(*tabular_mdp(world), ref_logps, beta, world.max_length)
        # The end comes in time from any state, so that the values at step 0 serve all steps.
        self._values = V[0]
        self._tables = torch.stack(
            [Q[0] - V[0][:, None], beta * (state_logps(policy, world).cpu() - ref_logps)]
        )  # [2, S, A]
        world.prompt_index(prompt)  # raises for an unknown one
        self.prompt = ipywidgets.Dropdown(
            options=list(world.prompts),
            value=prompt,
            description="prompt",
            style={"description_width": "initial"},
            layout={"width": "16em"},
        )
        self.text = ipywidgets.Text(
            value=text,
            description="review",
            continuous_update=False,
            style={"description_width": "initial"},
            layout={"width": "24em"},
        )
        self._look()
        first = self._drawing()
        self.picture, self.line = picture(first), words()
        vocabulary = words(f"Words: {', '.join(world.words)}; at most {world.max_length}.")
        for control in (self.prompt, self.text):
            control.observe(self._redraw, "value")
        controls = in_a_row([self.prompt, self.text])
        super().__init__(ipywidgets.VBox([controls, vocabulary, self.picture, self.line]), first)
        say(self.line, self._words())

    def _look(self) -> None:
        """Reads the controls; raises a ValueError if the text is no response."""
        world, x = self._world, self.prompt.index
        response = world.encode(" ".join(self.text.value.lower().split()))
        n = int(world.response_mask(response[None]).sum())
        at = states_before(world, x, response)[:n], response[:n]
        self.credit = self._tables[:, at[0], at[1]]
        self._names = [(*world.words, "<end>")[token] for token in response[:n].tolist()]
        prompts = torch.tensor([x])
        self._reward = float(world.response_rewards(prompts, response[None]))
        self._start = float(self._values[states_before(world, x, response)[0]])

    def _words(self) -> str:
        exact, theirs = self.credit
        most, least = int(exact.argmax()), int(exact.argmin())
        return (
            f"Most praise: {self._names[most]} ({exact[most]:+.2f}); most blame: "
            f"{self._names[least]} ({exact[least]:+.2f}). The exact advantages sum to "
            f"{exact.sum():+.3f}, which is r − V*(start) = {self._reward:+.3f} − "
            f"{self._start:+.3f}; the policy's sum to {theirs.sum():+.3f}. Largest difference of a "
            f"token: {(exact - theirs).abs().max():.2f}."
        )

    def _drawing(self) -> bytes:
        rows = ["Q* − V*, exact", "β log π/π_ref\nof the policy"]
        return png(lambda figure: draw_credit(figure, self._names, self.credit, rows), (8.0, 2.6))

    def _redraw(self, _: object = None) -> None:
        try:
            self._look()
        except ValueError as error:
            say(self.line, f"{error}. The map still shows the review before.", wrong=True)
            return
        self.picture.value = self._drawing()
        say(self.line, self._words())
