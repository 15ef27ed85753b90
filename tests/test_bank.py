"""The bank: what it refuses, that it does not change, and that it comes back from disk."""

import copy
import json
import pickle
from dataclasses import fields, replace

import numpy as np
import pytest

from personalllm_env.bank import (
    BankError,
    ResponseBank,
    Texts,
    find_duplicates,
    is_saved_bank,
    open_bank,
)
from personalllm_env.data.standardise import standardise
from personalllm_env.decoding import decodable_share, linear_decoder
from personalllm_env.testing import tiny_bank

ARRAYS = ("scores", "prompt_features", "response_features", "is_test")


def with_texts(bank):
    p, k = bank.num_prompts, bank.num_responses
    words = tuple(tuple(f"answer {i}.{j} é\n" for j in range(k)) for i in range(p))
    return replace(bank, texts=Texts(tuple(f"question {i}?" for i in range(p)), words))


def spoilt(array, index, value):
    changed = array.copy()
    changed[index] = value
    return changed


def same(first, second):
    for part in fields(ResponseBank):
        left, right = getattr(first, part.name), getattr(second, part.name)
        equal = np.array_equal(left, right) if part.name in ARRAYS else left == right
        assert equal, part.name


def test_a_bank_that_fits(bank):
    assert (bank.num_prompts, bank.num_responses) == (60, 4)
    assert (bank.num_reward_models, bank.num_features) == (3, 6)
    assert repr(bank) == (
        "ResponseBank('tiny': 60 prompts (30 test), 4 responses, 3 reward models, 6 features)"
    )
    assert bank.prompts("train").tolist() == list(range(30))
    assert bank.prompts("test").tolist() == list(range(30, 60))
    assert bank.prompts("all").tolist() == list(range(60))


@pytest.mark.usefixtures("unchecked_shapes")
def test_unknown_split(bank):
    with pytest.raises(BankError, match="'train', 'test' or 'all', got 'dev'"):
        bank.prompts("dev")


WRONG = {
    "scores of two axes": (
        lambda b: {"scores": b.scores[0]},
        r"non-empty \(P, K, M\) array, got \(4, 3\)",
    ),
    "no prompts": (lambda b: {"scores": b.scores[:0]}, r"non-empty .* got \(0, 4, 3\)"),
    "prompts of features": (
        lambda b: {"prompt_features": b.prompt_features[:5]},
        r"prompt_features must have shape \(60, 6\) beside scores \(60, 4, 3\), got \(5, 6\)",
    ),
    "width of prompt features": (
        lambda b: {"prompt_features": b.prompt_features[:, :5]},
        r"prompt_features must have shape \(60, 6\)",
    ),
    "responses of features": (
        lambda b: {"response_features": b.response_features[:, :3]},
        r"response_features must have shape \(60, 4, 6\)",
    ),
    "length of is_test": (
        lambda b: {"is_test": b.is_test[:-1]},
        r"is_test must have shape \(60,\) .* got \(59,\)",
    ),
    "too few reward models": (
        lambda b: {"reward_models": ("a", "b")},
        r"reward_models must be 3 different names, got \('a', 'b'\)",
    ),
    "a reward model twice": (
        lambda b: {"reward_models": ("a", "b", "a")},
        "reward_models must be 3 different names",
    ),
    "a responder twice": (
        lambda b: {"responders": ("a", "b", "c", "a")},
        "responders must be 4 different names",
    ),
    "only test prompts": (
        lambda b: {"is_test": np.ones(60, bool)},
        "the train split is empty: 60 of 60 are test",
    ),
    "only train prompts": (
        lambda b: {"is_test": np.zeros(60, bool)},
        "the test split is empty: 0 of 60 are test",
    ),
    "doubles": (
        lambda b: {"scores": b.scores.astype(np.float64)},
        "scores must be float32, got float64",
    ),
    "a score that is no number": (
        lambda b: {"scores": spoilt(b.scores, (7, 2, 1), np.nan)},
        r"scores must be finite; found nan at index \(7, 2, 1\) \(reward model 'model_1'\)",
    ),
    "an infinite feature": (
        lambda b: {"response_features": spoilt(b.response_features, (3, 1, 4), -np.inf)},
        r"response_features must be finite; found -inf at index \(3, 1, 4\)$",
    ),
    "a prompt feature that is no number": (
        lambda b: {"prompt_features": spoilt(b.prompt_features, (9, 5), np.nan)},
        r"prompt_features must be finite; found nan at index \(9, 5\)",
    ),
    "is_test of numbers": (
        lambda b: {"is_test": b.is_test.astype(int)},
        "is_test must be bool, got int64",
    ),
    "a constant reward model": (
        lambda b: {"scores": spoilt(b.scores, (slice(0, 30), slice(None), 2), 0.5)},
        "reward model 'model_2' is constant over the train split",
    ),
    "too few texts": (
        lambda b: {"texts": Texts(("a",), (("b",) * 4,))},
        "texts must hold 60 prompts and as many rows of responses, got 1 and 1",
    ),
    "too few responses in words": (
        lambda b: {
            "texts": Texts(
                tuple(map(str, range(60))),
                (("r",) * 4,) * 5 + (("r",) * 3,) + (("r",) * 4,) * 54,
            )
        },
        "texts: prompt 5 has 3 responses, expected 4",
    ),
    "a prompt in both splits": (
        lambda b: {"texts": Texts((*map(str, range(59)), " 4 "), (("r",) * 4,) * 60)},
        r"prompt '4' is in both splits: row 4 \(train\) and row 59 \(test\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.usefixtures("unchecked_shapes")
def test_what_a_bank_refuses(bank, name):
    make, message = WRONG[name]
    with pytest.raises(BankError, match=message):
        replace(bank, **make(bank))


@pytest.mark.usefixtures("unchecked_shapes")
def test_a_constant_within_the_test_split_is_no_error(bank):
    replace(bank, scores=spoilt(bank.scores, (slice(30, 60), slice(None), 2), 0.5))


def test_duplicates_within_a_split_are_no_error():
    assert find_duplicates(("a", "a", "b"), np.array([False, False, True])) is None
    assert find_duplicates(("b", "a", "a "), np.array([True, True, False])) == (2, 1)


def test_a_bank_does_not_change(bank):
    for name in ARRAYS:
        with pytest.raises(ValueError, match="read-only"):
            getattr(bank, name)[0] = 0
    with pytest.raises(AttributeError):
        bank.name = "other"


def test_the_callers_arrays_stay_writeable():
    bank = tiny_bank()
    mine = bank.scores.copy()
    taken = replace(bank, scores=mine)
    mine[0, 0, 0] += 1
    assert not taken.scores.flags.writeable
    assert mine.flags.writeable


def test_copies(bank):
    assert copy.deepcopy(bank) is bank
    assert copy.deepcopy({"bank": bank})["bank"] is bank
    same(pickle.loads(pickle.dumps(bank)), bank)


# -- on disk


@pytest.mark.parametrize("texts", [False, True])
@pytest.mark.parametrize("mmap", [None, False, True])
def test_saved_and_opened(bank, tmp_path, texts, mmap):
    bank = replace(with_texts(bank) if texts else bank, facts={"seed": 3, "where": ["here"]})
    path = tmp_path / "deep" / "saved"
    assert not is_saved_bank(path)
    bank.save(path)
    assert is_saved_bank(path)
    again = open_bank(str(path), mmap=mmap)
    same(again, bank)
    assert not again.scores.flags.writeable
    mapped = isinstance(again.scores, np.memmap) or isinstance(again.scores.base, np.memmap)
    assert mapped == bool(mmap)
    assert [p.name for p in path.parent.iterdir()] == ["saved"]  # nothing is left lying about


def test_saving_over_a_bank_replaces_it(bank, tmp_path):
    path = tmp_path / "saved"
    bank.save(path)
    other = tiny_bank(num_prompts=10, seed=4)
    other.save(path)
    same(open_bank(path), other)


def test_what_is_no_bank_is_not_overwritten(bank, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="thesis exists and holds no bank"):
        bank.save(tmp_path / "thesis")
    with pytest.raises(FileExistsError, match=r"chapter.txt exists and holds no bank"):
        bank.save(tmp_path / "thesis" / "chapter.txt")
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


def test_a_failed_save_leaves_what_was_there(bank, tmp_path):
    path = tmp_path / "saved"
    bank.save(path)
    with pytest.raises(TypeError):
        replace(tiny_bank(seed=1), facts={"not": object()}).save(path)
    same(open_bank(path), bank)
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]


def test_an_unknown_format(bank, tmp_path):
    bank.save(tmp_path / "saved")
    meta = json.loads((tmp_path / "saved" / "bank.json").read_text())
    (tmp_path / "saved" / "bank.json").write_text(json.dumps(meta | {"format": 99}))
    with pytest.raises(BankError, match=r"bank.json: expected format 1, got 99"):
        open_bank(tmp_path / "saved")


# -- standardisation


def test_standardise_over_the_train_split():
    rng = np.random.default_rng(0)
    raw = rng.normal([5.0, -300.0], [2.0, 50.0], (40, 3, 2))
    raw[30:] += 1000  # the test split does not matter
    is_test = np.arange(40) >= 30
    scores, constants = standardise(raw, is_test, ["a", "b"])
    assert scores.dtype == np.float32
    assert np.allclose(scores[:30].mean(axis=(0, 1)), 0, atol=1e-5)
    assert np.allclose(scores[:30].std(axis=(0, 1)), 1, atol=1e-5)
    assert constants["a"] == (raw[:30, :, 0].mean(), raw[:30, :, 0].std())
    again, used = standardise(raw, is_test, ["a", "b"], constants)
    assert np.array_equal(scores, again)
    assert used == constants
    by_hand, _ = standardise(
        np.array([[[3.0], [5.0]]]), np.zeros(1, bool), ["a"], {"a": (1.0, 2.0), "z": (0, 1)}
    )
    assert by_hand.tolist() == [[[1.0], [2.0]]]


def test_standardise_errors():
    raw = np.random.default_rng(0).normal(size=(4, 2, 2))
    train = np.zeros(4, bool)
    with pytest.raises(
        BankError, match=r"no standardisation constants for .* 'b'; given for: a"
    ):
        standardise(raw, train, ["a", "b"], {"a": (0.0, 1.0)})
    with pytest.raises(BankError, match="'b' is constant over the train split"):
        standardise(raw * [1, 0] + 7, train, ["a", "b"])
    with pytest.raises(BankError, match=r"'a' is constant .*sd -1"):
        standardise(raw, train, ["a", "b"], {"a": (0.0, -1.0), "b": (0.0, 1.0)})


# -- the linear decoder


def exactly_linear(noise=0.0):
    rng = np.random.default_rng(3)
    features = rng.standard_normal((50, 4, 5)).astype(np.float32)
    readout = rng.standard_normal((5, 3))
    offsets = rng.standard_normal((50, 1, 3))  # a prompt's own level does not matter
    scores = features @ readout + offsets + noise * rng.standard_normal((50, 4, 3))
    bank = tiny_bank(num_prompts=50, num_features=5)
    return replace(bank, scores=scores.astype(np.float32), response_features=features), readout


def test_linear_decoder_finds_an_exactly_linear_map():
    bank, readout = exactly_linear()
    decoder = linear_decoder(bank)
    assert np.allclose(decoder, readout, atol=1e-5)
    assert np.allclose(decodable_share(bank, decoder), 1, atol=1e-9)
    assert np.allclose(decodable_share(bank, decoder, "train"), 1, atol=1e-9)
    assert np.allclose(decodable_share(bank, np.zeros_like(decoder)), 0, atol=1e-12)
    assert np.allclose(decodable_share(bank, 0.5 * readout), 0.75, atol=1e-5)


def test_linear_decoder_does_not_see_the_test_split():
    bank, readout = exactly_linear()
    scores = bank.scores.copy()
    scores[bank.is_test] = np.random.default_rng(0).standard_normal((25, 4, 3))
    changed = replace(bank, scores=scores)
    assert np.array_equal(linear_decoder(changed), linear_decoder(bank))
    assert decodable_share(changed, readout).max() < 0.5
    assert decodable_share(changed, readout, "train").min() > 0.999


def test_decodable_share_of_a_noisy_bank():
    """With noise of sd s the share is var / (var + s^2), var the readout's squared norm."""
    bank, readout = exactly_linear(noise=1.0)
    share = decodable_share(bank, readout, "all")
    exact = (readout**2).sum(axis=0) / ((readout**2).sum(axis=0) + 1)
    assert np.abs(share - exact).max() < 0.12  # about 4 sd, over 50 prompts
