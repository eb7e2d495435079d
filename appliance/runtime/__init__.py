"""Running things: containers on an engine, the cards that NVML shows, images, networks, and what containers write.

engine.py is the protocol; docker.py carries it out; networks.py keeps workloads apart; gpus.py reads NVML; images.py
makes our own images; logs.py keeps what containers wrote; watch.py listens to the engine.

Why: nothing above this package knows Docker or NVIDIA, so that either can be replaced or be away.
"""
