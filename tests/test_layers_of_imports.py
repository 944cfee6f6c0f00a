"""The layers of ARCHITECTURE.md, read from the import statements: imports point down, families stay strangers."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jaxrnn"

NOUNS, NETWORK, LEARNING, WORLD, COMMANDS = "nouns", "network", "learning", "world", "commands"
LAYER = {
    **dict.fromkeys(["types", "errors"], NOUNS),
    **dict.fromkeys(["activations", "initializers", "projection", "cells", "unroll"], NETWORK),
    **dict.fromkeys(["layers", "heads", "outputs", "model", "targets", "keys", "ends"], NETWORK),
    **dict.fromkeys(["fit", "programs", "compiling", "tables", "fused", "resuming", "optimizers"], LEARNING),
    **dict.fromkeys(["population", "vmapped", "widths", "stack", "at_work"], LEARNING),
    **dict.fromkeys(["insight", "flow", "attribution", "gradients", "monitor"], LEARNING),
    **dict.fromkeys(["config", "text", "orders", "data", "runs", "stored", "checkpoints", "packing"], WORLD),
    **dict.fromkeys(["history", "loggers", "trackers", "plots", "baselines", "metrics"], WORLD),
    **dict.fromkeys(["settings", "allowed", "refusals", "vocabulary", "devices", "core", "artefact", "foreign"], WORLD),
    **dict.fromkeys(["steptable", "picture", "page", "behaviour", "document", "reportpage"], WORLD),
    **dict.fromkeys(["results", "ranking", "space", "choosing"], WORLD),
    "planning": WORLD,
    **dict.fromkeys(["train", "evaluate", "predict", "explain", "report"], COMMANDS),
    "front_door": "the front door",
    **dict.fromkeys(["command", "usage", "progress", "outline", "flowlog", "paired"], COMMANDS),
    **dict.fromkeys(["fingerprints", "running"], COMMANDS),
    **dict.fromkeys(["job", "group", "sweep", "standing", "launchers", "processes", "study"], COMMANDS),
}
BELOW = {
    NOUNS: {NOUNS},
    NETWORK: {NETWORK, NOUNS},
    LEARNING: {LEARNING, NETWORK, NOUNS},
    WORLD: {WORLD, NETWORK, NOUNS},
    COMMANDS: {COMMANDS, LEARNING, WORLD, NETWORK, NOUNS, "the front door"},
}
FAMILIES = {"cells": "cell", "unroll": "unroll", "data": "dataset"}  # folder -> group: what has a yaml is a member
FILES = sorted(PACKAGE.rglob("*.py"))
IN_FAMILIES = [path for path in FILES if path.parent.name in FAMILIES and path.stem != "__init__"]
# the network and what learns it know arrays: jax, optax and a few of the standard library
PURE = {"jax", "jaxtyping", "numpy", "optax", "beartype"}
IMPURE_STANDARD = set("os sys io pathlib shutil tempfile logging subprocess socket urllib json csv".split())


def name_of(path):
    """jaxrnn/cells/gru.py -> cells.gru"""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def layer_of(module):
    """The layer of a dotted name below jaxrnn; None for the package itself and for private entry points."""
    head = module.split(".")[0]
    return None if head.startswith("_") else LAYER.get(head, f"unknown:{head}")


def imports(path):
    """(dotted name, line, whether it runs at import) of every import statement of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    package = ["jaxrnn", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{origin}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((name, node.lineno, id(node) not in inner) for name in names)


def ours(path):
    """(module below jaxrnn, line): `from jaxrnn.types import Cell` -> types; `import jaxrnn` -> the front door."""
    for name, line, _ in imports(path):
        parts = name.split(".")
        if parts[0] == "jaxrnn":
            yield deepest_module(parts[1:] or ["front_door"]), line


def deepest_module(parts):
    """The longest start of a dotted name that is a file or folder of the package."""
    for count in range(len(parts), 0, -1):
        target = PACKAGE.joinpath(*parts[:count])
        if target.is_dir() or target.with_suffix(".py").is_file():
            return ".".join(parts[:count])
    return parts[0]


def below_world(path):
    return layer_of(name_of(path)) in (NOUNS, NETWORK, LEARNING)


def test_every_file_has_a_layer():
    strangers = [name_of(path) for path in FILES if str(layer_of(name_of(path))).startswith("unknown")]
    assert not strangers, f"name the layer of {strangers} in this test and in ARCHITECTURE.md"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_down(path):
    here = layer_of(name_of(path))
    if here not in BELOW:
        pytest.skip("the package's own front door may import any layer")
    allowed = BELOW[here]
    found = [(line, name, layer_of(name)) for name, line in ours(path)]
    wrong = [f"line {line}: {name} ({layer})" for line, name, layer in found if layer not in {None, *allowed}]
    assert not wrong, f"{name_of(path)} is {here} and may import {sorted(allowed)} only: {wrong}"


def test_every_module_has_its_layer_and_no_other_has():
    assert set(LAYER) - {"front_door"} == {name_of(path).split(".")[0] for path in FILES} - {"__init__"}


def test_world_and_learning_never_meet_below_the_commands():
    assert LEARNING not in BELOW[WORLD] and WORLD not in BELOW[LEARNING]


@pytest.mark.parametrize("path", IN_FAMILIES, ids=name_of)
def test_members_of_a_family_are_strangers(path):
    """No file of a family imports a member; what two members share is in a file that is no member, and points down."""
    family = path.parent.name
    members = {f"{family}.{yaml.stem}" for yaml in (ROOT / "conf" / FAMILIES[family]).glob("*.yaml")}
    assert members, f"conf/{FAMILIES[family]} names no member"
    wrong = [f"line {line}: {name}" for name, line in ours(path) if name in members]
    assert not wrong, f"{name_of(path)} imports a member of its family; what two members need moves down: {wrong}"


@pytest.mark.parametrize("path", [path for path in FILES if below_world(path)], ids=name_of)
def test_below_world_there_are_no_files_and_no_words(path):
    wrong = []
    for name, line, _ in imports(path):
        head = name.split(".")[0]
        standard = head in sys.stdlib_module_names and head not in IMPURE_STANDARD
        if head not in PURE and head != "jaxrnn" and not standard:
            wrong.append(f"line {line}: import {name}")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Name) and called.id in ("open", "print", "input"):
            wrong.append(f"line {node.lineno}: {called.id}()")
    assert not wrong, f"{name_of(path)}: files, terminals and plots belong to the world: {wrong}"


@pytest.mark.parametrize("path", [path for path in FILES if layer_of(name_of(path)) == WORLD], ids=name_of)
def test_world_starts_without_jax(path):
    """`--help` answers in under a second: jax, optax, matplotlib and the network are imported inside functions."""
    heavy = []
    for name, line, at_import in imports(path):
        network = name.startswith("jaxrnn.") and layer_of(deepest_module(name.split(".")[1:])) == NETWORK
        if at_import and (name.split(".")[0] in ("jax", "jaxlib", "optax", "matplotlib") or network):
            heavy.append(f"line {line}: {name}")
    assert not heavy, f"{name_of(path)} imports at start: {heavy}"


@pytest.mark.parametrize("path", [path for path in FILES if layer_of(name_of(path)) == WORLD], ids=name_of)
def test_world_takes_no_gradients(path):
    gradients = {"grad", "value_and_grad", "vjp", "jvp", "jacfwd", "jacrev", "hessian", "custom_vjp", "custom_jvp"}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & gradients
    assert not found, f"{name_of(path)} knows files and text, never {sorted(found)}"


def test_errors_imports_nothing_of_ours():
    assert list(ours(PACKAGE / "errors.py")) == []
