"""Group axes from numbers, wildcards and headers; structures from options and from the files that people keep."""

from __future__ import annotations

import json

import pytest
from monai.transforms import LoadImaged

from droseg.cli import main
from droseg.data import read_datalist
from droseg.data.from_folders import Bins, read_background, read_structures
from droseg.data.transforms import LabelsToClassesd
from droseg.errors import DatalistError
from droseg.workflow.preflight import check_cases, check_structures


@pytest.mark.parametrize(
    ("number", "name"), [(-3, "<40"), (39.99, "<40"), (40, "40-60"), (59.9, "40-60"), (60, ">=60"), (1e6, ">=60")]
)
def test_bins_are_half_open_and_their_names_do_not_depend_on_the_data(number, name):
    assert Bins.parse("40,60").name_of(number) == name


def test_negative_and_single_edges_have_readable_names():
    assert Bins.parse("-2,-0.5,1").names == ("<-2", "-2 to -0.5", "-0.5 to 1", ">=1")
    assert Bins.parse("2").names == ("<2", ">=2")


@pytest.mark.parametrize("text", ["", "40,", "a", "60,40", "40,40", "nan", "1,inf"])
def test_edges_that_make_no_bins_are_refused(text):
    with pytest.raises(ValueError):
        Bins.parse(text)


def test_decimal_commas_are_numbers_only_where_they_separate_nothing(study):
    for subject in ("a", "b", "c"):
        study.case(subject)
    options = ["--bin", "age=40,60", "--table"]
    assert study.new(*options, study.table("subject;age", "a;39,9", "b;40,0", "c;1e2")) == 0
    assert study.groups("age") == {"a": "<40", "b": "40-60", "c": ">=60"}
    assert study.new("--overwrite", *options, study.table("subject,age", 'a,"39,9"', "b,40", "c,89+")) == 1
    assert "line 2: '39,9'" in study.err
    assert "line 4: '89+'" in study.err
    assert "decimal comma" in study.err


def test_an_axis_may_have_another_name_and_its_values_be_recoded(study):
    for subject in ("a", "b", "c"):
        study.case(subject)
    path = study.table("subject,dx", "a,1", "b,0", "c,1")
    options = ["--table", path, "--group-by", "disease=dx", "--recode", "disease:1=MS", "--recode", "disease:0=control"]
    assert study.new(*options) == 0
    assert study.groups("disease") == {"a": "MS", "b": "control", "c": "MS"}
    assert study.new(*options, "--recode", "disease:2=other", "--overwrite") == 0
    assert "no case has 2" in study.err


def test_spellings_of_a_group_and_numbers_without_bins_are_doubted(study):
    ages = [20, 22.5, 31, 33, 35, 38, 41, 47, 52, 58, 63, 71, 77, 80]
    lines = [f"s{i},{age},{'Control' if i else 'control'}" for i, age in enumerate(ages)]
    for i in range(len(ages)):
        study.case(f"s{i}")
    path = study.table("subject,age,dx", *lines)
    assert study.new("--table", path, "--group-by", "age", "--group-by", "dx", "--no-volumes") == 0
    assert "--bin age=35,52" in study.err
    assert "--recode 'dx:control=Control'" in study.err
    assert set(study.groups("dx").values()) == {"control", "Control"}


def test_other_wildcards_are_columns(study):
    for site in ("a", "b"):
        study.image(f"{site}/p{site}_T2w.nii.gz")
        study.label(f"{site}/p{site}_seg.nii.gz")
    options = ["--image", "T2w={site}/{subject}_T2w.nii.gz", "--label", "{site}/{subject}_seg.nii.gz"]
    assert study.new(*options, "--group-by", "site", files=False) == 0
    assert study.groups("site") == {"pa": "a", "pb": "b"}


def test_headers_and_sidecars_make_groups(study):
    study.case("a", spacing_mm=(1, 1, 3.0000002), Manufacturer="GE", MagneticFieldStrength=1.494)
    study.case("b", spacing_mm=(4, 1, 1), Manufacturer="Siemens", MagneticFieldStrength=2.89362)
    study.case("c")
    options = ["--group-by-header", "slice_thickness,manufacturer,field=magnetic_field_strength", "--bin"]
    assert study.new(*options, "slice_thickness=2,4", "--group-by-header", "orientation,shape,spacing") == 0
    assert study.groups("slice_thickness") == {"a": "2-4", "b": ">=4", "c": "<2"}
    assert study.groups("manufacturer") == {"a": "GE", "b": "Siemens", "c": "unknown"}
    assert study.groups("field") == {"a": "1.5", "b": "3", "c": "unknown"}
    assert study.groups("shape") == {"a": "24x24x8", "b": "6x24x24", "c": "24x24x24"}
    assert study.groups("spacing")["a"] == "1x1x3"
    assert set(study.groups("orientation").values()) == {"RAS"}
    assert "rounded 1.494 to 1.5, 2.89362 to 3" in study.out
    assert study.new("--group-by-header", "EchoTime", "--overwrite") == 1
    assert "no image has 'EchoTime'" in study.err
    assert "MagneticFieldStrength" in study.err


def test_without_structures_the_values_are_listed_with_the_option_to_paste(study):
    study.case("a")
    study.label("b_seg.nii.gz", values=(2, 5))
    study.image("b_T2w.nii.gz")
    assert study.new(structures=False) == 1
    assert "--structure NAME1=1 --structure NAME2=2 --structure NAME5=5" in study.err
    assert "value 1: in 1 label of 2, 1152 voxels" in study.err  # 2 x 24 x 24
    assert "value 2: in 2 labels of 2, 2304 voxels" in study.err
    assert "a_seg.nii.gz: values that no structure" not in study.err


def test_values_that_no_structure_names_are_listed_per_file_or_allowed(study):
    study.case("a")
    study.case("b")
    options = ["--structure", "only=1", "--structure", "never=9"]
    assert study.new(*options, structures=False) == 1
    assert study.err.count(": 2 (1152 voxels)") == 2
    assert "1 structure in none of the labels: never=9" in study.err
    assert study.new(*options, "--allow-other-values", structures=False) == 0
    assert study.document["structures"] == {"only": 1, "never": 9, "background": [0, 2]}
    datalist = read_datalist(study.out_path)
    assert (datalist.structures, datalist.background) == ({"only": (1,), "never": (9,)}, (0, 2))


@pytest.mark.parametrize("options", [("--allow-other-values",), ("--structure", "background=2,5")])
def test_allowed_background_values_pass_the_check_and_start_a_training(study, options):
    for subject in ("a", "b"):
        study.case(subject)
    assert study.new("--structure", "only=1", *options, structures=False) == 0
    assert main(["data", "check", str(study.out_path)]) == 0
    datalist = read_datalist(study.out_path)
    check_structures(datalist, {"only": 1}, ["T2w"])
    assert check_cases(datalist) == []
    item = LoadImaged("label")({"label": datalist.section("training")[0].label})
    classes = LabelsToClassesd("label", datalist.structures)(item)["label"]
    assert classes.unique().tolist() == [0, 1]
    assert int(classes.sum()) == 2 * 24 * 24


def test_background_values_that_are_not_read_must_be_named(study):
    study.case("a")
    options = ["--structure", "only=1", "--no-volumes"]
    assert study.new(*options, "--allow-other-values", structures=False) == 2
    assert "name the values: --structure background=" in study.err
    assert study.new(*options, "--structure", "background=2", structures=False) == 0
    assert read_datalist(study.out_path).background == (0, 2)


@pytest.mark.parametrize("second", ["twin=1,2", "twin=2,1,2"])
def test_structures_of_the_same_values_are_refused_before_anything_is_read(study, second):
    study.case("a")
    assert study.new("--structure", "both=1,2", "--structure", second, structures=False) == 1
    assert "both and twin have the same label values" in study.err


STRUCTURE_FILES = {
    "datalist.json": json.dumps({"structures": {"x": 1, "y": [2, 3]}, "training": []}),
    "dataset.json": json.dumps({"labels": {"0": "background", "1": "x", "2": "y", "3": "y"}}),
    "dseg.tsv": "index\tname\tabbreviation\n0\tBackground\tb\n1\tx\tX\n2\ty\tY\n3\ty\tY\n",
    "itk.txt": '# ITK-SNAP\n    0  0 0 0  0 0 0 "Clear Label"\n    1 255 0 0  1 1 1 "x"\n'
    '    2 0 255 0  0.5 1 1 "y"\n    3 0 0 255  1 0 0 "y"\n',
}


@pytest.mark.parametrize("name", STRUCTURE_FILES)
def test_structures_are_read_from_the_files_that_people_keep(tmp_path, name):
    (tmp_path / name).write_text(STRUCTURE_FILES[name])
    found = read_structures(tmp_path / name)
    assert found == {"x": (1,), "y": (2, 3)}
    assert read_background(tmp_path / name) == (0,)


@pytest.mark.parametrize("text", ["{", "{}", "index\tlabel\n1\tx\n", "index\tname\none\tx\n"])
def test_a_file_without_structures_is_refused(study, text):
    study.case("a")
    path = study.table(text, name="structures.txt")
    assert study.new("--structures", path, structures=False) in (1, 2)
    assert "structures.txt" in study.err


def test_a_missing_structures_file_is_named(tmp_path):
    with pytest.raises(DatalistError, match="no such file"):
        read_structures(tmp_path / "none.tsv")
