"""Which code makes rows: rows that other code has made are made again."""

import hashlib
import json
import sys
from functools import cache
from pathlib import Path

import moesim
from moesim.policies.registry import ROLES, rules


@cache
def code_hash() -> str:
    """The hash of the code that makes rows, other packages' rules included: rows of changed code are made again."""
    package = Path(moesim.__file__).parent
    files = {str(file.relative_to(package)): file for file in package.rglob("*.py")}
    for role in ROLES:
        for rule in rules(role).values():
            file = getattr(sys.modules[rule.__module__], "__file__", None)
            if file is not None and package not in Path(file).parents:
                files[rule.__module__] = Path(file)
    digests = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:16]
