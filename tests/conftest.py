"""What every test shares: shapes checked at run time, floating-point surprises as errors."""

import atexit
import os
import shutil
import tempfile
import uuid
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# Ray reads its settings when it is imported, as TorchRL and Tianshou do on being imported. All
# stays on the loopback, and even there a token is asked for, one per process.
_RAY = Path(tempfile.mkdtemp(prefix="ray-token-"))
atexit.register(shutil.rmtree, _RAY, ignore_errors=True)
(_RAY / "token").write_text(uuid.uuid4().hex)
os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN_PATH": str(_RAY / "token"),
    # A dead node is noticed after seconds.
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "5",
}

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
def ray_token():
    """The token of this process, in which Ray reads it once and for all."""
    return Path(os.environ["RAY_AUTH_TOKEN_PATH"])


@pytest.fixture(scope="module")
def only_ray(tmp_path_factory):
    """Ray to itself: another test process would take this one's cluster for its own."""
    filelock = pytest.importorskip("filelock")
    with filelock.FileLock(tmp_path_factory.getbasetemp().parent / "ray.lock"):
        yield


@pytest.fixture(scope="session")
def bank():
    from personalllm_env.testing import tiny_bank

    return tiny_bank()


@pytest.fixture(scope="session")
def tasks():
    from personalllm_env.testing import tiny_tasks

    return tiny_tasks()
