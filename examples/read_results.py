"""The numbers of a finished scenario as a table.     python examples/read_results.py RESULTS.json [METRIC ...]"""

import csv
import sys
from dataclasses import asdict, fields
from pathlib import Path

import sapper

results = sapper.read_results(Path(sys.argv[1]))
wanted = sys.argv[2:] or ["CA", "BA", "ASR_strict", "lift"]
table = csv.DictWriter(sys.stdout, [field.name for field in fields(sapper.Record)])
table.writeheader()
table.writerows(asdict(record) for record in results.records if record.metric in wanted)
