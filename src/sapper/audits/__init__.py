"""An encoder in, an ``AuditReport`` out: is this downloaded encoder safe to build on?

``calibration.py`` what known-clean encoders score, and how surprising a score is beside them
``auditing.py``    the audit itself
``replaying.py``   a recovered trigger stamped on other images

Nothing here reads an encoder's mark, name or provenance: a verdict rests on weights and images alone.
"""
