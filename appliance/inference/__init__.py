"""Serving models: the process inside a serving container, the holder of listening sockets, and how the host talks to both.

What this keeps true: the daemon imports `control` alone, which needs the standard library and `appliance.errors`;
numpy and ONNX Runtime are loaded only in the serving process, so no model's memory is ever in the daemon. The serving
image holds this package, `appliance/__init__.py` and `appliance/errors.py`, and nothing else of ours.

    control    the host's half: status, listen, configure, drain; the holder's client
    holder     a small process that keeps every listening socket over restarts and over zero replicas
    serve      the process inside the container: control socket, model, doors
    http       accepting and draining: all connections of one process
    connection one client: strict HTTP/1.1, deadlines
    service    one request to one response: routes, keys, counters
    protocol   Open Inference Protocol v2: what a request asks, how an answer is written
    tensors    a tensor's types and its two written forms, JSON and raw bytes
    wire       the bytes of HTTP/1.1: heads, chunks, compression
    onnx       ONNX Runtime, and it alone

Why: each floor can be tested against its real thing: bytes without a socket, requests without a model, a model
without a server.
"""
