"""What every test shares: shapes checked at run time, floating-point surprises as errors."""

import uuid

import jaxtyping
import numpy as np
import pytest
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# An int is a float, as in PEP 484: settings come from JSON.
typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))

# Before anything of the package is imported. Elsewhere annotations are documentation; here
# they are assertions, on every call and every record.
_CHECKED = (
    *(
        "streams",
        "users",
        "drift",
        "channels",
        "comparisons",
        "feedback",
        "task",
        "core",
        "session",
    ),
    *("belief", "bank", "decoding", "database"),
    *("histories", "history_files", "paper_files", "text_index", "fingerprints", "files"),
    *("rewards", "language", "generation", "writing"),
    # All of logged but replay, whose Rows is no protocol that can be checked at run time.
    *(f"logged.{name}" for name in ("estimators", "exploring", "log", "record", "obp", "vw")),
    *("logged.off_policy", "logged.off_policy_models", "logged.off_policy_replay"),
    *("logged.preferences", "logged.rllib_files", "logged.minari_files", "logged.log_files"),
)
install_import_hook(
    [*(f"personalllm_env.{name}" for name in _CHECKED), "personalllm_env.agents"],
    f"{__name__}.typechecker",
)


@pytest.fixture(autouse=True)
def _floating_point_errors_raise():
    """Division by zero, overflow and invalid operations are bugs; underflow to 0 is not."""
    with np.errstate(all="raise", under="ignore"):
        yield


@pytest.fixture
def unchecked_shapes(monkeypatch):
    """Turns the shape checks off, to see the package's own message for a wrong argument."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def ray_token(tmp_path_factory):
    """One token per process, in which Ray reads it once and for all."""
    token = tmp_path_factory.mktemp("ray") / "token"
    token.write_text(uuid.uuid4().hex)
    return token


@pytest.fixture(scope="module")
def only_ray(tmp_path_factory, ray_token):
    """Ray to itself: another test process would take this one's cluster for its own.

    Everything stays on the loopback, and even there a token is asked for.
    """
    filelock = pytest.importorskip("filelock")
    lock = filelock.FileLock(tmp_path_factory.getbasetemp().parent / "ray.lock")
    with lock, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(ray_token))
        # A dead node is noticed after seconds. Ray reads this, too, once per process.
        patch.setenv("RAY_health_check_period_ms", "500")
        patch.setenv("RAY_health_check_failure_threshold", "5")
        yield


@pytest.fixture(scope="session")
def bank():
    from personalllm_env.testing import tiny_bank

    return tiny_bank()


@pytest.fixture(scope="session")
def tasks():
    from personalllm_env.testing import tiny_tasks

    return tiny_tasks()
