"""Random streams: exact properties, then statistics.

The seeds are fixed, so these tests do not flicker; each tolerance is stated as the probability
that a perfect generator, at a seed not looked at, would fail it.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from personalllm_env import streams
from personalllm_env.streams import MAX_NORMAL, Purpose, derived_seed, stream_keys

seeds = st.integers(0, 2**128 - 1)
FALSE_ALARM = 1e-6
PUBLISHED_KEYS = [0xFE23588871FF98CE, 0x94512122C229045C]
PUBLISHED_BITS = [
    [0xADA50A976BB29BEE, 0x83B822206786C2DB],
    [0x6CC119FA83EC4C0D, 0x2F15A1C49AED29A5],
]


def keys_of(seed=0, num=1000, episode=0):
    return stream_keys(seed, np.arange(num), np.full(num, episode))


def names(seed):
    """Every purpose's draws of 40 rows in 3 episodes under a seed."""
    return np.concatenate(
        [
            streams.bits(keys_of(seed, 40, episode), purpose, 5).ravel()
            for episode in range(3)
            for purpose in Purpose
        ]
    )


def test_published_values_never_change():
    """A changed hash would change every published result without anybody noticing."""
    keys = stream_keys(0, np.array([0, 1]), np.array([0, 2]))
    assert keys.tolist() == PUBLISHED_KEYS
    assert streams.bits(keys, Purpose.USER, 2).tolist() == PUBLISHED_BITS
    purposes = (
        "USER USER_SIZE DRIFT DRIFT_SIZE DRIFT_TIME PROMPT_POOL PROMPT ORDER HEARD LEAVE "
        "REWARD LIKE STARS CHOICE CLICK"
    )
    assert [(p.name, p.value) for p in list(Purpose)[:15]] == [
        (name, i) for i, name in enumerate(purposes.split(), 1)
    ]


def test_hash_is_splitmix64():
    """SplitMix64 from state 0: the first outputs of the reference implementation."""
    golden = 0x9E3779B97F4A7C15
    state = np.array([golden * i % 2**64 for i in (1, 2, 3)], np.uint64)
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert streams._mix(state).tolist() == expected


@given(seed=seeds, short=st.integers(1, 20), more=st.integers(1, 20))
def test_asking_for_more_does_not_change_the_first(seed, short, more):
    keys = keys_of(seed, 3)
    for draw in (streams.bits, streams.uniform, streams.normal):
        few, many = (draw(keys, Purpose.LIKE, n) for n in (short, short + more))
        assert np.array_equal(few, many[:short])
    few, many = (streams.integers(keys, Purpose.LIKE, n, 7) for n in (short, short + more))
    assert np.array_equal(few, many[:short])


@given(seed=seeds, row=st.integers(0, 2**40), episode=st.integers(0, 2**40))
def test_a_stream_depends_on_its_own_name_only(seed, row, episode):
    alone = stream_keys(seed, np.array([row]), np.array([episode]))
    rows = np.array([row + 2, row, row + 1])
    among = stream_keys(seed, rows, np.array([0, episode, episode]))
    assert alone[0] == among[1]
    assert len(set(among.tolist())) == 3
    assert alone[0] != stream_keys(seed + 1, np.array([row]), np.array([episode]))[0]
    assert alone[0] != stream_keys(seed, np.array([row]), np.array([episode + 1]))[0]


def test_draws_do_not_change_the_keys():
    keys = keys_of(num=4)
    before = keys.copy()
    for draw in (streams.bits, streams.uniform, streams.normal):
        first = draw(keys, Purpose.USER, 3)
        first[:] = 0  # nor is a cached table handed out
        assert draw(keys, Purpose.USER, 3).any()
    assert np.array_equal(keys, before)


def test_every_name_draws_other_words():
    """Rows, episodes, purposes and neighbouring seeds share nothing at all.

    36,000 random words of 64 bits collide with probability 4e-11.
    """
    words = np.concatenate([names(seed) for seed in (0, 1, 2, 3, 2**32, 2**64)])
    assert len(np.unique(words)) == len(words)


def test_row_and_episode_are_not_interchangeable():
    grid = np.arange(60)
    rows, episodes = (axis.ravel() for axis in np.meshgrid(grid, grid))
    keys = np.concatenate([stream_keys(seed, rows, episodes) for seed in range(5)])
    assert len(np.unique(keys)) == len(keys)


@pytest.mark.parametrize("seed", [0, 1, 12345])
@pytest.mark.parametrize("purpose", [Purpose.USER, Purpose.ORDER, Purpose.CLICK])
def test_uniform_law(seed, purpose):
    """Chi-square over 256 cells and Kolmogorov-Smirnov; false alarm 1e-6 each."""
    draws = streams.uniform(keys_of(seed, 1000), purpose, 200)
    assert draws.min() > 0
    assert draws.max() < 1
    counts = np.bincount((draws.ravel() * 256).astype(int), minlength=256)
    assert stats.chisquare(counts).pvalue > FALSE_ALARM
    assert stats.kstest(draws.ravel(), "uniform").pvalue > FALSE_ALARM
    # The same along each axis: the first row's stream, and the first word of every row.
    assert stats.kstest(draws[0], "uniform").pvalue > FALSE_ALARM
    assert stats.kstest(draws[:, 0], "uniform").pvalue > FALSE_ALARM


def test_every_bit_is_fair():
    """64 bits, 200,000 words: |share - 1/2| < 5.5 sd; false alarm 64 * 4e-8 = 2.4e-6."""
    words = streams.bits(keys_of(3, 1000), Purpose.PROMPT, 200).ravel()
    share = np.array([((words >> np.uint64(i)) & np.uint64(1)).mean() for i in range(64)])
    assert np.abs(share - 0.5).max() < 5.5 * 0.5 / np.sqrt(len(words))


def test_neighbours_are_uncorrelated():
    """The correlation of 50,000 pairs has sd .0045; 5.5 sd, false alarm 4e-8 a comparison."""
    keys, num = keys_of(0, 500), 100
    here = streams.uniform(keys, Purpose.REWARD, num)
    others = {
        "next row": np.roll(here, 1, axis=1),
        "next word": np.roll(here, 1, axis=0),
        "next episode": streams.uniform(keys_of(0, 500, 1), Purpose.REWARD, num),
        "next seed": streams.uniform(keys_of(1, 500), Purpose.REWARD, num),
        "next seed, next row": np.roll(
            streams.uniform(keys_of(1, 500), Purpose.REWARD, num), 1, axis=1
        ),
        "next purpose": streams.uniform(keys, Purpose.LIKE, num),
    }
    for name, there in others.items():
        correlation = np.corrcoef(here.ravel(), there.ravel())[0, 1]
        assert abs(correlation) < 5.5 / np.sqrt(here.size), name


def test_pairs_fill_the_square():
    """(word i, word i+1) in a 16 x 16 grid, and (row, next row); false alarm 1e-6 each."""
    draws = streams.uniform(keys_of(8, 500), Purpose.STARS, 200)
    cell = (draws * 16).astype(int)
    for first, second in ((cell[::2], cell[1::2]), (cell[:, ::2], cell[:, 1::2])):
        counts = np.bincount((16 * first + second).ravel(), minlength=256)
        assert stats.chisquare(counts).pvalue > FALSE_ALARM


def test_neighbouring_seeds_share_no_row():
    """SyncVectorEnv's seed + i would make rows 1, 2, ... of seed 0 rows 0, 1, ... of seed 1."""
    first, second = (streams.uniform(keys_of(seed, 64), Purpose.USER, 50) for seed in (0, 1))
    assert not np.isin(first, second).any()


@pytest.mark.parametrize("high", [1, 2, 3, 7, 1000, 2**31])
def test_integers_range(high):
    draws = streams.integers(keys_of(4, 200), Purpose.PROMPT, 100, high)
    assert draws.dtype == np.int64
    assert draws.min() >= 0
    assert draws.max() < high


@pytest.mark.parametrize("high", [2, 3, 8, 100])
def test_integers_law(high):
    """Chi-square over 200,000 draws; false alarm 1e-6 each."""
    draws = streams.integers(keys_of(4, 1000), Purpose.PROMPT, 200, high)
    counts = np.bincount(draws.ravel(), minlength=high)
    assert stats.chisquare(counts).pvalue > FALSE_ALARM


@given(seed=seeds, high=st.integers(1, 2**31))
def test_integers_map_words_into_range(seed, high):
    """The map is floor(w * high / 2**32) of a word's upper half: bias below high / 2**32."""
    keys = keys_of(seed, 20)
    upper = [int(w) >> 32 for w in streams.bits(keys, Purpose.PROMPT, 1)[0]]
    drawn = streams.integers(keys, Purpose.PROMPT, 1, high)[0]
    assert drawn.tolist() == [w * high // 2**32 for w in upper]


def test_normal_table_is_the_normal_law():
    """Its distribution function is within 2**-17 of the normal one at every quantile."""
    table = streams._normal_table().astype(np.float64)
    assert table.shape == (2**16,)
    assert (np.diff(table) > 0).all()
    steps = np.arange(2**16) / 2**16
    below, upto = stats.norm.cdf(table) - steps, steps + 2**-16 - stats.norm.cdf(table)
    assert max(below.max(), upto.max()) < 2**-17 * 1.01
    assert np.allclose(table, -table[::-1])
    assert abs(table.mean()) < 1e-6
    assert abs(table.std() - 1) < 1e-4
    assert np.abs(table).max() <= MAX_NORMAL < np.abs(table).max() + 0.05


def test_normal_draws():
    """200,000 draws: mean within 5.5 / sqrt(n), KS; false alarms 4e-8 and 1e-6."""
    draws = streams.normal(keys_of(6, 1000), Purpose.REWARD, 200)
    assert draws.dtype == np.float32
    assert abs(draws.mean(dtype=np.float64)) < 5.5 / np.sqrt(draws.size)
    assert stats.kstest(draws.ravel(), "norm").pvalue > FALSE_ALARM
    assert np.abs(draws).max() <= MAX_NORMAL


@pytest.mark.parametrize("seed", [-1, -(2**70)])
def test_negative_seed_is_an_error(seed):
    with pytest.raises(ValueError, match=f"non-negative integer, got {seed}"):
        stream_keys(seed, np.arange(2), np.zeros(2, int))


def test_derived_seeds_differ_by_seed_and_purpose():
    found = {derived_seed(s, p) for s in range(100) for p in ("agent", "history", "1", "")}
    assert len(found) == 400
    assert derived_seed(3, "agent") == derived_seed(3, "agent")
    assert all(0 <= seed < 2**128 for seed in found)
    assert not found & set(range(1000))
