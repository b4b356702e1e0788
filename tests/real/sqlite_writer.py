"""Writes rows into a database, one transaction each, until told to stop; moved by test_real_programs."""

from __future__ import annotations

import sqlite3
import sys
import time
from pathlib import Path

folder, mode = Path(sys.argv[1]), sys.argv[2]
database = sqlite3.connect(folder / "rows.db", isolation_level=None)
database.execute(f"pragma journal_mode = {mode}")
database.execute("pragma cache_size = -20000")
database.execute("create table rows (number integer primary key, content blob)")
written = 0
while not (folder / "stop").exists():
    with_content = bytes([written % 251]) * (written % 3000)
    database.execute("begin")
    database.execute("insert into rows values (?, ?)", (written, with_content))
    database.execute("commit")
    written += 1
    if written % 100 == 0:
        (folder / "ready").write_text(str(written))
    time.sleep(0.001)
database.close()
(folder / "written").write_text(str(written))
