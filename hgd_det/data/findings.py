"""What can be wrong with a data set: the kinds, how bad each is, and the report counting them."""
from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field

# kind -> (severity, what it means). `break`: a training or evaluation would stop, or data would
# be lost; `bias`: it would run, and learn or measure something wrong; `note`: worth knowing.
KINDS = {
    'split_missing': ('break', 'a list or annotation file is not there'),
    'split_empty': ('break', 'a list names no image'),
    'json_broken': ('break', 'an annotation file is not JSON'),
    'json_keys': ('break', 'an entry lacks a key or holds a wrong type'),
    'id_blank': ('break', 'a line of a list is empty or has spaces around or inside the name'),
    'id_unsafe': ('break', 'a name points out of its folder (absolute, or with ..)'),
    'image_missing': ('break', 'the image file is not there'),
    'image_undecodable': ('break', 'the image cannot be decoded'),
    'image_truncated': ('break', 'the file ends early: by its version, OpenCV refuses it or fills '
                        'the rest with grey'),
    'image_huge': ('break', 'the image claims too many pixels to decode safely'),
    'annotation_missing': ('break', 'the image has no annotation file'),
    'xml_unparsable': ('break', 'the annotation is not well-formed XML'),
    'xml_doctype': ('break', 'the annotation declares a DOCTYPE (entities could expand without '
                    'end); it was not parsed'),
    'xml_incomplete': ('break', 'a field that mmdet reads is missing or not a number'),
    'coordinate_bad': ('break', 'a box coordinate is missing, not a number, or beyond any image'),
    'annotation_id_duplicate': ('break', 'two annotations share one id'),
    'image_cmyk': ('bias', 'CMYK: colours depend on the decoder'),
    'exif_rotated': ('bias', 'EXIF turns the image when loaded; the boxes were drawn on it unturned'
                     ' (or nothing tells)'),
    'size_wrong': ('bias', 'the annotated size is not the size of the image'),
    'filename_other': ('bias', '<filename> names another image of the set'),
    'box_zero': ('bias', 'the box has no area'),
    'box_inverted': ('bias', 'the box ends before it begins'),
    'box_outside': ('bias', 'the box reaches more than a pixel out of the image'),
    'box_duplicate': ('bias', 'the same box of the same class occurs twice'),
    'class_unknown': ('bias', 'the class is not among those of the set; its objects are skipped'),
    'category_missing': ('bias', 'a class of the config is not in the annotation file'),
    'id_duplicate': ('bias', 'an image is listed twice'),
    'annotation_orphan': ('bias', 'an annotation belongs to no image'),
    'image_leak': ('bias', 'the same image is in training and in test data'),
    'image_duplicate': ('note', 'two names, one picture'),
    'image_suffix': ('note', 'not .jpg: mmdet reads it through VOCFolder, not through VOCDataset'),
    'image_extension': ('note', 'the content is of another format than the name says'),
    'image_grey': ('note', 'one channel'),
    'image_alpha': ('note', 'has an alpha channel, which is dropped'),
    'image_palette': ('note', 'palette colours'),
    'image_16bit': ('note', '16 bits a channel, reduced to 8'),
    'image_empty': ('note', 'no object (training leaves it out by default)'),
    'exif_consistent': ('note', 'EXIF turns the image when loaded, and the annotation agrees'),
    'size_missing': ('note', 'the annotation has no <size>'),
    'filename_wrong': ('note', '<filename> is not the name of the image'),
    'box_off_by_one': ('note', 'a coordinate is 0 or one past the edge: counted from 0, or with '
                       'exclusive ends'),
    'box_tiny': ('note', 'a side is shorter than 4 pixels'),
    'crowd': ('note', 'crowd regions; ignored in training and evaluation'),
    'difficult': ('note', 'difficult objects; ignored in training and evaluation'),
    'class_unused': ('note', 'a class no object has'),
}
# An image with one of these cannot be repaired by rewriting its annotation: cleaned lists lack it.
UNFIT = frozenset((
    'id_blank', 'id_unsafe', 'image_missing', 'image_undecodable', 'image_huge',
    'annotation_missing', 'xml_unparsable', 'xml_doctype', 'image_truncated', 'image_cmyk',
    'exif_rotated', 'size_wrong', 'filename_other', 'image_leak'))
SEVERITIES = ('break', 'bias', 'note')


MOST = 300  # characters of a text from the data that is shown


def plain(text: str) -> str:
    """A text from the data as one line: cut short, and without what would steer a terminal."""
    text = text if len(text) <= MOST else text[:MOST] + '...'
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)


@dataclass(frozen=True)
class Finding:
    kind: str
    where: str
    detail: str = ''
    times: int = 1

    def __post_init__(self):
        assert self.kind in KINDS, self.kind


@dataclass
class Report:
    """Counts every finding, keeps the first few of each kind."""
    target: str
    keep: int = 5
    counts: Counter = field(default_factory=Counter)
    examples: dict = field(default_factory=dict)
    splits: list = field(default_factory=list)
    cleaned: list = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        self.counts[finding.kind] += finding.times
        shown = self.examples.setdefault(finding.kind, [])
        if len(shown) < self.keep:
            shown.append((plain(finding.where), plain(finding.detail)))

    def count(self, severity: str) -> int:
        return sum(n for kind, n in self.counts.items() if KINDS[kind][0] == severity)

    def text(self) -> str:
        lines = [f'{split["name"]}: {split["images"]} images, {split["objects"]} objects, '
                 + _classes(split['classes']) for split in self.splits]
        for severity in SEVERITIES:
            for kind, (its_severity, meaning) in KINDS.items():
                if its_severity != severity or not self.counts[kind]:
                    continue
                lines.append(f'{severity:5}  {kind}: {self.counts[kind]}  ({meaning})')
                lines += [f'         {where}{": " + detail if detail else ""}'
                          for where, detail in self.examples[kind]]
                more = self.counts[kind] - len(self.examples[kind])
                if more > 0 and self.examples[kind]:
                    lines.append(f'         ... and {more} more')
        lines += self.cleaned
        breaks, biases = self.count('break'), self.count('bias')
        if breaks or biases:
            lines.append(f'result: {breaks} finding(s) would break training, {biases} would bias '
                         'it or the evaluation')
        else:
            lines.append('result: clean')
        return '\n'.join(lines)

    def json(self) -> str:
        return json.dumps(dict(
            target=self.target, clean=not (self.count('break') or self.count('bias')),
            splits=self.splits,
            findings=[dict(kind=kind, severity=KINDS[kind][0], meaning=KINDS[kind][1],
                           count=self.counts[kind],
                           examples=[dict(where=where, detail=detail)
                                     for where, detail in self.examples[kind]])
                      for kind in KINDS if self.counts[kind]]), indent=1)


def _classes(counts: dict) -> str:
    top = sorted(counts.items(), key=lambda item: -item[1])
    shown = ', '.join(f'{plain(name)} {n}' for name, n in top[:8])
    return f'{len(top)} classes ({shown}{", ..." if len(top) > 8 else ""})'


def fold(name: str) -> str:
    """A class name as two spellings of it have in common."""
    return ''.join(name.casefold().replace('_', ' ').replace('-', ' ').split())
