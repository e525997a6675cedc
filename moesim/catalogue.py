"""Where data are found by name: models, hardware, engines and policies.

A name is looked up in `configs/KIND/NAME.yaml` of the working directory, then in the repository that an editable
install points to, then in the installed package. Anything that ends in `.yaml` or holds a slash is a path.
"""

import os.path
from pathlib import Path

from moesim.errors import ConfigError, nearest

_PACKAGE = Path(__file__).parent


def _folders(kind: str) -> list[Path]:
    roots = (Path("configs"), _PACKAGE.parent / "configs", _PACKAGE / "configs")
    return [root / kind for root in roots if (root / kind).is_dir()]


def names(kind: str) -> list[str]:
    """All known names of a kind, sorted."""
    return sorted({file.stem for folder in _folders(kind) for file in folder.glob("*.yaml")})


def is_file(path: Path) -> bool:
    """Whether there is such a file. Names that no file can have (too long, with a zero byte) are none either."""
    return os.path.isfile(path)  # noqa: PTH113, Path.is_file raises for some of these


def find(kind: str, name_or_path: str) -> Path:
    """The file that describes a model, a card, an engine or a policy.

    Raises:
        ConfigError: nothing is known by that name, or the file does not exist.
    """
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml", ".json")):
        path = Path(name_or_path)
        if not is_file(path):
            raise ConfigError(f"{path}: no such file")
        return path
    for folder in _folders(kind):
        path = folder / f"{name_or_path}.yaml"
        if is_file(path):
            return path
    what = {"models": "model", "engines": "engine", "policies": "policy"}.get(kind, kind)
    raise ConfigError(f"unknown {what} {name_or_path!r}: {nearest(name_or_path, names(kind))}")
