"""The same run on the machines of a Ray cluster: one task holds a machine and starts `swift` there.

ray job submit -- python examples/parallel/on_ray.py
"""

import os
import socket
import subprocess

import ray  # pyright: ignore[reportMissingImports]

NODES, GPUS = 2, 8
WORDS = ["swift", "sft", "examples/parallel/fsdp.yaml", "--output_dir", "output/ray"]


@ray.remote(num_gpus=GPUS, scheduling_strategy="SPREAD")
class Machine:
    def address(self) -> tuple[str, int]:
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def run(self, rank: int, address: str, port: int) -> int:
        meeting = {"NNODES": str(NODES), "NODE_RANK": str(rank), "MASTER_ADDR": address, "MASTER_PORT": str(port)}
        return subprocess.run(WORDS, env={**os.environ, **meeting, "NPROC_PER_NODE": str(GPUS)}, check=True).returncode


if __name__ == "__main__":
    ray.init()
    machines = [Machine.remote() for _ in range(NODES)]  # pyright: ignore[reportAttributeAccessIssue]
    first = ray.get(machines[0].address.remote())
    ray.get([machine.run.remote(rank, *first) for rank, machine in enumerate(machines)])
