"""How the reference reads docstrings: an `Example:` is code, as `Examples:` is."""

import re

from griffe import Extension


class Examples(Extension):
    """Sections by the names that the parser knows; several attributes of one line as one."""

    def on_instance(self, *, obj, **kwargs):
        """Rewrite a docstring."""
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            # A space would end the name.
            several = r"^ +(?:\w+_, )+\w+_:"
            unbroken = lambda found: found[0].replace(", ", ",\N{NO-BREAK SPACE}")
            obj.docstring.value = re.sub(several, unbroken, text, flags=re.MULTILINE)
