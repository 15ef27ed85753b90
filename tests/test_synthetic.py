"""The synthetic bank: its calibration, the decodability law, and nothing else leaking out."""

import math

import numpy as np
import pytest

from personalllm_env.bank import BankError, ResponseBank
from personalllm_env.data.calibration import calibration_table, load_reference
from personalllm_env.data.diversity import population_diversity, top1_agreement, vote_shares
from personalllm_env.data.synthetic import DEFAULT_SHARES, draw_parts, synthetic_bank
from personalllm_env.data.synthetic_law import load_constants, resize
from personalllm_env.decoding import decodable_share, linear_decoder


@pytest.fixture(scope="module")
def bank():
    return synthetic_bank(seed=0)


@pytest.fixture(scope="module")
def even_bank():
    """A bank whose features tell half of everything, weakness included."""
    return synthetic_bank(decodable=0.5, seed=1)


def centred(values):
    values = values.astype(np.float64)
    return (values - values.mean(axis=1, keepdims=True)).reshape(-1, values.shape[2])


def held_out_r2(x, y, num_fit):
    """Share of the rest that a regression on the first ``num_fit`` rows explains."""
    coefficients = np.linalg.lstsq(x[:num_fit], y[:num_fit], rcond=None)[0]
    error = y[num_fit:] - x[num_fit:] @ coefficients
    return 1 - (error**2).mean(axis=0) / y[num_fit:].var(axis=0)


class TestDiversity:
    def test_top1_agreement_by_hand(self):
        scores = np.zeros((4, 3, 2))
        for p, (first, second) in enumerate([(0, 0), (1, 1), (2, 0), (1, 2)]):
            scores[p, first, 0] = scores[p, second, 1] = 1
        np.testing.assert_array_equal(top1_agreement(scores), [[1, 0.5], [0.5, 1]])

    def test_vote_shares_by_hand(self):
        scores = np.array([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [0.0, 1.0]]])
        weights = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.6, 0.4]])
        expected = [[0.25, 0.75], [0.75, 0.25]]
        np.testing.assert_array_equal(vote_shares(scores, weights), expected)

    def test_the_first_of_equal_responses_has_the_vote(self):
        scores = np.array([[[1.0], [2.0], [2.0]]])
        np.testing.assert_array_equal(vote_shares(scores, np.ones((3, 1))), [[0, 1, 0]])

    def test_vote_shares_do_not_depend_on_the_chunks(self, monkeypatch):
        rng = np.random.default_rng(0)
        scores, weights = rng.random((7, 3, 4)), rng.dirichlet([1.0] * 4, 5)
        whole = vote_shares(scores, weights)
        monkeypatch.setattr("personalllm_env.data.diversity._CHUNK_CELLS", 2 * 3 * 5)
        np.testing.assert_array_equal(vote_shares(scores, weights), whole)

    def test_population_diversity_by_hand(self):
        votes = np.array(
            [
                [1.0, 0, 0, 0, 0, 0],
                [0.5, 0.5, 0, 0, 0, 0],
                [0.75, 0.125, 0.125, 0, 0, 0],
                [0.5, 0.125, 0.125, 0.125, 0.125, 0],
                [0.5, 0.1, 0.1, 0.1, 0.1, 0.1],
            ]
        )
        found = population_diversity(votes)
        np.testing.assert_allclose(found.top_share_at_most, [60, 80, 80])
        np.testing.assert_allclose(found.winner_counts, [40, 20, 0, 20, 20])
        np.testing.assert_allclose(found.win_rates, [65, 17, 7, 4.5, 4.5, 2])
        eighth = math.log(8) / 8
        half = math.log(2) / 2
        by_hand = [0, 2 * half, 2 * eighth - 0.75 * math.log(0.75), half + 4 * eighth]
        by_hand.append(half + 5 * 0.1 * math.log(10))
        assert found.entropy == pytest.approx(sum(by_hand) / 5)


class TestCalibration:
    def test_the_default_bank_meets_every_published_figure(self, bank):
        rows = calibration_table(bank)
        assert len(rows) == 1 + 3 * (3 + 5 + 8) + 1
        assert [row for row in rows if not row.ok] == []

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", [1, 2, 3, 4])
    def test_so_do_other_seeds(self, seed):
        assert [row for row in calibration_table(synthetic_bank(seed=seed)) if not row.ok] == []

    def test_an_uncalibrated_bank_fails(self, bank):
        noise = np.random.default_rng(0).standard_normal(bank.scores.shape).astype(np.float32)
        fields = {name: getattr(bank, name) for name in bank.__dataclass_fields__}
        bad = [
            row
            for row in calibration_table(
                ResponseBank(**{**fields, "scores": noise}), num_users=200, num_groups=1
            )
            if not row.ok
        ]
        assert len(bad) > 20
        assert bad[0].difference == pytest.approx(bad[0].measured - bad[0].target)

    def test_other_names_are_refused(self):
        small = synthetic_bank(num_prompts=20, num_test=5, num_reward_models=4)
        with pytest.raises(BankError, match="reward_models"):
            calibration_table(small)

    def test_names_are_those_published(self, bank):
        reference = load_reference()
        assert list(bank.reward_models) == reference["reward_models"]
        assert list(bank.responders) == reference["responders"]
        assert set(reference["train_mean_sd"]) == set(bank.reward_models)
        assert set(reference["reward_model_hub_ids"]) == set(bank.reward_models)
        assert int(bank.is_test.sum()) == reference["splits"]["test"]
        assert int((~bank.is_test).sum()) == reference["splits"]["train"]


class TestDecodability:
    @pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
    def test_one_share_holds_for_every_reward_model(self, share):
        bank = synthetic_bank(decodable=share, seed=3)
        measured = decodable_share(bank, linear_decoder(bank), "test")
        np.testing.assert_allclose(measured, share, atol=0.03)  # 1,000 prompts: about 3 sd

    def test_two_shares_mix_by_variance(self):
        law, tastes, weak = load_constants(), 0.9, 0.2
        bank = synthetic_bank(decodable=tastes, decodable_weakness=weak, num_test=5000, seed=3)
        rate, size = law.weakness_rate, law.weakness_size
        punished = law.weakness_loading**2 * rate * (1 - rate) * size**2
        liked = 1 + law.offset_loading**2 * law.responder_offset.var() * 8 / 7
        expected = (tastes * liked + weak * punished) / (liked + punished)
        measured = decodable_share(bank, linear_decoder(bank), "test")
        np.testing.assert_allclose(measured, expected, atol=0.015)

    def test_the_law_holds_for_any_size(self):
        bank = synthetic_bank(
            num_prompts=6000, num_responses=3, num_reward_models=13, num_features=15,
            decodable=0.4,
        )  # fmt: skip
        measured = decodable_share(bank, linear_decoder(bank), "test")
        np.testing.assert_allclose(measured, 0.4, atol=0.06)

    def test_the_law_holds_with_large_offsets(self, monkeypatch):
        """Of two responses, centring takes half a taste's variance but none of an offset's."""
        offset = np.array([1.5, -1.5, 0, 0, 0, 0, 0, 0])
        law = load_constants()._replace(responder_offset=offset)
        monkeypatch.setattr("personalllm_env.data.synthetic.load_constants", lambda: law)
        bank = synthetic_bank(num_responses=2, decodable=0.5, num_prompts=20_000, num_test=9000)
        measured = decodable_share(bank, linear_decoder(bank), "test")
        np.testing.assert_allclose(measured, 0.5, atol=0.03)

    def test_the_default_share_is_the_documented_one(self, bank):
        found = decodable_share(bank, linear_decoder(bank), "test")
        np.testing.assert_allclose(found, bank.facts["decodable"], atol=0.03)
        assert bank.facts["decodable_taste"] == DEFAULT_SHARES.taste
        assert bank.facts["decodable_weakness"] == DEFAULT_SHARES.weakness


class TestNoLeak:
    def test_a_quadratic_map_explains_no_more_than_a_linear_one(self, even_bank):
        x = even_bank.response_features.reshape(-1, 32).astype(np.float64)
        y = even_bank.scores.reshape(-1, 10).astype(np.float64)
        upper = np.triu_indices(32)
        squares = (x[:, :, None] * x[:, None, :])[:, *upper]
        one = np.ones((len(x), 1))
        linear = held_out_r2(np.hstack([one, x]), y, 60_000)
        quadratic = held_out_r2(np.hstack([one, x, squares]), y, 60_000)
        assert (linear > 0.4).all()
        assert (quadratic - linear).max() < 0.001  # over-fitting costs it about .005

    def test_the_decoders_error_is_unrelated_to_features_and_their_size(self, even_bank):
        test = even_bank.prompts("test")
        x = centred(even_bank.response_features[test])
        error = centred(even_bank.scores[test]) - x @ linear_decoder(even_bank)
        correlations = np.corrcoef(np.hstack([x, error]).T)[:32, 32:]
        assert np.abs(correlations).max() < 5 / math.sqrt(len(x))

    def test_prompt_features_tell_nothing_about_scores(self, bank):
        one = np.ones((bank.num_prompts, 1))
        x = np.hstack([one, bank.prompt_features]).astype(np.float64)
        raw = bank.scores.reshape(bank.num_prompts, -1).astype(np.float64)
        within = bank.scores - bank.scores.mean(axis=1, keepdims=True)
        for y in (
            raw,
            within.reshape(bank.num_prompts, -1),
            bank.scores.mean(axis=1),
            bank.scores.std(axis=1),
        ):
            assert held_out_r2(x, y.astype(np.float64), 8000).max() < 0.005

    def test_prompt_features_tell_the_topic_of_the_responses(self, bank):
        x = bank.prompt_features.astype(np.float64)
        r2 = held_out_r2(x, bank.response_features.mean(axis=1).astype(np.float64), 8000)
        assert r2.mean() > 0.1

    def test_features_tell_the_responder_only_through_its_scores(self, bank):
        """Given what scores are made of, features say no more about who wrote a response."""
        law = load_constants()
        weakness = draw_parts(law, bank.num_prompts, np.random.default_rng([0, 0])).weakness
        one = np.ones((weakness.size, 1))
        x = bank.response_features.reshape(-1, 32).astype(np.float64)
        made_of = np.hstack([one, bank.scores.reshape(-1, 10), weakness.reshape(-1, 1)])
        who = np.tile(np.column_stack([np.eye(8), np.arange(8)]), (bank.num_prompts, 1))
        assert held_out_r2(np.hstack([one, x]), who, 60_000)[7] > 0.01
        without = held_out_r2(made_of, who, 60_000)
        with_features = held_out_r2(np.hstack([made_of, x]), who, 60_000)
        assert (with_features - without).max() < 0.0005  # over-fitting costs it as much

    def test_axes_have_unit_variance(self, bank):
        np.testing.assert_allclose(bank.response_features.var(axis=(0, 1)), 1, atol=0.05)
        np.testing.assert_allclose(bank.prompt_features.var(axis=0), 1, atol=0.05)

    def test_prompts_are_alike_in_both_splits(self, bank):
        means = [
            bank.scores[bank.prompts(split)].mean(axis=(0, 1)) for split in ("train", "test")
        ]
        np.testing.assert_allclose(means[0], means[1], atol=0.05)


class TestFunctionOfItsArguments:
    SMALL = {"num_prompts": 50, "num_test": 10}

    def test_same_seed_same_bank_whatever_else_ran(self):
        first = synthetic_bank(**self.SMALL, seed=5)
        np.random.default_rng(5).random(100)
        again, other = (
            synthetic_bank(**self.SMALL, seed=5),
            synthetic_bank(**self.SMALL, seed=6),
        )
        for name in ("scores", "prompt_features", "response_features", "is_test"):
            np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
        for name in ("scores", "prompt_features", "response_features"):
            assert not np.array_equal(getattr(first, name), getattr(other, name))

    def test_scores_do_not_depend_on_the_features_settings(self):
        first = synthetic_bank(**self.SMALL)
        other = synthetic_bank(**self.SMALL, num_features=64, decodable=0.3)
        np.testing.assert_array_equal(first.scores, other.scores)

    @pytest.mark.parametrize(("k", "m", "d"), [(2, 1, 3), (5, 4, 6), (8, 10, 12), (11, 23, 64)])
    def test_other_sizes(self, k, m, d):
        bank = synthetic_bank(
            **self.SMALL, num_responses=k, num_reward_models=m, num_features=d
        )
        assert bank.scores.shape == (50, k, m)
        assert bank.response_features.shape == (50, k, d)
        assert int(bank.is_test.sum()) == 10
        train = bank.scores[bank.prompts("train")]
        np.testing.assert_allclose(train.mean(axis=(0, 1)), 0, atol=1e-5)
        np.testing.assert_allclose(train.std(axis=(0, 1)), 1, atol=1e-5)
        known = load_constants().reward_models
        assert bank.reward_models[: min(m, 10)] == known[: min(m, 10)]

    def test_a_new_reward_model_echoes_a_known_one(self):
        law = resize(load_constants(), 9, 21)
        correlation = law.taste_correlation
        assert np.linalg.eigvalsh(correlation).min() > 0
        assert correlation[0, 10] == pytest.approx(math.sqrt(0.5))
        assert correlation[10, 20] == pytest.approx(0.5)
        assert law.responder_offset[8] == 0

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"num_features": 11}, r"num_features must be at least .* = 12 .*got 11"),
            ({"decodable": 0.0}, r"decodable must be in \(0, 1\], got 0"),
            ({"decodable_weakness": 1.5}, r"decodable_weakness must be in \(0, 1\], got 1.5"),
            ({"num_test": 50}, "between 1 and num_prompts - 1 = 49, got 50"),
            ({"num_test": 0}, "got 0"),
            ({"num_responses": 1}, "num_responses must be at least 2, got 1"),
            ({"num_reward_models": 0}, "num_reward_models must be at least 1, got 0"),
            ({"seed": -1}, "seed must be a non-negative integer, got -1"),
        ],
    )
    def test_errors_say_what_was_expected_and_found(self, setting, message):
        with pytest.raises(ValueError, match=message):
            synthetic_bank(**{**self.SMALL, **setting})
