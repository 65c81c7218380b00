"""Is this encoder safe to build on?     python examples/audit_an_encoder.py ENCODER IMAGES"""

import sys

import sapper

report = sapper.audit(sys.argv[1], sys.argv[2])
print(f"{report.verdict}: {report.reason}")
