"""An encoder in, an ``AuditReport`` out: is this downloaded encoder safe to build on?

``calibration.py`` what known-clean encoders score, and how surprising a score is beside them
``auditing.py``    the audit itself: detectors, and what they find
``deciding.py``    the verdict
``found.py``       the report, as data
``families.py``    bags over families, for encoders of kinds that nobody has measured
``replaying.py``   a recovered trigger stamped on other images

Nothing here reads an encoder's mark, name or provenance: a verdict rests on weights and images alone.
"""
