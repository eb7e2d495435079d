"""Stand-ins for what NVIDIA brings: its library, and the hook by which Docker gives cards to containers.

`compile_library` needs gcc. `write_hook` makes `nvidia-container-runtime-hook`: put its folder on dockerd's PATH and
Docker accepts device requests; each container's NVIDIA_VISIBLE_DEVICES is appended to the file `asked`.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml.c")


def compile_library(folder: Path) -> None:
    """libnvidia-ml.so.1 in `folder`, which a child process finds by LD_LIBRARY_PATH."""
    library = folder / "libnvidia-ml.so.1"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(SOURCE)]
    subprocess.run(command, check=True, timeout=60)


def write_hook(folder: Path, asked: Path) -> Path:
    """The hook in `folder`. It is given the OCI state on its standard input; the bundle's config names the cards."""
    hook = folder / "nvidia-container-runtime-hook"
    hook.write_text(
        "#!/usr/bin/env python3\n"
        "import json, sys\n"
        "state = json.load(sys.stdin)\n"
        "config = json.load(open(state['bundle'] + '/config.json'))\n"
        "env = dict(word.split('=', 1) for word in config['process']['env'])\n"
        f"with open({str(asked)!r}, 'a') as asked:\n"
        "    asked.write(env.get('NVIDIA_VISIBLE_DEVICES', '') + '\\n')\n"
    )
    hook.chmod(0o755)
    return hook
