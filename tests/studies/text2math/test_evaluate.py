"""`etude eval` of files in the course's form."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from etude.cli.app import main
from etude.core.errors import UserError
from etude.studies.text2math.evaluate import Options, evaluate

ROWS: list[dict[str, Any]] = [
    {"Problem": "what is 3 plus 4 ?", "linear_formula": "add(n0,n1)|", "answer": 7, "predicted": "add(n0,n1)"},
    {"Problem": "what is 3 times 4 ?", "linear_formula": "multiply(n0,n1)|", "answer": 12, "predicted": "add(n1,n0)|"},
    {"Problem": "double 5 , 2", "linear_formula": "multiply(n0,n1)|", "answer": 10, "predicted": "multiply(n1,n0)|"},
    {"Problem": "half 0 ?", "linear_formula": "divide(n0,const_2)|", "answer": 1, "predicted": "divide(const_2,n0)|"},
]


def written(folder: Path, rows: object) -> Path:
    path = folder / "test.json"
    path.write_text(json.dumps(rows, indent=1))
    return path


def scores(path: Path, **flags: Any) -> dict[str, float]:
    return {score.metric: score.value for score in evaluate(None, Options(path, **flags))}


def test_the_files_own_predictions(tmp_path: Path) -> None:
    found = scores(written(tmp_path, ROWS))
    assert found["exact"] == 25
    assert found["execution"] == 50
    assert found["gold_value"] == 50
    assert "predicted_answer" not in found


def test_the_answers_that_a_file_tells(tmp_path: Path) -> None:
    rows = [row | {"predicted_answer": told} for row, told in zip(ROWS, (7.1, 12, None, 5), strict=True)]
    assert scores(written(tmp_path, rows))["predicted_answer"] == 50


def test_the_written_file_is_the_read_one(tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    before = scores(written(tmp_path, ROWS), output=output)
    rows = json.loads(output.read_text())
    assert [row["predicted_answer"] for row in rows] == [7, 7, 10, None]
    assert [{k: v for k, v in row.items() if k != "predicted_answer"} for row in rows] == ROWS
    after = scores(output)
    assert after.pop("predicted_answer") == 50
    assert after == before


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"predicted": None}, "line 8: 'predicted' must be a text"),
        ({"predicted": 3}, "line 8: 'predicted' must be a text"),
        ({"predicted_answer": "7"}, "line 8: 'predicted_answer' must be a number"),
        ({"predicted_answer": True}, "line 8: 'predicted_answer' must be a number"),
        ({"predicted_answer": 10**400}, "line 8: 'predicted_answer' is too large"),
        ({"answer": "7"}, "line 8: 'answer' must be a number, not"),
        ({"linear_formula": 7}, "line 8: 'linear_formula' must be a text"),
    ],
)
def test_a_wrong_field_is_named_with_its_line(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    output = tmp_path / "out.json"
    with pytest.raises(UserError, match=fault):
        scores(written(tmp_path, [ROWS[0], ROWS[1] | change]), output=output)
    assert not output.exists()


def test_a_missing_prediction_says_who_writes_it(tmp_path: Path) -> None:
    row = {key: value for key, value in ROWS[0].items() if key != "predicted"}
    with pytest.raises(UserError, match="line 2: 'predicted' is missing: name the network"):
        scores(written(tmp_path, [row]))


def test_what_is_no_number_is_written_as_it_was_read(tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    row = ROWS[0] | {"answer": math.nan, "predicted_answer": math.nan, "weight": math.inf}
    assert scores(written(tmp_path, [row]), output=output)["execution"] == 0
    (found,) = json.loads(output.read_text())
    assert math.isnan(found["answer"])
    assert found["weight"] == math.inf
    assert found["predicted_answer"] == 7


def test_no_problem(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no problem"):
        scores(written(tmp_path, []))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, ROWS)
    assert main(["eval", "text2math", str(path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown[0] == {"metric": "exact", "value": 25.0, "half_width": pytest.approx(44.94, abs=0.01), "problems": 4}
    assert main(["eval", "--json", "text2math", str(path)]) == 0
    assert json.loads(capsys.readouterr().out) == shown
    assert main(["eval", "dcgan", str(path)]) == 2
    assert "scores no data" in capsys.readouterr().err
    assert main(["eval", "--course", "text2math", str(path)]) == 2
    assert "name the run or the study before --course" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [{"beam": 3}, {"grammar": True}, {"executes": True}, {"bert": "mine"}])
def test_flags_of_a_search_need_a_network(tmp_path: Path, flags: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"--{next(iter(flags))} says how a network writes, and none is named"):
        scores(written(tmp_path, ROWS), **flags)
