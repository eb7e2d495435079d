"""Running things: containers on an engine, the cards that NVML shows, images, networks, and what containers write.

    engine      the protocol, and the little records that cross it
    docker      the protocol carried out; arguments: what a container is made with; answers: Docker's in our words;
                stream: what never ends by itself
    kernel      whether memory ran out, asked of who knows
    networks    which subnet, and the packet filter that keeps workloads apart
    gpus        the cards, by NVML
    images      our own images, built here; inherit: what containers inherit from this machine
    logs        what containers wrote, in files of our own
    watch       the threads that listen to the engine

Why: nothing above this package knows Docker or NVIDIA, so that either can be replaced or be away.
"""
