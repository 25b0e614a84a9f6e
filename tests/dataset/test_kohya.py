"""kohya's datasets mean the same here, and what its trainer ignores in silence is reported."""

from pathlib import Path

import pytest

from core.dataset.buckets import Buckets
from core.dataset.caption_variation import CaptionVariation
from core.dataset.intake import import_dataset
from core.schema.errors import UserError
from tests.dataset.parts import PNG, ImportZip, write_zip

TWO_PICTURES = {"imgs/a.png": PNG, "imgs/a.txt": "1girl", "imgs/b.png": PNG}


# --- folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize("root", ["", "my data/"])
def test_folders_say_repeats_and_class(import_zip: ImportZip, root: str) -> None:
    files = {
        f"{root}10_mystyle/a.png": PNG,
        f"{root}10_mystyle/a.txt": "told",
        f"{root}10_mystyle/b.png": PNG,
        f"{root}2_big blue_sky/c.png": PNG,
    }
    found = import_zip({**files, f"{root}cover.png": PNG, f"{root}log/events": "x"})
    assert [(s.name.rpartition("/")[2], s.repeats, s.caption, s.group) for s in found.samples] == [
        ("a.png", 10, "told", "10_mystyle"),
        ("b.png", 10, "mystyle", "10_mystyle"),
        ("c.png", 2, "big blue_sky", "2_big blue_sky"),
    ]
    assert found.notes == (
        f"Without a caption file, the caption is 'mystyle': '{root}10_mystyle/b.png'.",
        f"Without a caption file, the caption is 'big blue_sky': '{root}2_big blue_sky/c.png'.",
    )
    assert {file.name.rpartition("/")[2]: file.reason for file in found.skipped} == {
        "cover.png": "it is next to the folders named N_class, not inside one",
        "events": "it is not a PNG, JPEG, WebP or BMP image",
    }


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (
            ["10_a/a.png", "extra/b.png"],
            (
                r"^dataset: the folder 'extra' is next to folders named N_class. "
                r"Give it a name such as '1_extra'\.$"
            ),
        ),
        (["10_a/a.png", "10_a/sub/b.png"], r"^dataset: the folder 'sub' is next to"),
        (["10_a/a.png", "10/b.png"], r"^dataset: the folder '10' is next to"),
        (
            ["img/10_a/a.png", "reg/1_b/b.png"],
            r"^dataset: folders named N_class are in 'img' and in 'reg'\. Put them in one place, and add",
        ),
        (["0_a/a.png"], r"^repeats: the folder '0_a' asks for 0; the range is 1 to 1,000\.$"),
        (["2024_a/a.png"], r"^repeats: the folder '2024_a' asks for 2,024; the range is 1 to 1,000\.$"),
    ],
)
def test_folders_that_would_not_mean_what_they_seem_to_are_refused(
    import_zip: ImportZip, tmp_path: Path, files: list[str], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        import_zip(dict.fromkeys(files, PNG))
    assert not (tmp_path / "into").exists()


# --- .toml ----------------------------------------------------------------------------------------


def test_the_lower_level_wins(import_zip: ImportZip) -> None:
    config = """
        [general]
        num_repeats = 2
        shuffle_caption = true
        keep_tokens = 1
        [[datasets]]
        resolution = [512, 512]
        batch_size = 4
        keep_tokens = 2
          [[datasets.subsets]]
          image_dir = 'imgs'
          class_tokens = 'mystyle'
          [[datasets.subsets]]
          image_dir = './more'
          num_repeats = 5
          keep_tokens = 3
          is_reg = true
          flip_aug = true
    """
    found = import_zip({**TWO_PICTURES, "more/c.png": PNG, "other/d.png": PNG, "set.toml": config})
    assert [(s.name, s.caption, s.repeats, s.regularisation, s.flip, s.group) for s in found.samples] == [
        ("imgs/a.png", "1girl", 2, False, None, "imgs"),
        ("imgs/b.png", "mystyle", 2, False, None, "imgs"),
        ("more/c.png", "", 5, True, True, "more"),
    ]
    assert [sample.wording for sample in found.samples] == [
        CaptionVariation(shuffle=True, keep_tokens=kept) for kept in (2, 2, 3)
    ]
    assert found.settings == {"resolution": 512, "batch": 4}
    assert {file.name: file.reason for file in found.skipped} == {
        "other/d.png": "the .toml does not name its folder"
    }


def test_every_setting_is_used(import_zip: ImportZip) -> None:
    config = """
        [[datasets]]
        resolution = 768
        batch_size = 2
        enable_bucket = true
        min_bucket_reso = 384
        max_bucket_reso = 1280
        bucket_reso_steps = 32
        bucket_no_upscale = true
          [[datasets.subsets]]
          image_dir = 'imgs'
          caption_extension = 'tags'
          shuffle_caption = true
          keep_tokens = 1
          keep_tokens_separator = '|||'
          caption_separator = ';'
          secondary_separator = ';;;'
          caption_prefix = 'p,'
          caption_suffix = ', s'
          enable_wildcard = true
          caption_dropout_rate = 0.1
          caption_dropout_every_n_epochs = 3
          caption_tag_dropout_rate = 1
    """
    found = import_zip({**TWO_PICTURES, "imgs/b.tags": "sky\nsea", "set.toml": config})
    assert [sample.caption for sample in found.samples] == ["", "sky\nsea"]
    assert [(file.name, file.reason) for file in found.skipped] == [
        ("imgs/a.txt", "no image uses it as its caption")
    ]
    assert found.samples[0].wording == CaptionVariation(
        shuffle=True, keep_tokens=1, keep_separator="|||", separator=";", secondary_separator=";;;",
        prefix="p,", suffix=", s", wildcard=True, caption_dropout=0.1, caption_dropout_every=3, tag_dropout=1,
    )  # fmt: skip
    assert found.settings == {
        "resolution": 768,
        "batch": 2,
        "least_side": 384,
        "most_side": 1280,
        "bucket_step": 32,
        "upscale": False,
    }


def test_without_buckets_there_is_one(import_zip: ImportZip) -> None:
    config = (
        "[[datasets]]\nresolution = 1000\nenable_bucket = false\nmin_bucket_reso = 64\n"
        "[[datasets.subsets]]\nimage_dir = 'imgs'"
    )
    told = import_zip({**TWO_PICTURES, "set.toml": config}).settings
    one = Buckets(
        resolution=told["resolution"],
        least=told["least_side"],
        most=told["most_side"],
        step=told["bucket_step"],
        upscale=bool(told["upscale"]),
    )
    assert one.sizes() == [(1000, 1000)]


def test_what_has_no_effect_is_said_once(import_zip: ImportZip) -> None:
    config = """
        [general]
        color_aug = true
        cache_info = false
        validation_split = 0.1
        [[datasets]]
          [[datasets.subsets]]
          image_dir = 'imgs'
          face_crop_aug_range = [1.0, 3.0]
          [[datasets.subsets]]
          image_dir = 'imgs'
    """
    found = import_zip({**TWO_PICTURES, "set.toml": config})
    assert len(found.samples) == 2
    assert found.notes == (
        "color_aug in the .toml is not supported here and is ignored.",
        "face_crop_aug_range in the .toml is not supported here and is ignored.",
        "validation_split in the .toml is not supported here and is ignored.",
        "image_dir: 'imgs' appears twice in one of the [[datasets]]; the first is used.",
    )


def make_subset(text: str) -> str:
    return f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'imgs'\n{text}"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("[[datasets]", r"^dataset: set\.toml: it is not TOML"),
        ("a = " + "[" * 5000, r"^dataset: set\.toml: it is nested too deeply"),
        ("a = " + "9" * 5000, r"^dataset: set\.toml: it is not TOML"),
        ("datasets = 1", r"^dataset: the \.toml has no \[\[datasets\]\], which must be a list of tables\.$"),
        ("[[datasets]]", r"^dataset: the \.toml has no \[\[datasets\.subsets\]\]"),
        ("general = 1\n[[datasets]]", r"^dataset: \[general\] of the \.toml is not a table"),
        ("x = 1\n[[datasets]]", r"^dataset: set\.toml contains 'x'; only \[general\] and"),
        (
            make_subset("repeats = 2"),
            r"^dataset: 'repeats' is not a setting of \[\[datasets\.subsets\]\] that is supported here",
        ),
        (
            make_subset("batch_size = 2"),
            r"^dataset: 'batch_size' is not a setting of \[\[datasets\.subsets\]\]",
        ),
        (
            "[general]\nimage_dir = 'imgs'\n[[datasets]]",
            r"^dataset: 'image_dir' is not a setting of \[general\]",
        ),
        (make_subset("metadata_file = 'a.json'"), r"^metadata_file: it belongs to another kind of training"),
        (make_subset("conditioning_data_dir = 'a'"), r"^conditioning_data_dir: it belongs to another"),
        (make_subset("num_repeats = '2'"), r"^num_repeats: '2' is not valid. Use a whole number\.$"),
        (make_subset("num_repeats = true"), r"^num_repeats: True is not valid"),
        (
            make_subset("num_repeats = 0"),
            r"^repeats: image_dir 'imgs' asks for 0; the range is 1 to 1,000\.$",
        ),
        (make_subset("shuffle_caption = 1"), r"^shuffle_caption: 1 is not valid. Use true or false\.$"),
        (make_subset("caption_dropout_rate = 2"), r"^wording\.caption_dropout: 2 is not valid"),
        (
            "[general]\nresolution = [512, 768]\n" + make_subset(""),
            r"^resolution: \[512, 768\] is not valid. Use a whole number\.$",
        ),
        (
            "[general]\nenable_bucket = false\n" + make_subset(""),
            r"^enable_bucket: false is only valid with a resolution",
        ),
        (
            make_subset("") + "\n[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = 'imgs'",
            r"^dataset: the \.toml has \[\[datasets\]\] of different",
        ),
        (
            "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'texts'",
            r"^image_dir: 'texts' contains no images",
        ),
        (
            "[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 1",
            r"^image_dir: '' is not valid. Use a folder of images that was added with the .toml",
        ),
    ],
)
def test_a_config_that_says_something_else_is_a_sentence(
    import_zip: ImportZip, config: str, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        import_zip({**TWO_PICTURES, "texts/a.txt": "x", "set.toml": config})


@pytest.mark.parametrize(
    "place", ["/etc", "..", "../into", "imgs/../..", "C:\\imgs", "\\\\host\\imgs", "away"]
)
def test_an_image_dir_stays_inside(import_zip: ImportZip, tmp_path: Path, place: str) -> None:
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "a.png").write_bytes(PNG)
    config = f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{place}'"
    with pytest.raises(
        UserError, match=r"^image_dir: .* is not valid. Use a folder of images that was added with the .toml"
    ):
        import_zip({**TWO_PICTURES, "set.toml": config})
    loose = tmp_path / "set.toml"
    loose.write_text(config)
    with pytest.raises(UserError, match=r"^image_dir: "):
        import_dataset([loose], tmp_path / "loose")


def test_a_trusted_config_names_any_folder(tmp_path: Path) -> None:
    away = tmp_path / "away"
    (away / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/b.png"):
        (away / name).write_bytes(PNG)
    (away / "a.caption").write_text("told")
    config = tmp_path / "here" / "set.toml"
    config.parent.mkdir()
    for place in (str(away), "../away"):
        config.write_text(f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{place}'")
        for source in (config, config.parent):
            found = import_dataset([source], tmp_path / f"{source.name} {place == '../away'}", trusted=True)
            assert [(s.name, s.caption, s.group) for s in found.samples] == [("away/a.png", "told", "away")]
    config.write_text("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'nowhere'")
    with pytest.raises(UserError, match=r"^image_dir: 'nowhere' does not exist\.$"):
        import_dataset([config], tmp_path / "into", trusted=True)


def test_one_config_is_enough(import_zip: ImportZip, tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=(
            r"^dataset: 'other\.toml' and 'set\.toml' are both datasets of kohya's trainer; "
            r"use only one\.$"
        ),
    ):
        import_zip({**TWO_PICTURES, "other.toml": make_subset(""), "set.toml": make_subset("")})
    config = "[general]\nresolution = 512\n" + make_subset("")
    archives = [
        write_zip(tmp_path, {**TWO_PICTURES, "set.toml": config}, name) for name in ("one.zip", "two.zip")
    ]
    with pytest.raises(UserError, match=r"^dataset: 2 \.toml files describe the training; use only one\.$"):
        import_dataset(archives, tmp_path / "both")
