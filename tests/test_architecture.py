"""The walls of the house, read from the source. Nothing is imported, so this takes a second.

`python tests/test_architecture.py` prints the numbers that the walls are held to.
"""

import ast
import collections
import functools
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: The floors, from the ground up. A room imports its own files, and rooms of the floors below.
FLOORS = [
    {"adamnx_hf/common", "adamnx_hf/optim", "adamnx_hf/metrics", "trainer_patches"},
    {"adamnx_hf/models", "adamnx_hf/catalog", "adamnx_hf/launch.py"},
    {"adamnx_hf/tasks", "adamnx_hf/__init__.py"},
    {"adamnx_hf/recipes", "adamnx_hf/kernel_package.py", "adamnx_hf/cli.py"},
    {"adamnx_hf/runs"},
    {"adamnx_hf/studies", "adamnx_hf/bench"},
    {"adamnx_hf/commands", "adamnx_hf/figures"},
]
#: What these rooms may import besides the standard library and themselves.
ALONE = {"adamnx_hf/optim": {"torch", "triton"}, "trainer_patches": {"torch", "wrapt", "sitecustomize"}}
LONGEST_BODY, LONGEST_FILE, MOST_PARAMETERS = 70, 450, 8
#: What is larger, with the reason. The list only ever gets shorter.
KERNEL = "a Triton kernel takes pointers and numbers one by one"
LARGER = {
    "adamnx_hf/optim/engines/triton_kernel.py:_step_chunk": KERNEL,
    "adamnx_hf/optim/engines/triton_kernel.py:adamnx_update": KERNEL,
    "adamnx_hf/optim/engines/triton_kernel.py:step_kernel": KERNEL,
    "adamnx_hf/optim/engines/triton_kernel.py:store_moment": KERNEL,
    "adamnx_hf/optim/engines/triton.py:_opaque_step": "a torch operator takes lists and numbers one by one",
    "adamnx_hf/optim/update.py:adamnx_update": "the paper's update has nine symbols",
    "adamnx_hf/optim/functional.py:adamnx": "the signature follows torch.optim's functions",
    "adamnx_hf/optim/optimizer.py:__init__": "the signature follows torch.optim's classes",
    "adamnx_hf/models/torchvision_net/nets.py:convnext": "a recipe names each change",
    "adamnx_hf/models/torchvision_net/nets.py:efficientnet_v2": "a recipe names each change",
}

FILES = sorted(path for name in ("adamnx_hf", "trainer_patches") for path in (ROOT / name).rglob("*.py"))
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}


@functools.cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def where(path):
    return path.relative_to(ROOT).as_posix()


def room(path):
    parts = path.relative_to(ROOT).parts
    return parts[0] if parts[0] == "trainer_patches" else "/".join(parts[:2])


def floor(name):
    return next(i for i, names in enumerate(FLOORS) if name in names)


@functools.cache
def imports(path):
    """Modules that a file imports anywhere, each with the name taken from it, or None, and the name there."""
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [(alias.name, None, alias.asname or alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{where(path)}: imports are absolute"
            for alias in node.names:
                inner, known = f"{node.module}.{alias.name}", alias.asname or alias.name
                found.append((inner, None, known) if inner in MODULES else (node.module, alias.name, known))
    return found


def arrows(path):
    """The rooms that a file's imports lead to, other than its own."""
    there = {room(MODULES[module]) for module, _, _ in imports(path) if module in MODULES}
    return sorted(there - {room(path)})


def arrows_up(path):
    return [other for other in arrows(path) if floor(other) >= floor(room(path))]


def strangers(path):
    """Packages that a file imports although its room stands alone."""
    tops = {module.partition(".")[0] for module, _, _ in imports(path) if module not in MODULES}
    allowed = ALONE.get(room(path))
    return [] if allowed is None else sorted(tops - allowed - set(sys.stdlib_module_names))


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def private_names(path):
    """Names of another room's own that a file takes, by import or as a module's attribute."""
    foreign = [one for one in imports(path) if one[0] in MODULES and room(MODULES[one[0]]) != room(path)]
    taken = [f"{module}.{name}" for module, name, _ in foreign if name is not None and is_private(name)]
    modules = {known: module for module, name, known in foreign if name is None}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = ast.unparse(node.value)
            taken += [f"{modules[owner]}.{node.attr}"] if owner in modules else []
    return taken


def circle():
    """The modules that import each other in a circle, or that stand above one."""
    graph = {
        m: {module for module, _, _ in imports(p) if module in MODULES} - {m} for m, p in MODULES.items()
    }
    while leaves := [m for m, uses in graph.items() if not uses]:
        for leaf in leaves:
            del graph[leaf]
        for uses in graph.values():
            uses.difference_update(leaves)
    return sorted(graph)


def functions(path):
    return [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef)]


def count_lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def count_body(function):
    """Lines of a function without its docstring."""
    body = function.body[ast.get_docstring(function) is not None :]
    return function.end_lineno - body[0].lineno + 1 if body else 0


def count_parameters(function):
    """Parameters without `self`, `*args` and `**kwargs`."""
    arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    return len([one for one in arguments if one.arg not in ("self", "cls")])


def larger(path):
    """What exceeds the sizes in a file, each with its size."""
    if (count := count_lines(path)) > LONGEST_FILE:
        yield where(path), f"{count} lines"
    for function in functions(path):
        name = f"{where(path)}:{function.name}"
        if (count := count_body(function)) > LONGEST_BODY:
            yield name, f"{count} lines"
        if (count := count_parameters(function)) > MOST_PARAMETERS:
            yield name, f"{count} parameters"


def entries():
    """The modules and the packages at the top of adamnx_hf."""
    top = [path for path in (ROOT / "adamnx_hf").iterdir() if path.name != "__pycache__"]
    return (
        sorted(path.name for path in top if path.suffix == ".py"),
        sorted(path.name for path in top if (path / "__init__.py").is_file()),
    )


@pytest.mark.parametrize("path", FILES, ids=where)
def test_imports_go_down(path):
    assert not arrows_up(path)
    assert not strangers(path)
    assert not private_names(path)


def test_no_circles():
    assert not circle()


def test_sizes():
    found = dict(one for path in FILES for one in larger(path))
    assert set(found) == set(LARGER), {
        name: found.get(name, "no longer larger") for name in {*found} ^ {*LARGER}
    }


def test_few_rooms():
    modules, packages = entries()
    assert modules == ["__init__.py", "cli.py", "kernel_package.py", "launch.py"]
    assert [f"adamnx_hf/{name}" for name in packages] == sorted(
        name
        for floor in FLOORS
        for name in floor
        if name.startswith("adamnx_hf/") and not name.endswith(".py")
    )


def test_each_room_says_what_lives_there():
    for name in (one for floor in FLOORS for one in floor if not one.endswith(".py")):
        said = ast.get_docstring(tree(ROOT / name / "__init__.py")) or ""
        assert said.partition("\n")[0].endswith("."), f"{name}: {said!r}"


def test_a_violation_is_found(tmp_path, monkeypatch):
    """Each rule above fires on a file that breaks it."""
    low, high = tmp_path / "adamnx_hf/optim/low.py", tmp_path / "adamnx_hf/runs/high.py"
    for path, text in {
        low: "import numpy\ndef f():\n    from adamnx_hf.runs.high import _own\n",
        high: "from adamnx_hf.optim import low\nlow._helper\n"
        + "def g(a, b, c, d, e, f, h, i, j):\n"
        + 71 * "    a\n",
    }.items():
        path.parent.mkdir(parents=True)
        path.write_text(text)
    modules = {"adamnx_hf.optim.low": low, "adamnx_hf.runs.high": high}
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "MODULES", modules)
    assert (arrows_up(low), arrows_up(high)) == (["adamnx_hf/runs"], [])
    assert strangers(low) == ["numpy"]
    assert private_names(low) == ["adamnx_hf.runs.high._own"]
    assert private_names(high) == ["adamnx_hf.optim.low._helper"]
    assert circle() == sorted(modules)
    assert dict(larger(high)) == {"adamnx_hf/runs/high.py:g": "9 parameters"}
    assert list(larger(high)) == [
        ("adamnx_hf/runs/high.py:g", "71 lines"),
        ("adamnx_hf/runs/high.py:g", "9 parameters"),
    ]


def print_numbers():
    """Prints what the house measures."""
    everything = [(path, function) for path in FILES for function in functions(path)]
    modules, packages = entries()

    def most(count, items, name):
        item = max(items, key=count)
        return f"{count(item)} ({name(item)})"

    def of(item):
        return f"{where(item[0])}:{item[1].name}"

    rows = {
        "modules in a circle": len(circle()),
        "imports up the floors": sum(len(arrows_up(path)) for path in FILES),
        "arrows between rooms": len({(room(path), other) for path in FILES for other in arrows(path)}),
        "modules + packages at the top": f"{len(modules)} + {len(packages)}",
        "private names taken across rooms": sum(len(private_names(path)) for path in FILES),
        "longest body": most(lambda item: count_body(item[1]), everything, of),
        "longest file": most(count_lines, FILES, where),
        "most parameters": most(lambda item: count_parameters(item[1]), everything, of),
        "exceptions": len(LARGER),
        "files": len(FILES),
        "lines": sum(map(count_lines, FILES)),
    }
    for name, value in rows.items():
        print(f"{name:34} {value}")
    sizes = collections.Counter()
    for path in FILES:
        sizes[room(path)] += count_lines(path)
    print(*(f"  {name:32} {lines}" for name, lines in sorted(sizes.items())), sep="\n")


if __name__ == "__main__":
    print_numbers()
