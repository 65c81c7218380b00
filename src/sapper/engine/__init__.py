"""Stages, the Store that keeps them, and the processes that make them. Nothing here knows of backdoors.

``stage.py``        a stage: work, inputs, surroundings; a value whose place in the Store is known before it runs
``executors.py``    make what a graph of stages lacks
``store.py``        finished stages on disk
``environment.py``  versions and hardware, for reports
"""
