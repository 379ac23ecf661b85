"""Put the tables of figures/ into README.md, between the comments that name their files.

    python figures/into_readme.py           write README.md anew
    python figures/into_readme.py --check   exit with 1 where README.md differs from the tables
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(readme: str) -> str:
    return BLOCK.sub(lambda m: f"{m[1]}\n{(ROOT / m[2]).read_text(encoding='utf-8').strip()}\n\n{m[3]}", readme)


if __name__ == "__main__":
    path = ROOT / "README.md"
    old = path.read_text(encoding="utf-8")
    new = filled(old)
    if sys.argv[1:] == ["--check"]:
        sys.exit("README.md is not what figures/ says; run python figures/into_readme.py" if old != new else 0)
    path.write_text(new, encoding="utf-8")
