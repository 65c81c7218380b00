"""Zoos: many small encoders, clean and backdoored, made to measure detectors of backdoors by."""
