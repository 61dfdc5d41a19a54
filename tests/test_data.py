import numpy as np
import pytest

from ntk_jax.data import csv_data, digits_data, linear_data


def test_linear_data_are_unit_rows_with_a_linear_target():
    data = linear_data()
    assert data.x_train.shape == (32, 100) and data.x_test.shape == (100, 100)
    np.testing.assert_allclose(np.linalg.norm(data.x_train, axis=1), 1, rtol=1e-12)
    x, y = (np.concatenate(pair) for pair in ((data.x_train, data.x_test), (data.y_train, data.y_test)))
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
    y = np.concatenate([data.y_train, data.y_test])
    np.testing.assert_allclose([y.mean(), y.std()], [0, 1], atol=1e-12)


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
        ("a,b\n1,2\n3,\n5,6\n7,8", "b", "row 3: expected a value in every column; missing b"),
        ("a,b\n1,2\n3\n5,6\n7,8", "b", "row 3: expected a value in every column; missing 2 columns, got 1"),
        ("a,b\n1,2\n3,2\n5,2\n7,2", "b", "a target that varies"),
        ("a,b\n1,2\n3,nan\n5,2\n7,2", "b", "column b: expected finite numbers"),
        ("a,b", "b", "expected a header row and data rows"),
    ],
)
def test_csv_errors_name_the_place(tmp_path, text, target, message):
    with pytest.raises(ValueError, match=message):
        csv_data(write(tmp_path, text), target)
