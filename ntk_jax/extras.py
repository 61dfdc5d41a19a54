"""How to install what is optional."""

# Empty once the package index has it: a line of the release checklist in CONTRIBUTING.md.
SOURCE = " @ git+https://github.com/ntk-jax/ntk_jax"


def install(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'ntk-jax[{extra}]{SOURCE}'"


def missing(what: str, package: str, extra: str) -> ImportError:
    """The error for what needs a package that is not there."""
    return ImportError(f"{what} needs {package}: {install(extra)}.")
