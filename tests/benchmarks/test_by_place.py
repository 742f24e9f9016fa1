"""What a partition by place scores: the numbers that slots must clear."""

import re
import subprocess
from collections.abc import Callable


def test_cells_by_place_score_between_chance_and_truth(
    benchmark_run: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    words = ("--data.source", "generated", "--data.most", "40", "--size", "32", "--cells", "4", "11")
    done = benchmark_run("by_place", *words)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| (val|test) \| (\d+) \| (.+) \|$", done.stdout, re.MULTILINE)
    assert [(split, cells) for split, cells, _ in rows] == [("val", "4"), ("val", "11"), ("test", "4"), ("test", "11")]
    for _, _, told in rows:
        ari, fg_ari, miou, mbo = map(float, told.split(" | "))
        assert 0 <= ari < fg_ari < 0.9
        assert 0 < miou < 1
        assert 0 < mbo < 1
