"""A Ray cluster on this machine, told by lines on standard input: ``add``, ``kill``. Answers with its address.

In a process of its own: what Ray leaves open when a node dies is no matter of the tests'.
"""

import os
import sys

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster

NODE = {"num_cpus": 1, "num_gpus": 0, "include_dashboard": False, "object_store_memory": 80 * 2**20}


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    try:
        print(cluster.address, file=answers, flush=True)
        for line in sys.stdin:
            if line.strip() == "add" and not cluster.worker_nodes:
                cluster.add_node(**NODE)
            elif line.strip() == "kill":
                cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
            print(cluster.address, file=answers, flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
