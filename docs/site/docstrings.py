"""How the reference reads docstrings: an `Example:` is code, as `Examples:` is."""

import re

from griffe import Extension


class Examples(Extension):
    """Sections by the names that the parser knows."""

    def on_instance(self, *, obj, **kwargs):
        """Rename the section in a docstring."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(
                r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE
            )
