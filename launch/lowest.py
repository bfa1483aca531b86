"""Print the lowest version of each dependency that setup.cfg allows, as constraints for pip.

usage: python launch/lowest.py        `launch/test --lowest` installs by them
"""

import re
import sys
from configparser import ConfigParser
from pathlib import Path

SETUP = Path(__file__).parents[1] / "setup.cfg"
OWN_EXTRAS = "fastgan["
BOUND = re.compile(r"(?P<name>[\w-]+)>=(?P<version>[\w.]+)(?P<marker>;.*)?")


def lowest(setup: str) -> list[str]:
    """Turn each `name>=version` in the text of a setup.cfg into `name==version`.

    Raises ValueError for a dependency without a lowest version: nobody would know whether it is still true.
    """
    config = ConfigParser()
    config.read_string(setup)
    texts = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    wanted = [line for line in "\n".join(texts).split("\n") if line and not line.startswith(OWN_EXTRAS)]
    pins = []
    for line in wanted:
        bound = BOUND.fullmatch(line)
        if bound is None:
            raise ValueError(f"setup.cfg: {line!r} names no lowest version: write name>=version")
        pins.append(f"{bound['name']}=={bound['version']}{bound['marker'] or ''}")
    return pins


if __name__ == "__main__":
    try:
        print("\n".join(lowest(SETUP.read_text())))
    except ValueError as error:
        sys.exit(str(error))
