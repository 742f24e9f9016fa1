"""Every metric that a number of the bench has is held by a test against a twin, or against values by hand."""

import re
from pathlib import Path

from etude import registry
from etude.core.summary import read_summaries
from etude.report.baselines import _rows  # pyright: ignore[reportPrivateUsage]
from etude.report.reference import read_reference

# What other libraries or a slow twin compute is compared with them; the rest is small enough for values by hand.
HELD = {
    "accuracy": "studies/resnet/test_task.py::test_scores_are_those_of_scikit_learn",
    "error": "studies/resnet/test_task.py::test_scores_are_those_of_scikit_learn",
    "macro_f1": "studies/resnet/test_task.py::test_scores_are_those_of_scikit_learn",
    "micro_f1": "studies/resnet/test_task.py::test_scores_are_those_of_scikit_learn",
    "loss": "studies/darts/test_task.py::test_what_an_evaluation_measures",
    "search_accuracy": "studies/darts/test_task.py::test_what_an_evaluation_measures",
    "normal_skips": "studies/darts/test_task.py::test_what_an_evaluation_measures",
    "reduction_skips": "studies/darts/test_task.py::test_what_an_evaluation_measures",
    "rank_correlation": "studies/test_baselines.py::test_random_cells_and_their_weights",
    "exact": "studies/text2math/test_scores.py::test_the_three_meanings",
    "execution": "studies/text2math/test_scores.py::test_the_three_meanings",
    "gold_value": "studies/text2math/test_scores.py::test_the_three_meanings",
    "value_accuracy": "studies/text2math/test_scores.py::test_the_three_meanings",
    "token_match": "studies/text2math/test_scores.py::test_token_match_by_hand",
    "ari": "metrics/test_segmentation.py::test_ari_is_scikit_learns",
    "fg_ari": "metrics/test_segmentation.py::test_foreground_ari_is_scikit_learns_on_objects",
    "miou": "metrics/test_segmentation.py::test_the_three_mious_are_the_evaluators",
    "miou_fg": "metrics/test_segmentation.py::test_the_three_mious_are_the_evaluators",
    "miou_gt": "metrics/test_segmentation.py::test_the_three_mious_are_the_evaluators",
    "mbo": "metrics/test_segmentation.py::test_miou_and_mbo_from_the_overlaps",
    "mse": "metrics/test_segmentation.py::test_squared_error_by_hand",
    "empty": "scenes/test_scores.py::test_masks_cut_by_hand",
    "background_slots": "scenes/test_scores.py::test_without_a_background_or_an_object_there_is_no_number",
    "background_share": "scenes/test_scores.py::test_without_a_background_or_an_object_there_is_no_number",
    "fid": "metrics/test_fid.py::test_the_distance_is_cleanfids",
    "kid": "metrics/test_fid.py::test_the_kernel_distance_is_cleanfids_and_repeats",
    "diversity": "metrics/test_diversity.py::test_by_hand",
    "duplicates": "metrics/test_diversity.py::test_few_pictures_over_and_over_are_a_collapse",
    **dict.fromkeys(
        ("brier", "right_at_80", "coverage_sure", "right_sure"),
        "studies/text2math/test_rerank.py::test_the_threshold_is_the_least_that_is_right_often_enough",
    ),
    **{
        f"spearman_{name}": "studies/darts/test_nb201.py::test_scores_are_ranked_against_the_table"
        for name in ("cifar10", "cifar100", "imagenet16")
    },
    "cifar10": "studies/darts/test_nb201.py::test_a_search_gives_what_the_table_says",
    "cifar100": "studies/darts/test_nb201.py::test_baselines_of_a_table",
    "imagenet16": "studies/darts/test_nb201.py::test_a_search_gives_what_the_table_says",
    "label_accuracy": "studies/dcgan/test_task.py::test_results_say_what_they_are",
    "l1": "metrics/test_pairs.py::test_the_errors_are_scikit_learns",
    "rmse": "metrics/test_pairs.py::test_the_errors_are_scikit_learns",
    "accuracy_5": "metrics/test_pairs.py::test_the_errors_are_scikit_learns",
    "accuracy_10": "metrics/test_pairs.py::test_the_errors_are_scikit_learns",
    "ssim": "metrics/test_pairs.py::test_ssim_is_that_of_the_slow_twin",
    "psnr": "studies/slotdiffusion/test_task.py::test_what_is_measured_of_the_autoencoder_by_hand",
    "known_kept": "studies/protonet/test_task.py::test_thresholds_keep_the_known_and_find_the_strange",
    "unknown_found": "studies/protonet/test_task.py::test_thresholds_keep_the_known_and_find_the_strange",
}
# The time that drawing took is no metric.
CLOCKS = {"seconds"}


def kind(metric: str) -> str:
    """The metric without the sampler, or the digit, that it was measured for."""
    return re.sub(r"_(ancestral|ddim|dpm|\d)$", "", metric) if metric not in HELD else metric


def test_every_number_has_a_metric_that_a_test_holds(root: Path) -> None:
    found: set[str] = set()
    for study in map(registry.load, registry.NAMES):
        found |= {number.metric for number in read_reference(study.folder / "reference.toml").number}
        summaries = read_summaries([root / "results"], study.name).values()
        found |= {row["metric"] for summary in summaries for row in summary["results"]}
        found |= {row.metric for row in _rows(root / "results" / study.name / "baseline.json")}
    assert {kind(metric) for metric in found} - CLOCKS == set(HELD)


def test_every_such_test_exists(root: Path) -> None:
    for metric, place in HELD.items():
        path, name = place.split("::")
        assert f"def {name}(" in (root / "tests" / path).read_text(), (metric, place)
