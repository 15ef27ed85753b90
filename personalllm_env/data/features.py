"""Features of texts: what an agent sees of a prompt and of the responses to it.

A response's features are of its own text, without the prompt: agents learn a taste over the
responses to one prompt, the prompt is the same for all of them, and with it most of the
variance would be spent on what cannot tell them apart. For the same reason a reduction keeps
the directions in which the responses to one prompt differ most, not those in which all texts
differ most. Prompts have a basis of their own.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import os
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from types import ModuleType

import numpy as np
from jaxtyping import Bool, Float32
from rich.console import Console
from rich.progress import Progress

from personalllm_env.bank import BankError, Texts
from personalllm_env.files import written_whole

TFIDF = "tfidf"
_RECIPE = 1  # part of the cache's key: raise it when the same texts get other features
_FIT_TEXTS = 8_192  # a vocabulary and 128 directions are settled long before 80,000 texts
_LATENT = 128
_BATCH = 1_024

Features = tuple[Float32[np.ndarray, "P D"], Float32[np.ndarray, "P K D"]]
Embed = Callable[[list[str], list[str]], Float32[np.ndarray, "n R"]]


def text_features(
    texts: Texts,
    is_test: Bool[np.ndarray, "P"],
    *,
    encoder: str = TFIDF,
    num_features: int | None = None,
    cache: bool = True,
) -> Features:
    """Turns words into features: finite, each with mean 0 and sd 1 over the train split.

    What is fitted (vocabulary, directions, scale) is fitted on train prompts alone. A feature
    that does not vary over the train split is 0 everywhere; so are the features beyond the
    rank of the data, so that there are always ``num_features``.

    Args:
        texts: P prompts with K responses each.
        is_test: (P,) the test split.
        encoder: ``"tfidf"``, or the name or path of a SentenceTransformer.
        num_features: D; by default 32 for TF-IDF and the width of a SentenceTransformer.
        cache: Whether to look in and write to ``cache_folder()``.

    Returns:
        Prompt features (P, D) and response features (P, K, D), float32.

    Raises:
        BankError: If ``num_features`` is not positive or the encoder cannot be loaded.
        ImportError: If the encoder's library is missing: names the extra to install.
    """
    if num_features is not None and num_features < 1:
        raise BankError(f"num_features must be at least 1, got {num_features}")
    if encoder == TFIDF and num_features is None:
        num_features = 32
    if not cache:
        return _compute(texts, is_test, encoder, num_features)
    path = cache_folder() / f"features-{_key(texts, is_test, encoder, num_features)}.npz"
    found = _read(path, len(texts.prompts), len(texts.responses[0]))
    if found is None:
        found = _compute(texts, is_test, encoder, num_features)
        _write(path, found)
    return found


def cache_folder() -> Path:
    """Returns where features are kept: ``$PERSONALLLM_CACHE``, or the user's cache folder."""
    if folder := os.environ.get("PERSONALLLM_CACHE"):
        return Path(folder).expanduser()
    return Path(require("platformdirs", "text").user_cache_path("personalllm-env"))


def require(module: str, extra: str) -> ModuleType:
    """Imports an optional module, or says which extra brings it.

    Raises:
        ImportError: If the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} could not be imported ({error}); it comes with "
            f"pip install 'personalllm-env[{extra}]'"
        ) from error


def _compute(
    texts: Texts, is_test: Bool[np.ndarray, "P"], encoder: str, num_features: int | None
) -> Features:
    embed = _tfidf if encoder == TFIDF else _sentence_encoder(encoder)
    p, k = len(texts.prompts), len(texts.responses[0])
    train = ~is_test
    prompts = _embedded(texts.prompts, train, embed)
    flat = list(chain.from_iterable(texts.responses))
    responses = _embedded(flat, np.repeat(train, k), embed).reshape(p, k, -1)
    if num_features is not None:
        between = prompts[train] - prompts[train].mean(axis=0)
        prompts = prompts @ _basis(between, num_features)
        within = responses[train] - responses[train].mean(axis=1, keepdims=True)
        responses = responses @ _basis(within.reshape(-1, within.shape[-1]), num_features)
    return _scaled(prompts, train), _scaled(responses, train)


def _embedded(
    texts: Sequence[str], train: Bool[np.ndarray, "n"], embed: Embed
) -> Float32[np.ndarray, "n R"]:
    """Embeds each different text once; fits on train texts in an order of their own."""
    index: dict[str, int] = {}
    rows = [index.setdefault(text, len(index)) for text in texts]
    fit = {text for text, is_train in zip(texts, train.tolist(), strict=True) if is_train}
    # By hash: a sample that depends neither on the rows' order nor on what the texts say.
    chosen = sorted(fit, key=lambda text: hashlib.sha256(_bytes(text)).digest())[:_FIT_TEXTS]
    return embed(list(index), chosen)[rows]


def _tfidf(texts: list[str], fit: list[str]) -> Float32[np.ndarray, "n R"]:
    """Latent semantic analysis of words and letters, and the length that TF-IDF divides out.

    Letters carry one- to three-word responses, of which few share a word. Length is what most
    reward models react to (Spearman .6 to .77 for six of PersonalLLM's ten): with the column,
    32 features of eight LLMs' answers to 805 prompts give 99 % of the within-prompt variance
    of log length to a linear reader on new prompts, without it 82 %.
    """
    extraction = require("sklearn.feature_extraction.text", "text")
    pipeline = require("sklearn.pipeline", "text")
    decomposition = require("sklearn.decomposition", "text")
    words = extraction.TfidfVectorizer(
        token_pattern=r"\w+|[^\w\s]+",
        ngram_range=(1, 2),
        sublinear_tf=True,
        max_features=20_000,
    )
    letters = extraction.TfidfVectorizer(
        analyzer="char_wb", ngram_range=(2, 3), sublinear_tf=True, max_features=20_000
    )
    vectoriser = pipeline.FeatureUnion([("words", words), ("letters", letters)])
    matrix = vectoriser.fit_transform(fit)
    svd = decomposition.TruncatedSVD(min(_LATENT, *matrix.shape), random_state=0)
    with np.errstate(invalid="ignore"):  # scikit-learn's variance shares of a single text
        svd.fit(matrix)
    latent = np.concatenate(
        [svd.transform(vectoriser.transform(part)) for part in _batches(texts, "TF-IDF")]
    )
    length = np.log1p([len(text.split()) for text in texts])
    of_fit = np.log1p([len(text.split()) for text in fit])
    scale = svd.explained_variance_.max() ** 0.5 / max(float(of_fit.std()), 1e-6)
    columns = [latent, ((length - of_fit.mean()) * scale)[:, None]]
    return np.concatenate(columns, axis=1, dtype=np.float32)


def _sentence_encoder(name: str) -> Embed:
    library = require("sentence_transformers", "hub")
    try:
        model = library.SentenceTransformer(name)
    except Exception as error:  # whatever the hub's client, transformers or torch raise
        raise BankError(
            f"encoder {name!r} is neither 'tfidf' nor a SentenceTransformer that can be "
            f"loaded: {error}"
        ) from error

    def embed(texts: list[str], fit: list[str]) -> Float32[np.ndarray, "n R"]:
        parts = (
            model.encode(part, convert_to_numpy=True, show_progress_bar=False)
            for part in _batches(texts, name)
        )
        return np.concatenate(list(parts)).astype(np.float32)

    return embed


def _batches(texts: list[str], label: str) -> Iterator[list[str]]:
    """Yields the texts in batches, with a progress bar for people who have waited for 3 s."""
    console = Console(stderr=True)
    progress = Progress(console=console, transient=True)
    task = progress.add_task(f"features ({label})", total=len(texts))
    start = time.monotonic()
    try:
        for first in range(0, len(texts), _BATCH):
            if console.is_terminal and time.monotonic() - start > 3:
                progress.start()
            yield texts[first : first + _BATCH]
            progress.update(task, advance=_BATCH)
    finally:
        if progress.live.is_started:
            progress.stop()


def _basis(differences: Float32[np.ndarray, "n R"], num: int) -> Float32[np.ndarray, "R num"]:
    """Returns the principal directions of ``differences``; columns beyond their rank are 0."""
    variance, directions = np.linalg.eigh((differences.T @ differences).astype(np.float64))
    strongest = np.argsort(-variance)[:num]
    # Scaled to sd 1 later, a direction that train hardly has would let test rows explode.
    strongest = strongest[variance[strongest] > 1e-4 * max(float(variance.max()), 1e-12)]
    basis = np.zeros((differences.shape[1], num), np.float32)
    basis[:, : len(strongest)] = directions[:, strongest]
    sign = np.sign(np.take_along_axis(basis, np.abs(basis).argmax(axis=0)[None], axis=0))
    return basis * np.where(sign == 0, 1, sign)  # an eigenvector's own sign means nothing


def _scaled(
    values: Float32[np.ndarray, "... D"], train: Bool[np.ndarray, "P"]
) -> Float32[np.ndarray, "... D"]:
    axes = tuple(range(values.ndim - 1))
    mean = values[train].mean(axis=axes, dtype=np.float64)
    sd = values[train].std(axis=axes, dtype=np.float64)
    varies = sd > 1e-5 * max(float(sd.max()), 1e-6)
    scale = np.where(varies, 1 / np.where(varies, sd, 1), 0)
    scaled: Float32[np.ndarray, "... D"] = ((values - mean) * scale).astype(np.float32)
    return scaled


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _key(
    texts: Texts, is_test: Bool[np.ndarray, "P"], encoder: str, num_features: int | None
) -> str:
    """Returns a hash of everything that the features depend on."""
    libraries = (
        ["scikit-learn", "scipy"]
        if encoder == TFIDF
        else ["sentence-transformers", "transformers", "torch"]
    )
    folder = Path(encoder)
    # A model saved again under the same path is another model.
    files = (
        [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(folder.rglob("*"))]
        if encoder != TFIDF and folder.is_dir()
        else []
    )
    head = [_RECIPE, encoder, num_features, files, is_test.astype(int).tolist()]
    versions = [_version(name) for name in ["numpy", *libraries]]
    digest = hashlib.sha256(json.dumps([head, versions]).encode())
    for text in chain(texts.prompts, chain.from_iterable(texts.responses)):
        data = _bytes(text)
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _read(path: Path, num_prompts: int, num_responses: int) -> Features | None:
    try:
        # Opened here: NumPy leaves a damaged archive that it opened itself unclosed.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            prompts, responses = arrays["prompts"], arrays["responses"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    d = prompts.shape[-1] if prompts.ndim == 2 else -1
    fits = prompts.shape == (num_prompts, d) and responses.shape == (
        num_prompts,
        num_responses,
        d,
    )
    whole = all(a.dtype == np.float32 and np.isfinite(a).all() for a in (prompts, responses))
    return (prompts, responses) if fits and whole else None


def _write(path: Path, features: Features) -> None:
    """Writes a file whole or not at all; a disk that cannot be written to costs time only."""
    try:
        with written_whole(path) as scratch, scratch.open("wb") as file:
            np.savez(file, prompts=features[0], responses=features[1])
    except OSError as error:
        warnings.warn(f"features could not be cached in {path.parent}: {error}", stacklevel=3)
