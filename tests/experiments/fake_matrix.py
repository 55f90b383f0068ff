"""`hgd-det reproduce` of a small table whose trainings are fakes: `fake_matrix.py FOLDER STEPS [BAD-LABEL]`.

Used by tests, in their process and as one of its own that they kill.
"""
import sys
from dataclasses import dataclass
from pathlib import Path

from hgd_det.experiments import cells
from hgd_det.experiments.reproduce import Matrix, Room, reproduce
from hgd_det.experiments.tables import Line, Table

TRAINING = Path(__file__).with_name('fake_training.py')
NAMES = ('teacher', 'student', 'hint', 'hgd')


def table(folder: Path) -> Table:
    """Four lines, of which the last two have a teacher."""
    paper = dict(teacher=76.7, student=65.6, hint=68.2, hgd=72.6)
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        taught = f"dict(model='{folder}/teacher.py', checkpoint='x')" if name in ('hint', 'hgd') else None
        (folder / f'{name}.py').write_text(f"model = dict(type='Fake', teacher={taught})\n")
    return Table('4', 'fakes', 'shapes', tuple(
        Line(name, str(folder / f'{name}.py'), paper={'mAP': paper[name]}, single=name == 'teacher',
             alone=str(folder / 'student.py') if name in ('hint', 'hgd') else '') for name in NAMES))


@dataclass(frozen=True)
class FakeWork(cells.Work):
    steps: int = 40
    fails: bool = False

    def command(self):
        if self.metrics() is not None:
            return None
        return [sys.executable, '-S', '-E', str(TRAINING), str(self.folder), str(self.steps),
                *['25'] * self.fails]


class Fakes(Matrix):
    steps, bad = 40, ''

    def work(self, cell):
        work = super().work(cell)
        return FakeWork(cell, work.folder, work.teacher, steps=self.steps, fails=cell.name == self.bad)


def matrix(folder: Path, steps: int = 40, bad: str = '', slots: int = 2, **more) -> Matrix:
    """Seven cells: a teacher and three lines of two seeds."""
    Fakes.steps, Fakes.bad = steps, bad
    return Fakes([table(folder / 'configs')], [0, 1], folder / 'work', folder / 'results/fakes.csv',
                 Room(((),) * slots, 'a fake device'), **more)


if __name__ == '__main__':
    sys.exit(reproduce(matrix(Path(sys.argv[1]), int(sys.argv[2]), (sys.argv[3:] or [''])[0])))
