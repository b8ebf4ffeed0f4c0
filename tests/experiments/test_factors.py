"""Shapley shares from invented records whose shares are known; incomplete records are refused."""
import itertools
import numpy as np
import pytest
from gslrm_mouse.experiments.factors import FACTORS, SINGLE_FACTORS, SWITCHES, cell_name, cell_values, design, shapley
from gslrm_mouse.experiments.factors import shapley_by_orders

COST = dict(units=.5, origin=.2, aim=.05, focal=.1, aspect=.01, principal=.02, distances=0., appearance=.15)
SCENES = (0, 1, 2)
WITHIN = {name: switches for name, switches in SINGLE_FACTORS.items() if name not in ("units", "appearance")}

def worth(on, scene): # a game in which a wrong unit masks the rest, and focal and aim interact
    interaction = .03*scene*("focal" in on and "aim" in on)
    if "units" in on: return -interaction
    return 1 - sum(COST[switch] for switch in on) - interaction

def record(on, scene):
    value = worth(on, scene)
    return dict(cell=cell_name(on), scene=scene, iou=value, psnr=10*value + scene, psnr_white=5. + scene, psnr_fg=0.,
                sized=[value/2, 1., 2.])

CELLS = [frozenset(cell) for n in range(9) for cell in itertools.combinations(SWITCHES, n)]
RECORDS = [record(on, scene) for on in CELLS for scene in SCENES]

def switched_on(bits): # the switches of the seven factors whose bit is 1
    return frozenset(switch for bit, switches in zip(bits, FACTORS.values()) if bit for switch in switches)

def iou_shares(records):
    return np.array([share["iou"][0] for share in shapley(records, measures=("iou",)).values()])


def test_shares_follow_the_definition_and_add_up():
    names = list(FACTORS)
    bits = list(itertools.product((0, 1), repeat=len(names)))
    values = {frozenset(np.flatnonzero(b).tolist()): np.mean([worth(switched_on(b), i) for i in SCENES]) for b in bits}
    shares = iou_shares(RECORDS)
    np.testing.assert_allclose(shares, shapley_by_orders(values, 7), atol=1e-9)
    np.testing.assert_allclose(shares.sum(), values[frozenset(range(7))] - values[frozenset()], atol=1e-9)
    assert abs(shares[names.index("distances")]) < 1e-9 # a factor that costs nothing has no share
    assert shares[names.index("units")] == shares.min()


@pytest.mark.parametrize("given", [("appearance",), ()], ids=["mice", "heads"])
@pytest.mark.parametrize("factor, share", [
    ("aspect", -.01), ("origin", -.2), # the order does not matter where the unit is right
    ("aim", -.05 - .015), ("focal", -.1 - .015), # two that interact share the interaction
])
def test_shares_with_the_right_unit(given, factor, share):
    assert shapley(RECORDS, WITHIN, ("iou",), given=given)[factor]["iou"][0] == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize("given", [("appearance",), ()], ids=["mice", "heads"])
def test_decibels_above_a_blank_image(given):
    origin = shapley(RECORDS, WITHIN, ("over", "psnr"), given=given)["origin"]
    assert origin["over"] == pytest.approx(origin["psnr"])
    assert origin["psnr"][0] == pytest.approx(-2., abs=1e-9)


def test_nothing_else_matters_with_the_wrong_unit():
    shares = shapley(RECORDS, WITHIN, ("iou",), given=("units",))
    independent = [share["iou"][0] for name, share in shares.items() if name not in ("focal", "aim")]
    assert independent == pytest.approx([0]*len(independent), abs=1e-9)


def test_footprint_corrected_scores():
    assert shapley(RECORDS, WITHIN, ("iou",), sized=True)["origin"]["iou"][0] == pytest.approx(-.1, abs=1e-9)


def test_a_fraction_is_right_without_triples_and_wrong_with_them():
    part = {cell_name(switched_on(bits)) for bits in design(7, 1/8)}
    def fraction(records): return [r for r in records if r["cell"] in part]
    def with_triple(r):
        on = [r["cell"][list(SWITCHES).index(switch)] == "1" for switch in ("focal", "aspect", "principal")]
        return r | dict(iou=r["iou"] - .2*all(on))
    assert len(fraction(RECORDS)) == 16*3
    np.testing.assert_allclose(iou_shares(fraction(RECORDS)), iou_shares(RECORDS), atol=1e-9)
    triples = [with_triple(r) for r in RECORDS]
    error = iou_shares(fraction(triples)) - iou_shares(triples)
    assert abs(error.sum()) < 1e-9 and np.abs(error).max() > .005


def test_incomplete_records_are_refused():
    missing = (2, cell_name({"units"}))
    with pytest.raises(ValueError, match="has 2 of 3 scenes"):
        cell_values([r for r in RECORDS if (r["scene"], r["cell"]) != missing])
    with pytest.raises(ValueError, match="everything once"):
        shapley([r for r in RECORDS if r["cell"] != cell_name(SWITCHES)])
    with pytest.raises(ValueError, match="no record belongs"):
        cell_values([r for r in RECORDS if "0" not in r["cell"]], {"aim": ("aim",)})
