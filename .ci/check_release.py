"""Whether wheel and sdist hold the code, its types and licence, and nothing else."""

import sys
import tarfile
import zipfile
from pathlib import Path


def main(folder):
    """Raise unless they do."""
    (wheel,), (sdist,) = (list(Path(folder).glob(end)) for end in ("*.whl", "*.tar.gz"))
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"ntk_jax", wheel.name.split("-py3")[0] + ".dist-info"}, tops
    code = {str(path) for path in Path("ntk_jax").rglob("*.py")} | {"ntk_jax/py.typed"}
    assert code <= set(names), code - set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    with tarfile.open(sdist) as file:
        inside = {name.split("/", 1)[-1].split("/")[0] for name in file.getnames()}
    expected = {"ntk_jax", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"}
    assert (
        expected <= inside <= expected | {"PKG-INFO", ".gitignore", sdist.name[: -len(".tar.gz")]}
    ), inside
    print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 2**20:.1f} MiB; {sdist.name}")


if __name__ == "__main__":
    main(sys.argv[1])
