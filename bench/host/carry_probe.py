"""Runs a script and writes which installed packages it loaded. bench/host/carry.py starts it in the host's Python.

    python carry_probe.py REPORT SCRIPT [ARGUMENT ...]

REPORT becomes JSON: the Python's version and, for every installed distribution by its normalised name, its version,
its top-level modules, what it asks for, and whether the script loaded anything of it.
"""

from __future__ import annotations

import json
import re
import runpy
import sys
from typing import Any


def normalised(name: str) -> str:
    """One spelling for a distribution's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needs(requirements: list[str]) -> dict[str, list[str]]:
    """What a distribution asks for, as `name` and `name[extra]`: under the key "" always, else for that extra.

    Other markers are left to what is installed: a requirement that does not hold here is not there.
    """
    found: dict[str, list[str]] = {}
    for line in requirements:
        requirement, _, marker = line.partition(";")
        named = re.match(r"\s*([\w.-]+)\s*(?:\[([^]]*)\])?", requirement)
        if named is None:
            continue
        name, extras = normalised(named[1]), [each for each in (named[2] or "").split(",") if each.strip()]
        wanted = re.search(r"\bextra\s*==\s*[\"']([^\"']+)", marker)
        nodes = found.setdefault(normalised(wanted[1]) if wanted else "", [])
        nodes += [name, *(f"{name}[{normalised(each.strip())}]" for each in extras)]
    return found


def report(loaded: set[str]) -> dict[str, Any]:
    """What is installed, and what of it owns one of these top-level modules."""
    import importlib.metadata  # Python 3.8, and dev.py can be read by 3.7

    modules: dict[str, list[str]] = {}
    for module, owners in importlib.metadata.packages_distributions().items():
        for owner in set(owners):
            modules.setdefault(normalised(owner), []).append(module)
    packages = {}
    for distribution in importlib.metadata.distributions():
        name = normalised(distribution.metadata["Name"])
        own = sorted(modules.get(name, ()))
        packages[name] = {
            "version": distribution.version,
            "modules": own,
            "needs": needs(distribution.requires or []),
            "loaded": not loaded.isdisjoint(own),
        }
    return {"python": "{}.{}".format(*sys.version_info), "packages": packages}


def main() -> None:
    """Runs the script, then writes the report, unless the script failed."""
    _, target, *sys.argv = sys.argv
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise
    found = report({name.partition(".")[0] for name in sys.modules})
    with open(target, "w", encoding="utf-8") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
