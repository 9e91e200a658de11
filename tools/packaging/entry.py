"""Where the single executable starts, once launcher.c has unpacked it."""

import sys
from pathlib import Path

# The time zones are one file instead of 600: see taskd.spec.
sys.path.append(str(Path(__file__).with_name("tzdata.zip")))

from taskd.__main__ import main

main()
