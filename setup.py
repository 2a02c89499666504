"""What pyproject.toml cannot say: the README without links and images that lie in the repository.

A package page has no repository beside it. There, an image is left out and a link is its text and its file.
"""

import re
from pathlib import Path

from setuptools import setup


def package_page(readme: str) -> str:
    without_images = re.sub(r"^!\[[^\]]*\]\((?!https?:)[^)]*\)\n\n", "", readme, flags=re.MULTILINE)
    return re.sub(
        r"\[([^\]]*)\]\((?!https?:)([^)]*)\)",
        lambda link: f"`{link[2]}`" if link[1] == link[2] else f"{link[1]} (`{link[2]}`)",
        without_images,
    )


setup(
    long_description=package_page(Path("README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
)
