"""Who the users are: points on the simplex over reward models, and how an episode draws one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

from personalllm_env.bank import Split
from personalllm_env.streams import Purpose, bits, integers, uniform

WEIGHTS_TOLERANCE = 1e-4
"""How far from 1 a user's weights may sum."""


class DrawnUsers(NamedTuple):
    """One user per row."""

    user: Int[np.ndarray, "B"]  # row in the population, or -1 for a user seen only once
    weights: Float[np.ndarray, "B M"]  # float32, on the simplex


@runtime_checkable
class Population(Protocol):
    """Where an episode's user comes from."""

    @property
    def num_reward_models(self) -> int:
        """M."""
        ...

    def draw(
        self, keys: UInt64[np.ndarray, "B"], split: Split, *, second: bool = False
    ) -> DrawnUsers:
        """Draws one user per stream; ``second`` names an independent draw of the same row."""
        ...

    def sample(self, num: int, rng: np.random.Generator) -> Float[np.ndarray, "num M"]:
        """Returns weights from the same law, for agents that know the prior."""
        ...


def check_weights(weights: Float[np.ndarray, "U M"]) -> Float[np.ndarray, "U M"]:
    """Returns user weights as read-only float32 after checking that rows are on the simplex.

    Raises:
        ValueError: Naming the first row that is negative or does not sum to 1 within 1e-4.
    """
    weights = np.asarray(weights)
    if weights.ndim != 2 or 0 in weights.shape:
        raise ValueError(f"user weights must be a non-empty (U, M) array, got {weights.shape}")
    total = weights.sum(axis=1, dtype=np.float64)
    bad = ~(
        (weights >= 0).all(axis=1) & (np.abs(total - 1) < WEIGHTS_TOLERANCE)
    )  # also catches NaN
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(
            "user weights must be non-negative and sum to 1; "
            f"row {row} sums to {total[row]:.6g} with minimum {weights[row].min():.6g}"
        )
    checked = weights.astype(np.float32)
    checked.setflags(write=False)
    return checked


@dataclass(frozen=True, eq=False)
class UserPopulation:
    """A finite table of U users, who can recur and be recognised by their row.

    Attributes:
        weights: (U, M) convex weights over reward models.
        is_test: (U,) bool, the users held out from training; by default nobody is.
        community: (U,) the cluster each user belongs to, or None.

    Raises:
        ValueError: If weights are off the simplex or shapes disagree.
    """

    weights: Float[np.ndarray, "U M"]
    is_test: Bool[np.ndarray, "U"] | None = None
    community: Int[np.ndarray, "U"] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", check_weights(self.weights))
        for name in ("is_test", "community"):
            array = getattr(self, name)
            if array is None:
                continue
            if array.shape != (len(self.weights),):
                raise ValueError(
                    f"{name} must have shape ({len(self.weights)},), got {array.shape}"
                )
            kept = array.copy()
            kept.setflags(write=False)
            object.__setattr__(self, name, kept)
        if self.is_test is not None and self.is_test.dtype != np.bool_:
            raise ValueError(f"is_test must be bool, got {self.is_test.dtype}")

    def __repr__(self) -> str:
        held = 0 if self.is_test is None else int(self.is_test.sum())
        return f"UserPopulation({len(self.weights)} users, {held} of them test)"

    def __deepcopy__(self, memo: dict[int, object]) -> UserPopulation:
        """Returns itself: a population is immutable."""
        return self

    @property
    def num_reward_models(self) -> int:
        """M."""
        return int(self.weights.shape[1])

    @cached_property
    def _ids(self) -> dict[str, Int[np.ndarray, "u"]]:
        every = np.arange(len(self.weights))
        test = np.zeros(len(every), bool) if self.is_test is None else self.is_test
        return {"all": every, "train": every[~test], "test": every[test]}

    def users(self, split: Split) -> Int[np.ndarray, "u"]:
        """Returns the rows of a split's users.

        Raises:
            ValueError: If the split is empty or unknown.
        """
        if split not in self._ids:
            raise ValueError(f"split must be 'train', 'test' or 'all', got {split!r}")
        ids = self._ids[split]
        if len(ids) == 0:
            raise ValueError(f"the population has no {split} users; is_test decides who is one")
        return ids

    def draw(
        self, keys: UInt64[np.ndarray, "B"], split: Split, *, second: bool = False
    ) -> DrawnUsers:
        """Draws rows of the split uniformly."""
        ids = self.users(split)
        purpose = Purpose.DRIFT if second else Purpose.USER
        user = ids[integers(keys, purpose, 1, len(ids))[0]]
        return DrawnUsers(user, self.weights[user])

    def sample(self, num: int, rng: np.random.Generator) -> Float[np.ndarray, "num M"]:
        """Returns ``num`` train users' weights, drawn uniformly with replacement."""
        return self.weights[rng.choice(self.users("train"), size=num)]


@dataclass(frozen=True)
class DirichletUsers:
    """Users who are always new: every episode draws fresh weights from Dirichlet laws.

    Attributes:
        num_reward_models: M.
        concentration: The symmetric Dirichlet's parameter (the paper's alpha), or several, of
            which each user has one with equal probability. The smaller, the more a user
            listens to a single reward model.

    Weights are normalised Gamma(c) variables, each drawn as Gamma(c + 1) times U**(1 / c)
    (Marsaglia & Tsang, ACM TOMS 2000, section 8), in logarithms since c may be tiny. The
    Gamma(c + 1) part is inverted on a table of 65,536 quantiles.
    """

    num_reward_models: int = 10
    concentration: float | tuple[float, ...] = 0.05

    def __post_init__(self) -> None:
        _check_laws(self._concentrations)

    @property
    def _concentrations(self) -> tuple[float, ...]:
        given = self.concentration
        return (float(given),) if isinstance(given, int | float) else tuple(given)

    @cached_property
    def _log_quantiles(self) -> Float[np.ndarray, "C 65536"]:
        from scipy.special import gammaincinv  # here, to keep `import personalllm_env` quick

        cells = (np.arange(2**16) + 0.5) / 2**16
        return np.log([gammaincinv(c + 1, cells) for c in self._concentrations])

    def draw(
        self, keys: UInt64[np.ndarray, "B"], split: Split, *, second: bool = False
    ) -> DrawnUsers:
        """Draws fresh weights; the split does not matter, since nobody recurs."""
        kind, size = (
            (Purpose.DRIFT, Purpose.DRIFT_SIZE) if second else (Purpose.USER, Purpose.USER_SIZE)
        )
        m = self.num_reward_models
        words = bits(keys, kind, m + 1)
        cell = (words[:m] >> np.uint64(48)).view(np.int64)
        which: Any = 0
        if len(self._concentrations) > 1:
            which = (words[m] % np.uint64(len(self._concentrations))).view(np.int64)
        log_gamma = self._log_quantiles[which, cell]
        shape = np.array(self._concentrations)[which]
        log_gamma += np.log(uniform(keys, size, m)) / shape
        weights = np.exp(log_gamma - log_gamma.max(axis=0))
        weights /= weights.sum(axis=0)
        user = np.full(len(keys), -1)
        return DrawnUsers(user, np.ascontiguousarray(weights.T, np.float32))

    def sample(self, num: int, rng: np.random.Generator) -> Float[np.ndarray, "num M"]:
        """Returns ``num`` users' weights."""
        return _dirichlet(num, self.num_reward_models, self._concentrations, rng)


def dirichlet_population(
    num_users: int,
    *,
    num_reward_models: int = 10,
    concentration: float | Sequence[float] = 0.05,
    num_test: int = 0,
    seed: int = 0,
) -> UserPopulation:
    """Draws a finite population from Dirichlet laws (PersonalLLM, section 2).

    Args:
        num_users: U.
        num_reward_models: M.
        concentration: One symmetric Dirichlet's parameter, or several, of which each user has
            one with equal probability.
        num_test: How many of the users are held out (the last ones).
        seed: Of this population alone.

    Raises:
        ValueError: If a concentration is not positive or ``num_test`` does not fit.
    """
    laws = (concentration,) if isinstance(concentration, int | float) else tuple(concentration)
    _check_laws(laws)
    rng = np.random.default_rng([seed, 0x05E5])
    weights = _dirichlet(num_users, num_reward_models, laws, rng)
    return UserPopulation(weights, _last(num_users, num_test))


def clustered_population(
    num_users: int,
    *,
    num_communities: int,
    cohesion: float = 50.0,
    num_reward_models: int = 10,
    concentration: float = 0.05,
    num_test: int = 0,
    seed: int = 0,
) -> UserPopulation:
    """Draws users in communities: Dirichlet centres, and members scattered around them.

    A member's weights are Dirichlet(cohesion * (.95 centre + .05 / M)): the larger
    ``cohesion``, the more alike the members. The small uniform share keeps every parameter
    positive.

    Raises:
        ValueError: If ``cohesion`` is not positive or there are more communities than users.
    """
    if not 0 < num_communities <= num_users:
        raise ValueError(f"num_communities must be in 1..{num_users}, got {num_communities}")
    if not cohesion > 0:
        raise ValueError(f"cohesion must be positive, got {cohesion}")
    rng = np.random.default_rng([seed, 0xC0DE])
    centres = _dirichlet(num_communities, num_reward_models, (concentration,), rng)
    community = rng.integers(num_communities, size=num_users)
    centre = 0.95 * centres[community] + 0.05 / num_reward_models
    weights = rng.standard_gamma(cohesion * centre)
    weights /= weights.sum(axis=1, keepdims=True)
    return UserPopulation(weights, _last(num_users, num_test), community)


def _check_laws(laws: tuple[float, ...]) -> None:
    if not all(isinstance(c, int | float | np.number) for c in laws):
        raise ValueError(f"concentration must be a number or several, got {laws}")
    if not laws or not all(0 < c < np.inf for c in laws):
        shown = laws[0] if len(laws) == 1 else laws
        raise ValueError(f"concentration must be positive and finite, got {shown}")


def _dirichlet(
    num: int, num_models: int, laws: tuple[float, ...], rng: np.random.Generator
) -> Float[np.ndarray, "num M"]:
    which = rng.integers(len(laws), size=num)
    weights = np.empty((num, num_models))
    for i, law in enumerate(laws):
        rows = which == i
        weights[rows] = rng.dirichlet(np.full(num_models, law), size=int(rows.sum()))
    return weights


def _last(num: int, num_test: int) -> Bool[np.ndarray, "U"] | None:
    if num_test == 0:
        return None
    if not 0 <= num_test < num:
        raise ValueError(f"num_test must be in 0..{num - 1}, got {num_test}")
    return np.arange(num) >= num - num_test
