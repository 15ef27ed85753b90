"""The bank's panels: how differently a population votes, beside what PersonalLLM published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from personalllm_env.bank import BankError, ResponseBank
from personalllm_env.benchmark.page_data import numbers
from personalllm_env.data.calibration import (
    CalibrationRow,
    calibration_table,
    load_reference,
)
from personalllm_env.data.diversity import population_diversity, vote_shares

CONCENTRATIONS = ("0.01", "0.05", "0.1")
"""Dirichlet parameters of the users in PersonalLLM's Figure 3."""

_USERS, _GROUPS, _SEED = 1000, 4, 0
_PROMPTS = 1000  # of each split
_GRID = np.round(np.arange(0.1, 1.0001, 0.01), 2)  # shares of the votes on the curve's axis


def sample_prompts(bank: ResponseBank) -> Int[np.ndarray, "p"]:
    """Returns which prompts the panels are about: up to 1,000 of each split, evenly spaced."""
    kept = []
    for rows in (bank.prompts("train"), bank.prompts("test")):
        at = np.linspace(0, len(rows) - 1, min(len(rows), _PROMPTS)).round().astype(int)
        kept.append(rows[np.unique(at)])
    return np.sort(np.concatenate(kept))


def bank_panels(bank: ResponseBank) -> dict[str, Any]:
    """Returns what the page says of the bank, as JSON.

    The three statistics of PersonalLLM's Figure 3 (arXiv 2409.20296) for users drawn from
    symmetric Dirichlet laws: the distribution over prompts of the most popular response's
    share of the votes, how many responses get a vote, and what share of the votes each
    responder wins. Averages over four groups of 1,000 users, on ``sample_prompts``. The
    published figures stand beside them; those per responder only where responders are the
    same.
    """
    rows = sample_prompts(bank)
    part = replace(
        bank,
        scores=bank.scores[rows],
        prompt_features=bank.prompt_features[rows],
        response_features=bank.response_features[rows],
        is_test=bank.is_test[rows],
        texts=None,
    )
    published = load_reference()["population_diversity"]
    same = bank.responders == tuple(load_reference()["responders"])
    laws = {text: _law(part, text) for text in CONCENTRATIONS}
    table = calibration(part)
    return {
        "name": bank.name,
        "prompts": len(rows),
        "responders": list(bank.responders),
        "grid": _GRID.tolist(),
        "laws": laws,
        "published": {
            "top": published["top_response_share_at_most_50_75_95_percent"],
            "winners": published["responses_with_a_vote_le2_3_4_5_ge6"],
            "wins": published["win_rate_per_responder"] if same else {},
        },
        "calibration": table and calibration_rows(table),
        "within": sum(row.ok for row in table or ()),
        "compared": len(table or ()),
    }


def calibration(bank: ResponseBank) -> list[CalibrationRow] | None:
    """Returns the calibration table, or None for a bank that has no published counterpart."""
    try:
        return calibration_table(bank, num_users=_USERS, num_groups=_GROUPS, seed=_SEED)
    except BankError:
        return None


def calibration_rows(table: Sequence[CalibrationRow]) -> list[dict[str, Any]]:
    """Returns a row per statistic and in it a cell per concentration, None where unpublished.

    What needs no users has a single cell.
    """
    found: dict[str, dict[float | None, dict[str, Any]]] = {}
    for row in table:
        cell = {"target": row.target, "measured": round(row.measured, 3), "ok": row.ok}
        cell["tolerance"] = row.tolerance
        found.setdefault(row.statistic, {})[row.concentration] = cell
    laws = [float(text) for text in CONCENTRATIONS]
    return [
        {
            "statistic": name,
            "tolerance": next(iter(cells.values()))["tolerance"],
            "alone": cells.get(None),
            "cells": [cells.get(law) for law in laws],
        }
        for name, cells in found.items()
    ]


def _law(bank: ResponseBank, text: str) -> dict[str, Any]:
    # The draws are those of ``calibration_table``, so that table and panels agree.
    rng = np.random.default_rng([_SEED, round(float(text) * 1e6)])
    alpha = [float(text)] * bank.num_reward_models
    votes = [vote_shares(bank.scores, rng.dirichlet(alpha, _USERS)) for _ in range(_GROUPS)]
    each = [population_diversity(shares) for shares in votes]
    return {
        "top": numbers(np.mean([_top_shares(shares) for shares in votes], axis=0), 2),
        "winners": numbers(np.mean([found.winner_counts for found in each], axis=0), 2),
        "wins": numbers(np.mean([found.win_rates for found in each], axis=0), 2),
    }


def _top_shares(votes: Float[np.ndarray, "P K"]) -> Float[np.ndarray, "G"]:
    """Returns the percentage of prompts whose top response has at most each share of votes."""
    top = np.sort(votes.max(axis=1))
    return 100 * np.searchsorted(top, _GRID + 1e-9, side="right") / len(top)
