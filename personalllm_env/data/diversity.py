"""How differently a population votes: the statistics of PersonalLLM's Figures 2 and 3."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

_CHUNK_CELLS = 500_000  # utilities held at once: 2 MB of float32, about what a cache holds


class Diversity(NamedTuple):
    """What the votes of a population say, over P prompts.

    Attributes:
        top_share_at_most: Percentage of prompts whose most popular response gets at most
            50, 75 and 95 % of the votes.
        winner_counts: Percentage of prompts on which at most 2, exactly 3, 4, 5, and at least
            6 responses get a vote.
        win_rates: (K,) percentage of all votes that each responder gets.
        entropy: Mean over prompts of the votes' entropy, in nats.
    """

    top_share_at_most: Float[np.ndarray, "3"]
    winner_counts: Float[np.ndarray, "5"]
    win_rates: Float[np.ndarray, "K"]
    entropy: float


def top1_agreement(scores: Float[np.ndarray, "P K M"]) -> Float[np.ndarray, "M M"]:
    """Returns the share of prompts on which two reward models rank the same response first.

    Chance is 1 / K. PersonalLLM (arXiv 2409.20296) argues from this disagreement that an
    ensemble of reward models stands for a diverse population (section 3 and Figure 2).

    Args:
        scores: (P, K, M) scores; the first of equal best responses counts as the best.
    """
    top = scores.argmax(axis=1)
    hits = (top[:, None, :] == np.arange(scores.shape[1])[:, None]).astype(np.float64)
    flat = hits.reshape(-1, scores.shape[2])
    return flat.T @ flat / len(scores)


def vote_shares(
    scores: Float[np.ndarray, "P K M"], weights: Float[np.ndarray, "U M"]
) -> Float[np.ndarray, "P K"]:
    """Returns the share of the users whose best response to prompt p is response k.

    A user's best response maximises ``weights @ scores`` (PersonalLLM, equation 1); the first
    of equal ones has the vote. Prompts are taken in chunks, so that memory stays far below
    200 MB whatever the sizes.
    """
    num_prompts, num_responses, _ = scores.shape
    users = np.ascontiguousarray(weights.T, dtype=np.float32)
    shares = np.empty((num_prompts, num_responses))
    chunk = max(1, _CHUNK_CELLS // (num_responses * users.shape[1]))
    for start in range(0, num_prompts, chunk):
        rows = slice(start, start + chunk)
        part = scores[rows].astype(np.float32, copy=False)
        utility = (part.reshape(-1, part.shape[2]) @ users).reshape(
            len(part), num_responses, -1
        )
        top = utility.max(axis=1)  # several times faster here than argmax
        undecided = np.ones(top.shape, bool)
        for k in range(num_responses):
            vote = (utility[:, k] == top) & undecided
            shares[rows, k] = vote.mean(axis=1)
            undecided &= ~vote
    return shares


def population_diversity(votes: Float[np.ndarray, "P K"]) -> Diversity:
    """Returns how concentrated the votes are, in the forms that PersonalLLM plots.

    Figure 3 of PersonalLLM (arXiv 2409.20296) shows the top response's share, the number of
    responses with a vote and the win rate of each responder, for 1,000 users; the text around
    it compares the entropy of the votes over kinds of prompts.

    Args:
        votes: (P, K) shares of the votes; each row sums to 1.
    """
    top = votes.max(axis=1)
    winners = (votes > 0).sum(axis=1)
    counts = [winners <= 2, winners == 3, winners == 4, winners == 5, winners >= 6]
    logs = np.log(votes, out=np.zeros(votes.shape), where=votes > 0)
    return Diversity(
        # The slack keeps a share that is exactly .75 in floating point on the right side.
        top_share_at_most=np.array([100 * (top <= s + 1e-9).mean() for s in (0.5, 0.75, 0.95)]),
        winner_counts=np.array([100 * c.mean() for c in counts]),
        win_rates=100 * votes.mean(axis=0),
        entropy=float(-(votes * logs).sum(axis=1).mean()),
    )
