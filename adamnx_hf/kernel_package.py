"""`python -m adamnx_hf.kernel_package FOLDER` writes the optimizer as a repository of the `kernels` package.

The repository holds this package's `optim` folder, file by file, with relative imports. That folder needs
torch (with its Triton) alone. Triton's source is the same for every platform, so each of :data:`BACKENDS` has
the same files in `build/torch-<backend>/`, and `kernels.get_kernel` picks the folder of the machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from adamnx_hf import __version__
from adamnx_hf.common.files import write_text

__all__ = ["BACKENDS", "NAME", "VERSION", "build", "main", "make_imports_relative"]

#: The kernel's name, and the version of its interface: branch `v1` of a kernel repository.
NAME, VERSION = "adamnx", 1

#: The backends' names in `kernels`. The Triton kernel serves the first two, torch's own kernel the CPU.
BACKENDS = ("cuda", "rocm", "cpu")

_SOURCE = Path(__file__).parent / "optim"
_PACKAGE = "adamnx_hf.optim"

_README = """\
---
library_name: kernels
license: apache-2.0
tags: [kernels, adamnx, optimizer, triton]
---

# AdamNX

The optimizer AdamNX, an Adam whose second-moment decay rate rises to 1. On CUDA and ROCm a step of a
parameter group is one launch of a Triton kernel; on the CPU it is torch's own. Built from
adamnx-hf {version}.

```python
from kernels import get_kernel

kernel = get_kernel("OWNER/{name}", version={interface}, trust_remote_code=True)
optimizer = kernel.AdamNX(model.parameters(), lr=1e-3, weight_decay=0.01)
```

`trust_remote_code` is for organisations that `kernels` does not know: read the code before.
"""


def make_imports_relative(source: str, depth: int) -> str:
    """Returns `source` with relative imports in the place of those from `adamnx_hf.optim`.

    Args:
        source: of a module of that package.
        depth: the number of folders between the package and the module.

    Raises:
        ValueError: `source` imports another part of this project, which the repository does not hold.
    """
    dots = "." * (depth + 1)
    result = re.sub(
        rf"^(\s*from ){re.escape(_PACKAGE)}(?:\.([\w.]+))?( import )",
        lambda match: f"{match[1]}{dots}{match[2] or ''}{match[3]}",
        source,
        flags=re.MULTILINE,
    )
    if left := re.search(r"^\s*(?:import|from) (?:adamnx_hf|trainer_patches)\b.*", result, re.MULTILINE):
        raise ValueError(f"{left[0].strip()!r}: only {_PACKAGE} goes into the kernel")
    return result


def build(folder: Path) -> list[Path]:
    """Writes the kernel repository. The same source gives the same bytes.

    Args:
        folder: new or empty.

    Returns:
        The variants' folders, one for each of :data:`BACKENDS`.

    Raises:
        FileExistsError: `folder` is a file, or not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not an empty folder; choose another one")
    files = {
        path.relative_to(_SOURCE): make_imports_relative(
            path.read_text(encoding="utf-8"), len(path.relative_to(_SOURCE).parents) - 1
        )
        for path in sorted(_SOURCE.rglob("*.py"))
    }
    digest = hashlib.sha256("".join(f"{path.as_posix()}\n{text}" for path, text in files.items()).encode())
    # torch's operators are global. A name of their own keeps them apart from those of an installed adamnx_hf.
    unique = f"{NAME}_{digest.hexdigest()[:12]}"
    variants = []
    for backend in BACKENDS:
        variant = folder / "build" / f"torch-{backend}"
        for path, text in files.items():
            (variant / path).parent.mkdir(parents=True, exist_ok=True)
            write_text(variant / path, text.replace('"adamnx_hf::', f'"{unique}::'))
        metadata = {
            "name": NAME,
            "id": f"_{unique}_{backend}",
            "version": VERSION,
            "license": "Apache-2.0",
            "python-depends": [],
            "backend": {"type": backend},
        }
        write_text(variant / "metadata.json", json.dumps(metadata, indent=2) + "\n")
        variants.append(variant)
    readme = _README.format(version=__version__, name=NAME, interface=VERSION)
    write_text(folder / "README.md", readme)
    return variants


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m adamnx_hf.kernel_package",
        description="Writes AdamNX and its Triton kernel as a repository of the `kernels` package.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where to: new or empty")
    args = parser.parse_args(argv)
    try:
        variants = build(args.folder)
    except OSError as error:
        print(f"adamnx_hf.kernel_package: error: {error}", file=sys.stderr)
        return 1
    print(f"Written: {', '.join(variant.name for variant in variants)} in {args.folder / 'build'}")
    print(f'Load it: kernels.get_local_kernel(Path("{args.folder}"))')
    return 0


if __name__ == "__main__":
    sys.exit(main())
