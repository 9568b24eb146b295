"""What the package index shows of the README: its links and pictures, absolute.

The README links to what lies beside it, which the index does not have. Where ``[project.urls]`` of pyproject.toml
names a ``Source``, such as ``https://host/owner/name``, links lead there once a distribution is built. Without one,
links stay as they are: nothing here knows where the repository will be.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

# The target of a Markdown link, or of a picture: nothing with a scheme, and no anchor of the page itself.
_LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?!\w+:|#)(?P<path>[^)\s]+)\)")


class ReadmeHook(MetadataHookInterface):
    """Gives the distribution its description."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Reads the README into ``metadata``."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        source = metadata.get("urls", {}).get("Source")
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute_links(text, source) if source else text}


def absolute_links(markdown: str, source: str) -> str:
    """Turns links to files of the repository into links to where it is kept.

    Args:
        markdown: with links relative to the repository's root.
        source: address of the repository on GitHub, or on a host with its ``/blob/HEAD/`` and ``/raw/HEAD/``.
    """

    def replace(match: re.Match[str]) -> str:
        kind = "raw" if match["picture"] else "blob"
        return f"{match['picture']}[{match['text']}]({source.rstrip('/')}/{kind}/HEAD/{match['path']})"

    return _LINK.sub(replace, markdown)
