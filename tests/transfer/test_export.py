"""What a person gets from a study.

A zip of full-size pictures, a table, a report, and an HTML page that needs nothing else.
"""

import csv
import json
import re
import zipfile
from pathlib import Path

from PIL import Image
from safetensors.torch import load_file, save_file

from core.lora import edit
from core.lora import file as lora_file
from core.lora.blocks import find_block
from core.prompts.png_metadata import read_infotext
from core.transfer.blocks import find_only_block
from core.transfer.export import export_transfer
from core.transfer.plan import TransferEntry, split_by_block
from tests.transfer.conftest import EXAMPLE, RunTransfer


def test_everything_is_in_the_zip_and_the_page_stands_alone(
    run_transfer: RunTransfer, tmp_path: Path
) -> None:
    hostile = {"lora": str(EXAMPLE), "home": "nano", "name": "<script>alert(1)</script>"}
    study = run_transfer(loras=[hostile], models=["nano", "nano-paint"], strengths="0.65, 1")
    done = export_transfer(study, tmp_path)
    with zipfile.ZipFile(done.archive) as archive:
        names = archive.namelist()
        report = json.loads(archive.read("report.json"))
        page = archive.read("study.html").decode()
        rows = list(csv.DictReader(archive.read("cells.csv").decode().splitlines()))
        archive.extractall(tmp_path / "unpacked")
    assert report == json.loads(json.dumps(done.report))
    assert len(report["pictures"]) == 2 * (1 + 2) * 4
    assert {told["picture"] for told in report["pictures"]} <= set(names)
    told = next(told for told in report["pictures"] if told["lora"] and told["model"] == "nano-paint")
    with Image.open(tmp_path / "unpacked" / told["picture"]) as picture:
        assert picture.size == (128, 128)
    said = read_infotext(tmp_path / "unpacked" / told["picture"]).fields
    assert (said["model"], said["seed"]) == ("nano-paint", told["seed"])
    assert {(row["model"], row["strength"]) for row in rows} == {
        (model, strength) for model in ("nano", "nano-paint") for strength in ("0.65", "1.0")
    }
    assert all(float(row["effect_low"]) <= float(row["effect"]) <= float(row["effect_high"]) for row in rows)
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page), "the page asks for another file"
    assert page.count("<img") == 1 + len(report["pictures"])
    assert "At strength 0.65" in page
    assert "At strength 1" in page


def test_a_pair_of_which_no_image_is_worth_making_is_in_the_table(
    run_transfer: RunTransfer, tmp_path: Path
) -> None:
    tensors = {
        key: value if key.endswith("alpha") else 1e-3 * value for key, value in load_file(EXAMPLE).items()
    }
    save_file(tensors, tmp_path / "null.safetensors")
    study = run_transfer(
        loras=[{"lora": str(tmp_path / "null.safetensors"), "home": "nano"}],
        models=["nano"],
        strengths="auto",
    )
    (tmp_path / "out").mkdir()
    done = export_transfer(study, tmp_path / "out")
    (pair,) = done.report["per_pair"]
    assert (pair["verdict"], pair["answer"]) == ("none", "no change")
    assert done.heat.exists()


def test_a_lora_taken_apart_says_what_its_blocks_do(run_transfer: RunTransfer, tmp_path: Path) -> None:
    rows = split_by_block(TransferEntry(lora=str(EXAMPLE), home="nano"))
    assert [find_only_block(row.blocks) for row in rows] == [
        str(row.name).rpartition(": ")[2] for row in rows
    ]
    assert len(rows) == 11, "the example has no text encoder"
    few = [row for row in rows if find_only_block(row.blocks) in ("IN04", "OUT01", "OUT03")]
    report = export_transfer(run_transfer(loras=few, strengths="3"), tmp_path).report
    effects = {cell["lora"].rpartition(": ")[2]: cell["effect"] for cell in report["cells"]}
    (said,) = report["blocks"]
    most = max(effects, key=lambda block: effects[block])
    assert f"Effect by block: {most} {effects[most]:.2f}" in said, said


def test_a_style_block_and_a_content_block_become_one_file(tmp_path: Path) -> None:
    doubled = lora_file.read_lora_file(
        edit.rewrite_lora(lora_file.read_lora_file(EXAMPLE), tmp_path, multiply=2)
    )
    made = lora_file.read_lora_file(edit.combine_loras(lora_file.read_lora_file(EXAMPLE), doubled, tmp_path))
    scales = {
        block: {module.scale for module in made.modules if find_block(module.name) == block}
        for block in map(str, {find_block(m.name) for m in made.modules})
    }
    assert scales == {"OUT01": {1.0}, "OUT00": {2.0}}, "each block is as strong as it was"
    ours, theirs = made.load_tensors(), lora_file.read_lora_file(EXAMPLE).load_tensors()
    assert all((value == theirs[key]).all() for key, value in ours.items()), "a matrix was changed"
