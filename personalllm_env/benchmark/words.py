"""A track's settings in words, for people who read the report before the code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from personalllm_env.benchmark.track import Track
from personalllm_env.channels import Channel, Like, Reward, Stars
from personalllm_env.comparisons import Choice, Click
from personalllm_env.feedback import feedback_model
from personalllm_env.task import Task
from personalllm_env.users import DirichletUsers

_SAID = {  # settings that other lines of words say
    *("feedback", "num_shown", "horizon", "concentration", "drift", "shuffle"),
    *("prompts_per_episode", "recognise", "white_box"),
}


def settings_in_words(track: Track) -> list[str]:
    """Returns what happens in a track, a short sentence per setting.

    Settings without words of their own are given as ``name = value``, so that nothing that
    matters is left out.

    Raises:
        ValueError: If the track's feedback is not one that an environment knows.
    """
    settings = track.environment
    shown = int(settings.get("num_shown", 1))
    spec = settings.get("feedback")
    model = feedback_model(("choice" if shown == 2 else "reward") if spec is None else spec)
    lines = [f"{settings.get('horizon', Task.horizon)} interactions per user"]
    lines.append("one response is shown" if shown == 1 else f"{shown} responses are shown")
    lines += [_channel(channel) for channel in model.channels]
    if model.silence is not None:
        lines.append(f"silent at {100 * model.silence.probability:g} % of interactions")
    if model.delay:
        lines.append(f"what they say arrives {_count(model.delay, 'interaction')} late")
    if model.leave is not None:
        leave = model.leave
        lines.append(
            f"served worse than {leave.threshold:g}, they leave for good with probability "
            f"{leave.probability:g}"
        )
    lines += _setting_lines(settings)
    lines.append(_people(track))
    lines.append(_history(track))
    return lines


def _channel(channel: Channel) -> str:
    match channel:
        case Reward():
            return f"they report how good it was, with normal noise of sd {channel.noise_sd:g}"
        case Like():
            return (
                f"they like it or not (even odds at utility {channel.threshold:g}, "
                f"temperature {channel.temperature:g})"
            )
        case Stars():
            return (
                f"they give 1 to {len(channel.cuts) + 1} stars "
                f"(noise of sd {channel.noise_sd:g})"
            )
        case Choice():
            return (
                f"they say which of the two they prefer (temperature {channel.temperature:g})"
            )
        case Click():
            return (
                f"they click on one of all the responses (temperature {channel.temperature:g})"
            )
    return f"they speak through {channel.name}"


def _setting_lines(settings: Mapping[str, Any]) -> list[str]:
    lines = []
    if (drift := settings.get("drift")) is not None:
        lines.append(_drift(drift))
    if (pool := settings.get("prompts_per_episode")) is not None:
        lines.append(f"{_count(pool, 'prompt')} per user, which recur")
    for key, words in (
        ("shuffle", "responses come in a new order at every interaction"),
        ("recognise", "agents see which user they serve"),
        ("white_box", "agents see the reward models' scores of the candidates"),
    ):
        if settings.get(key):
            lines.append(words)
    lines += [f"{key} = {value}" for key, value in settings.items() if key not in _SAID]
    return lines


def _drift(drift: Any) -> str:
    name, given = (drift, {}) if isinstance(drift, str) else next(iter(drift.items()))
    given = given or {}
    if name == "gradual":
        share = f"{100 * given.get('share', 1.0):g} % of the way "
        return f"tastes move in a straight line {share}to another user's"
    if name == "sudden":
        often = given.get("probability", 1.0)
        chance = "" if often == 1 else f" with probability {often:g}"
        return f"at a random moment{chance} the user becomes another one"
    return f"drift = {drift}"


def _people(track: Track) -> str:
    if track.population is None:
        law = track.environment.get("concentration") or DirichletUsers.concentration
        return f"every user is new, with {_dirichlet(law)} weights over the reward models"
    [(kind, given)] = track.population.items()
    people = f"{_number(given.get('num_users'))} users"
    if kind == "communities":
        people += f" in {_number(given.get('num_communities'))} communities"
    if given.get("num_test"):
        people += f", of whom {_number(given['num_test'])} are held out for the test"
    often = (
        "the same in every repetition" if _same_population(track) else "drawn anew each time"
    )
    return f"{people}, {often}"


def given_population(track: Track) -> str:
    """Returns what intervals do not cover where every repetition has the same population.

    A sentence for below the track's table; empty where there is nothing to say.
    """
    if not _same_population(track):
        return ""
    return (
        "The population is the same in every repetition: intervals are given that one "
        "population, and with another gains may differ by more than they say."
    )


def _same_population(track: Track) -> bool:
    return any("seed" in given for given in (track.population or {}).values())


def _history(track: Track) -> str:
    if track.history_users == 0:
        return "no history of other users"
    finite = track.population or {}
    apart = not finite or any(given.get("num_test") for given in finite.values())
    known = bool(track.environment.get("recognise"))
    number = _number(track.history_users)
    if not known:  # else the size of a run may cut it
        number = f"up to {number}"
    if apart:
        who = f"{number} other users"
    else:
        who = f"{number} of these very users" if known else f"{number} users of this population"
    words = f"a history of {who} to learn from"
    changed = [_changed(key, value) for key, value in track.history.items()]
    return ", ".join([words, *changed])


def _changed(key: str, value: Any) -> str:
    """Returns in words what is different on the history's side."""
    match key, value:
        case "horizon", _:
            return f"{_count(value, 'interaction')} each"
        case "concentration", _:
            return f"whose weights are {_dirichlet(value)}"
        case "drift", None:
            return "whose tastes stay as they are"
        case "prompts_per_episode", None:
            return "whose prompts do not recur"
    return f"recorded with {key} = {value}"


def _dirichlet(law: Any) -> str:
    laws = law if isinstance(law, tuple | list) else [law]
    return f"Dirichlet({' or '.join(f'{value:g}' for value in laws)})"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _count(number: Any, thing: str) -> str:
    return f"{_number(number)} {thing}{'' if number == 1 else 's'}"
