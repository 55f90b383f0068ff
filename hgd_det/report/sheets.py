"""Feature maps and boxes of several detectors on one image, as one picture: a row per detector."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from hgd_det.checkpoint import atomic_write
from hgd_det.deploy import pictures
from hgd_det.report import panels
from hgd_det.report.detectors import Detector, look

CELL, GAP, HEAD = 320, 8, 24    # pixels: a cell's longer side, between cells, a line of text


class Sheets:
    """Draws images as the same detectors see them; `sizes` are those of the maps shown."""

    def __init__(self, detectors: Sequence[Detector], heights: Sequence[int] = (), score: float = 0.3):
        self.detectors, self.score = detectors, score
        self.stages = [panels.stages(each) for each in detectors]
        self.sizes = panels.choose(self.stages, heights)

    def write(self, image: np.ndarray, path: Path) -> None:
        atomic_write(panels.encode(self.draw(image), path.suffix), path)

    def draw(self, image: np.ndarray) -> np.ndarray:
        """RGB: a title and a row of cells for each detector; without the stage, a cell is empty."""
        height, width = panels.fitted(image, CELL)
        columns = 1 + len(self.sizes)
        sheet = Image.new('RGB', (columns * (width + GAP) + GAP,
                                  len(self.detectors) * (height + HEAD + GAP) + GAP), (255, 255, 255))
        brush, font = ImageDraw.Draw(sheet), pictures.font_of(15)
        for row, (detector, specs) in enumerate(zip(self.detectors, self.stages, strict=True)):
            top = GAP + row * (height + HEAD + GAP)
            found = look(detector, image, self.score)
            maps = panels.maps(detector, specs, self.sizes, image)
            cells = {detector.name: pictures.draw(image, found, detector.model.classes)} | {
                f'{size[0]} x {size[1]}': panels.heat(maps[size]) if size in maps else None
                for size in self.sizes}
            for column, (title, cell) in enumerate(cells.items()):
                left = GAP + column * (width + GAP)
                brush.text((left, top), title, (0, 0, 0), font)
                if cell is None:
                    brush.text((left, top + HEAD), 'no such stage', (90, 90, 90), font)
                    continue
                way = cv2.INTER_AREA if column == 0 else cv2.INTER_NEAREST
                sheet.paste(Image.fromarray(cv2.resize(cell, (width, height), interpolation=way)),
                            (left, top + HEAD))
        return np.asarray(sheet)
