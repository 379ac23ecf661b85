"""The package's metadata, read from settings.ini so that it stands in one place."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

cfg = ConfigParser(delimiters=["="])
cfg.read(Path(__file__).with_name("settings.ini"), encoding="utf-8")
s = cfg["DEFAULT"]
notebooks, engines, quantise, dev = (s[f"{extra}_requirements"].split() for extra in ("notebook", "engine", "quantise", "dev"))
setup(
    version=s["version"],
    description=s["description"],
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    keywords=s["keywords"].split(),
    author=s["author"],
    python_requires=f">={s['min_python']}",
    install_requires=s["requirements"].split(),
    extras_require={"notebooks": notebooks, "engines": engines, "quantise": quantise, "dev": notebooks + engines + quantise + dev},
)
