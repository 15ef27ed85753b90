"""A library that is missing, too old or cannot stand beside another: one clear sentence."""

import sys
from importlib import metadata

import pytest

from personalllm_env import extras


@pytest.fixture(autouse=True)
def _forget():
    extras._wrong_version.cache_clear()
    yield
    extras._wrong_version.cache_clear()


def test_what_is_there_is_imported():
    import json.decoder

    assert extras.require("json.decoder", "text") is json.decoder


def test_a_missing_library_is_named_with_its_extra():
    with pytest.raises(ImportError, match=r"pip install 'personalllm-env\[sb3\]'$"):
        extras.require("no_such_library", "sb3")


def test_a_library_that_stands_alone_says_so():
    with pytest.raises(ImportError, match=r"openenv cannot be installed beside it"):
        extras.require("no_such_library", "verifiers")


def test_an_old_library_is_named_with_what_is_needed(monkeypatch):
    pytest.importorskip("stable_baselines3")
    real = metadata.version
    old = {"stable-baselines3": "2.5.0"}
    monkeypatch.setattr(metadata, "version", lambda name: old.get(name) or real(name))
    with pytest.raises(ImportError) as caught:
        extras.require("stable_baselines3.common.vec_env", "sb3")
    assert str(caught.value) == (
        "stable-baselines3 2.5.0 is installed, but personalllm-env needs >=2.6: "
        "pip install --upgrade 'personalllm-env[sb3]'"
    )
    old["stable-baselines3"] = "2.6.0a1"  # a release candidate of the minimum is older
    extras._wrong_version.cache_clear()
    with pytest.raises(ImportError, match=r"2\.6\.0a1 is installed"):
        extras.require("stable_baselines3", "sb3")
    old["stable-baselines3"] = "2.7.0"
    extras._wrong_version.cache_clear()
    assert extras.require("stable_baselines3", "sb3") is sys.modules["stable_baselines3"]


def test_extras_that_name_extras_have_their_libraries():
    train, write = extras.requirements("train"), extras.requirements("write")
    assert write
    assert write.items() <= train.items()
    assert train["trl"]
    assert "gymnasium" not in train
    assert "scikit-learn" in train  # through write and text
    assert extras.requirements("nonsense") == {}


def test_without_metadata_nothing_is_asked_for(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    assert extras.requirements("sb3") == {}


@pytest.mark.parametrize(
    "extra", ["sb3", "torchrl", "tianshou", "rllib", "bandits", "verifiers"]
)
def test_every_library_has_a_minimum_version(extra):
    wanted = extras.requirements(extra)
    assert wanted
    assert all(spec for name, spec in wanted.items() if name != "torch"), wanted


def test_conflicting_libraries_are_in_no_extra_together():
    lines = metadata.metadata("personalllm-env").get_all("Provides-Extra")
    for extra in lines:
        wanted = set(extras.requirements(extra))
        assert not {"verifiers", "openenv"} <= wanted, extra
        rllib = any("rllib" in line for line in _lines(extra))
        assert not rllib or extra == "rllib", extra


def _lines(extra):
    own = metadata.requires("personalllm-env")
    return [line for line in own if f'extra == "{extra}"' in line and "[rllib]" in line]
