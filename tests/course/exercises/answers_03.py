"""Answers to the exercises of notebook 03, as students write them."""

import torch


def step_with_a_list(world, prompt, response, action):
    words = [token for token in response.tolist() if token != world.pad_token]
    words.append(int(action))
    terminated = words[-1] == world.end_token or len(words) >= world.max_length
    padded = words + [world.pad_token] * (world.max_length - len(words))
    next_response = torch.tensor(padded)
    if not terminated:
        return next_response, 0.0, False
    reward = world.response_rewards(torch.tensor([prompt]), next_response.unsqueeze(0))
    return next_response, reward.item(), True


def step_with_where(world, prompt, response, action):
    is_free = response == world.pad_token
    is_next = is_free & (is_free.cumsum(0) == 1)
    after = torch.where(is_next, action, response)
    terminated = (after == world.end_token).any() | (after != world.pad_token).all()
    reward = world.response_rewards(torch.tensor([prompt]), after[None])[0]
    return after, reward * terminated, terminated


def step_by_the_environment(world, prompt, response, action):
    world.reset(options={"prompt": prompt})
    for token in response.tolist():
        if token == world.pad_token:
            break
        world.step(token)
    state, reward, terminated, _, _ = world.step(action)
    return [torch.from_numpy(state["response"]), reward, terminated]


def sequence_by_gather(logits, responses, mask):
    logps = torch.log_softmax(logits, dim=-1)
    safe = torch.where(mask, responses, torch.zeros_like(responses))
    taken = torch.gather(logps, 2, safe.unsqueeze(-1)).squeeze(-1)
    return (taken * mask).sum(dim=1)


def sequence_by_cross_entropy(logits, responses, mask):
    targets = responses.masked_fill(~mask, -100)
    losses = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), targets, ignore_index=-100, reduction="none"
    )
    return -losses.sum(-1)


def sequence_by_loops(logits, responses, mask):
    sums = []
    for b in range(logits.shape[0]):
        total = logits.new_zeros(())
        for t in range(logits.shape[1]):
            if mask[b, t]:
                row = logits[b, t]
                total = total + row[responses[b, t]] - torch.logsumexp(row, dim=0)
        sums.append(total)
    return torch.stack(sums)


def sequence_by_categorical(logits, responses, mask):
    actions = responses.clamp(0, logits.shape[-1] - 1)
    logps = torch.distributions.Categorical(logits=logits).log_prob(actions)
    return torch.where(mask, logps, 0.0).sum(1)


RIGHT = {
    "step_word_mdp": [step_with_a_list, step_with_where, step_by_the_environment],
    "sequence_logps": [
        sequence_by_gather,
        sequence_by_cross_entropy,
        sequence_by_loops,
        sequence_by_categorical,
    ],
}


def judge(world, prompt, response):
    return world.response_rewards(torch.tensor([prompt]), response[None]).item()


def append(world, response, action):
    n = (response < world.pad_token).sum()
    return torch.cat([response[:n], torch.tensor([action]), response[n + 1 :]])


def n_words(world, response):
    return (response != world.pad_token).sum().item()


def pays_always(world, prompt, response, action):
    after = append(world, response, action)
    over = action == world.end_token or n_words(world, after) == world.max_length
    return after, judge(world, prompt, after), over


def pays_never(world, prompt, response, action):
    after = append(world, response, action)
    return after, 0.0, action == world.end_token or world.pad_token not in after.tolist()


def ends_by_the_end_token_only(world, prompt, response, action):
    after = append(world, response, action)
    if action == world.end_token:
        return after, judge(world, prompt, after), True
    return after, 0.0, False


def ends_one_word_late(world, prompt, response, action):
    length = n_words(world, response)
    after = append(world, response, action)
    over = action == world.end_token or length == world.max_length
    return after, judge(world, prompt, after) if over else 0.0, over


def ends_at_the_limit_only(world, prompt, response, action):
    after = append(world, response, action)
    over = world.pad_token not in after.tolist()
    return after, judge(world, prompt, after) if over else 0.0, over


def ends_one_word_early(world, prompt, response, action):
    after = append(world, response, action)
    over = action == world.end_token or n_words(world, after) >= world.max_length - 1
    return after, judge(world, prompt, after) if over else 0.0, over


def ends_after_five(world, prompt, response, action):
    after = append(world, response, action)
    over = action == world.end_token or n_words(world, after) == 5
    return after, judge(world, prompt, after) if over else 0.0, over


def pays_for_the_end_token_only(world, prompt, response, action):
    after = append(world, response, action)
    over = action == world.end_token or n_words(world, after) == world.max_length
    return after, judge(world, prompt, after) if action == world.end_token else 0.0, over


def stops_without_a_token(world, prompt, response, action):
    if action == world.end_token:
        return response, judge(world, prompt, response), True
    after = append(world, response, action)
    over = n_words(world, after) == world.max_length
    return after, judge(world, prompt, after) if over else 0.0, over


def finish(world, prompt, response, action, after):
    over = action == world.end_token or n_words(world, response) + 1 == world.max_length
    return after, judge(world, prompt, after) if over else 0.0, over


def overwrites(world, prompt, response, action):
    after = response.clone()
    after[n_words(world, response) - 1] = action
    return finish(world, prompt, response, action, after)


def writes_first(world, prompt, response, action):
    after = torch.cat([torch.tensor([action]), response[1:]])
    return finish(world, prompt, response, action, after)


def writes_last(world, prompt, response, action):
    after = torch.cat([response[:-1], torch.tensor([action])])
    return finish(world, prompt, response, action, after)


def counts_pads(world, prompt, response, action):
    after = response.clone()
    after[(response == world.pad_token).sum()] = action
    return finish(world, prompt, response, action, after)


def judges_the_old(world, prompt, response, action):
    after = append(world, response, action)
    over = action == world.end_token or world.pad_token not in after.tolist()
    return after, judge(world, prompt, response) if over else 0.0, over


def judges_prompt_0(world, prompt, response, action):
    after = append(world, response, action)
    over = action == world.end_token or world.pad_token not in after.tolist()
    return after, judge(world, 0, after) if over else 0.0, over


def changes_in_place(world, prompt, response, action):
    response[n_words(world, response)] = action
    over = action == world.end_token or world.pad_token not in response.tolist()
    return response, judge(world, prompt, response) if over else 0.0, over


def appends_to_the_end(world, prompt, response, action):
    after = torch.cat([response, torch.tensor([action])])
    return after, 0.0, action == world.end_token


def take(values, responses):
    index = responses.clamp(max=values.shape[2] - 1).unsqueeze(2)
    return torch.gather(values, 2, index).squeeze(2)


def masked_logps(logits, responses, mask):
    return torch.where(mask, take(torch.log_softmax(logits, 2), responses), 0.0)


def product_of_probabilities(logits, responses, mask):
    return torch.where(mask, take(torch.softmax(logits, 2), responses), 1.0).prod(1)


def without_the_last_token(logits, responses, mask):
    later = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    return masked_logps(logits, responses, later)


def summed_later(logits, responses, mask):
    return torch.sum(masked_logps(logits, responses, mask))


def greedy(logits, responses, mask):
    best = torch.log_softmax(logits, -1).max(-1).values
    return torch.where(mask, best, torch.zeros_like(best)).sum(-1)


def sequence_detached(logits, responses, mask):
    return masked_logps(logits.detach(), responses, mask).sum(1)


WRONG = {
    "step_word_mdp": [
        (pays_always, "reward at every step"),
        (pays_never, "no reward"),
        (ends_by_the_end_token_only, "not over at the limit"),
        (ends_one_word_late, "not over at the limit"),
        (ends_at_the_limit_only, "over only at the limit"),
        (ends_one_word_early, "over one word early"),
        (ends_after_five, "five words in every world"),
        (pays_for_the_end_token_only, "nothing paid at the limit"),
        (stops_without_a_token, "end token not written"),
        (overwrites, "last word overwritten"),
        (writes_first, "always the first place"),
        (writes_last, "always the last place"),
        (counts_pads, "pads counted"),
        (judges_the_old, "old response judged"),
        (judges_prompt_0, "prompt ignored"),
        (changes_in_place, None),
        (appends_to_the_end, None),
        (lambda world, prompt, response, action: append(world, response, action), None),
    ],
    "sequence_logps": [
        (lambda z, y, m: masked_logps(z, y, m).sum(1) / m.sum(1), "mean over the tokens"),
        (lambda z, y, m: masked_logps(z, y, m).mean(1), "mean over all positions"),
        (lambda z, y, m: take(z.log_softmax(-1), y).sum(-1), "mask forgotten"),
        (
            lambda z, y, m: masked_logps(z[:, :-1], y[:, 1:], m[:, 1:]).sum(-1),
            "shifted by one",
        ),
        (lambda z, y, m: without_the_last_token(z, y, m).sum(1), "last token forgotten"),
        (lambda z, y, m: (take(z, y) * m).sum(1), "not normalised"),
        (lambda z, y, m: (take(z.softmax(-1), y) * m).sum(1), "sum of probabilities"),
        (product_of_probabilities, "probability, not its logarithm"),
        (
            lambda z, y, m: torch.where(m, take(z.log_softmax(dim=-2), y), 0.0).sum(1),
            "softmax over positions",
        ),
        (greedy, "likeliest token"),
        (summed_later, "summed over the batch"),
        (lambda z, y, m: -masked_logps(z, y, m).sum(1), "sign"),
        (
            lambda z, y, m: torch.where(
                m, z.log_softmax(2).gather(2, y.unsqueeze(2)).squeeze(2), 0.0
            ).sum(1),
            "pad as an action",
        ),
        (
            lambda z, y, m: torch.where(m, torch.log(take(z.softmax(2), y)), 0.0).sum(1),
            "underflow",
        ),
        (lambda z, y, m: masked_logps(z, y, m), None),
        (sequence_detached, None),
        (lambda z, y, m: masked_logps(z, y, m).sum(0), None),
    ],
}
