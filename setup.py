"""The package's metadata, read from settings.ini so that it stands in one place."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

cfg = ConfigParser(delimiters=["="])
cfg.read(Path(__file__).with_name("settings.ini"), encoding="utf-8")
s = cfg["DEFAULT"]
named = {"notebooks": "notebook", "engines": "engine"} | {n: n for n in ("ncnn", "pruning", "quantise", "site", "tensorboard", "timm")}
extras = {name: s[f"{part}_requirements"].split() for name, part in named.items()}
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
    package_data={"wae_nb.method": ["pretrained/*.safetensors"]},
    entry_points={"console_scripts": s["console_scripts"].split()},
    extras_require=extras | {"dev": sum(extras.values(), s["dev_requirements"].split())},
)
