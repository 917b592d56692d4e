"""What compression changed, up close."""

from __future__ import annotations

import base64
import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from slimline.cli import main
from slimline.measure.calibration import calibration_error
from slimline.measure.corruptions import corruptions
from slimline.project.closeup import PICTURES


def test_lost_samples_classes_calibration_and_disturbances_are_told(planted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    planted.put(ruined=4)
    assert main(["explain", str(planted.item.out), "--task", "task.py"]) == 0
    said = capsys.readouterr().out
    assert "top1 on 6,000 holdout samples: 1.0000 before, 0.9950 after" in said
    assert "lost: 30 samples that the original gets right (5970, 5971," in said and "and 10 more); won: 0" in said
    assert "class 4: 100.0 on 30 samples" in said and "calibration error (ECE): " in said and "with noise: 1.0000 before, 0.9950 after" in said


def test_a_model_that_another_tool_wrote_takes_its_samples_from_another_file(planted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    planted.put(work=1)
    shutil.copy(planted.item.out / "model.onnx", "net.onnx")
    planted.put(ruined=4)
    Path("data.py").write_text(Path("task.py").read_text().partition("def model")[0])
    assert main(["explain", str(planted.item.out), "--task", "net.onnx", "--data", "data.py"]) == 0
    assert "lost: 30 samples that the original gets right (5970, 5971," in capsys.readouterr().out


def test_the_page_has_it_too_and_images_only_when_asked(planted: Any, tmp_path: Any) -> None:
    planted.put(ruined=4)
    task = Path("task.py")
    task.write_text(task.read_text() + "\n\ndef slices(split):\n    return ['rare' if i >= 5970 else 'common' for i in range(6000)]\n")
    assert main(["explain", str(planted.item.out), "--task", "task.py", "--html", "page.html"]) == 0
    page = Path("page.html").read_text()
    assert "gets 30 wrong that the original gets right" in page and "rare" in page and "<img" not in page
    assert main(["explain", str(planted.item.out), "--show-samples"]) == 2


def test_images_go_from_the_task_to_pictures_in_the_page(planted: Any) -> None:
    task = Path("task.py")
    flat = "network = nn.Linear(WIDTH, KINDS, bias=False)\n    network.weight.data"
    text = task.read_text().replace("return points, kinds", "return points.reshape(-1, 1, 8, 8), kinds")
    task.write_text(text.replace(flat, "network = nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, KINDS, bias=False))\n    network[1].weight.data"))
    planted.put(ruined=4, images=True)
    assert main(["explain", str(planted.item.out), "--task", "task.py", "--html", "page.html", "--show-samples"]) == 0
    page = Path("page.html").read_text()
    found = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="Sample (\d+)">', page)
    assert [int(i) for _, i in found] == list(range(5970, 5970 + PICTURES)) and "img-src data:" in page
    for content, _ in found:  # of the ruined class: all black but for its own pixel
        drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
        assert drawn.shape == (8, 8) and drawn[0, 4] == 255 and drawn.sum() == 255


def test_calibration_error_is_the_gap_of_confidence_and_accuracy() -> None:
    sure = torch.tensor([[20.0, 0.0]]).repeat(100, 1)
    assert calibration_error(sure, torch.zeros(100, dtype=torch.long)) == pytest.approx(0.0, abs=1e-6)
    assert calibration_error(sure, torch.tensor([0] * 70 + [1] * 30)) == pytest.approx(0.3, abs=1e-6)
    # Against a slow, obvious reference.
    scores, labels = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)), torch.arange(500) % 4
    confidence, guess = scores.double().softmax(1).max(1)
    total = 0.0
    for i in range(15):
        held = [k for k in range(500) if i / 15 < float(confidence[k]) <= (i + 1) / 15]
        if held:
            accuracy = sum(int(guess[k] == labels[k]) for k in held) / len(held)
            total += len(held) / 500 * abs(accuracy - sum(float(confidence[k]) for k in held) / len(held))
    assert calibration_error(scores, labels) == pytest.approx(total, abs=1e-9)


def test_disturbances_are_mild_and_the_same_each_time() -> None:
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for change in corruptions(x).values():
        y = change(x)
        assert y.shape == x.shape and torch.equal(y, change(x)) and 0 < float((y - x).std()) < 0.8 * float(x.std())
    flat = torch.full((1, 1, 4, 4), 0.5)
    assert torch.allclose(corruptions(x)["blur"](flat), flat) and torch.allclose(corruptions(x)["contrast"](flat), flat)
    assert list(corruptions(torch.rand(4, 3))) == ["noise"] and not corruptions(torch.arange(3))
