"The factorial's accounts, from fake records whose shares are known, and that they refuse what is incomplete."
import itertools
import numpy as np, pytest
from gslrm_mouse.experiments.factors import FACTORS, SINGLE_FACTORS, SWITCHES, cell_name, cell_values, design, shapley
from gslrm_mouse.experiments.factors import shapley_by_orders

COST = dict(units=.5, origin=.2, aim=.05, focal=.1, aspect=.01, principal=.02, distances=0., appearance=.15)
def worth(on, i): return (0. if "units" in on else 1.)*(1 - sum(COST[k] for k in on if k != "units")) - .03*i*("focal" in on and "aim" in on)
def record(on, i):
    v = worth(on, i)
    return dict(cell=cell_name(on), scene=i, iou=v, psnr=10*v + i, psnr_white=5. + i, psnr_fg=0., sized=[v/2, 1., 2.])
CELLS = [frozenset(c) for n in range(9) for c in itertools.combinations(SWITCHES, n)]
RECORDS = [record(on, i) for on in CELLS for i in (0, 1, 2)]

def test_shares_follow_the_definition_and_add_up():
    names = list(FACTORS)
    switches = lambda s: frozenset(x for k in s for x in FACTORS[names[k]])
    v = {frozenset(s): np.mean([worth(switches(s), i) for i in (0, 1, 2)]) for n in range(8) for s in itertools.combinations(range(7), n)}
    got = np.array([x["iou"][0] for x in shapley(RECORDS, measures=("iou",)).values()])
    np.testing.assert_allclose(got, shapley_by_orders(v, 7), atol=1e-9)
    np.testing.assert_allclose(got.sum(), v[frozenset(range(7))] - v[frozenset()], atol=1e-9)
    assert abs(got[names.index("distances")]) < 1e-9 and got[names.index("units")] == got.min()                    # a dummy pays nothing

def test_held_switches_and_measures():
    within = {k: v for k, v in SINGLE_FACTORS.items() if k not in ("units", "appearance")}
    mice, heads = (shapley(RECORDS, within, ("iou", "over", "psnr"), given=g) for g in (("appearance",), ()))
    for s in (mice, heads):
        assert s["aspect"]["iou"][0] == pytest.approx(-.01, abs=1e-9) and s["origin"]["iou"][0] == pytest.approx(-.2, abs=1e-9)          # no order matters where the unit is right
        assert s["aim"]["iou"][0] == pytest.approx(-.05 - .015, abs=1e-9) and s["focal"]["iou"][0] == pytest.approx(-.1 - .015, abs=1e-9)   # two that meet share what they cost together
        assert s["origin"]["over"] == pytest.approx(s["origin"]["psnr"]) and s["origin"]["psnr"][0] == pytest.approx(-2., abs=1e-9)
    assert all(x["iou"][0] == pytest.approx(0, abs=1e-9) for k, x in shapley(RECORDS, within, ("iou",), given=("units",)).items() if k not in ("focal", "aim"))
    assert shapley(RECORDS, within, ("iou",), sized=True)["origin"]["iou"][0] == pytest.approx(-.1, abs=1e-9)

def test_a_fraction_is_right_without_triples_and_wrong_with_them():
    names = list(FACTORS)
    part = {cell_name({x for b, k in zip(bits, names) if b for x in FACTORS[k]}) for bits in design(7, 1/8)}
    three = [{**r, "iou": r["iou"] - .2*all(r["cell"][list(SWITCHES).index(k)] == "1" for k in ("focal", "aspect", "principal"))} for r in RECORDS]
    whole, few = lambda rs: np.array([x["iou"][0] for x in shapley(rs, measures=("iou",)).values()]), lambda rs: [r for r in rs if r["cell"] in part]
    assert len(few(RECORDS)) == 16*3
    np.testing.assert_allclose(whole(few(RECORDS)), whole(RECORDS), atol=1e-9)
    assert abs(whole(few(three)).sum() - whole(three).sum()) < 1e-9 and np.abs(whole(few(three)) - whole(three)).max() > .005

def test_what_is_incomplete_is_refused():
    with pytest.raises(ValueError, match="has 2 of 3 scenes"): cell_values([r for r in RECORDS if not (r["scene"] == 2 and r["cell"] == cell_name({"units"}))])
    with pytest.raises(ValueError, match="everything once"): shapley([r for r in RECORDS if r["cell"] != cell_name(SWITCHES)])
    with pytest.raises(ValueError, match="no record belongs"): cell_values([r for r in RECORDS if "0" not in r["cell"]], {"aim": ("aim",)})
