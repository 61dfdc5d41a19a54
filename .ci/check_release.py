"""Whether wheel and sdist hold the code, its types and licence, and nothing else; and whether the
wheel with all that it needs is small beside JAX.
"""

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

MOST_BEYOND_JAX = 150  # MB


def main(folder, uv):
    """Raise unless they do, and it is."""
    (wheel,), (sdist,) = (list(Path(folder).glob(end)) for end in ("*.whl", "*.tar.gz"))
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"ntk_jax", wheel.name.split("-py3")[0] + ".dist-info"}, tops
    code = {str(path) for end in ("py", "pyi") for path in Path("ntk_jax").rglob(f"*.{end}")}
    code |= {"ntk_jax/py.typed"}
    assert code <= set(names), code - set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    with tarfile.open(sdist) as file:
        inside = {name.split("/", 1)[-1].split("/")[0] for name in file.getnames()}
    expected = {"ntk_jax", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"}
    assert (
        expected <= inside <= expected | {"PKG-INFO", ".gitignore", sdist.name[: -len(".tar.gz")]}
    ), inside
    print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 2**20:.1f} MiB; {sdist.name}")
    jax, beyond = installed(uv, wheel)
    print(f"installed: JAX {jax:.0f} MB, the wheel and what it needs {beyond:.0f} MB more")
    assert beyond < MOST_BEYOND_JAX


def installed(uv, wheel):
    """Megabytes of a clean environment with JAX alone, and what the wheel adds."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
        sizes = []
        for package in ("jax", str(wheel)):
            command = [uv, "pip", "install", "--quiet", "--python", f"{folder}/bin/python", package]
            subprocess.run(command, check=True)
            sizes.append(
                sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file()) / 1e6
            )
    return sizes[0], sizes[1] - sizes[0]


if __name__ == "__main__":
    main(*sys.argv[1:])
