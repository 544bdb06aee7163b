"""The rules of the house: who may import whom, what importing costs, and what is public."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import deepseek_resilient

ROOT = Path(deepseek_resilient.__file__).parent
PACKAGE = "deepseek_resilient"
MODULES = sorted(ROOT.rglob("*.py"))
CORE = sorted((ROOT / "core").glob("*.py"))
BANNED_IN_CORE = {
    "time", "random", "asyncio", "threading", "socket", "ssl", "select", "selectors", "concurrent", "subprocess", "os",
    "httpx", "httpx2", "openai", "anyio", "aiohttp",
}  # fmt: skip

# Arrows go down only: a module imports from lower floors, or from its own room.
FLOORS = {
    "errors": 0, "events": 0, "wire": 0, "usage": 0, "backoff": 0, "proxies": 0,
    "prefix": 0.5, "wire_errors": 0.5,
    "config": 1,
    "core": 2, "description": 2,
    "local": 2.5, "libraries": 2.5, "store": 2.5, "tokenizer": 2.5, "upstreams": 2.5,
    "headers": 2.5, "ambient": 2.5,
    "engine": 3, "drivers": 3, "bridge": 3,
    "senders": 4, "aiohttp_transport": 4,
    "transport": 5,
    "client": 6,
}  # fmt: skip
ABOVE = 9  # lab, command line, gateway, ...: users of the public surface


def runtime_imports(path):
    """Every module that a file imports when it runs, at its head or inside a function; not under TYPE_CHECKING."""
    found = []

    def visit(node):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (PACKAGE, *path.relative_to(ROOT).parent.parts)[: len(path.relative_to(ROOT).parts) + 1 - node.level]
            module = ".".join([*(base if node.level else ()), *([node.module] if node.module else [])])
            found.append(module)
            found.extend(f"{module}.{alias.name}" for alias in node.names if module == PACKAGE)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def room(module):
    """The first name below the package."""
    return module.split(".")[1] if "." in module else "__init__"


def fresh(code):
    """The names that a new interpreter has imported after `code`."""
    script = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)  # noqa: S603
    return set(done.stdout.split())


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_the_core_imports_no_clock_no_socket_no_thread(path):
    """Everything that decides gets time, randomness and locks from outside."""
    assert set() == {name.split(".")[0] for name in runtime_imports(path)} & BANNED_IN_CORE


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_go_down_only(path):
    """client → transport → drivers → core → (config, events, errors, wire, backoff)."""
    relative = path.relative_to(ROOT)
    own = relative.parts[0].removesuffix(".py")
    floor = FLOORS.get(own, ABOVE)
    ours = {room(name) for name in runtime_imports(path) if name.split(".")[0] == PACKAGE} - {
        own,
        "__init__",
        "__version__",
    }
    assert [] == sorted(name for name in ours if FLOORS.get(name, ABOVE) >= floor and floor != ABOVE)


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_the_core_knows_nobody_above_it(path):
    """Not even for a type, except of what it is handed: drivers, engine and transports are not named at all."""
    named = {
        node.module
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module
    }
    above = {"lab", "drivers", "client", "transport", "bridge", "senders", "engine"}
    assert set() == {room(name) for name in named if name.startswith(PACKAGE + ".")} & above


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_fits_in_a_head(path):
    """No file is longer than 400 lines, and each says first what it is."""
    text = path.read_text()
    assert 400 >= len(text.splitlines())
    assert ast.get_docstring(ast.parse(text))


def test_importing_the_core_brings_no_http_library():
    """A simulation needs neither httpx nor the OpenAI SDK."""
    assert set() == {"httpx", "httpx2", "openai", "anyio", "aiohttp"} & fresh("import deepseek_resilient.core.pipeline")


def test_importing_the_package_is_cheap():
    """Names are imported when they are used: the package alone brings none of its dependencies."""
    heavy = {"openai", "httpx", "httpx2", "tenacity", "pybreaker", "cachetools", "aiohttp", "asyncio", "jiter"}
    assert set() == heavy & fresh("import deepseek_resilient")
    assert "tenacity" in fresh("from deepseek_resilient import Policy")


@pytest.mark.parametrize("name", deepseek_resilient.__all__)
def test_every_public_name_is_there_and_documented(name):
    """It can be imported, comes from the home it claims, and has a docstring of its own."""
    value = getattr(deepseek_resilient, name)
    assert name == value.__name__
    home = importlib.import_module(value.__module__)
    assert value is getattr(home, name)
    assert vars(value).get("__doc__", value.__doc__ if not isinstance(value, type) else None)


def test_the_list_of_public_names_is_the_list_of_homes():
    """Sorted, complete, without repetition; the type checker's imports are the same names."""
    assert sorted(deepseek_resilient.__all__) == deepseek_resilient.__all__
    assert set(deepseek_resilient._HOME_OF) == set(deepseek_resilient.__all__)
    tree = ast.parse((ROOT / "__init__.py").read_text())
    typed = [
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE)
    ]
    assert set(deepseek_resilient.__all__) == {alias.name for node in typed for alias in node.names}


def test_dir_lists_the_public_names():
    """Completion in a shell works before anything was imported."""
    script = "import deepseek_resilient as d; missing = set(d.__all__) - set(dir(d)); assert not missing, missing"
    assert PACKAGE in fresh(script)
    assert sorted(dir(deepseek_resilient)) == dir(deepseek_resilient)


def test_an_unknown_name_is_an_attribute_error():
    """As of any module, so that hasattr works."""
    with pytest.raises(AttributeError, match="module 'deepseek_resilient' has no attribute 'Client'"):
        _ = deepseek_resilient.Client
    assert not hasattr(deepseek_resilient, "Client")
