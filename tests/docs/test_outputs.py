"""What notebooks store is what they make, in structure; and the check sees it when it is not."""
import copy, sys
from tempfile import gettempdir
from pathlib import Path
import nbformat, pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT/"tools"))
import check_outputs as check


@pytest.mark.parametrize("name", ["cameras/01_pinhole", pytest.param("pages/limits", marks=pytest.mark.slow)])
def test_stored_outputs_are_fresh(name):
    path, = check.paths([name])
    assert check.faults(path) == []


@pytest.mark.parametrize("a, b", [
    ("IoU 0.715, 12.3 s", "IoU 0.698, 9 s"), ("tensor([1., -2e-7])", "tensor([0.99, 3.])"), ("loss nan", "loss 0.1"),
    ("a   1.0\nb  22.0", "a 3\nb 4"), ("[1, 2, 3]", "[4, 5]"), ("50%", "49.5%"),
    (f"written: {gettempdir()}/tmpab12/x 3f2a9c1b7d4e", f"written: {gettempdir()}/tmpzz/y 0011aabbccdd")])
def test_numbers_are_noise(a, b):
    assert check.masked(a) == check.masked(b)


@pytest.mark.parametrize("a, b", [
    ("IoU 0.7", "PSNR 0.7"), ("found: units", "found: –"), ("fit", "will fail: units 3"), ("camera_1", "camera_2")])
def test_words_are_not_noise(a, b):
    assert check.masked(a) != check.masked(b)


def test_a_planted_difference_is_found(tmp_path, monkeypatch):
    v4 = nbformat.v4
    cells = [v4.new_markdown_cell("# t"), v4.new_code_cell("print('loss', 3)"), v4.new_code_cell("1 + 1"),
             v4.new_code_cell("#| slow\nprint('never run')")]
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    nb = v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    monkeypatch.setattr(check, "root", tmp_path)
    (tmp_path/"nbs").mkdir()
    path = tmp_path/"nbs/t.ipynb"
    nbformat.write(nb, path)
    made = check.rerun(path)
    made.cells[3].source = "#| slow\nprint('never run')"
    made.cells[3].outputs = [nbformat.v4.new_output("stream", text="of another machine")]
    def faults(change):
        x = copy.deepcopy(made)
        change(x.cells)
        nbformat.write(x, path)
        return check.faults(path)
    assert faults(lambda c: c[1].outputs[0].update(text="loss 99\n")) == []
    other_word = faults(lambda c: c[1].outputs[0].update(text="gain 3\n"))
    assert "code cell 1 (print('loss', 3)): the text reads 'loss #'" in other_word[0]
    no_output = faults(lambda c: c[2].update(outputs=[]))
    assert "stored nothing; made execute_result of text/plain" in no_output[0]
    figure = v4.new_output("display_data", data={"image/png": "", "text/plain": "<Figure>"})
    other_kind = faults(lambda c: c[2].update(outputs=[figure]))
    assert "stored display_data of image/png and text/plain" in other_kind[0]
    assert "it stops with ZeroDivisionError" in faults(lambda c: c[2].update(source="1/0"))[0]
    with pytest.raises(ValueError, match="there is no notebook 'cameras/05_ray'"): check.paths(["cameras/05_ray"])
