"""Data sets: what they are, and files that are not what they should be: named to the place."""

import numpy as np
import pytest

from ntk_jax.data import csv_data, digits_data, linear_data


def test_linear_data_are_unit_rows_with_a_linear_target():
    data = linear_data()
    assert data.x_train.shape == (32, 100) and data.x_test.shape == (100, 100)
    np.testing.assert_allclose(np.linalg.norm(data.x_train, axis=1), 1, rtol=1e-12)
    x, y = (
        np.concatenate(pair) for pair in ((data.x_train, data.x_test), (data.y_train, data.y_test))
    )
    assert np.abs(x @ np.linalg.lstsq(x, y, rcond=None)[0] - y).max() < 1e-10


def test_digits_are_disjoint_and_scaled():
    data = digits_data(600, 500, seed=1)
    assert data.x_train.shape == (600, 64) and data.y_test.shape == (500, 10)
    np.testing.assert_allclose(data.x_train.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(np.mean(data.x_train**2), 1, rtol=1e-12)
    np.testing.assert_allclose(data.y_train.sum(1), 0, atol=1e-12)
    rows = {row.tobytes() for row in data.x_train} | {row.tobytes() for row in data.x_test}
    assert len(rows) > 1090  # the 1,797 images hold a handful of repeated ones


def write(tmp_path, text):
    path = tmp_path / "table.csv"
    path.write_text(text)
    return path


def test_csv_regression_with_a_text_column(tmp_path):
    rows = "\n".join(f"{i},{['red', 'blue'][i % 2]},{3 * i + 1}" for i in range(10))
    data = csv_data(write(tmp_path, "size,color,price\n" + rows), "price")
    assert data.name == "table" and data.classes is None
    assert data.x_train.shape == (8, 3) and data.y_test.shape == (2, 1)
    np.testing.assert_allclose([data.y_train.mean(), data.y_train.std()], [0, 1], atol=1e-12)


def test_csv_classification(tmp_path):
    rows = "\n".join(f"{i * 0.5},{['cat', 'dog', 'eel'][i % 3]}" for i in range(30))
    data = csv_data(write(tmp_path, "length,kind\n" + rows), "kind", test_fraction=0.3)
    assert data.classes == ("cat", "dog", "eel")
    assert data.y_train.shape == (21, 3) and data.y_test.shape == (9, 3)
    np.testing.assert_allclose(np.unique(data.y_train), [-1 / 3, 2 / 3])


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("a,b\n1,2\n3,4\n5,6\n7,8", "c", "expected one of the columns a, b; got 'c'"),
        ("a,b\n1,2\n3,\n5,6\n7,8", "b", "line 3, column b: expected a value"),
        (
            "a,b\n1,2\n3\n5,6\n7,8",
            "b",
            "line 3: expected 2 cells, as in the header; got 1",
        ),
        ("a,b\n1,2\n3,2\n5,2\n7,2", "b", "a target that varies"),
        ("a,b\n1,2\n3,nan\n5,2\n7,2", "b", "line 3, column b: expected a value"),
        ("a,b", "b", "expected rows below the header of line 1"),
        (
            "a,a,b\n1,2,3\n3,4,5\n5,6,9\n7,8,1",
            "b",
            "line 1: expected a name of its own for every column; a is that of columns 1 and 2",
        ),
        (
            "a,b\n1,2\n3,inf\n5,2\n7,2",
            "b",
            "line 3, column b: expected a finite number; got 'inf'",
        ),
        (
            "a,b\n1,2\n3,-Inf\n5,2\n7,2",
            "b",
            "line 3, column b: expected a finite number; got '-Inf'",
        ),
        (
            "a,b\n1,2\nNA,3\n5,4\n7,2",
            "b",
            "line 3, column a: expected a value",
        ),
        (
            "a,b\n1,x\n2,NA\n5,y\n7,x",
            "b",
            "line 3, column b: expected a value; it is missing",
        ),
        ("a,b\nu,1\n?,3\nv,2\nw,2", "b", "line 3, column a: expected a value"),
        (
            "a,b\n1,2\n3,1O\n5,2\n7,2",
            "b",
            "line 3, column b: expected a number, as most are in this column; got '1O'",
        ),
        (
            "a,b\n1,2\n3," + "9" * 131_073 + "\n5,2\n7,2",
            "b",
            r"line 3: .*field larger than field limit.*quotation",
        ),
        (
            'a,b\n1,2\n3,"4\n5,2\n7,2\n',
            "b",
            "line 3: expected cells between.*Is a quotation mark left open",
        ),
        ("b\n1\n2\n3\n4", "b", "expected at least 2 columns and 4 rows; got 1 and 4"),
        ("a,b\n1,2\n3,4", "b", "expected at least 2 columns and 4 rows; got 2 and 2"),
        ("a;b\n1;2\n3;4\n5;6\n7;8", "c", "expected one of the columns a, b; got 'c'"),
    ],
)
def test_csv_errors_name_the_place(tmp_path, text, target, message):
    with pytest.raises(ValueError, match=message):
        csv_data(write(tmp_path, text), target)


TABLE = "a,b\n" + "\n".join(f"{i * i},{i / 7}" for i in range(10))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_fraction": 5.0}, "test_fraction: expected a share below 1; got 5.0"),
        ({"test_fraction": 1.0}, "test_fraction: expected a share below 1"),
        ({"max_rows": 0}, "max_rows: expected an integer of at least 4; got 0"),
        (
            {"task": "ranking"},
            "task: expected one of 'regression', 'classification'; got 'ranking'",
        ),
    ],
)
def test_csv_options_out_of_range(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        csv_data(write(tmp_path, TABLE), "b", **options)


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(b"a,b\n1,2\n\xff\xfe,3\n")
    with pytest.raises(ValueError, match=r"table\.csv, line 3: expected text in UTF-8"):
        csv_data(path, "b")


def test_labels_in_numbers_are_asked_about(tmp_path):
    path = write(tmp_path, "a,kind\n" + "\n".join(f"{i * i},{i % 3 * 5}" for i in range(12)))
    with pytest.warns(
        UserWarning, match="column kind: holds 3 different whole numbers.*task='classification'"
    ):
        assert csv_data(path, "kind").classes is None
    assert csv_data(path, "kind", task="regression").y_train.shape[1] == 1
    data = csv_data(path, "kind", task="classification")
    assert data.classes == ("0", "5", "10") and data.y_train.shape[1] == 3
    with pytest.raises(
        ValueError, match="column kind: expected numbers for a regression; got texts, such as 'x'"
    ):
        csv_data(write(tmp_path, "a,kind\n1,x\n2,y\n3,x\n4,y"), "kind", task="regression")


def test_test_rows_have_no_part_in_the_scaling(tmp_path):
    rows = [[i * i % 7, (3 * i) % 5 + i / 9] for i in range(10)]
    data = csv_data(write(tmp_path, "a,b\n" + "\n".join(f"{a},{b}" for a, b in rows)), "b", seed=1)
    held_out = np.random.default_rng(1).permutation(10)[8:]
    for row in held_out:
        rows[row] = [a + 1000 * (row + 1) for a in rows[row]]
    moved = csv_data(write(tmp_path, "a,b\n" + "\n".join(f"{a},{b}" for a, b in rows)), "b", seed=1)
    np.testing.assert_allclose(moved.x_train, data.x_train, rtol=1e-12)
    np.testing.assert_allclose(moved.y_train, data.y_train, rtol=1e-12)
    assert np.abs(moved.x_test - data.x_test).min() > 100


def test_numbers_of_any_scale(tmp_path):
    plain, huge = (
        csv_data(
            write(
                tmp_path,
                "a,b\n" + "\n".join(f"{i * i}{e},{(i * 3 % 7) - 2.5}{e}" for i in range(10)),
            ),
            "b",
        )
        for e in ("", "e300")
    )
    for a, b in zip(plain[1:5], huge[1:5], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
