"""What notebooks store is what they make, in structure; and the check sees it when it is not."""
import copy, sys
from tempfile import gettempdir
from pathlib import Path
import nbformat, pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT/"tools"))
import check_outputs as check


@pytest.mark.parametrize("name", ["02_rays", "pages/limits"])
def test_stored_outputs_are_fresh(name):
    path, = check.paths([name])
    assert check.faults(path) == []


def test_numbers_are_noise_and_words_are_not():
    same = lambda a, b: check.masked(a) == check.masked(b)
    assert same("IoU 0.715, 12.3 s", "IoU 0.698, 9 s") and same("tensor([1., -2e-7])", "tensor([0.99, 3.])") and same("loss nan", "loss 0.1") and same("a   1.0\nb  22.0", "a 3\nb 4") and same(f"written: {gettempdir()}/tmpab12/x 3f2a9c1b7d4e", f"written: {gettempdir()}/tmpzz/y 0011aabbccdd")
    assert same("[1, 2, 3]", "[4, 5]") and same("50%", "49.5%")
    assert not same("IoU 0.7", "PSNR 0.7") and not same("found: units", "found: –") and not same("fit", "will fail: units 3") and not same("camera_1", "camera_2")


def test_a_planted_difference_is_found(tmp_path, monkeypatch):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# t"), nbformat.v4.new_code_cell("print('loss', 3)"), nbformat.v4.new_code_cell("1 + 1"), nbformat.v4.new_code_cell("#| slow\nprint('never run')")], metadata={"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}})
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
    assert "code cell 1 (print('loss', 3)): the text reads 'loss #'" in faults(lambda c: c[1].outputs[0].update(text="gain 3\n"))[0]
    assert "stored nothing; made execute_result of text/plain" in faults(lambda c: c[2].update(outputs=[]))[0]
    assert "stored display_data of image/png and text/plain" in faults(lambda c: c[2].update(outputs=[nbformat.v4.new_output("display_data", data={"image/png": "", "text/plain": "<Figure>"})]))[0]
    assert "it stops with ZeroDivisionError" in faults(lambda c: c[2].update(source="1/0"))[0]
    with pytest.raises(ValueError, match="there is no notebook '02_ray'"): check.paths(["02_ray"])
