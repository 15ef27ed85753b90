"""How far should features tell the scores? The synthetic bank's one free dial, held to LoRe.

    python experiments/decodability.py [--shares .2 .3] [--weakness-shares .3] [--seeds 3]

prints, per share of decodable score variance: best-versus-worst accuracy in LoRe's protocol
(arXiv 2504.14439), which on PersonalLLM's data with a reward model's features gives 86.4 %
without and 93.8 % with personalisation; and the personalisation gain of an empirical-Bayes
agent after 10 and 50 rewards. Figures are means over seeds, with their standard deviation.

LoRe's protocol: Dirichlet(.1) users over *raw* scores; 1,000 seen users with 47 train prompts
each, 500 unseen ones with 9; a pair is the user's best and worst response to a prompt; the
test is such pairs on all test prompts. Its model is ``w_i @ V @ features``, w on the simplex.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.special import expit, softmax

from personalllm_env.bank import ResponseBank
from personalllm_env.data.calibration import load_reference
from personalllm_env.data.synthetic import DEFAULT_SHARES, synthetic_bank
from personalllm_env.decoding import decodable_share, linear_decoder

RANK = 5
RIDGE = 1e-5
PULLS = (1e-3, 3e-3, 1e-2)
NOISE_SD = 0.5


class Pairs(NamedTuple):
    """N comparisons: whose, and features of the best minus those of the worst response."""

    user: Int[np.ndarray, "N"]
    difference: Float[np.ndarray, "N D"]


def scores_and_scale(
    bank: ResponseBank,
) -> tuple[Float[np.ndarray, "P K M"], Float[np.ndarray, "M"]]:
    """Returns scores on PersonalLLM's raw scale, up to a constant, and that scale."""
    published = load_reference()["train_mean_sd"]
    scale = np.array([published[name][1] for name in bank.reward_models], dtype=np.float32)
    return bank.scores * scale, scale


def draw_pairs(
    bank: ResponseBank,
    raw: Float[np.ndarray, "P K M"],
    weights: Float[np.ndarray, "U M"],
    num: int,
    rng: np.random.Generator,
) -> Pairs:
    """Draws ``num`` train prompts per user and compares the user's best and worst response."""
    train = bank.prompts("train")
    user = np.repeat(np.arange(len(weights)), num)
    prompt = np.concatenate([rng.choice(train, num, replace=False) for _ in weights])
    utility = np.einsum("nkm,nm->nk", raw[prompt], weights[user])
    features = bank.response_features[prompt].astype(np.float64)
    rows = np.arange(len(prompt))
    return Pairs(user, features[rows, utility.argmax(1)] - features[rows, utility.argmin(1)])


def fit_direction(pairs: Pairs) -> Float[np.ndarray, "D"]:
    """Returns one Bradley-Terry direction for everybody."""
    x = pairs.difference

    def loss(theta: Float[np.ndarray, "D"]) -> tuple[float, Float[np.ndarray, "D"]]:
        margin = x @ theta
        slope = -expit(-margin) / len(x)
        value = np.logaddexp(0, -margin).mean() + RIDGE * theta @ theta
        return float(value), x.T @ slope + 2 * RIDGE * theta

    return minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B").x


def fit_low_rank(
    pairs: Pairs,
    num_users: int,
    start: Float[np.ndarray, "D"],
    pull: float,
    rng: np.random.Generator,
) -> Float[np.ndarray, "R D"]:
    """Returns LoRe's basis V, fitted jointly with the seen users' weights on the simplex.

    LoRe stops early; here ``pull`` draws V's rows to the shared direction ``start`` instead.
    """
    x, user, dims = pairs.difference, pairs.user, pairs.difference.shape[1]
    basis = start + np.linalg.norm(start) * rng.standard_normal((RANK, dims)) / np.sqrt(dims)
    first = np.concatenate([basis.ravel(), 0.1 * rng.standard_normal(num_users * RANK)])

    def loss(flat: Float[np.ndarray, "n"]) -> tuple[float, Float[np.ndarray, "n"]]:
        basis, logits = flat[: RANK * dims].reshape(RANK, dims), flat[RANK * dims :]
        mix = softmax(logits.reshape(num_users, RANK), axis=1)
        part = x @ basis.T
        value, slope, to_logits = _mixed(part, mix, user)
        to_basis = (slope[:, None] * mix[user]).T @ x + 2 * pull * (basis - start)
        return value + pull * float(((basis - start) ** 2).sum()), np.concatenate(
            [to_basis.ravel(), to_logits.ravel()]
        )

    best = minimize(loss, first, jac=True, method="L-BFGS-B", options={"maxiter": 300})
    return best.x[: RANK * dims].reshape(RANK, dims)


def fit_weights(
    pairs: Pairs, num_users: int, basis: Float[np.ndarray, "R D"]
) -> Float[np.ndarray, "U R"]:
    """Returns new users' weights on the simplex, the basis being frozen."""
    part = pairs.difference @ basis.T

    def loss(flat: Float[np.ndarray, "n"]) -> tuple[float, Float[np.ndarray, "n"]]:
        mix = softmax(flat.reshape(num_users, RANK), axis=1)
        value, _, gradient = _mixed(part, mix, pairs.user)
        return value * num_users, gradient.ravel() * num_users

    options = {"maxiter": 100}
    best = minimize(
        loss, np.zeros(num_users * RANK), jac=True, method="L-BFGS-B", options=options
    )
    return softmax(best.x.reshape(num_users, RANK), axis=1)


def choose_basis(
    pairs: Pairs, num_users: int, start: Float[np.ndarray, "D"], rng: np.random.Generator
) -> Float[np.ndarray, "R D"]:
    """Returns the basis whose pull does best on a fifth of the seen users, held out.

    They are treated as new: 9 of their pairs fit their weights, the others judge.
    """
    held = num_users // 5
    fit, new = (Pairs(*(a[m] for a in pairs)) for m in (pairs.user >= held, pairs.user < held))
    nth = np.arange(len(new.user)) % (len(new.user) // held)  # a user's pairs are consecutive
    few, rest = (Pairs(*(a[m] for a in new)) for m in (nth < 9, nth >= 9))
    best: tuple[float, Float[np.ndarray, "R D"]] | None = None
    for pull in PULLS:
        basis = fit_low_rank(
            fit._replace(user=fit.user - held), num_users - held, start, pull, rng
        )
        taste = fit_weights(few, held, basis) @ basis
        right = float(((rest.difference * taste[rest.user]).sum(axis=1) > 0).mean())
        if best is None or right > best[0]:
            best = right, basis
    assert best is not None, "PULLS is not empty"
    return best[1]


def _mixed(
    part: Float[np.ndarray, "N R"], mix: Float[np.ndarray, "U R"], user: Int[np.ndarray, "N"]
) -> tuple[float, Float[np.ndarray, "N"], Float[np.ndarray, "U R"]]:
    """Returns the logistic loss, its slope per pair and its gradient in the weights' logits."""
    margin = (part * mix[user]).sum(axis=1)
    slope = -expit(-margin) / len(part)
    to_mix = np.stack(
        [np.bincount(user, slope * column, minlength=len(mix)) for column in part.T], axis=1
    )
    to_logits = mix * (to_mix - (to_mix * mix).sum(axis=1, keepdims=True))
    return float(np.logaddexp(0, -margin).mean()), slope, to_logits


def accuracy(
    bank: ResponseBank,
    raw: Float[np.ndarray, "P K M"],
    weights: Float[np.ndarray, "U M"],
    taste: Float[np.ndarray, "U D"],
) -> float:
    """Returns the % of best-versus-worst test pairs that ``taste`` orders rightly."""
    test = bank.prompts("test")
    utility = np.einsum("pkm,um->upk", raw[test], weights, optimize=True)
    guess = np.einsum("pkd,ud->upk", bank.response_features[test], taste, optimize=True)
    best, worst = utility.argmax(2)[..., None], utility.argmin(2)[..., None]
    right = np.take_along_axis(guess, best, 2) > np.take_along_axis(guess, worst, 2)
    return float(100 * right.mean())


def lore(bank: ResponseBank, rng: np.random.Generator) -> tuple[float, float, float]:
    """Returns accuracies for unseen users: shared direction, low rank, true user decoded."""
    raw, scale = scores_and_scale(bank)
    seen, unseen = (rng.dirichlet([0.1] * bank.num_reward_models, n) for n in (1000, 500))
    pairs = draw_pairs(bank, raw, seen, 47, rng)
    direction = fit_direction(pairs)
    basis = choose_basis(pairs, len(seen), direction, rng)
    mix = fit_weights(draw_pairs(bank, raw, unseen, 9, rng), len(unseen), basis)
    truth = (unseen * scale) @ linear_decoder(bank).T
    shared = np.tile(direction, (len(unseen), 1))
    tastes = (shared, mix @ basis, truth)
    plain, personal, decoded = (accuracy(bank, raw, unseen, taste) for taste in tastes)
    return plain, personal, decoded


def gains(
    bank: ResponseBank, concentration: float, rng: np.random.Generator
) -> tuple[float, float, float]:
    """Returns (agent - popular) / (oracle - popular): after 10, after 50, decoder oracle.

    The agent is greedy under a Gaussian posterior over the user's weights, whose prior has the
    train users' mean and covariance; it sees decoded scores and noisy rewards. Popular is the
    train users' mean taste, decoded. The oracle knows the user and the scores.
    """
    train, users = (
        rng.dirichlet([concentration] * bank.num_reward_models, n) for n in (1000, 500)
    )
    mean, covariance = train.mean(axis=0), np.cov(train.T)
    decoded = bank.response_features @ linear_decoder(bank)
    rows = bank.prompts("train")
    residual = (bank.scores[rows] - decoded[rows]).reshape(-1, bank.num_reward_models)
    # The reward's variance about its decoded guess: what features do not tell, plus noise.
    noise = np.einsum("um,mn,un->u", train, np.cov(residual.T), train).mean() + NOISE_SD**2
    test = bank.prompts("test")

    def value(tastes: Float[np.ndarray, "U M"], view: Float[np.ndarray, "P K M"]) -> float:
        best = np.einsum("pkm,um->upk", view[test], tastes, optimize=True).argmax(2)
        utility = np.einsum("pkm,um->upk", bank.scores[test], users, optimize=True)
        return float(np.take_along_axis(utility, best[..., None], 2).mean())

    popular = value(np.tile(mean, (len(users), 1)), decoded)
    oracle = value(users, bank.scores)
    after = _learn(bank.scores, decoded, users, (mean, covariance, float(noise)), rows, rng)
    values = [value(after[10], decoded), value(after[50], decoded), value(users, decoded)]
    ten, fifty, ceiling = ((v - popular) / (oracle - popular) for v in values)
    return ten, fifty, ceiling


def _learn(
    scores: Float[np.ndarray, "P K M"],
    decoded: Float[np.ndarray, "P K M"],
    users: Float[np.ndarray, "U M"],
    prior: tuple[Float[np.ndarray, "M"], Float[np.ndarray, "M M"], float],
    rows: Int[np.ndarray, "p"],
    rng: np.random.Generator,
) -> dict[int, Float[np.ndarray, "U M"]]:
    """Returns posterior mean weights after 10 and 50 greedy interactions (Kalman's update)."""
    mean = np.tile(prior[0], (len(users), 1))
    covariance = np.tile(prior[1], (len(users), 1, 1))
    every, kept = np.arange(len(users)), {}
    for t in range(1, 51):
        prompt = rng.choice(rows, len(users))
        shown = np.einsum("ukm,um->uk", decoded[prompt], mean).argmax(axis=1)
        seen = decoded[prompt, shown]
        reward = (scores[prompt, shown] * users).sum(axis=1)
        reward = reward + NOISE_SD * rng.standard_normal(len(users))
        spread = np.einsum("umn,un->um", covariance, seen)
        gain = spread / ((spread * seen).sum(axis=1) + prior[2])[:, None]
        mean = mean + gain * (reward - (seen * mean).sum(axis=1))[:, None]
        covariance = covariance - gain[every, :, None] * spread[:, None, :]
        if t in (10, 50):
            kept[t] = mean
    return kept


def measure(share: float, weakness_share: float, seed: int) -> list[float]:
    """Returns one table row of one seed."""
    bank = synthetic_bank(decodable=share, decodable_weakness=weakness_share, seed=seed)
    shares = decodable_share(bank, linear_decoder(bank))
    row = [float(shares.mean()), *lore(bank, np.random.default_rng([seed, 10]))]
    for number, concentration in enumerate((0.05, 0.1)):
        row.extend(gains(bank, concentration, np.random.default_rng([seed, 20 + number])))
    return row


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    every = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    parser.add_argument("--shares", type=float, nargs="+", default=every)
    parser.add_argument("--weakness-shares", type=float, nargs="+", default=[None])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    show: Callable[[float, float], str] = lambda mean, sd: f"{mean:.3g} ± {sd:.2g}"  # noqa: E731
    print(
        "| decodable | of weakness | measured share | LoRe: shared direction, % "
        "| LoRe: rank 5, % | decoder oracle, % "
        "| gain at 10, .05 | at 50, .05 | decoder oracle, .05 "
        "| gain at 10, .1 | at 50, .1 | decoder oracle, .1 |"
    )
    print("|" + "---|" * 12)
    pairs = [(s, s if w is None else w) for s in args.shares for w in args.weakness_shares]
    for share, weakness_share in [*pairs, DEFAULT_SHARES]:
        found = np.array([measure(share, weakness_share, seed) for seed in range(args.seeds)])
        cells = [show(*pair) for pair in zip(found.mean(0), found.std(0), strict=True)]
        print(f"| {share:g} | {weakness_share:g} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
