"""Who said what: credit and blame for each word of a response that you type."""

from __future__ import annotations

import ipywidgets
import torch
from gymnasium import Env
from matplotlib.figure import Figure
from torch import Tensor

from rlhf_toy.checks import check_positive, check_type
from rlhf_toy.course.widgets.parts import Explorer, in_a_row, labelled, words
from rlhf_toy.course.widgets.word_by_word import token_names
from rlhf_toy.envs import WordMDP, unwrap
from rlhf_toy.exact import soft_value_iteration, state_logps, tabular_mdp
from rlhf_toy.models import Policy, check_fits


def states_before(world: WordMDP, prompt: int, response: Tensor) -> Tensor:
    """Return the state of `exact.state_logps` in which each token of a response was written.

    Args:
        world: a deterministic world.
        prompt: index of the prompt.
        response: [T] token ids.

    Returns:
        [T] indices of states; those after the end of the response have no meaning.
    """
    unfinished = int(world.level_starts[-1])  # states of a prompt
    so_far = response.repeat(world.max_length, 1).tril(-1)  # row t has the words before t
    later = torch.ones_like(so_far, dtype=torch.bool).triu()
    return prompt * unfinished + world.response_index(so_far.masked_fill(later, world.end_token))


def draw_credit(figure: Figure, names: list[str], credit: Tensor, rows: list[str]) -> None:
    """Draw a heat map of credit, with each token's name and number.

    Args:
        figure: an empty figure.
        names: the T tokens' names.
        credit: [R, T] in logits.
        rows: the R rows' labels.
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


class WhoSaidWhat(Explorer):
    """Token advantages of a response that you type, exact and in the log-ratios of a policy.

    The exact ones are Q*(s, a) − V*(s) from soft value iteration; the policy's are
    β log π(a|s)/π_ref(a|s).

    Attributes:
        prompt, text: the controls; the text is read when you press Enter or leave the field.
        credit: [2, T] advantages of the response that is shown, exact and the policy's, in logits.
    """

    SIZE = (8.0, 2.6)

    def __init__(
        self,
        world: Env,
        reference: Policy,
        policy: Policy,
        beta: float,
        prompt: str = "library",
        text: str = "very loud",
    ) -> None:
        """Compute the tables of all states once.

        Args:
            world: a deterministic word world, bare or in Gymnasium's wrappers.
            reference: π_ref.
            policy: the model whose log-ratios are shown.
            beta: weight of the KL penalty.
            prompt: the first prompt.
            text: the first response, words separated by spaces.

        Raises:
            TypeError: a world that is not a `WordMDP`, or a model that is not a policy.
            ValueError: a model of another world, a world that slips, a bad β, or an unknown prompt
                or word.
        """
        world = unwrap(world)
        check_type("world", world, WordMDP, "a WordMDP")
        if not world.is_deterministic:
            raise ValueError(
                "with slips a log-ratio is not an advantage: give WordMDP(), or a world with slip=0"
            )
        for name, model in (("reference", reference), ("policy", policy)):
            check_type(name, model, Policy, "a policy such as a PolicyModel")
            check_fits(model, world)
        check_positive(beta=beta)
        check_type("text", text, str, "words separated by spaces")
        self._world = world
        start = world.prompt_index(prompt)  # raises for an unknown one
        ref_logps = state_logps(reference, world).cpu()  # [S, A]
        Q, V, _ = soft_value_iteration(*tabular_mdp(world), ref_logps, beta, world.max_length)
        # Every response ends in time from any state, so the values at step 0 hold at all steps.
        self._values = V[0]
        self._tables = torch.stack(
            [Q[0] - V[0][:, None], beta * (state_logps(policy, world).cpu() - ref_logps)]
        )  # [2, S, A]
        self.prompt = labelled(
            ipywidgets.Dropdown, "prompt", "16em", options=list(world.prompts), index=start
        )
        self.text = labelled(ipywidgets.Text, "review", "24em", value=text, continuous_update=False)
        vocabulary = words(f"Words: {', '.join(world.words)}; at most {world.max_length}.")
        controls = (self.prompt, self.text)
        super().__init__([in_a_row(controls), vocabulary], controls)

    def _compute(self) -> None:
        """Read the controls; a ValueError if the text is not a response."""
        world, x = self._world, self.prompt.index
        response = world.encode(" ".join(self.text.value.lower().split()))
        n = int(world.response_mask(response[None]).sum())
        states = states_before(world, x, response)[:n]
        names = token_names(world)
        self.credit = self._tables[:, states, response[:n]]
        self._names = [names[token] for token in response[:n].tolist()]
        self._reward = float(world.response_rewards(torch.tensor([x]), response[None]))
        self._start = float(self._values[states[0]])

    def _draw(self, figure: Figure) -> None:
        rows = ["Q* − V*, exact", "β log π/π_ref\nof the policy"]
        draw_credit(figure, self._names, self.credit, rows)

    def _describe(self) -> str:
        exact, theirs = self.credit
        most, least = int(exact.argmax()), int(exact.argmin())
        return (
            f"Most praise: {self._names[most]} ({exact[most]:+.2f}); most blame: "
            f"{self._names[least]} ({exact[least]:+.2f}). The exact advantages sum to "
            f"{exact.sum():+.3f} = r − V*(start) = {self._reward:+.3f} − ({self._start:+.3f}); "
            f"the policy's sum to {theirs.sum():+.3f}. The largest difference for one token is "
            f"{(exact - theirs).abs().max():.2f}."
        )
