"Packaging from settings.ini, which nbdev reads too: one place for names, versions and requirements."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here/"settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
extra_names = ("cuda", "formats", "masks", "diffusion", "view", "track", "dev")
extras = {name: cfg[f"{name}_requirements"].split() for name in extra_names}

setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"], keywords=cfg["keywords"], author=cfg["author"],
    license="Apache-2.0", python_requires=f">={cfg['min_python']}", packages=find_packages(include=["gslrm_mouse", "gslrm_mouse.*"]),
    include_package_data=True, package_data={"gslrm_mouse": ["weights/*", "weights/conditioning/*"]},
    install_requires=cfg["requirements"].split(), extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split(), "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]},
    long_description=(here/"README.md").read_text(encoding="utf-8") if (here/"README.md").exists() else cfg["description"],
    long_description_content_type="text/markdown", zip_safe=False,
    classifiers=["Development Status :: 3 - Alpha", "Intended Audience :: Science/Research", "Programming Language :: Python :: 3"],
)
