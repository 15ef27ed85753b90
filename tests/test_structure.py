"""The tree itself: which way imports go, how long modules are, what must not be in any file."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "personalllm_env"
AGENTS = ROOT / "agents"

# Who may be imported: the flow of the design, left to right. A module may import those of its
# own layer and of the layers before it.
LAYERS = (
    (
        *("types", "streams", "bank", "extras", "files", "fingerprints", "storage"),
        *("text_index", "quiet", "waiting"),
    ),
    ("users", "drift", "channels", "comparisons", "decoding", "laws"),
    ("feedback", "data"),
    ("rewards", "language"),
    ("task",),
    ("core",),
    ("session",),
    ("generation",),
    ("database", "belief", "envs"),
    ("history_files", "paper_files"),
    ("histories",),
    ("runner",),
    ("registry", "report", "testing", "curves", "estimates"),
    ("logged",),
    ("adapters",),
    ("plots", "play"),
    ("benchmark", "writing"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: i for i, layer in enumerate(LAYERS) for name in layer}
MOST_LINES = 300


def sources():
    """Returns every module's name and path; agents under the name they are installed as."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    for path in sorted(AGENTS.glob("*.py")):
        name = f"personalllm_env.agents.{path.stem}".removesuffix(".__init__")
        found[name] = path
    return found


SOURCES = sources()


def _is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def statements(node, lazy):
    """Yields import statements that run, inside functions only where ``lazy``."""
    for child in ast.iter_child_nodes(node):
        if _is_type_checking(child):
            continue
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif lazy or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from statements(child, lazy)


def imports(path, lazy=True):
    """Returns the modules that a file imports; of our own, the deepest that is named."""
    found = set()
    for node in statements(ast.parse(path.read_text(encoding="utf-8")), lazy):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        assert node.level == 0, f"{path.name}: imports are absolute"
        names = {f"{node.module}.{alias.name}" for alias in node.names}
        found |= {name if name in SOURCES else node.module for name in names}
    return found


# The agents that are made of another library; it is loaded when one is built.
LIBRARIES = {
    "vowpal_wabbit": {"vowpalwabbit"},
    "river_models": {"river"},
    "mabwiser_models": {"mabwiser"},
    "contextual_bandits": {"contextualbandits", "sklearn"},
}


def file_of(module):
    return module.rpartition(".")[2]


def layer(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def test_the_parser_sees_what_is_there():
    assert len(SOURCES) > 25
    assert "personalllm_env.core" in imports(PACKAGE / "session.py")
    assert "personalllm_env.streams" in imports(PACKAGE / "core.py")
    assert "personalllm_env.commands" in imports(PACKAGE / "cli" / "comparing.py")
    assert "personalllm_env.commands" not in imports(
        PACKAGE / "cli" / "comparing.py", lazy=False
    )
    assert "personalllm_env.database" not in imports(PACKAGE / "types.py")


def test_every_module_has_its_place():
    tops = {layer(name) for name in SOURCES} - {"", "agents"}
    assert tops <= set(LEVEL), f"say in LAYERS where these are: {tops - set(LEVEL)}"
    assert set(LEVEL) <= tops, "LAYERS names modules that are gone"


@pytest.mark.parametrize("name", sorted(n for n in SOURCES if layer(n) not in ("", "agents")))
def test_imports_go_one_way(name):
    mine = layer(name)
    for other in imports(SOURCES[name]):
        if other.startswith("personalllm_env."):
            theirs = layer(other)
            assert theirs != "agents", f"{name} imports an agent; they are reached by name"
            assert LEVEL[theirs] <= LEVEL[mine], f"{name} must not import {other}"
        assert other.split(".")[0] != "agents", f"{name} imports a top-level 'agents'"


@pytest.mark.parametrize("name", sorted(n for n in SOURCES if layer(n) == "agents"))
def test_agents_import_the_contract_only(name):
    allowed = {"types", "channels", "feedback", "core", "belief", "database", "drift", "agents"}
    allowed |= {"generation", "language", "extras"}
    third_party = {"numpy", "jaxtyping", "scipy"} | LIBRARIES.get(file_of(name), set())
    for other in imports(SOURCES[name]):
        top = other.split(".")[0]
        if top == "personalllm_env":
            assert layer(other) in allowed, f"{name} must not import {other}"
        else:
            assert top in third_party | {"__future__", "typing", "collections", "dataclasses"}


def test_no_import_cycles():
    graph = {
        name: sorted(imports(path, lazy=False) & set(SOURCES)) for name, path in SOURCES.items()
    }
    done = set()

    def visit(name, trail):
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for other in graph[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_modules_are_short(name):
    path = SOURCES[name]
    lines = len(path.read_text(encoding="utf-8").splitlines())
    key = path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else path.name
    assert lines <= MOST_LINES, f"{key} has {lines} lines; make two of it"


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_everything_public_says_what_it_is(name):
    tree = ast.parse(SOURCES[name].read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{name} has no docstring"

    def check(node, where):
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                if child.name.startswith("_"):
                    continue
                assert ast.get_docstring(child), f"{where}.{child.name} has no docstring"
                if isinstance(child, ast.ClassDef):
                    check(child, f"{where}.{child.name}")

    check(tree, name)


# Built from parts, so that this file does not hold what it looks for.
_PLACES = "|".join(("home", "Users", "root", "work", "mnt", "scratch", "workspace"))
OWN_PATH = re.compile(rf"(?<![\w.:/~$}}>)-])/(?:{_PLACES})/[\w.-]+|[A-Z]:\\\\?Users\\")
SKIPPED = {"build", "dist", "results", "__pycache__", "venv"}
TEXT = {".py", ".md", ".toml", ".cfg", ".json", ".yml", ".yaml", ".txt", ".sh", ".csv", ".svg"}


def texts():
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        hidden = any(p.startswith(".") and p not in (".github", ".ci") for p in parts[:-1])
        if hidden or SKIPPED & set(parts) or any(p.endswith(".egg-info") for p in parts):
            continue
        if path.is_file() and (path.suffix in TEXT or not path.suffix):
            yield path


def test_no_file_names_a_path_of_somebodys_machine():
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in texts()
        for match in OWN_PATH.finditer(path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert not found, found


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("open('/ho" + "me/anna/bank')", True),
        ("cd /wo" + "rk/tree", True),
        ("/Us" + "ers/anna/x", True),
        ("C:" + "\\Users\\anna", True),
        ("https://example.org/wo" + "rk/paper", False),
        ("docs/wo" + "rk/paper", False),
        ("a /home or a /work folder", False),
    ],
)
def test_the_path_pattern(text, bad):
    assert bool(OWN_PATH.search(text)) is bad
